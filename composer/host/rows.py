"""A state as rows of numbers: what trainers store between a rollout and an update."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from composer.network.network import State
from perception_blocks.port import Shape

__all__ = ["pack_state", "unpack_state", "width_of"]


def width_of(shapes: Mapping[str, Shape]) -> int:
    """The numbers of a state of these ``shapes``, of one environment."""
    return sum(math.prod(shape) for shape in shapes.values())  # type: ignore[arg-type]


def pack_state(state: State, shapes: Mapping[str, Shape]) -> Tensor:
    """``state``, tensors (..., *shape) in the order of ``shapes``, as rows (..., width)."""
    rows = [
        state[name].flatten(-len(shape)) if shape else state[name].unsqueeze(-1)
        for name, shape in shapes.items()
    ]
    return torch.cat(rows, -1)


def unpack_state(row: Tensor, shapes: Mapping[str, Shape], dtype: torch.dtype) -> State:
    """The state whose rows (..., width) `pack_state` made."""
    parts = row.to(dtype).split([math.prod(shape) for shape in shapes.values()], -1)  # type: ignore[arg-type]
    return {
        name: part.reshape((*row.shape[:-1], *shape))  # type: ignore[arg-type]
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
