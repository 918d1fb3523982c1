"""Which call may start: one schedule for all runners. Values are references here; only workers see tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from composer.dataflow.experiment import CallSpec
from composer.errors import RefusedError

__all__ = ["Reference", "RunError", "Runner", "WorkerDiedError"]

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
