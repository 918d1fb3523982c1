"""Slots that hold a state for each environment: of any kind, or rows of stacked tensors. None changes in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from perception_blocks.port import format_shape
from perception_blocks.words import listing

__all__ = ["ObjectSlots", "Slots", "StackedSlots", "UnknownSlotError", "detached", "slot_ids"]
__all__ += ["stacked_rows", "unstacked_rows", "zeros_like"]


class UnknownSlotError(KeyError):
    """A `data_id` that no slot has."""

    def __str__(self) -> str:
        return str(self.args[0])  # without a KeyError's quotes


def slot_ids(data_id: Any, count: int, name: str = "data_id") -> list[int]:
    """The slots that ``data_id`` names, all of them if it is None.

    Raises UnknownSlotError for one that is not there, ValueError for one that is named twice or is no number.
    """
    if data_id is None:
        return list(range(count))
    ids = data_id.tolist() if hasattr(data_id, "tolist") else data_id
    if not isinstance(ids, Iterable) or isinstance(ids, str | Mapping):
        raise ValueError(f"{name!r} must be a list of slots, got {data_id!r}")
    ids = [int(i) if hasattr(i, "__index__") and not isinstance(i, bool) else i for i in ids]
    unknown = [
        i for i in ids if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < count
    ]
    if unknown:
        raise UnknownSlotError(
            f"{name!r} names {', '.join(map(repr, unknown))}; there are the slots 0 to {count - 1}"
        )
    if len(set(ids)) < len(ids):
        raise ValueError(f"{name!r} names a slot twice: {ids}")
    return ids


class Slots(Protocol):
    """``take`` the states of some slots, in that order; ``put`` those at ``places`` of a batch into its slots."""

    def take(self, ids: Sequence[int]) -> Any: ...

    def put(self, ids: Sequence[int], states: object, places: Sequence[int]) -> Slots: ...

    def rows(self) -> list[Any]: ...


class ObjectSlots:
    """States of any kind, one object a slot."""

    def __init__(self, states: Sequence[Any]) -> None:
        self._states = list(states)

    def take(self, ids: Sequence[int]) -> list[Any]:
        return [self._states[i] for i in ids]

    def put(self, ids: Sequence[int], states: object, places: Sequence[int]) -> ObjectSlots:
        """Raises ValueError unless ``states`` has one state for each of ``ids``."""
        if not isinstance(states, list | tuple | Tensor):
            raise ValueError(
                f"states must be a list of one a row, here {len(ids)}, got a {type(states).__name__}"
            )
        if len(states) != len(ids):
            raise ValueError(f"there must be one state a row, here {len(ids)}, got {len(states)}")
        new = list(self._states)
        for place in places:
            new[ids[place]] = detached(states[place])
        return ObjectSlots(new)

    def rows(self) -> list[Any]:
        return list(self._states)


class StackedSlots:
    """The declared state of a composed model: tensors ``{name: (slots, *shape)}``, read and written as a batch."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._count = len(next(iter(self._tensors.values())))

    def take(self, ids: Sequence[int]) -> dict[str, Tensor]:
        if self._is_all(ids):
            return dict(self._tensors)
        return {name: value[self._index(ids)] for name, value in self._tensors.items()}

    def put(self, ids: Sequence[int], states: Any, places: Sequence[int]) -> StackedSlots:
        """Raises ValueError unless ``states`` is the state of a batch of ``ids``, or one such dict a row."""
        row = {n: value.new_zeros(value.shape[1:]) for n, value in self._tensors.items()}
        batch = states if isinstance(states, Mapping) else stacked_rows(states, row)
        if batch.keys() != row.keys():
            expected, got = (listing(names) or "nothing" for names in (row, batch))
            raise ValueError(f"the state needs {expected}, got {got}")
        for name, value in row.items():
            _check_shape(name, batch[name], (len(ids), *value.shape))
        new = {}
        for name, value in self._tensors.items():
            given = batch[name].detach().to(value)
            if self._is_all(ids) and len(places) == len(ids):
                new[name] = given
            else:
                slots = self._index([ids[place] for place in places])
                new[name] = value.index_copy(0, slots, given[self._index(places)])
        return StackedSlots(new)

    def rows(self) -> list[dict[str, Tensor]]:
        return unstacked_rows(self._tensors)

    def moved(self, device: torch.device, dtype: torch.dtype) -> StackedSlots:
        return StackedSlots({n: v.to(device=device, dtype=dtype) for n, v in self._tensors.items()})

    def _is_all(self, ids: Sequence[int]) -> bool:
        return list(ids) == list(range(self._count))

    def _index(self, numbers: Sequence[int]) -> Tensor:
        device = next(iter(self._tensors.values())).device
        return torch.tensor(list(numbers), dtype=torch.int64, device=device)


def stacked_rows(
    rows: Sequence[Mapping[str, Tensor] | None], zero: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The states of rows, each a dict like ``zero`` or None for zero, as one batch.

    Raises ValueError for one that has other names or shapes.
    """
    filled = [zero if row is None else row for row in rows]
    for row in filled:
        if not isinstance(row, Mapping):
            raise ValueError(
                f"a state must be a dict of tensors or None, got a {type(row).__name__}"
            )
        if row.keys() != zero.keys():
            expected, got = (listing(names) or "nothing" for names in (zero, row))
            raise ValueError(f"a state needs {expected}, got {got}")
        for name, value in zero.items():
            _check_shape(name, row[name], tuple(value.shape))
    return {
        name: torch.stack([row[name].to(value) for row in filled])
        if filled
        else value.new_zeros((0, *value.shape))
        for name, value in zero.items()
    }


def unstacked_rows(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The state of a batch as one dict a row."""
    count = len(next(iter(batch.values())))
    return [{name: value[i] for name, value in batch.items()} for i in range(count)]


def zeros_like(state: object) -> Any:
    """Zeros in the form of a state of tensors, arrays and numbers in dicts, lists and tuples; what is else stays."""
    return _mapped(_zero, state)


def detached(state: object) -> Any:
    """A state of tensors in dicts, lists and tuples, without their graph."""
    return _mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, state)


def _mapped(function: Callable[[Any], object], state: object) -> Any:
    if isinstance(state, Mapping):
        return {key: _mapped(function, value) for key, value in state.items()}
    if isinstance(state, list):
        return [_mapped(function, value) for value in state]
    if type(state) is tuple:
        return tuple(_mapped(function, value) for value in state)
    return function(state)


def _zero(leaf: Any) -> object:
    if isinstance(leaf, Tensor):
        return torch.zeros_like(leaf)
    if isinstance(leaf, np.ndarray):
        return np.zeros_like(leaf)
    return type(leaf)(0) if isinstance(leaf, int | float) else leaf


def _check_shape(name: str, value: object, expected: tuple[int, ...]) -> None:
    if tuple(getattr(value, "shape", ())) != expected or not isinstance(value, Tensor):
        is_tensor = isinstance(value, Tensor)
        needed = format_shape(expected)
        got = format_shape(value.shape) if is_tensor else f"a {type(value).__name__}"
        raise ValueError(f"the state {name!r} must have the shape {needed}, got {got}")
