"""Masks as inputs of a block: true, or any number but zero, says that an element counts or may be attended to.

A mask has the leading axes of what it masks. Masked values change neither results nor gradients, NaN included, and what
is masked altogether becomes zeros with finite gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from perception_blocks.base_block import PerceptionBlock
from perception_blocks.port import InputShapeError, Port, Shape, Shapes, as_shape, format_shape

__all__ = [
    "MaskedBlock",
    "Pooling",
    "as_bool",
    "blank",
    "check_mask",
    "known_features",
    "masked_softmax",
    "pool",
    "same_shape",
]
__all__ += ["set_shape", "shapes_of"]

Pooling: TypeAlias = Literal["mean", "sum", "max"]


class MaskedBlock(PerceptionBlock):
    """What blocks with masks share: the first ``quantities`` inputs are numbers, masks of any kind follow."""

    quantities: ClassVar[int] = 1
    mask_of: ClassVar[Mapping[str, int]] = {"mask": 0}

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        super().check_ports(in_ports[: cls.quantities])


def shapes_of(in_shapes: Shapes, name: str, least: int, most: int, takes: str) -> list[Shape]:
    """The inputs' shapes. Raises InputShapeError unless there are ``least`` to ``most``; ``takes`` says which."""
    shapes = [as_shape(shape) for shape in in_shapes]
    if not least <= len(shapes) <= most:
        raise InputShapeError(f"{name} takes {takes}", dict(enumerate(shapes)))
    return shapes


def set_shape(in_shapes: Shapes, name: str) -> tuple[int | None, int]:
    """How many elements the set has, the first input, and features of each; the second may be its mask."""
    shapes = shapes_of(in_shapes, name, 1, 2, "a set and optionally its mask")
    if len(shapes[0]) != 2:
        rule = f"{name} takes a set (elements, features)"
        raise InputShapeError(rule, {0: shapes[0]})
    elements = shapes[0][0]
    check_mask(name, shapes, 1, [(elements,)])
    return elements, known_features(shapes[0], 0, name)


def known_features(shape: Shape, index: int, name: str) -> int:
    """The last axis of input ``index``. Raises InputShapeError where it varies."""
    if shape[-1] is None:
        rule = f"{name} needs to know how many features an element has"
        raise InputShapeError(rule, {index: shape})
    return shape[-1]


def check_mask(name: str, shapes: Sequence[Shape], index: int, allowed: Sequence[Shape]) -> None:
    """Raise InputShapeError unless input ``index``, where it is given, has one of the ``allowed`` shapes."""
    if index >= len(shapes) or any(same_shape(shapes[index], shape) for shape in allowed):
        return
    needed = " or ".join(dict.fromkeys(map(format_shape, allowed)))
    raise InputShapeError(f"{name} needs a mask of shape {needed}", {index: shapes[index]})


def same_shape(first: Shape, other: Shape) -> bool:
    """Whether the shapes can be equal; an axis that varies may have any size."""
    return len(first) == len(other) and all(n == m or None in (n, m) for n, m in zip(first, other))


def as_bool(mask: Tensor) -> Tensor:
    """``mask`` as truth values: any number but zero is true."""
    return mask if mask.dtype == torch.bool else mask != 0


def blank(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` (..., N, F) with zeros where ``mask`` (..., N) is false.

    Blocks do this first: a product with a weight of zero would keep the NaN of an element that does not exist.
    """
    return x if mask is None else x.masked_fill(~as_bool(mask).unsqueeze(-1), 0.0)


def pool(x: Tensor, mask: Tensor | None, dims: Sequence[int], pooling: Pooling) -> Tensor:
    """Mean, sum or maximum of ``x`` over ``dims``, of its elements where ``mask`` (bool, broadcast to ``x``) is true.

    Zero where there are none.
    """
    dims = list(dims)
    if any(x.shape[dim] == 0 for dim in dims):
        return x.sum(dims)
    if mask is None:
        return {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[pooling](x, dims)
    mask = torch.broadcast_to(mask, x.shape)
    if pooling == "max":
        most = torch.where(mask, x, torch.finfo(x.dtype).min).amax(dims)
        return torch.where(mask.any(dims), most, 0.0)
    kept = torch.where(mask, x, 0.0)
    if pooling == "sum":
        return kept.sum(dims)
    # The sum may exceed the range of float16, though the mean does not.
    wide = torch.float32 if x.dtype == torch.float16 else None
    return (kept.sum(dims, dtype=wide) / mask.sum(dims).clamp(min=1)).to(x.dtype)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where ``mask`` (bool) is true; zeros elsewhere, and where it is true nowhere."""
    lowest = torch.finfo(scores.dtype).min
    return torch.where(mask, scores, lowest).softmax(dim=-1).masked_fill(~mask, 0.0)
