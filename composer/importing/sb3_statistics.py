"""The running statistics that Stable-Baselines3's VecNormalize saves, read from its pickle without unpickling."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.errors import Position, Problem, SpecError
from composer.importing.imported import Imported
from composer.importing.inert_pickle import MOST_NUMBERS, Array, InertObject, array_of, read_inert
from composer.importing.nodes import OBSERVATION
from composer.source.files import display_name, is_regular
from composer.source.foreign import foreign_bytes
from perception_blocks.words import cut, is_writable

__all__ = [
    "EPSILON",
    "UNNAMED",
    "RunningStatistics",
    "VecNormalize",
    "add_statistics",
    "is_vec_normalize",
    "read_vec_normalize",
]

MOST_BYTES = 64 * 1024**2  # of a file
MOST_KEYS = 1_000  # of a Dict of observations
_MOST, _MOST_COUNTED = 1e30, 2**53  # of a number, and of observations
EPSILON = 1e-8  # that VecNormalize adds to a variance, unless it is told otherwise
# A note, unless the statistics say them.
UNNAMED = "normalize: name the observations under 'normalize:'"
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

    def name_of(self, observation: str) -> str:
        """What `read_checkpoint` calls the statistics of an ``observation``: those of a Dict by its keys."""
        is_only = [*self.observations] == [OBSERVATION]
        return "obs_rms" if is_only else f"obs_rms.{observation}"


def is_vec_normalize(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as one that VecNormalize saved."""
    try:
        if not is_regular(path):
            return False
        with open(path, "rb") as file:
            return _START in file.read(len(_START) + 100)
    except OSError:
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
    state = value.state if isinstance(value, InertObject) and value.name == _CLASS else None
    if not isinstance(state, dict):
        raise _refusal(name, "it is no file that VecNormalize of Stable-Baselines3 saved")
    try:
        return _vec_normalize(state)
    except ValueError as error:
        raise _refusal(name, str(error)) from error


def add_statistics(imported: Imported, path: str | os.PathLike[str]) -> None:
    """Let the spec of an agent normalise what VecNormalize normalised, and pair the statistics.

    Raises SpecError for a spec of another library.
    """
    saved = read_vec_normalize(path)
    if imported.kind != "sb3":
        reason = f"statistics of VecNormalize go with networks of Stable-Baselines3, not of {imported.kind}"
        raise _refusal(display_name(os.fspath(path)), reason)
    imported.spec["normalize"] = list(saved.observations)
    imported.notes[:] = [note for note in imported.notes if note != UNNAMED]
    if saved.clip != _CLIP:
        imported.note(
            f"clip_obs: clipped at {saved.clip:g} standard deviations there, at {_CLIP:g} here"
        )
    for name in saved.observations:
        imported.weights.append((f"policy.normalizers.{name}", saved.name_of(name)))


def _vec_normalize(state: Mapping[Any, Any]) -> VecNormalize:
    """What its ``state`` says. Raises ValueError."""
    if state.get("norm_obs") is not True:
        raise ValueError(
            "it has no statistics of observations: norm_obs is false there; leave it out"
        )
    given = state.get("obs_rms")
    by_name = given if isinstance(given, dict) else {OBSERVATION: given}
    if not by_name:
        raise ValueError("it has no statistics of observations")
    if len(by_name) > MOST_KEYS:
        raise ValueError(f"it has statistics of more than {MOST_KEYS:,} observations")
    observations, numbers = {}, 0
    for key, value in by_name.items():
        if not (isinstance(key, str) and is_writable(key)):
            raise ValueError("an observation in it has a name that is no text")
        observations[key] = _statistics(cut(key, 60), value)
        numbers += len(observations[key].mean.numbers)
        if numbers > MOST_NUMBERS:
            raise ValueError(f"it has statistics of more than {MOST_NUMBERS:,} numbers")
    epsilon, clip = _number(state, "epsilon", EPSILON), _number(state, "clip_obs", _CLIP)
    if not (epsilon >= 0 and clip > 0):
        raise ValueError(
            f"its 'epsilon' is {epsilon:g} and its 'clip_obs' {clip:g}; no observations are normalised so"
        )
    return VecNormalize(observations, epsilon, clip)


def _statistics(name: str, value: Any) -> RunningStatistics:
    state = (
        value.state if isinstance(value, InertObject) and value.name.endswith(_STATISTICS) else None
    )
    if not isinstance(state, dict):
        raise ValueError(f"the statistics of {name!r} are no arrays of numbers")
    mean, variance = array_of(state.get("mean")), array_of(state.get("var"))
    if mean is None or variance is None or mean.shape != variance.shape:
        raise ValueError(f"the statistics of {name!r} are no arrays of numbers")
    count = _number(state, "count", 0.0)
    is_counted = 0 <= count < _MOST_COUNTED
    is_finite = all(map(math.isfinite, mean.numbers + variance.numbers))
    if not (is_counted and is_finite and min(variance.numbers, default=0.0) >= 0):
        raise ValueError(f"the statistics of {name!r} are numbers that no observations have")
    return RunningStatistics(mean, variance, count)


def _number(state: Mapping[Any, Any], key: str, default: float) -> float:
    """A finite number. Raises ValueError."""
    value = state.get(key, default)
    array = array_of(value)  # of numpy
    if array is not None and array.shape == ():
        (value,) = array.numbers
    if type(value) not in (int, float) or not abs(value) <= _MOST:
        raise ValueError(f"{key!r} in it is no number")
    return float(value)


def _refusal(name: str, reason: str) -> SpecError:
    return SpecError([Problem(reason, (), Position(name, 1, 1))])
