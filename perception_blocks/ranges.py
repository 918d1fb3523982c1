"""Integers outside of their range, told in words after a lookup has failed: nothing is looked for before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perception_blocks.port import Port

__all__ = ["OutOfRangeError", "tell_out_of_range"]


class OutOfRangeError(ValueError, IndexError):
    """An input holds an integer that is none of its values; torch's own IndexError says neither which nor where."""


def tell_out_of_range(
    error: IndexError, inputs: Mapping[str, Tensor], ports: Mapping[str, Port], nodes: Sequence[Any]
) -> None:
    """Raise OutOfRangeError, which says why a lookup has failed, if it is for what an input of the network holds.

    ``ports`` and ``nodes`` are the network's own. On an accelerator torch raises no IndexError.
    """
    for name, port in ports.items():
        for value, count in _outside(inputs[name], port):
            readers = [f"{n.label} {n.node.name!r}" for n in nodes if name in n.step.inputs]
            raise OutOfRangeError(
                f"{name!r} holds {value}, but has {count} values, 0 to {count - 1}; "
                f"it is read by {', '.join(readers)}"
            ) from (error.__cause__ or error)  # not a nested network's words for it


def _outside(value: Tensor, port: Port) -> Iterator[tuple[int, int]]:
    """Integers of ``value`` that are out of range, each with the number of values that its element has."""
    if port.cardinality is None or not value.is_cpu:
        return
    counts = torch.as_tensor(port.cardinality)
    if counts.dim() and bool((counts == counts[0]).all()):
        counts = counts[0]  # a sequence may have another length than that of the space
    elif counts.dim():
        counts = counts.reshape([size or -1 for size in port.shape])
    outside = (value < 0) | (value >= counts)
    yield from zip(value[outside].tolist(), counts.expand_as(value)[outside].tolist())
