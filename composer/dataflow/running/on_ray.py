"""Calls on the workers of a Ray cluster. Values go from one to another by reference, and never through this process."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from composer.dataflow.calls.experiment import CallSpec, Experiment
from composer.dataflow.running.cluster import connect, import_ray
from composer.dataflow.running.schedule import Reference, RunError, WorkerDiedError
from composer.errors import SpecError
from composer.source.files import names_a_folder, real_path
from composer.trust import allow_list
from perception_blocks.words import cut

__all__ = ["RayRunner", "WorkerPlan", "plan_workers"]

# The places of what a worker reads, which is the experiment as one resolved text.
_THERE = re.compile(r"<spec>:\d+:\d+: ")


class RayRunner:
    """A `composer.dataflow.running.schedule.Runner` whose models are dealt over ``run.workers`` processes.

    A model with ``parallel`` is sharded over a group of processes of its own, each of which computes whole batches.

    Without an ``address`` of a cluster, one is started on this machine that nobody else reaches; where this process is
    connected to Ray already, that is used. Each worker reads the experiment again and imports the ``allow``-ed modules
    itself, from where they were found here. ``folder`` is that of the run, for what calls write.

    Raises RunError where the cluster or a worker cannot be had; MissingExtraError without Ray.
    """

    def __init__(
        self,
        experiment: Experiment,
        allow: Iterable[str] = (),
        address: str | None = None,
        *,
        folder: str | None = None,
    ) -> None:
        self.experiment = experiment
        allow = allow_list(allow)
        plans = plan_workers(experiment)
        refuse_hooks_over_shards(experiment, plans)
        self._is_shared = address is not None
        self._end = connect(address, sum(plan.processes for plan in plans))
        self._ray = import_ray()
        self._numbers: dict[str, Mapping[str, float]] = {}
        self._put: dict[int, tuple[Reference, Reference]] = {}  # by id: a value, and its reference
        # Of the end of a call in the first process of a group those in the other processes.
        self._other_ends: dict[Reference, Sequence[Reference]] = {}
        self._iteration = -1
        self._actors: dict[str, list[Any]] = {}  # of each place; the first answers
        self._processes: dict[Any, int] = {}
        try:
            self._build(plans, allow, folder)
        except BaseException:
            self.close()
            raise

    def _build(self, plans: Sequence[WorkerPlan], allow: Sequence[str], folder: str | None) -> None:
        source, models = self.experiment.source, self.experiment.models
        files = [os.path.join(folder, "") for folder in source.folders]
        given = (source.to_yaml(), allow, folders_of(allow), files, folder)
        options = {"num_cpus": 1 if self._is_shared else 0, "scheduling_strategy": "SPREAD"}
        worker = self._ray.remote(actor_class()).options(max_restarts=0, **options)
        building = {}
        for plan in plans:
            actors = [worker.remote() for _ in range(plan.processes)]
            self._actors |= dict.fromkeys(plan.places, actors)
            meeting = None
            if plan.processes > 1:
                what = f"the workers of {', '.join(plan.places)}"
                meeting = self._get(actors[0].meeting.remote(), what)
            names = [place for place in plan.places if place in models]
            for rank, actor in enumerate(actors):
                group = None if meeting is None else (rank, plan.processes, *meeting)
                building[actor] = (plan, actor.build.remote(*given, names, group))
        for actor, (plan, reference) in building.items():
            what = f"the worker of {', '.join(plan.places)}"
            self._processes[actor] = self._built(reference, what)

    def _built(self, reference: Reference, what: str) -> int:
        try:
            return self._get(reference, what)
        except SpecError as error:  # here the experiment was good
            raise RunError(
                f"{what} does not know what this process knows: {error.problems[0].message}; put what you register "
                "into a module and allow that, such as allow=['my_rewards'] or --allow my_rewards"
            ) from error

    # --- the protocol -------------------------------------------------------------------------------------------------

    def start(
        self, call: CallSpec, iteration: int, values: Sequence[Reference]
    ) -> tuple[Reference, Sequence[Reference]]:
        if iteration != self._iteration:  # values of an iteration are let go with it
            self._iteration, self._put = iteration, {}
        given = [self._reference(value) for value in values]
        count = 1 + len(call.writes)
        started = [
            actor.do.options(num_returns=count).remote("call", call.name, iteration, *given)
            for actor in self._actors[place_of(call)]
        ]
        (end, *written), *others = [[ends] if count == 1 else ends for ends in started]
        self._other_ends[end] = [other[0] for other in others]
        return end, written

    def wait(self, running: Mapping[str, Reference]) -> str:
        names = {end: name for name, end in running.items()}
        (end, *_), _ = self._ray.wait(list(names), num_returns=1)
        name = names[end]
        what = f"the call {name!r} in iteration {self._iteration}"
        self._numbers[name] = self._get_all([end, *self._other_ends.pop(end, ())], what, name)
        return name

    def numbers(self, call: CallSpec) -> Mapping[str, float]:
        return self._numbers.get(call.name, {})

    def blend(self, source: str, target: str, eta: float) -> None:
        what = f"the hook from {source!r} to {target!r} in iteration {self._iteration}"
        (source_actor, *_), (target_actor, *_) = self._actors[source], self._actors[target]
        if source_actor is target_actor:
            moved = target_actor.do.remote("blend", source, target, eta)
        else:
            moved = target_actor.do.remote(
                "move", target, source_actor.do.remote("weights", source), eta
            )
        self._get(moved, what)

    def save(self, folder: str) -> None:
        self._on_each("save", os.path.abspath(folder))

    def load(self, folder: str) -> None:
        self._on_each("load", os.path.abspath(folder))

    def close(self) -> None:
        for actor in self._all_actors():
            self._ray.kill(actor)
        self._actors, self._put = {}, {}
        self._end()

    # --- what is behind it --------------------------------------------------------------------------------------------

    def processes(self) -> Mapping[str, int]:
        """The number of the process that each model, and each call without one, is in."""
        return {place: self._processes[actors[0]] for place, actors in self._actors.items()}

    def _all_actors(self) -> list[Any]:
        return list(dict.fromkeys(actor for actors in self._actors.values() for actor in actors))

    def _on_each(self, method: str, folder: str) -> None:
        references = [actor.do.remote(method, folder) for actor in self._all_actors()]
        self._get_all(references, f"a worker that was to {method} its models")

    def _get_all(self, references: Sequence[Reference], what: str, call: str | None = None) -> Any:
        """What there is at the first. Where one process of several has ended, the others fail because of it."""
        results, errors = [], []
        for reference in references:
            try:
                results.append(self._get(reference, what, call))
            except Exception as error:
                errors.append(error)
        for error in sorted(errors, key=lambda e: not isinstance(e, WorkerDiedError)):
            raise error
        return results[0]

    def _reference(self, value: Reference) -> Reference:
        """A value of the data set becomes a reference once, however many calls read it."""
        if isinstance(value, self._ray.ObjectRef):
            return value
        if id(value) not in self._put:
            self._put[id(value)] = (value, self._ray.put(value))
        return self._put[id(value)][1]

    def _get(self, reference: Reference, what: str, call: str | None = None) -> Any:
        """What there is at a small reference. Raises what was raised ``what`` did, and WorkerDiedError."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            self._raise_cause(error, what, call)
        except errors.RayActorError as error:
            place = self._models_of(call)
            raise WorkerDiedError(
                f"{what}{place}: its process has ended: {reason_of(error)}"
            ) from None
        except errors.RayError as error:
            raise RunError(f"{what}: {cut(first_line(str(error)), 300)}") from error

    def _raise_cause(self, error: Any, what: str, call: str | None) -> NoReturn:
        """The exception of a worker, whose traceback there is its cause."""
        cause = error.cause if isinstance(error.cause, Exception) else None
        if cause is None or isinstance(cause, self._ray.exceptions.RayError):
            raise RunError(f"{what}: {cut(last_line(str(error)), 500)}") from error
        where = "" if call is None else self.experiment.where(("calls", call))
        if isinstance(cause, RunError):
            raise RunError(_THERE.sub(where, str(cause))) from error
        cause.__notes__ = [_THERE.sub(where, note) for note in getattr(cause, "__notes__", ())]
        raise cause from error

    def _models_of(self, call: str | None) -> str:
        model = None if call is None else self.experiment.calls[call].model
        return "" if model is None else f", model {model!r}"


