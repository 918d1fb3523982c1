"""Inputs scaled into a range that suits networks: images by their bounds, any input by running statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from perception_blocks.base_block import PerceptionBlock, block_name, one_input
from perception_blocks.blocks.dense import known_size
from perception_blocks.port import InputShapeError, Port, Shape, Shapes, format_shape
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveFloat

__all__ = [
    "NormalizeBlock",
    "ScaleImageBlock",
    "Moments",
    "accumulator",
    "gathered",
    "merged",
    "moments_of",
]

# An axis of this size or less is taken for the channels when the other one is longer.
MOST_CHANNELS = 4

Bound = float | Sequence[Any]
# The processes whose values count: all (None), a group, or this one alone (False).
Group: TypeAlias = "dist.ProcessGroup | Literal[False] | None"


@BLOCKS.register("scale_image")
class ScaleImageBlock(PerceptionBlock):
    """From ``[low, high]`` to ``[0, 1]``, channels first: ``(H, W, C)``, ``(C, H, W)`` or ``(H, W)`` -> ``(C, H, W)``.

    ``low``, ``high`` (a number, or one for each element) and ``channels`` come from the space. Without ``channels`` the
    first or last axis is taken for them if it has at most 4 and the other one more. A vector is scaled and keeps its
    shape. Takes uint8 and floats, gives the model's float dtype.

    >>> ScaleImageBlock([(64, 64, 3)], low=0, high=255).out_shapes
    [(3, 64, 64)]
    """

    takes = "any"
    from_ports = ("low", "high", "channels")
    low: Tensor
    span: Tensor

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        low: Bound | None = None,
        high: Bound | None = None,
        channels: Literal["first", "last"] | None = None,
    ) -> None:
        name = block_name(self)
        shape = one_input(in_shapes, name)
        if len(shape) > 3:
            advice = "apply it to each image (each: 1)"
            raise InputShapeError(f"{name} takes one image at a time", {0: shape}, advice)
        if len(shape) == 3 and channels is None:
            channels = find_channels(shape, name)
        super().__init__(in_shapes, out_shapes=[scaled_shape(shape, channels)])
        self.rank = len(shape)
        self.channels_last = len(shape) == 3 and channels == "last"
        lows, spans = bounds_of(shape, low, high, name)
        self._bounds = (lows, spans)
        self._from_zero = not bool(lows.any())  # then there is nothing to take off
        self.register_buffer("low", torch.empty(lows.shape), persistent=False)
        self.register_buffer("span", torch.empty(spans.shape), persistent=False)
        self.fill_constants()

    def fill_constants(self) -> None:
        lows, spans = self._bounds
        self.low.copy_(lows)
        self.span.copy_(spans)

    def forward(self, x: Tensor) -> Tensor:
        span = self.span
        x = x.to(span.dtype)
        x = (x if self._from_zero else x - self.low) / span
        if self.channels_last:
            return x.movedim(-1, -3)
        return x.unsqueeze(-3) if self.rank == 2 else x

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        refuse_integers(cls, in_ports)
        normalized = {index: port for index, port in enumerate(in_ports) if port.normalized}
        if normalized:
            name = block_name(cls)
            rule = f"{name} scales raw numbers, and its input is normalised already"
            advice = f"take {{0}} out of 'normalize', or leave {name} out"
            raise InputShapeError(rule, normalized, advice)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        (shape,) = self.out_shapes
        return [Port(shape, low=0.0, high=1.0, channels="first" if len(shape) == 3 else None)]


@BLOCKS.register("normalize")
class NormalizeBlock(PerceptionBlock):
    """To mean 0 and standard deviation 1 by running statistics, clipped at ``clip``: any shape, which it keeps.

    Only ``update`` and ``merge`` change the statistics, never ``forward``. They are buffers, at least float32, and
    are saved with the weights; their rounding error is kept too, so that a batch counts after any number of batches
    before it. Before the first update the mean is 0 and the standard deviation 1.

    >>> block = NormalizeBlock([(1,)])
    >>> block.update(torch.tensor([[2.0], [4.0]]))
    >>> block(torch.tensor([5.0])).tolist()
    [2.0]
    """

    takes = "any"
    keeps_mask = True
    mean: Tensor
    var: Tensor
    mean_rest: Tensor
    var_rest: Tensor
    count: Tensor
    stands_still = False  # whether nothing that is seen counts
    group: Group = None  # whose values count where a call names no other: of a sharded model

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        clip: PositiveFloat | None = 10.0,
        epsilon: PositiveFloat = 1e-8,
    ) -> None:
        shape = one_input(in_shapes, "normalize")
        known_size(shape, "normalize")
        super().__init__(in_shapes, out_shapes=[shape])
        self.clip = clip
        self.epsilon = epsilon
        for name, start in (("mean", 0.0), ("mean_rest", 0.0), ("var", 1.0), ("var_rest", 0.0)):
            self.register_buffer(name, torch.full(shape, start, dtype=torch.float32))  # type: ignore[arg-type]
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.mean) * torch.rsqrt(self.var + self.epsilon)
        if self.clip is not None:
            y = y.clamp(-self.clip, self.clip)
        return y.to(x.dtype) if x.is_floating_point() else y

    def denormalize(self, y: Tensor) -> Tensor:
        """The inverse of ``forward`` without its clipping."""
        x = y * torch.sqrt(self.var + self.epsilon) + self.mean
        return x.to(y.dtype) if y.is_floating_point() else x

    @torch.no_grad()
    def update(self, x: Tensor, group: Group = None) -> None:
        """Count in all values of ``x``, whatever its leading axes.

        Where torch.distributed runs, the values of all processes of ``group`` count (None: those of `group`, else all;
        False: this one alone), each of which must call this, if need be with no values (0, ...).

        Raises ValueError, with nothing changed, for another shape and for NaN and infinite numbers.
        """
        shape = tuple(self.mean.shape)
        if tuple(x.shape[max(x.dim() - len(shape), 0) :]) != shape:
            got = format_shape(x.shape)
            raise ValueError(f"normalize counts values of {format_shape(shape)}, got {got}")
        if not bool(x.isfinite().all()):
            raise ValueError("normalize cannot count NaN or infinite numbers")
        rows = x.reshape(-1, *shape).to(self.mean.device)
        group = self.group if group is None else group
        if not self.stands_still:
            self._count_in(gathered(moments_of(rows), group))

    @torch.no_grad()
    def merge(self, other: NormalizeBlock) -> None:
        """Count in all that ``other`` has seen, which must not have been seen here; ValueError for another shape."""
        if other.mean.shape != self.mean.shape:
            ours, theirs = (format_shape(block.mean.shape) for block in (self, other))
            raise ValueError(f"this normalize block is for {ours}, the other one for {theirs}")
        wide = accumulator(self.mean.device)
        theirs = (tensor.to(self.mean.device, wide) for tensor in other.moments())
        if not self.stands_still:
            self._count_in(Moments(*theirs))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all that was seen."""
        for tensor in (self.mean, self.mean_rest, self.var_rest, self.count):
            tensor.zero_()
        self.var.fill_(1.0)

    def adjust_parameters(self) -> None:
        self.reset()

    def moments(self) -> Moments:
        """Of all that was seen."""
        wide = accumulator(self.mean.device)
        mean, var = (
            value.to(wide) + rest.to(wide)
            for value, rest in ((self.mean, self.mean_rest), (self.var, self.var_rest))
        )
        return Moments(self.count.to(wide), mean, var)

    def _count_in(self, more: Moments) -> None:
        total, mean, var = merged(self.moments(), more)
        for exact, value, rest in (
            (mean, self.mean, self.mean_rest),
            (var, self.var, self.var_rest),
        ):
            value.copy_(exact)
            rest.copy_(exact - value)
        self.count.copy_(total)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: getattr(self, name) for name in ("mean", "mean_rest", "var", "var_rest")}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():  # a half-precision model keeps full-precision statistics
            moved = getattr(self, name)
            if moved.dtype in (torch.bfloat16, torch.float16):
                setattr(self, name, tensor.to(moved.device))
        return self

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        refuse_integers(cls, in_ports)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        (port,) = in_ports
        return [Port(port.shape, channels=port.channels)]


