"""An experiment as typed data: its models, its data set, its calls, its hooks and its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from composer.errors import Path
from composer.source.load import GivenSpec, Source
from composer.spec.parallel import ParallelSpec
from perception_blocks.dag import Dag
from perception_blocks.registry import Registry
from perception_blocks.settings import NonNegativeInt, PositiveInt, Range

__all__ = ["EXPERIMENTS", "CallSpec", "DataSpec", "Experiment", "HookSpec", "ModelEntry", "RunSpec"]
__all__ += ["is_experiment", "registered_spec"]

EXPERIMENTS = Registry("experiment", hyphens=True)
"""Experiments by name, for `extends` and the command line: functions without arguments, such as classes, that return a
file, YAML text or a mapping, or an object whose ``spec()`` does; or the `pathlib.Path` of a file."""
EXPERIMENTS.register_all(
    "composer.dataflow.calls.experiments",
    {name: name for name in ("sft", "rw", "dpo", "ppo", "generation")},
)

Settings = Mapping[str, object]


@dataclass(frozen=True)
class ModelEntry:
    """A model of the experiment. One of ``like`` and the keys of ``origin`` says where it comes from.

    ``origin`` has exactly one key: ``decoder`` (settings of the block, with a ``family``), ``checkpoint`` (a folder of
    Hugging Face, or a file of ours), ``spec`` (a file of ours, or a mapping) or ``model_type``; its value is as
    written. A model ``like`` another begins with the other's architecture and, unless it is a critic of an actor, its
    weights. ``optimizer`` has ``lr`` and what else the optimiser takes; None is never trained.
    """

    name: str
    path: Path
    origin: Settings
    like: str | None = None
    is_critic: bool = False
    init_critic_from_actor: bool = False
    vocabulary: str | None = None
    max_length: int | None = None
    optimizer: Settings | None = None
    parallel: ParallelSpec | None = None


@dataclass(frozen=True)
class DataSpec:
    """A data set by name, with its ``settings``, and how many items a batch has."""

    dataset: str
    path: Path
    settings: Settings
    batch_size: int = 8


@dataclass(frozen=True)
class CallSpec:
    """One call: ``verb`` of ``interface`` on ``model`` (None for an interface that needs none).

    ``reads`` and ``writes`` map the interface's names to the values of the experiment.
    """

    name: str
    path: Path
    verb: str
    interface: str
    model: str | None = None
    reads: Mapping[str, str] = field(default_factory=dict)
    writes: Mapping[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class HookSpec:
    """After the call ``after``: ``target`` becomes eta * source + (1 - eta) * target."""

    path: Path
    after: str
    source: str
    target: str
    eta: float = 1.0


@dataclass(frozen=True)
class RunSpec:
    """``iterations`` batches; a checkpoint after every ``save_every`` of them and at the end."""

    iterations: PositiveInt = 100
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    runner: Literal["local", "ray"] = "local"
    workers: Annotated[int, Range(1, 1000)] = 2
    save_every: PositiveInt | None = None
    restarts: NonNegativeInt = 0


@dataclass(frozen=True)
class Experiment:
    """A checked experiment.

    ``dag`` orders the calls: by values, and each training after all other calls of its model.
    """

    name: str
    source: Source
    models: Mapping[str, ModelEntry]
    data: DataSpec
    calls: Mapping[str, CallSpec]
    hooks: tuple[HookSpec, ...]
    run: RunSpec
    dag: Dag
    extensions: tuple[str, ...] = ()

    def ordered_calls(self) -> list[CallSpec]:
        """The calls, each after those that it waits for."""
        return [self.calls[node.name] for node in self.dag.order()]

    def used_models(self) -> list[str]:
        """The models that calls and hooks name, in the order of the experiment; no other is built."""
        used = {call.model for call in self.calls.values()}
        used |= {name for hook in self.hooks for name in (hook.source, hook.target)}
        return [name for name in self.models if name in used]

    def where(self, path: Path) -> str:
        """Where the value at ``path`` is written, as the beginning of a message; nothing where it was no text."""
        position = self.source.position(path)
        return "" if position is None else f"{position}: "


def is_experiment(data: Mapping[str, object]) -> bool:
    """Whether the data of a spec describes an experiment: it has ``calls``, or ``models`` and ``data``."""
    return "calls" in data or {"models", "data"} <= data.keys()


def registered_spec(name: str) -> GivenSpec:
    """The spec of a registered experiment. Raises UnknownNameError."""
    spec: Any = EXPERIMENTS.get(name)
    spec = spec() if callable(spec) else spec
    return spec.spec() if hasattr(spec, "spec") else spec
