"""Rotary positions (Su et al., 2021): queries and keys are turned by angles that grow with their places.

The product of a query and a key then depends on their distance alone. Features are paired as in Hugging Face's models:
the first half with the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotary_tables", "rotated"]


def rotary_tables(length: int, features: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, features) for `rotated`: the slowest pair turns ``1 / theta`` as fast as the first."""
    exponents = torch.arange(0, features, 2, dtype=torch.float32, device="cpu") / features
    places = torch.arange(length, dtype=torch.float32, device="cpu")
    angles = torch.outer(places, 1.0 / theta**exponents)
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """``x`` (..., T, features), turned by rows of the tables (T, features)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)  # the signs are in the sines
    return torch.addcmul(x * cosines, swapped, sines)
