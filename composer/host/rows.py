"""A state as rows of numbers: what trainers store between a rollout and an update."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from composer.network.network import State
from perception_blocks.port import Shape, format_shape
from perception_blocks.words import few_of

__all__ = ["pack_state", "unpack_state", "width_of"]


def width_of(shapes: Mapping[str, Shape]) -> int:
    """The numbers of a state of these ``shapes``, of one environment."""
    return sum(math.prod(shape) for shape in shapes.values())  # type: ignore[arg-type]


def pack_state(state: State, shapes: Mapping[str, Shape]) -> Tensor:
    """``state``, tensors (..., *shape) in the order of ``shapes``, as rows (..., width) of floating point numbers.

    Whole numbers are exact up to 2**24. Raises ValueError for a state of other names, shapes or leading axes.
    """
    if not shapes:
        raise ValueError("this model has no memory, and so no state to pack")
    if not isinstance(state, Mapping):
        raise ValueError(
            f"a state is a dict of tensors, as model.initial_state(batch_size) returns it, got a {type(state).__name__}"
        )
    if missing := [name for name in shapes if name not in state]:
        raise ValueError(
            f"the state lacks {few_of(missing)}; a row holds the whole state of the model, as "
            "model.initial_state(batch_size) and model.step return it"
        )
    if more := [name for name in state if name not in shapes]:
        raise ValueError(
            f"no row holds {few_of(more)}; it holds {few_of(shapes)}, of actors whose number is known"
        )
    leading: dict[str, tuple[int, ...]] = {}
    rows = []
    for name, shape in shapes.items():
        value = state[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"the state {name!r} must be a tensor, got a {type(value).__name__}")
        first = value.dim() - len(shape)
        if first < 0 or tuple(value.shape[first:]) != tuple(shape):
            needed, got = format_shape(shape), format_shape(tuple(value.shape))
            raise ValueError(f"the state {name!r} must end in the shape {needed}, got {got}")
        leading[name] = tuple(value.shape[:first])
        rows.append(value.reshape(*leading[name], -1))
    if any(axes != leading[next(iter(shapes))] for axes in leading.values()):
        shown = ", ".join(f"{name!r} {format_shape(axes)}" for name, axes in leading.items())
        raise ValueError(f"the entries of the state differ in their leading (batch) axes: {shown}")
    row = torch.cat(rows, -1)
    return row if row.is_floating_point() else row.float()


def unpack_state(row: Tensor, shapes: Mapping[str, Shape], dtype: torch.dtype) -> State:
    """The state whose rows (..., width) `pack_state` returned, in ``dtype``. Raises ValueError for another width."""
    widths = [math.prod(shape) for shape in shapes.values()]  # type: ignore[arg-type]
    if not isinstance(row, Tensor):
        raise ValueError(
            f"a row is a tensor (..., {sum(widths)}) as pack_state gives it, got a {type(row).__name__}"
        )
    if not row.dim() or row.shape[-1] != sum(widths) or row.is_complex():
        kind = f" of {row.dtype}" if row.is_complex() else ""
        got = format_shape(tuple(row.shape)) + kind
        raise ValueError(
            f"a row of this model's state has {sum(widths)} numbers, got the shape {got}"
        )
    parts = row.to(dtype).split(widths, -1)
    return {
        name: part.reshape((*row.shape[:-1], *shape))  # type: ignore[arg-type]
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
