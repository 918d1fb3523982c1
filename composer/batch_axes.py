"""One compiled graph for every batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from perception_blocks.port import Port

__all__ = ["any_batch"]

X = TypeVar("X")


def any_batch(value: X, axes: int = 1, ports: Mapping[str, Port] | None = None) -> X:
    """Mark the first ``axes`` axes of all tensors in ``value`` as dynamic for torch.compile; returns ``value``.

    In the first call of a compiled function, this gives one graph for all batches of 2 and more: otherwise torch
    compiles once for the first batch and again for the second, and takes a batch for a constant that is as large as
    some other axis. Tensors in dicts, tuples and lists are marked too.

    ``ports`` are the Ports of the tensors by flat name (of a network or of a policy's observations): their axes
    of unknown length, of sets and graphs, are marked too.

    >>> compiled = torch.compile(torch.nn.Linear(2, 3), backend="eager")
    >>> [compiled(any_batch(torch.ones(size, 2))).shape[0] for size in (2, 5)]
    [2, 5]
    """
    _mark(value, axes, ports or {}, "")
    return value


def _mark(value: object, axes: int, ports: Mapping[str, Port], name: str) -> None:
    if isinstance(value, Tensor):
        shape = ports[name].shape if name in ports else ()
        varying = [axes + axis for axis, size in enumerate(shape) if size is None]
        for axis in (*range(axes), *varying):
            # Torch compiles sizes 0 and 1 by themselves.
            if axis < value.dim() and value.shape[axis] > 1:
                torch._dynamo.mark_dynamic(value, axis)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _mark(part, axes, ports, f"{name}/{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for part in value:
            _mark(part, axes, ports, name)
