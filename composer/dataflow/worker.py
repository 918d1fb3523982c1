"""One process of a run on Ray: the models that were dealt to it, and their calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from composer.checkpoint.blending import ModuleTensors, blend_tensors, tensors_of
from composer.dataflow.call_spec import read_experiment
from composer.dataflow.local import LocalRunner
from composer.trust import allow_beside, import_allowed

__all__ = ["CallWorker"]

if TYPE_CHECKING:
    from composer.dataflow.schedule import Reference


class CallWorker:
    """Reads the experiment ``text`` here, so that registries have what the ``allow``-ed modules register, and builds
    the models called ``models``.

    ``folders`` are where those modules lie, if they are not installed, ``files`` where the experiment's files do.
    """

    def __init__(
        self,
        text: str,
        allow: Sequence[str],
        folders: Sequence[str],
        files: Sequence[str],
        models: Collection[str],
    ) -> None:
        allow_beside(folders, allow)
        import_allowed(allow)
        self.experiment = read_experiment(text, allow=[*allow, *files])
        self._runner = LocalRunner(self.experiment, allow, models)

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
