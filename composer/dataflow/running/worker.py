"""One process of a run on Ray: the models that were dealt to it, and their calls."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from composer.checkpoint.blending import ModuleTensors, blend_tensors, tensors_of
from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.running.local import LocalRunner
from composer.parallel.launch import Mesh, start
from composer.parallel.sharding import shard
from composer.spec.parallel import ParallelSpec
from composer.trust import allow_beside, import_allowed

__all__ = ["CallWorker", "Group"]

Group: TypeAlias = tuple[int, int, str, int]
"""The number of a process among so many, and the host and the port at which they meet."""

if TYPE_CHECKING:
    from composer.dataflow.running.schedule import Reference


class CallWorker:
    """Reads the experiment ``text`` here, so that registries have what the ``allow``-ed modules register, and builds
    the models called ``models``; as one process of a ``group`` only its shards of them.

    ``folders`` are where those modules lie, if they are not installed, the first of them the current folder of the run;
    ``files`` where the experiment's files do, and ``folder`` is that of the run.
    """

    def __init__(
        self,
        text: str,
        allow: Sequence[str],
        folders: Sequence[str],
        files: Sequence[str],
        folder: str | None,
        models: Collection[str],
        group: Group | None = None,
    ) -> None:
        mesh = None if group is None else joined_group(*group)
        with suppress(OSError, IndexError):  # a node may not have it
            os.chdir(folders[0])
        allow_beside(folders, allow)
        import_allowed(allow)
        self.experiment = read_experiment(text, allow=[*allow, *files])
        self._runner = LocalRunner(self.experiment, allow, models, shards=True, folder=folder)
        if mesh is not None:
            for name, model in self._runner.models.items():
                shard_model(model, mesh, self.experiment.models[name].parallel)

    def call(self, name: str, iteration: int, *values: Reference) -> Reference:
        """What the call has logged, and then what it writes, each an object of Ray's."""
        call = self.experiment.calls[name]
        _, written = self._runner.start(call, iteration, values)
        numbers = dict(self._runner.numbers(call))
        return (numbers, *written) if written else numbers

    def blend(self, source: str, target: str, eta: float) -> None:
        self._runner.blend(source, target, eta)

    def weights(self, model: str) -> ModuleTensors:
        """What `move` takes in another process."""
        return tensors_of(self._runner.models[model].network)

    def move(self, model: str, weights: ModuleTensors, eta: float) -> None:
        """As `blend`, towards a model of another process."""
        blend_tensors(self._runner.models[model].network, weights, eta)

    def save(self, folder: str) -> None:
        self._runner.save(folder)

    def load(self, folder: str) -> None:
        self._runner.load(folder)


def joined_group(rank: int, size: int, host: str, port: int) -> Mesh:
    """The processes that share the models, as torchrun would start them; they meet at ``host`` and ``port``."""
    is_here = host in ("127.0.0.1", "localhost")
    here = {"LOCAL_RANK": rank if is_here else 0, "LOCAL_WORLD_SIZE": size if is_here else 1}
    given = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": host, "MASTER_PORT": port, **here}
    os.environ.update({name: str(value) for name, value in given.items()})
    return start("gloo")


def shard_model(model: ExperimentModel, mesh: Mesh, plan: ParallelSpec | None) -> None:
    """Spread a model over the processes of ``mesh``; its optimiser is made anew, of the shards."""
    shard(model.model, mesh, plan)
    if model.optimization is not None:
        model.optimizer = model.optimization.make(model.parameters())
