"""Experiments by name: those of ours, those that a user registers, and how other systems spell their settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from composer.dataflow.calls.experiment import EXPERIMENTS, registered_spec
from composer.errors import Position, Problem, SpecError
from composer.source.load import GivenSpec, Override, Source, load_source
from perception_blocks.words import hint, near_name

__all__ = ["NAMES", "OURS", "QUICKSTARTS", "named_folder", "register_experiment", "translated"]

QUICKSTARTS = Path(__file__).parent.parent / "quickstarts"
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


def translated(experiment: object, overrides: Iterable[Override]) -> list[Override]:
    """``overrides``; of an experiment of ours, where ``ppo.kl_ctl=0.1`` is one of its params, as paths of its spec.

    `NAMES` are left out: they only name a folder. Raises SpecError for a setting that the experiment does not have.
    """
    if not isinstance(experiment, str) or experiment not in OURS:
        return list(overrides)
    source = load_source(experiment, named=registered_spec)
    problems: list[Problem] = []
    result = [_translated(experiment, override, source, problems) for override in overrides]
    if problems:
        raise SpecError(problems)
    return [override for override in result if override is not None]


def _translated(
    name: str, override: Override, source: Source, problems: list[Problem]
) -> Override | None:
    key, equals, text = _key_of(override)
    path = key.split(".")
    if path[0] in NAMES and len(path) == 1:
        return None
    if meant := near_name(key, NAMES):
        problems.append(_problem(override, key, f"{key!r} is not a key; did you mean {meant!r}?"))
    if path[0] != name or len(path) == 1:
        return override
    setting = path[-1]
    if path[1:-1] not in ([], [GENERATION]) or setting not in source.params:
        near = hint(setting, source.params, f"its settings, after '{name}.', are")
        message = f"{key!r} is no setting of the experiment {name!r}{near}"
        problems.append(_problem(override, key, message))
    return f"params.{setting}{equals}{text}" if equals else (f"params.{setting}", override[1])


def _key_of(override: Override) -> tuple[str, str, str]:
    """The dotted key of an override, and of a text what stands behind it."""
    if isinstance(override, str):
        key, equals, text = override.partition("=")
        return key.strip(), equals, text
    given = override[0]
    return given if isinstance(given, str) else ".".join(map(str, given)), "", ""


def _problem(override: Override, key: str, message: str) -> Problem:
    shown = override if isinstance(override, str) else key
    return Problem(message, tuple(key.split(".")), Position(f"--set {shown}"))


def named_folder(experiment: object, overrides: Iterable[Override]) -> Path | None:
    """The folder of a run that has an ``experiment_name`` or a ``trial_name``, as other systems lay theirs out."""
    if experiment not in OURS:
        return None
    names: dict[str, str] = {}
    for override in overrides:
        key, equals, text = _key_of(override)
        if key in NAMES:
            names[key] = text if equals else str(override[1])
    defaults = {"experiment_name": str(experiment), "trial_name": "trial"}
    return Path("runs", *{**defaults, **names}.values()) if names else None
