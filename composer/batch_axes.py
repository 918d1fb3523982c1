"""One compiled graph for every batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["any_batch"]

X = TypeVar("X")


def any_batch(value: X, axes: int = 1) -> X:
    """Mark the first ``axes`` axes of all tensors in ``value`` as ones that vary; returns ``value`` itself.

    Given to the first call of what ``torch.compile`` made, its graph serves all batches of 2 and more: torch alone
    compiles once for the first batch and again for the second, and takes a batch for a constant that is as large as
    some other axis. Dicts, tuples and lists are looked into; what is no tensor stays as it is.

    >>> compiled = torch.compile(torch.nn.Linear(2, 3), backend="eager")
    >>> [compiled(any_batch(torch.ones(size, 2))).shape[0] for size in (2, 5)]
    [2, 5]
    """
    if isinstance(value, Tensor):
        for axis in range(min(axes, value.dim())):
            if value.shape[axis] > 1:  # torch compiles sizes 0 and 1 by themselves
                torch._dynamo.mark_dynamic(value, axis)
    elif isinstance(value, Mapping):
        for part in value.values():
            any_batch(part, axes)
    elif isinstance(value, (tuple, list)):
        for part in value:
            any_batch(part, axes)
    return value
