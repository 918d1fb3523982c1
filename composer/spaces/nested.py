"""Nested values, such as observations of Dict and Tuple spaces: between numpy and torch, stacked and apart again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception_blocks.words import listing

__all__ = ["map_nested", "stack_nested", "to_numpy_nested", "to_tensors_nested", "unstack_nested"]


def map_nested(function: Callable[..., Any], *values: Any) -> Any:
    """``function`` of each leaf, in the structure of the first of ``values``; a leaf is no dict, tuple or list.

    Of several values, it gets the leaves at the same place. Raises ValueError where their structures differ.

    >>> map_nested(lambda a, b: a + b, {"x": 1, "y": (2, 3)}, {"y": (20, 30), "x": 10})
    {'x': 11, 'y': (22, 33)}
    """
    return _mapped(function, values, "")


def to_tensors_nested(
    value: Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Any:
    """Every array, number and tensor as a tensor on ``device``; ``dtype`` is for floating-point numbers only.

    Arrays on the host share their memory with their tensors where neither dtype nor device changes.

    >>> to_tensors_nested({"speed": np.zeros(2), "gear": 3}, dtype=torch.float32)
    {'speed': tensor([0., 0.]), 'gear': tensor(3)}
    """

    def tensor(leaf: Any) -> Tensor:
        read = torch.as_tensor(leaf, device=device)
        return read.to(dtype) if dtype is not None and read.is_floating_point() else read

    return map_nested(tensor, value)


def to_numpy_nested(value: Any) -> Any:
    """Every tensor, without its gradient, and every number as an array on the host.

    >>> to_numpy_nested((torch.ones(2, requires_grad=True), 3))
    (array([1., 1.], dtype=float32), array(3))
    """

    def array(leaf: Any) -> np.ndarray:
        return leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else np.asarray(leaf)

    return map_nested(array, value)


def stack_nested(values: Sequence[Any]) -> Any:
    """Values of one structure as one value, each leaf stacked on a new first axis, tensors or else arrays.

    Raises ValueError for no values, and for values whose structures or shapes differ.

    >>> stack_nested([{"x": np.zeros(2)}, {"x": np.ones(2)}])["x"].shape
    (2, 2)
    """
    if not values:
        raise ValueError("stack_nested takes one value or more, got none")

    def stacked(*leaves: Any) -> Any:
        are_tensors = isinstance(leaves[0], Tensor)
        return torch.stack(leaves) if are_tensors else np.stack(leaves)

    try:
        return map_nested(stacked, *values)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"these values cannot be stacked: {error}") from error


def unstack_nested(value: Any) -> list[Any]:
    """The rows of the first axis of all leaves, each in the structure of ``value``: what `stack_nested` was given.

    Raises ValueError where the leaves differ in the length of their first axis, or have none.

    >>> [row["x"].tolist() for row in unstack_nested({"x": np.arange(4).reshape(2, 2)})]
    [[0, 1], [2, 3]]
    """
    lengths: dict[int | None, None] = {}
    map_nested(lambda leaf: lengths.setdefault(len(leaf) if np.ndim(leaf) else None), value)
    if len(lengths) != 1 or None in lengths:
        got = listing("none" if length is None else length for length in lengths) or "no leaf"
        raise ValueError(f"all leaves need a first axis of one length, got {got}")
    (length,) = lengths
    assert length is not None
    return [map_nested(lambda leaf, row=row: leaf[row], value) for row in range(length)]


def _mapped(function: Callable[..., Any], values: Sequence[Any], path: str) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        _refuse_unlike(values, path, lambda v: set(v) if isinstance(v, Mapping) else None)
        return {k: _mapped(function, [v[k] for v in values], f"{path}/{k}") for k in first}
    if isinstance(first, tuple | list):
        _refuse_unlike(values, path, lambda v: len(v) if isinstance(v, tuple | list) else None)
        parts = [
            _mapped(function, [v[i] for v in values], f"{path}/{i}") for i in range(len(first))
        ]
        return parts if isinstance(first, list) else tuple(parts)
    _refuse_unlike(values, path, lambda v: isinstance(v, Mapping | tuple | list))
    return function(*values)


def _refuse_unlike(values: Sequence[Any], path: str, form: Callable[[Any], Any]) -> None:
    forms = [form(value) for value in values]
    for index, other in enumerate(forms):
        if other != forms[0]:
            place = f"at {path[1:]!r}" if path else "at the top"
            raise ValueError(f"value {index} has another structure than the first one {place}")
