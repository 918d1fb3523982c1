"""Blocks that move axes about and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from perception_blocks.block import PerceptionBlock, one_input
from perception_blocks.port import InputShapeError, Port, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveInt

__all__ = ["FlattenBlock"]


@BLOCKS.register("flatten")
class FlattenBlock(PerceptionBlock):
    """The last ``num_dims`` axes joined into one (default: all): ``(C, H, W)`` -> ``(C * H * W,)``.

    >>> FlattenBlock([(3, 8, 8)], num_dims=2).out_shapes
    [(3, 64)]
    """

    takes = "any"

    def __init__(self, in_shapes: Shapes, *, num_dims: PositiveInt | None = None) -> None:
        shape = one_input(in_shapes, "flatten")
        joined = len(shape) if num_dims is None else num_dims
        if joined > len(shape):
            rule = f"flatten with num_dims={num_dims} needs {num_dims} axes or more"
            raise InputShapeError(rule, {0: shape}, "lower num_dims or leave it out")
        self.num_dims = joined
        kept = len(shape) - joined
        super().__init__(in_shapes, out_shapes=[(*shape[:kept], _product(shape[kept:]))])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-self.num_dims) if self.num_dims else x.unsqueeze(-1)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Kind and bounds stay, in the new shape: one per element where they differ."""
        (port,) = in_ports
        low, high = self._reshaped(port.low), self._reshaped(port.high)
        return [Port(self.out_shapes[0], port.dtype, port.cardinality, low=low, high=high)]

    def _reshaped(self, bound: float | tuple | None) -> float | tuple | None:
        if not isinstance(bound, tuple):
            return bound
        return _tuples(torch.tensor(bound, dtype=torch.float64).flatten(-self.num_dims).tolist())


def _product(sizes: Shape) -> int | None:
    return None if None in sizes else math.prod(sizes)  # type: ignore[arg-type]


def _tuples(value: float | list) -> float | tuple:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
