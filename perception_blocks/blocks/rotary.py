"""Rotary positions (Su et al., 2021): queries and keys are turned by angles that grow with their places.

The product of a query and a key then depends on their distance alone. Features are paired as in Hugging Face's models:
the first half with the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from perception_blocks.settings import PositiveFloat, PositiveInt, check_settings
from perception_blocks.words import did_you_mean, listing

__all__ = ["ROPE_THETA", "SCALINGS", "problems_of_scaling", "rotary_tables", "rotated"]

ROPE_THETA = 10000.0  # of models that do not say another


def linear(frequencies: Tensor, *, factor: PositiveFloat) -> Tensor:
    """All pairs turn slower by ``factor``, for sequences that are longer by it (Chen et al., 2023)."""
    return frequencies / factor


def llama3(
    frequencies: Tensor,
    *,
    factor: PositiveFloat,
    low_freq_factor: PositiveFloat,
    high_freq_factor: PositiveFloat,
    original_max_position_embeddings: PositiveInt,
) -> Tensor:
    """Slow pairs turn slower by ``factor``, fast ones as before (Grattafiori et al., 2024).

    Slow are those that turn less than ``low_freq_factor`` times in ``original_max_position_embeddings`` places, fast
    those that turn more than ``high_freq_factor`` times; in between it is interpolated.
    """
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return torch.lerp(frequencies / factor, frequencies, share.clamp(0.0, 1.0))


# By the name that ``rope_type`` has in configurations of Hugging Face, whose keys these are too.
SCALINGS: dict[str, Callable[..., Tensor]] = {"linear": linear, "llama3": llama3}


def problems_of_scaling(scaling: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with ``{rope_type: linear, factor: 2}``."""
    kind = scaling.get("rope_type")
    if kind not in SCALINGS:
        near = did_you_mean(str(kind), SCALINGS)
        yield f"'rope_type' must be one of {listing(SCALINGS)}, got {kind!r}" + near
        return
    given = _without_kind(scaling)
    problems = check_settings(SCALINGS[kind], given, f"'rope_type' {kind!r}")
    yield from (problem.message for problem in problems)
    if kind == "llama3" and not problems and given["high_freq_factor"] <= given["low_freq_factor"]:
        yield "'high_freq_factor' must be greater than 'low_freq_factor'"


def _without_kind(scaling: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scaling.items() if key != "rope_type"}


def rotary_tables(
    length: int, features: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, features) for `rotated`: the slowest pair turns ``1 / theta`` as fast as the first."""
    exponents = torch.arange(0, features, 2, dtype=torch.float32, device="cpu") / features
    frequencies = 1.0 / theta**exponents
    if scaling is not None:
        frequencies = SCALINGS[scaling["rope_type"]](frequencies, **_without_kind(scaling))
    places = torch.arange(length, dtype=torch.float32, device="cpu")
    angles = torch.outer(places, frequencies)
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """``x`` (..., T, features), turned by rows of the tables (T, features)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)  # the signs are in the sines
    return torch.addcmul(x * cosines, swapped, sines)