def refuse_integers(cls: type[PerceptionBlock], in_ports: Sequence[Port]) -> None:
    for index, port in enumerate(in_ports):
        if port.is_integer:
            advice = "put a one_hot or embedding block in its place"
            rule = f"{block_name(cls)} takes numbers, not integers"
            raise InputShapeError(rule, {index: port}, advice)


def find_channels(shape: Shape, name: str = "scale_image") -> Literal["first", "last"]:
    """Where ``shape`` has its channels. Raises InputShapeError where both ends, or neither, could be them."""
    first, last = (size is not None and size <= MOST_CHANNELS for size in (shape[0], shape[-1]))
    if first == last:
        rule = f"{name} cannot tell which axis holds the channels"
        raise InputShapeError(rule, {0: shape}, "say channels: first or channels: last")
    return "first" if first else "last"


def scaled_shape(shape: Shape, channels: str | None) -> Shape:
    if len(shape) == 2:
        return (1, *shape)
    return (shape[2], shape[0], shape[1]) if len(shape) == 3 and channels == "last" else shape


def bounds_of(
    shape: Shape, low: Bound | None, high: Bound | None, name: str = "scale_image"
) -> tuple[Tensor, Tensor]:
    """``low`` and ``high - low``, each a number or in ``shape``. Raises ValueError where they bound nothing."""
    if low is None or high is None:
        missing = " and ".join(n for n, v in (("low", low), ("high", high)) if v is None)
        raise ValueError(f"{name} needs bounds, which its input does not have; give it {missing}")
    lows, highs = (bound_tensor(shape, bound) for bound in (low, high))
    if not bool(torch.isfinite(lows).all() and torch.isfinite(highs).all()):
        raise ValueError(
            f"{name} needs bounds, but those of the space are infinite; give it low and high, "
            "or use a normalize block"
        )
    if bool((highs < lows).any()) or not bool((highs > lows).any()):
        raise ValueError(f"{name} needs low < high, got low {low!r} and high {high!r}")
    spans = highs - lows
    return lows, torch.where(spans == 0, torch.ones_like(spans), spans)  # a constant becomes 0


