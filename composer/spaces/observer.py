"""Observations of an environment as the tensors that networks read: converted, and normalised if the spec says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from composer.spaces.tree import SpaceTree
from perception_blocks.blocks.scale import Group, NormalizeBlock
from perception_blocks.graph.wiring import module_name
from perception_blocks.port import Shape, format_shape

__all__ = ["Observer"]


class Observer:
    """Reads observations of ``tree`` and normalises those in ``normalize`` by running statistics.

    Of a masked observation, such as a set, only the elements that are present count, with the same statistics; padding
    stays zero. ``normalizers`` are children of the policy; the critic uses them too.
    """

    def __init__(self, tree: SpaceTree, normalize: Iterable[str] = ()) -> None:
        self.tree = tree
        self.keys = tuple(normalize)
        self._names = {key: module_name(key) for key in self.keys}
        self.normalizers = nn.ModuleDict(
            {name: NormalizeBlock([self._element(key)]) for key, name in self._names.items()}
        )
        self._masks = {key: tree.ports[key].mask for key in self.keys}

    @property
    def counted(self) -> list[str]:
        """The observations that `update` reads: those that are normalised, and their masks."""
        return list(dict.fromkeys([*self.keys, *filter(None, self._masks.values())]))

    def read(
        self, observations: object, keys: Iterable[str], dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """The observations called ``keys`` as tensors with their leading axes."""
        keys = list(keys)
        masks = [self._masks[key] for key in self.keys if key in keys]
        wanted = dict.fromkeys([*keys, *filter(None, masks)])
        tensors = self.tree.to_tensors(observations, dtype=dtype, device=device, keys=wanted)
        if len(tensors) > 1:
            self.tree.leading(tensors)  # else a batch of one and one of many would be broadcast
        return self.normalized(tensors, keys)

    def normalized(self, tensors: dict[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
        """The ``tensors`` called ``keys``, normalised where the spec says so; ``tensors`` includes their masks."""
        for key in self.keys:
            if key in keys:
                tensors[key] = self._normalized(key, tensors)
        return {key: tensors[key] for key in keys}

    def update(
        self,
        observations: object,
        dtype: torch.dtype,
        device: torch.device,
        group: Group = None,
    ) -> None:
        """Count a batch of observations into the running statistics, as `NormalizeBlock.update` does.

        Raises ValueError, with nothing changed, where one of them holds NaN or an infinite number.
        """
        self.count([self.seen(observations, dtype, device)], group)

    def seen(
        self, observations: object, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """The rows (n, *shape) of a batch of observations that `count` takes; ValueError as `update` says."""
        tensors = self.tree.to_tensors(observations, dtype=dtype, device=device, keys=self.counted)
        rows: dict[str, Tensor] = {}
        for key, mask in self._masks.items():
            values = tensors[key] if mask is None else tensors[key][tensors[mask]]
            rows[key] = values.reshape(-1, *self._element(key))  # type: ignore[arg-type]
            if not bool(values.isfinite().all()):
                raise ValueError(
                    f"the observation {key!r} contains NaN or an infinite number, which the statistics cannot count; "
                    "leave out that row"
                )
        return rows

    def count(self, seen: Sequence[Mapping[str, Tensor]], group: Group = None) -> None:
        """Count the rows of any number of calls of `seen` in one update."""
        for key in self.keys:
            empty = torch.zeros((0, *self._element(key)))  # type: ignore[arg-type]
            rows = torch.cat([rows_by_key[key] for rows_by_key in seen]) if seen else empty
            self._normalizer(key).update(rows, group)

    def merge(self, other: Observer) -> None:
        """Merge the statistics of ``other``, which has the same observations."""
        if set(self.keys) != set(other.keys):
            ours, theirs = (", ".join(map(repr, o.keys)) or "nothing" for o in (self, other))
            raise ValueError(f"this model normalizes {ours}, the other one {theirs}")
        for key in self.keys:
            shapes = [o._element(key) for o in (self, other)]
            if shapes[0] != shapes[1]:
                ours, theirs = map(format_shape, shapes)
                raise ValueError(f"{key!r} is {ours} here and {theirs} in the other model")
        for key in self.keys:
            self._normalizer(key).merge(other._normalizer(key))

    def _normalizer(self, key: str) -> NormalizeBlock:
        return self.normalizers[self._names[key]]  # type: ignore[return-value]

    def _element(self, key: str) -> Shape:
        """The shape of one normalised element: the value's shape without the axes that its mask covers."""
        port = self.tree.ports[key]
        axes = 0 if port.mask is None else len(self.tree.ports[port.mask].shape)
        return port.shape[axes:]

    def _normalized(self, key: str, tensors: Mapping[str, Tensor]) -> Tensor:
        value = self._normalizer(key)(tensors[key])
        mask = self._masks[key]
        if mask is None:
            return value
        is_present = tensors[mask][(..., *[None] * len(self._element(key)))]
        return value.masked_fill(~is_present, 0.0)
