"""Numbers of packed sequences: values of S sequences one after the other in (N, ...), and the lengths (S,) of each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from composer.dataflow.context import Context
from composer.dataflow.data.balance import SampleError
from composer.dataflow.data.samples import Sample

__all__ = ["drop_first", "drop_last", "last", "micro_batches", "parts", "require_finite", "sums"]


def drop_first(values: Tensor, lengths: Tensor) -> Tensor:
    """Without the first value of each sequence.

    >>> drop_first(torch.arange(5), torch.tensor([3, 2]))
    tensor([1, 2, 4])
    """
    kept = torch.ones(len(values), dtype=torch.bool, device=values.device)
    kept[(lengths.cumsum(0) - lengths).to(values.device)] = False
    return values[kept]


def drop_last(values: Tensor, lengths: Tensor) -> Tensor:
    """Without the last value of each sequence.

    >>> drop_last(torch.arange(5), torch.tensor([3, 2]))
    tensor([0, 1, 3])
    """
    kept = torch.ones(len(values), dtype=torch.bool, device=values.device)
    kept[(lengths.cumsum(0) - 1).to(values.device)] = False
    return values[kept]


def last(values: Tensor, lengths: Tensor) -> Tensor:
    """The last value of each sequence, (S, ...).

    >>> last(torch.arange(5), torch.tensor([3, 2]))
    tensor([2, 4])
    """
    return values[(lengths.cumsum(0) - 1).to(values.device)]


def sums(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum of each sequence, (S,); of an empty one it is 0.

    >>> sums(torch.arange(5.0), torch.tensor([3, 0, 2]))
    tensor([3., 0., 7.])
    """
    numbers = torch.arange(len(lengths)).repeat_interleave(lengths).to(values.device)
    return values.new_zeros(len(lengths)).index_add(0, numbers, values)


def parts(sample: Sample, count: int, context: Context, setting: str) -> list[Sample]:
    """The sample in ``count`` parts of about as many tokens. Raises SampleError where it has fewer items."""
    if count > sample.bs:
        raise SampleError(
            f"{context.where()}: {setting}={count} parts of a batch of {sample.bs} items; lower {setting!r}, or raise "
            "the 'batch_size' of the data"
        )
    return sample.split(count, "ids")


def micro_batches(sample: Sample, most_tokens: int) -> list[Sample]:
    """The sample in as few parts as may have ``most_tokens`` each; an item that is longer is a part alone."""
    total = int(sample.lengths("ids").sum())
    return sample.split(min(sample.bs, max(1, math.ceil(total / most_tokens))), "ids")


def require_finite(sample: Sample, context: Context) -> None:
    """Raise SampleError, which names value and item, where a number of the sample is NaN or infinite."""
    for key in sorted(sample.keys):
        values = sample.values(key)
        if not values.is_floating_point() or bool(values.isfinite().all()):
            continue
        for name, item in zip(sample.ids, sample.unpack(), strict=True):
            numbers = item.values(key)
            wrong = numbers[~numbers.isfinite()]
            if len(wrong):
                raise SampleError(
                    f"{context.where()}: {key!r} of item {name!r} has {wrong[0].item()}; nothing was trained"
                )