def actor_class() -> type:
    """The class that Ray sends to a worker: these lines, and not the name of a module.

    A worker would look for that in the current folder first, which Ray has put on its path.
    """

    class Worker:
        def __init__(self) -> None:
            """Take off ``sys.path`` what Ray has put before its own folders: those of the run's script."""
            import os
            import sys

            import ray

            ours = os.path.dirname(ray.__file__)
            first = next((i for i, folder in enumerate(sys.path) if folder.startswith(ours)), 0)
            del sys.path[:first]
            self.worker: Any = None

        def meeting(self) -> tuple[str, int]:
            """An address and a free port here, for the processes of a group to meet at."""
            import socket

            import ray

            host = ray.util.get_node_ip_address()
            with socket.socket() as free:
                free.bind((host, 0))
                return host, free.getsockname()[1]

        def build(self, *arguments: Any) -> int:
            """Returns the number of the process."""
            from composer.dataflow.running.worker import CallWorker

            self.worker = CallWorker(*arguments)
            return os.getpid()

        def do(self, method: str, *arguments: Any) -> Any:
            return getattr(self.worker, method)(*arguments)

    return Worker


# --- which worker does what -------------------------------------------------------------------------------------------


def place_of(call: CallSpec) -> str:
    """Its model; a call without one is by itself: its name is in parentheses, as no model's is."""
    return call.model or f"({call.name})"


