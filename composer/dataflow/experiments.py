"""Experiments by name: those of ours, those that a user registers, and how other systems spell their settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from composer.dataflow.experiment import EXPERIMENTS
from composer.errors import Position, Problem, SpecError
from composer.source.load import GivenSpec, Override, Source
from perception_blocks.words import hint

__all__ = ["NAMES", "OURS", "QUICKSTARTS", "register_experiment", "translated"]

QUICKSTARTS = Path(__file__).parent / "quickstarts"
OURS = ("sft", "rw", "dpo", "ppo", "generation")
NAMES = ("experiment_name", "trial_name")
GENERATION = "gen"  # ppo.gen.max_new_tokens is ppo.max_new_tokens


def register_experiment(name: str, spec: GivenSpec | type, *, replace: bool = False) -> None:
    """Give an experiment a name, for `composer run NAME` and for `extends`.

    ``spec`` is a file, YAML text or a mapping, or a class whose objects have one as ``spec()``. Raises NameTakenError
    when the name is taken and ``replace`` is not set.

    >>> register_experiment("my-ppo", {"extends": "ppo", "run": {"iterations": 5}})
    """
    given = spec if isinstance(spec, type) else _Given(name, spec)
    EXPERIMENTS.register(name, given, replace=replace)


class _Given:
    """A function of the registry that returns ``spec``; the registry tells two of them apart by their addresses."""

    def __init__(self, name: str, spec: GivenSpec) -> None:
        self._spec = spec
        self.__module__, self.__qualname__ = "registered", f"{name} {id(spec)}"

    def __call__(self) -> GivenSpec:
        return self._spec


sft, rw, dpo, ppo, generation = (_Given(name, QUICKSTARTS / f"{name}.yaml") for name in OURS)


def translated(name: str, overrides: Iterable[Override], source: Source) -> list[Override]:
    """``overrides`` of an experiment of ours, in which ``ppo.kl_ctl=0.1`` and ``trial_name=a`` are params.

    ``source`` is the experiment without them. Raises SpecError for a setting that it does not have.
    """
    if name not in OURS:
        return list(overrides)
    problems: list[Problem] = []
    result = [_translated(name, override, source, problems) for override in overrides]
    if problems:
        raise SpecError(problems)
    return result


def _translated(name: str, override: Override, source: Source, problems: list[Problem]) -> Override:
    is_text = isinstance(override, str)
    key, equals, text = override.partition("=") if is_text else (override[0], "=", "")
    path = key.strip().split(".") if isinstance(key, str) else [str(part) for part in key]
    if path[0] == name and len(path) > 1:
        setting = path[-1]
        nested = path[1:-1] not in ([], [GENERATION])
    elif path in ([other] for other in NAMES):
        setting, nested = path[0], False
    else:
        return override
    if nested or setting not in source.params:
        known = [param for param in source.params if param not in NAMES]
        message = f"{'.'.join(path)!r} is no setting of the experiment {name!r}"
        near = hint(setting, known, f"its settings, after '{name}.', are")
        place = Position(f"--set {override}" if is_text else f"--set {'.'.join(path)}")
        problems.append(Problem(message + near, tuple(path), place))
        return override
    return f"params.{setting}{equals}{text}" if is_text else (f"params.{setting}", override[1])