def bound_tensor(shape: Shape, bound: Bound) -> Tensor:
    try:
        tensor = torch.tensor(bound, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a bound is a number or nested lists of numbers, got {bound!r}"
        ) from error
    sizes = tuple(tensor.shape)
    fits = len(sizes) in (0, len(shape)) and all(n is None or n == m for n, m in zip(shape, sizes))
    if not fits:
        raise ValueError(f"a bound of shape {sizes} does not fit {format_shape(shape)}")
    return tensor


class Moments(NamedTuple):
    """Of a ``number`` of values of one shape: their mean and (population) variance, element by element."""

    number: Tensor
    mean: Tensor
    var: Tensor


def moments_of(rows: Tensor) -> Moments:
    """The moments of (n, ...) values; of none they are zero.

    >>> [m.tolist() for m in moments_of(torch.tensor([[1.0], [3.0]]))]
    [2.0, [2.0], [1.0]]
    """
    rows = rows.to(accumulator(rows.device))
    number = rows.new_tensor(len(rows))
    if not len(rows):
        return Moments(number, rows.new_zeros(rows.shape[1:]), rows.new_zeros(rows.shape[1:]))
    return Moments(number, rows.mean(0), rows.var(0, correction=0))


def merged(first: Moments, second: Moments) -> Moments:
    """The moments of the values of both (Chan et al., 1979); a merge with no values changes nothing."""
    total = first.number + second.number
    share = second.number / total.clamp_min(1)
    delta = second.mean - first.mean
    var = first.var * (1 - share) + second.var * share + delta.square() * share * (1 - share)
    return Moments(total, first.mean + delta * share, var)


def gathered(moments: Moments, group: Group = None) -> Moments:
    """The moments of the values of all processes of ``group`` (None: of all), each of which must call this.

    All of them get the same result. Where torch.distributed does not run, or ``group`` is False, it is ``moments``.
    """
    if group is False or not (dist.is_available() and dist.is_initialized()):
        return moments
    flat = torch.cat([moments.number.reshape(1), moments.mean.flatten(), moments.var.flatten()])
    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, flat, group=group)
    sizes = [1, moments.mean.numel(), moments.var.numel()]
    shape = moments.mean.shape
    split = (part.split(sizes) for part in parts)
    return reduce(merged, (Moments(n[0], m.reshape(shape), v.reshape(shape)) for n, m, v in split))


def accumulator(device: torch.device) -> torch.dtype:
    """The dtype to add up in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
