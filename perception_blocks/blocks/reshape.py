"""Blocks that move, pick and repeat axes and compute nothing; an axis is one of the features, never the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from perception_blocks.base_block import PerceptionBlock, one_input
from perception_blocks.blocks.masks import shapes_of
from perception_blocks.port import InputShapeError, Port, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveInt

__all__ = ["FlattenBlock", "MultiIndexSliceBlock", "RepeatToMatchBlock", "SliceBlock"]


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
        self.keeps_mask = kept > 0  # a mask is about the first axis

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-self.num_dims) if self.num_dims else x.unsqueeze(-1)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Kind and bounds stay, in the new shape: one per element where they differ."""
        (port,) = in_ports
        low, high = (
            _rearranged(bound, lambda t: t.flatten(-self.num_dims))
            for bound in (port.low, port.high)
        )
        return [Port(self.out_shapes[0], port.dtype, port.cardinality, low=low, high=high)]


@BLOCKS.register("slice")
class SliceBlock(PerceptionBlock):
    """One entry of the axis ``dim``, which is removed: ``(N, F)`` -> ``(F,)`` with ``dim=0``.

    ``dim`` counts the feature axes from the left, or from the right if negative; ``index`` the entries likewise.

    >>> SliceBlock([(5, 4)], dim=0, index=-1).out_shapes
    [(4,)]
    """

    takes = "any"

    def __init__(self, in_shapes: Shapes, *, dim: int, index: int) -> None:
        shape = one_input(in_shapes, "slice")
        axis = feature_axis(shape, dim, "slice", 0)
        entry = entries(shape, axis, [index], "slice", "index")[0]
        kept = list(shape)
        del kept[axis]
        super().__init__(in_shapes, out_shapes=[tuple(kept)])
        self.dim, self.index = axis, entry
        self.keeps_mask = len(shape) + axis > 0

    def forward(self, x: Tensor) -> Tensor:
        return x.select(self.dim, self.index)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Kind and bounds of the entry that is picked."""
        return [picked(in_ports[0], self.out_shapes[0], self.forward)]


@BLOCKS.register("multi_index_slice")
class MultiIndexSliceBlock(PerceptionBlock):
    """Several entries of the axis ``dim``, in the given order: ``(N, F)`` -> ``(len(indices), F)`` with ``dim=0``.

    ``dim`` and ``indices`` count from the left, or from the right if negative.

    >>> MultiIndexSliceBlock([(5, 4)], dim=-1, indices=[0, -1]).out_shapes
    [(5, 2)]
    """

    takes = "any"
    places: Tensor

    def __init__(self, in_shapes: Shapes, *, dim: int, indices: Sequence[int]) -> None:
        shape = one_input(in_shapes, "multi_index_slice")
        if not indices:
            raise ValueError("multi_index_slice needs one index or more, got indices=[]")
        axis = feature_axis(shape, dim, "multi_index_slice", 0)
        self.indices = entries(shape, axis, indices, "multi_index_slice", "indices")
        sizes = list(shape)
        sizes[axis] = len(self.indices)
        super().__init__(in_shapes, out_shapes=[tuple(sizes)])
        self.dim = axis
        self.keeps_mask = len(shape) + axis > 0
        places = torch.zeros(len(self.indices), dtype=torch.int64)
        self.register_buffer("places", places, persistent=False)
        self.fill_constants()

    def fill_constants(self) -> None:
        self.places.copy_(torch.tensor(self.indices, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.places)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Kind and bounds of the entries that are picked."""
        places = torch.tensor(self.indices, device="cpu")
        return [picked(in_ports[0], self.out_shapes[0], lambda t: t.index_select(self.dim, places))]


