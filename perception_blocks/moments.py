"""Mean and variance of many numbers, put together from those of parts of them: of batches and of processes."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Moments", "accumulator", "gathered", "merged", "moments_of"]


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


def gathered(moments: Moments, group: Any = None) -> Moments:
    """The moments of the values of all processes of ``group`` (None: of all), each of which must call this.

    The result is the same number on each of them. Where torch.distributed does not run, or ``group`` is False, they are
    those of this process.
    """
    if group is False or not (dist.is_available() and dist.is_initialized()):
        return moments
    flat = torch.cat([moments.number.reshape(1), moments.mean.flatten(), moments.var.flatten()])
    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, flat, group=group)
    return reduce(merged, (_unflattened(part, moments) for part in parts))


def accumulator(device: torch.device) -> torch.dtype:
    """The dtype to add up in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _unflattened(flat: Tensor, like: Moments) -> Moments:
    number, mean, var = flat.split([1, like.mean.numel(), like.var.numel()])
    return Moments(number[0], mean.reshape(like.mean.shape), var.reshape(like.var.shape))
