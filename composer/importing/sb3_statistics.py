"""The running statistics that Stable-Baselines3's VecNormalize saves, read from its pickle without unpickling."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.errors import Position, Problem, SpecError
from composer.importing.imported import Imported
from composer.importing.inert_pickle import Array, Made, array_of, read_inert
from composer.importing.nodes import OBSERVATION
from composer.source.files import display_name
from composer.source.foreign import foreign_bytes

__all__ = [
    "RunningStatistics",
    "VecNormalize",
    "add_statistics",
    "is_vec_normalize",
    "read_vec_normalize",
]

MOST_BYTES = 64 * 1024**2
_CLASS = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
_START = b"stable_baselines3.common.vec_env.vec_normalize"  # stands near the beginning
_STATISTICS = "RunningMeanStd"
_CLIP = 10.0  # of a NormalizeBlock, and the default there


@dataclass(frozen=True)
class RunningStatistics:
    """Mean and variance of ``count`` observations, of the same ``shape``."""

    mean: Array
    variance: Array
    count: float


@dataclass(frozen=True)
class VecNormalize:
    """The statistics of observations by name; ``epsilon`` is added to a variance, ``clip`` limits the result."""

    observations: Mapping[str, RunningStatistics]
    epsilon: float
    clip: float


def is_vec_normalize(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as one that VecNormalize saved."""
    try:
        with open(path, "rb") as file:
            return os.path.isfile(path) and _START in file.read(len(_START) + 100)
    except (OSError, ValueError):
        return False


def read_vec_normalize(path: str | os.PathLike[str]) -> VecNormalize:
    """What ``VecNormalize.save(path)`` wrote. Nothing of the file is unpickled.

    Raises SpecError for any other file, and for statistics that are no numbers.
    """
    name = display_name(os.fspath(path))
    data = foreign_bytes(path, MOST_BYTES)
    try:
        value = read_inert(data)
    except ValueError as error:
        raise _refusal(name, f"it cannot be read: {error}") from error
    state = value.state if isinstance(value, Made) and value.name == _CLASS else None
    if not isinstance(state, dict):
        raise _refusal(name, "it is no file that VecNormalize of Stable-Baselines3 saved")
    return VecNormalize(
        _observations(name, state),
        _number(state, "epsilon", 1e-8),
        _number(state, "clip_obs", _CLIP),
    )


def _observations(name: str, state: Mapping[Any, Any]) -> dict[str, RunningStatistics]:
    if state.get("norm_obs") is not True:
        raise _refusal(
            name, "it has no statistics of observations: norm_obs is false there; leave it out"
        )
    given = state.get("obs_rms")
    by_name = given if isinstance(given, dict) else {OBSERVATION: given}
    statistics = {str(key): _statistics(value) for key, value in by_name.items()}
    wrong = [key for key, value in statistics.items() if value is None]
    if wrong or not statistics:
        raise _refusal(
            name,
            f"the statistics of {wrong[0]!r} are no arrays of numbers"
            if wrong
            else "it has no statistics of observations",
        )
    return {key: value for key, value in statistics.items() if value is not None}


def _statistics(value: Any) -> RunningStatistics | None:
    state = value.state if isinstance(value, Made) and value.name.endswith(_STATISTICS) else None
    if not isinstance(state, dict):
        return None
    mean, variance = array_of(state.get("mean")), array_of(state.get("var"))
    if mean is None or variance is None or mean.shape != variance.shape:
        return None
    return RunningStatistics(mean, variance, _number(state, "count", 0.0))


def _number(state: Mapping[Any, Any], key: str, default: float) -> float:
    value = state.get(key, default)
    return float(value) if type(value) in (int, float) else default


def _refusal(name: str, reason: str) -> SpecError:
    return SpecError([Problem(reason, (), Position(name, 1, 1))])


def add_statistics(imported: Imported, path: str | os.PathLike[str]) -> None:
    """Let the spec of an agent normalise what VecNormalize normalised, and pair the statistics.

    Raises SpecError for a spec of another library.
    """
    saved = read_vec_normalize(path)
    if imported.kind != "sb3":
        reason = f"statistics of VecNormalize go with networks of Stable-Baselines3, not of {imported.kind}"
        raise _refusal(display_name(os.fspath(path)), reason)
    names = list(saved.observations)
    imported.spec["normalize"] = names
    imported.notes[:] = [
        note for note in imported.notes if not note.startswith("normalize: name the observations")
    ]
    if saved.clip != _CLIP:
        imported.note(
            f"clip_obs: clipped at {saved.clip:g} standard deviations there, at {_CLIP:g} here"
        )
    is_one = names == [OBSERVATION]
    for name in names:
        there = "obs_rms" if is_one else f"obs_rms.{name}"
        imported.weights.append((f"policy.normalizers.{name}", there))
