"""Blocks that move, pick and repeat axes, or stop a gradient, and compute nothing; no axis of theirs is the batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perception_blocks.base_block import PerceptionBlock, one_input
from perception_blocks.blocks.masks import shapes_of
from perception_blocks.port import InputShapeError, Port, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveInt

__all__ = ["ChannelsFirstBlock", "DetachBlock", "FlattenBlock", "MultiIndexSliceBlock"]
__all__ += ["PermuteBlock", "RepeatToMatchBlock", "SliceBlock"]


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


@BLOCKS.register("permute")
class PermuteBlock(PerceptionBlock):
    """The feature axes in another order: ``(T, F)`` -> ``(F, T)`` with ``axes=[1, 0]``.

    ``axes`` names each axis of the input once, in the order of the output: counted from the left, or from the right if
    negative, and never the batch.

    >>> PermuteBlock([(4, 67)], axes=[1, 0]).out_shapes
    [(67, 4)]
    """

    takes = "any"

    def __init__(self, in_shapes: Shapes, *, axes: Sequence[int]) -> None:
        shape = one_input(in_shapes, "permute")
        order = ordered_axes(shape, axes)
        super().__init__(in_shapes, out_shapes=[tuple(shape[axis] for axis in order)])
        self.axes = tuple(axis - len(shape) for axis in order)
        self.keeps_mask = order[:1] in ([], [0])  # a mask is about the first axis

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*range(x.dim() - len(self.axes)), *self.axes)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Kind and bounds stay, in the new order."""
        return [picked(in_ports[0], self.out_shapes[0], self.forward)]


@BLOCKS.register("channels_first")
class ChannelsFirstBlock(PerceptionBlock):
    """The last axis in front of the others, without scaling: ``(H, W, C)`` -> ``(C, H, W)``, ``(T, F)`` -> ``(F, T)``.

    Convolutions read channels first. An image of uint8 needs `scale_image`, which moves the channels too.

    >>> ChannelsFirstBlock([(64, 48, 3)]).out_shapes
    [(3, 64, 48)]
    """

    takes = "any"

    def __init__(self, in_shapes: Shapes) -> None:
        shape = one_input(in_shapes, "channels_first")
        if len(shape) < 2:
            rule = "channels_first takes axes and then channels, such as (height, width, channels)"
            raise InputShapeError(rule, {0: shape}, "leave it out")
        super().__init__(in_shapes, out_shapes=[(shape[-1], *shape[:-1])])
        self.rank = len(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, -self.rank)

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        for index, port in enumerate(in_ports):
            if port.channels == "first":
                rule = "channels_first moves the channels, and the input has them first already"
                raise InputShapeError(rule, {index: port}, "leave it out")

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Kind and bounds stay, in the new order."""
        port = picked(in_ports[0], self.out_shapes[0], self.forward)
        return [replace(port, channels="first") if self.rank == 3 else port]


@BLOCKS.register("detach")
class DetachBlock(PerceptionBlock):
    """The input itself, through which no gradient flows back (stop-gradient): ``(...,)`` -> ``(...,)``.

    What stands before it is not trained by what reads it: with an encoder that policy and critic share, the critic
    alone trains the encoder where the policy reads it through this block (SAC-AE, Yarats et al., 2019).

    >>> DetachBlock([(3,)])(torch.ones(3, requires_grad=True)).requires_grad
    False
    """

    takes = "any"
    keeps_mask = True

    def __init__(self, in_shapes: Shapes) -> None:
        super().__init__(in_shapes, out_shapes=[one_input(in_shapes, "detach")])

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """All that is known of the input, but its place in the space and its mask, which the graph hands on."""
        return [replace(in_ports[0], mask=None, source=())]


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


def ordered_axes(shape: Shape, axes: Sequence[int]) -> list[int]:
    """``axes`` counted from the left. Raises InputShapeError unless each axis of ``shape`` is named exactly once."""
    rank = len(shape)
    outside = [axis for axis in axes if not -rank <= axis < rank]
    counts = Counter(axis % rank for axis in axes if axis not in outside)
    wrong = [f"there is no axis {axis}" for axis in outside]
    wrong += [f"axis {axis} is named twice" for axis, count in counts.items() if count > 1]
    wrong += [f"axis {axis} is missing" for axis in range(rank) if axis not in counts]
    if wrong:
        rule = f"permute with axes={list(axes)} must name each feature axis once: {', '.join(wrong[:4])}"
        known = ", ".join(map(str, range(rank)))
        advice = f"order the axes {known}" if rank else "leave permute out"
        raise InputShapeError(rule, {0: shape}, advice)
    return [axis % rank for axis in axes]


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
        sizes = [-1 if size is None else size for size in port.shape]
        chosen = pick(torch.tensor(counts, device="cpu").reshape(sizes)).flatten().tolist()
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
