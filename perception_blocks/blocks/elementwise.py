"""Blocks that combine inputs element by element: shapes equal, or broadcast from the right as in numpy.

Leading axes never take part: a vector joins each row of a matrix, whatever the batch.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from perception_blocks.base_block import PerceptionBlock, block_name
from perception_blocks.blocks.masks import shapes_of
from perception_blocks.init import linear_layer
from perception_blocks.port import InputShapeError, Shape, Shapes, as_shape
from perception_blocks.registry import BLOCKS

__all__ = ["AddBlock", "CorrelationBlock", "GatedSumBlock", "MultiplyBlock", "broadcast_shape"]
__all__ += ["widened"]


class ElementwiseBlock(PerceptionBlock):
    """What they share: the shape that all inputs broadcast to."""

    keeps_mask = True

    def __init__(self, in_shapes: Shapes) -> None:
        shape = broadcast_shape(in_shapes, block_name(type(self)))
        super().__init__(in_shapes, out_shapes=[shape])
        self.rank = len(shape)

    def aligned(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs with as many feature axes as the output."""
        pairs = zip(inputs, self.in_shapes)
        return [widened(x, len(shape), self.rank) for x, shape in pairs]


@BLOCKS.register("add")
class AddBlock(ElementwiseBlock):
    """The sum of all inputs: ``(F,), (F,)`` -> ``(F,)``.

    >>> AddBlock([(4,), (3, 4), (3, 1)]).out_shapes
    [(3, 4)]
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        return functools.reduce(operator.add, self.aligned(inputs))


@BLOCKS.register("multiply")
class MultiplyBlock(ElementwiseBlock):
    """The product of all inputs: ``(F,), (F,)`` -> ``(F,)``.

    >>> MultiplyBlock([(8, 6, 6), (8, 1, 1)]).out_shapes
    [(8, 6, 6)]
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        return functools.reduce(operator.mul, self.aligned(inputs))


@BLOCKS.register("gated_sum")
class GatedSumBlock(ElementwiseBlock):
    """The sum of all inputs, each times a learned gate per feature: ``(F,), (F,)`` -> ``(F,)``.

    The gates read the features of all inputs. ``sigmoid`` gates are independent; ``softmax`` gates of one feature
    add up to 1 over the inputs, as in a gated multimodal unit (Arevalo et al., 2017).

    >>> GatedSumBlock([(4,), (4,)], gate="softmax").out_shapes
    [(4,)]
    """

    def __init__(
        self, in_shapes: Shapes, *, gate: Literal["sigmoid", "softmax"] = "sigmoid"
    ) -> None:
        super().__init__(in_shapes)
        (shape,) = self.out_shapes
        if not shape or shape[-1] is None:
            rule = "gated_sum needs to know how many features it adds"
            raise InputShapeError(rule, dict(enumerate(self.in_shapes)))
        self.counts = (len(self.in_shapes), shape[-1])
        total = len(self.in_shapes) * shape[-1]
        self.gates = linear_layer(total, total)
        self.competing = gate == "softmax"

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = torch.broadcast_tensors(*self.aligned(inputs))
        scores = self.gates(torch.cat(parts, dim=-1)).unflatten(-1, self.counts)
        gates = torch.softmax(scores, dim=-2) if self.competing else torch.sigmoid(scores)
        return (gates * torch.stack(parts, dim=-2)).sum(dim=-2)


@BLOCKS.register("correlation")
class CorrelationBlock(ElementwiseBlock):
    """Products of two inputs over their last axis, broadcast over the others: ``(N, F), (F,)`` -> ``(N, F)``.

    With ``reduce`` they are summed over the last axis, which gives dot products: ``(N,)``.

    >>> CorrelationBlock([(5, 4), (4,)], reduce=True).out_shapes
    [(5,)]
    """

    def __init__(self, in_shapes: Shapes, *, reduce: bool = False) -> None:
        shapes = shapes_of(in_shapes, "correlation", 2, 2, "two inputs")
        if not all(shapes) or shapes[0][-1] != shapes[1][-1]:
            rule = "correlation takes two inputs whose last axes have the same size"
            raise InputShapeError(rule, dict(enumerate(shapes)))
        super().__init__(in_shapes)
        self.reduce = reduce
        if reduce:
            self._out_shapes = [self.out_shapes[0][:-1]]

    def forward(self, x_F: Tensor, y_F: Tensor) -> Tensor:
        x_F, y_F = self.aligned([x_F, y_F])
        products = x_F * y_F
        return products.sum(dim=-1) if self.reduce else products


def widened(x: Tensor, rank: int, wanted: int) -> Tensor:
    """``x`` of ``rank`` feature axes with axes of size 1 before them, ``wanted`` feature axes in all."""
    for _ in range(wanted - rank):
        x = x.unsqueeze(-1 - rank)
    return x


def broadcast_shape(in_shapes: Shapes, name: str) -> Shape:
    """The shape to which all broadcast; a varying axis goes with itself and with 1.

    Raises InputShapeError with the first input and those that do not fit it.
    """
    shapes = [as_shape(shape) for shape in in_shapes]
    if not shapes:
        raise InputShapeError(f"{name} takes one input or more", {})
    result = shapes[0]
    if shapes.count(result) == len(shapes):
        return result
    for index, shape in enumerate(shapes):
        joined = _broadcast(result, shape)
        if joined is None:
            against = next(i for i in range(index) if _broadcast(shapes[i], shape) is None)
            got = {against: shapes[against], index: shape}
            raise InputShapeError(f"{name} needs equal or broadcastable shapes", got)
        result = joined
    return result


def _broadcast(first: Shape, other: Shape) -> Shape | None:
    """The common shape of two, or None."""
    rank = max(len(first), len(other))
    first, other = (1,) * (rank - len(first)) + first, (1,) * (rank - len(other)) + other
    if any(a != b and 1 not in (a, b) for a, b in zip(first, other)):
        return None
    return tuple(b if a == 1 else a for a, b in zip(first, other))
