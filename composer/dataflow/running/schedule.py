"""Which call may start: one schedule for all runners. Values are references here; only workers see tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from composer.dataflow.calls.experiment import CallSpec, Experiment
from composer.errors import RefusedError

__all__ = ["Reference", "RunError", "Runner", "Schedule", "WorkerDiedError", "run_iterations"]

Reference: TypeAlias = Any
"""A value of the experiment as a runner knows it: the value itself, or Ray's reference to it."""


class RunError(RefusedError):
    """A run cannot start or go on; the message says why and what to do."""


class WorkerDiedError(RunError):
    """A process that ran calls has ended; the run goes on from its last checkpoint in new ones."""


class Runner(Protocol):
    """What runs calls: in this process, or on the workers of a cluster."""

    def start(
        self, call: CallSpec, iteration: int, values: Sequence[Reference]
    ) -> tuple[Reference, Sequence[Reference]]:
        """Begin a call on ``values`` in the order of its ``reads``; at once: (its end, what it writes)."""
        ...

    def wait(self, running: Mapping[str, Reference]) -> str:
        """The name of one running call that has ended, given the ends by name. Raises RunError where one failed."""
        ...

    def numbers(self, call: CallSpec) -> Mapping[str, float]:
        """What the last run of the call has logged."""
        ...

    def blend(self, source: str, target: str, eta: float) -> None:
        """target = eta * source + (1 - eta) * target, of two models' weights."""
        ...

    def save(self, folder: str) -> None:
        """Write the state of every model that is trained or blended below ``folder``."""
        ...

    def load(self, folder: str) -> None:
        """Read what `save` wrote."""
        ...

    def close(self) -> None: ...


class Schedule:
    """What each call of an experiment waits for, and who waits for it.

    A call waits for the writers of the values that it reads, a training also for all other calls of its model.
    """

    def __init__(self, experiment: Experiment) -> None:
        nodes = experiment.dag.order()
        writer = {name: node.name for node in nodes for name in node.writes}
        self.calls = [experiment.calls[node.name] for node in nodes]
        self.waits: dict[str, int] = {}
        self.waiting: dict[str, list[str]] = {node.name: [] for node in nodes}
        self.readers: dict[str, int] = {}  # of each value, how many calls read it
        for node in nodes:
            before = {writer[name] for name in node.reads if name in writer}
            self.waits[node.name] = len(before)
            for name in before:
                self.waiting[name].append(node.name)
        for call in self.calls:
            for value in {*call.reads.values()}:
                self.readers[value] = self.readers.get(value, 0) + 1

    def run(self, runner: Runner, iteration: int, given: Mapping[str, Reference]) -> None:
        """Run every call once; ``given`` are the values of the data set. A value is let go after its last reader."""
        values = {name: value for name, value in given.items() if name in self.readers}
        waits, readers = dict(self.waits), dict(self.readers)
        calls = {call.name: call for call in self.calls}
        running: dict[str, Reference] = {}
        written: dict[str, Sequence[Reference]] = {}
        ready = [name for name, count in waits.items() if not count]
        while ready or running:
            for name in ready:
                call = calls[name]
                read = [values[value] for value in call.reads.values()]
                running[name], written[name] = runner.start(call, iteration, read)
            ready = []
            name = runner.wait(running)
            del running[name]
            call = calls[name]
            fresh = zip(call.writes.values(), written.pop(name), strict=True)
            values.update((value, reference) for value, reference in fresh if value in readers)
            for value in {*call.reads.values()}:
                readers[value] -= 1
                if not readers[value]:
                    del values[value]
            for other in self.waiting[name]:
                waits[other] -= 1
                if not waits[other]:
                    ready.append(other)


def run_iterations(
    experiment: Experiment,
    runner: Runner,
    batch: Callable[[int], Mapping[str, Reference]],
    first: int = 0,
) -> Iterator[dict[str, float]]:
    """Run the iterations from ``first`` on; yields after each the numbers that its calls have logged, as "call/name".

    ``batch`` gives the values of the data set in an iteration by name. Each call starts as soon as all that it waits
    for has ended. When all have ended the hooks follow, in the order in which the calls that they come after are done.
    Between two iterations the caller may save the models. What a runner raises ends the run.
    """
    schedule = Schedule(experiment)
    place = {call.name: index for index, call in enumerate(schedule.calls)}
    hooks = sorted(experiment.hooks, key=lambda hook: place[hook.after])
    for iteration in range(first, experiment.run.iterations):
        schedule.run(runner, iteration, batch(iteration))
        for hook in hooks:
            runner.blend(hook.source, hook.target, hook.eta)
        yield {
            f"{call.name}/{name}": number
            for call in schedule.calls
            for name, number in runner.numbers(call).items()
        }
