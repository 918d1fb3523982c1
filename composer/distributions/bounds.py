"""What the distributions over a Box share: its bounds, refusals, and rows of two numbers for each dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from composer.distributions.base import ActionDistribution, limits_text, refuse_actions
from composer.distributions.cells import Bounds
from composer.spaces.kinds import Leaf
from composer.spaces.values import on_host

__all__ = ["as_row", "bounds_between", "halves_of_row", "keep_bounds", "kept_bounds", "refuse_mask"]
__all__ += ["refuse_outside", "squashed"]


def bounds_between(low: Any, high: Any) -> Bounds:
    """`Bounds` of two numbers or two tensors; equal ones get a tiny distance."""
    half = high / 2 - low / 2  # the difference itself may overflow
    tiny = torch.finfo(torch.float32).tiny
    if isinstance(half, Tensor):
        half = half.clamp_min(tiny)
        return Bounds(low, high, low / 2 + high / 2, half, half.log())
    half = max(half, tiny)
    return Bounds(low, high, low / 2 + high / 2, half, math.log(half))


def squashed(u: Tensor, bounds: Bounds) -> Tensor:
    """``u`` squashed into the bounds by tanh."""
    low, high, middle, half, _ = bounds
    return torch.clamp(middle + half * u.tanh(), low, high)  # rounding may leave the bounds


def refuse_outside(action: Tensor, bounds: Bounds, key: str) -> None:
    """Raise ValueError for an action that is NaN, or outside of its bounds by more than rounding explains."""
    if action.dtype == torch.bool:
        raise ValueError(f"action {key!r} must be of numbers, got torch.bool; give action.float()")
    if not on_host(action) or not action.numel():
        return
    distance = (action.detach() - bounds.middle).abs()
    if bool((distance <= bounds.half).all()):  # nearly always
        return
    largest = bounds.half + abs(bounds.middle)
    # Environments and buffers have float32, whatever the dtype of the policy.
    dtypes = (torch.float32, *(d for d in (action.dtype,) if d.is_floating_point))
    rounding = 4 * max(torch.finfo(dtype).eps for dtype in dtypes) * largest
    wrong = ~(distance <= bounds.half + rounding)
    shape = wrong.shape
    refuse_actions(
        action,
        wrong,
        lambda at: limits_text(bounds.low, bounds.high, shape, at),
        key,
        "clip it to the bounds: action.clamp(low, high)",
    )


def keep_bounds(family: ActionDistribution, leaf: Leaf) -> Bounds | None:
    """The bounds if they are the same for all elements; else None, and they are constants of ``family``."""
    low, high = leaf.port.low, leaf.port.high
    if isinstance(low, float) and isinstance(high, float):
        return bounds_between(low, high)
    for name, bound in (("low", low), ("high", high)):
        value = torch.tensor(bound, dtype=torch.float64, device="cpu").expand(leaf.shape)
        # Nearly always; and not every device has float64.
        exact = bool((value.float() == value).all())
        family.constant(name, value.tolist(), torch.float32 if exact else torch.float64)
    return None


def kept_bounds(family: ActionDistribution, dtype: torch.dtype) -> Bounds:
    return bounds_between(family.low.to(dtype), family.high.to(dtype))


def refuse_mask(mask: Tensor | None, name: str, key: str) -> None:
    if mask is not None:
        raise ValueError(f"action {key!r} is {name}, which takes no mask; only choices have one")


def as_row(first: Tensor, second: Tensor, event_dims: int) -> Tensor:
    """Two tensors (..., *action shape) as (..., 2 * dims)."""
    parts = (first, second)
    if not event_dims:
        return torch.stack(parts, -1)
    return torch.cat([part.flatten(-event_dims) for part in parts], -1)


def halves_of_row(row: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The two tensors (..., *shape) of a row."""
    first, second = row.chunk(2, -1)
    shape = (*row.shape[:-1], *shape)
    return first.reshape(shape), second.reshape(shape)