@BLOCKS.register("repeat_to_match")
class RepeatToMatchBlock(PerceptionBlock):
    """The first input, its axis ``dim`` of size 1 repeated to match the second: ``(1, F), (N, G)`` -> ``(N, F)``.

    ``dim`` counts the feature axes of each input from the left, or from the right if negative. The result is a view
    that needs no memory.

    >>> RepeatToMatchBlock([(1, 8), (5, 3)], dim=0).out_shapes
    [(5, 8)]
    """

    takes = "any"

    def __init__(self, in_shapes: Shapes, *, dim: int) -> None:
        takes = "two inputs, the one to repeat and the one to match"
        shapes = first, second = shapes_of(in_shapes, "repeat_to_match", 2, 2, takes)
        axes = [feature_axis(s, dim, "repeat_to_match", i) for i, s in enumerate(shapes)]
        if first[axes[0]] != 1:
            rule = f"repeat_to_match repeats an axis of size 1, which axis {dim} of its first input is not"
            raise InputShapeError(rule, {0: first})
        sizes = list(first)
        sizes[axes[0]] = second[axes[1]]
        super().__init__(in_shapes, out_shapes=[tuple(sizes)])
        self.dim, self.other_dim = axes
        self.keeps_mask = len(first) + axes[0] > 0

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        sizes = list(x.shape)
        sizes[self.dim] = other.shape[self.other_dim]
        return x.expand(sizes)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Kind and bounds of the first input; bounds that differ along the axis are repeated too."""
        size = self.out_shapes[0][self.dim]
        port = in_ports[0]
        if size is None:
            low, high = (b if not isinstance(b, tuple) else None for b in (port.low, port.high))
            count = port.cardinality if isinstance(port.cardinality, int) else None
            return [Port(self.out_shapes[0], port.dtype, cardinality=count, low=low, high=high)]
        return [picked(port, self.out_shapes[0], lambda t: t.repeat_interleave(size, dim=self.dim))]


def feature_axis(shape: Shape, dim: int, name: str, position: int) -> int:
    """``dim`` of ``shape`` counted from the right. Raises InputShapeError where there is no such axis."""
    rank = len(shape)
    if not -rank <= dim < rank:
        least = dim + 1 if dim >= 0 else -dim
        axes = "one feature axis" if least == 1 else f"{least} feature axes"
        raise InputShapeError(f"{name} with dim={dim} needs {axes} or more", {position: shape})
    return dim - rank if dim >= 0 else dim


def entries(shape: Shape, axis: int, indices: Sequence[int], name: str, setting: str) -> list[int]:
    """``indices`` counted from the left. Raises InputShapeError unless the axis is known to have all of them."""
    size = shape[axis]
    if size is None:
        raise InputShapeError(
            f"{name} needs to know the size of the axis it picks from", {0: shape}
        )
    outside = [index for index in indices if not -size <= index < size]
    if outside:
        shown = ", ".join(map(str, outside))
        rule = f"{name} with {setting} {shown} needs more than {size} entries in axis {axis}"
        advice = f"take {setting} between {-size} and {size - 1}"
        raise InputShapeError(rule, {0: shape}, advice)
    return [index % size for index in indices]


def picked(port: Port, shape: Shape, pick: Callable[[Tensor], Tensor]) -> Port:
    """``port`` after ``pick`` gave it the ``shape``: bounds and numbers of values that differ per element go along."""
    low, high = _rearranged(port.low, pick), _rearranged(port.high, pick)
    counts = port.cardinality
    if isinstance(counts, tuple):
        chosen = pick(torch.tensor(counts, device="cpu").reshape(port.shape)).flatten().tolist()  # type: ignore[arg-type]
        counts = tuple(chosen) if shape else chosen[0]
    return Port(shape, port.dtype, counts, low, high)


def _rearranged(
    bound: float | tuple | None, change: Callable[[Tensor], Tensor]
) -> float | tuple | None:
    """Bounds after the same change as the values; one bound for all stays."""
    if not isinstance(bound, tuple):
        return bound
    return _tuples(change(torch.tensor(bound, dtype=torch.float64, device="cpu")).tolist())


def _product(sizes: Shape) -> int | None:
    return None if None in sizes else math.prod(sizes)  # type: ignore[arg-type]


def _tuples(value: float | list) -> float | tuple:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