@dataclass(frozen=True)
class WorkerPlan:
    """What one worker has, or one group of ``processes`` that share a sharded model."""

    places: Sequence[str]
    processes: int = 1


def plan_workers(experiment: Experiment) -> list[WorkerPlan]:
    """The places of each worker, in turn by the order of the calls, so that neighbours in the graph may overlap.

    A model with ``parallel`` has a group of workers for itself, beside ``run.workers``.
    """
    places = list(dict.fromkeys(place_of(call) for call in experiment.ordered_calls()))
    for hook in experiment.hooks:
        places += [name for name in (hook.source, hook.target) if name not in places]
    sizes = {place: processes_of(experiment, place) for place in places}
    groups = [WorkerPlan([place], size) for place, size in sizes.items() if size > 1]
    whole = [place for place, size in sizes.items() if size == 1]
    workers = min(experiment.run.workers, len(whole))
    return [WorkerPlan(whole[first::workers]) for first in range(workers)] + groups


def processes_of(experiment: Experiment, place: str) -> int:
    """How many processes share what is at a place; ``data: auto`` means ``run.workers``."""
    entry = experiment.models.get(place)
    if entry is None or entry.parallel is None:
        return 1
    data = experiment.run.workers if entry.parallel.data is None else entry.parallel.data
    return data * entry.parallel.tensor


def refuse_hooks_over_shards(experiment: Experiment, plans: Sequence[WorkerPlan]) -> None:
    sharded = {place for plan in plans if plan.processes > 1 for place in plan.places}
    for hook in experiment.hooks:
        for name in {hook.source, hook.target} & sharded:
            raise RunError(
                f"{experiment.where(hook.path)}a hook moves whole models, and {name!r} has 'parallel'; "
                "leave out one of the two"
            )


# --- what a worker needs to find what was found here ------------------------------------------------------------------


def folders_of(allow: Iterable[str]) -> list[str]:
    """The folders in which the allowed modules were found here."""
    folders = [real_path("")]
    for name in [entry.partition(".")[0] for entry in allow if not names_a_folder(entry)]:
        spec = importlib.util.find_spec(name)
        inside = (
            [*spec.submodule_search_locations] if spec and spec.submodule_search_locations else []
        )
        if not inside and spec is not None and spec.origin:
            inside = [spec.origin]
        folders += [str(Path(path).parent) for path in inside]
    return list(dict.fromkeys(folders))


# --- errors in a line -------------------------------------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Why a worker has ended, in a line, of what Ray says in twenty."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    detail = re.search(
        r"Worker exit detail: (.*?)(?: Some common causes| This may be|$)", text, re.S
    )
    return cut(" ".join((detail[1] if detail else last_line(text)).split()).rstrip("."), 300)


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
