"""From an environment's observations to the tensors that networks read: converted, then normalised where asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from composer.spaces import SpaceTree
from perception_blocks.scale import NormalizeBlock
from perception_blocks.wiring import module_name

__all__ = ["Observer"]


class Observer:
    """Reads observations of ``tree``; those named in ``normalize`` go through running statistics.

    ``normalizers`` belong to the policy as its children; the critic reads through the same ones.
    """

    def __init__(self, tree: SpaceTree, normalize: Iterable[str] = ()) -> None:
        self.tree = tree
        self.keys = tuple(normalize)
        self._names = _module_names(self.keys)
        self.normalizers = nn.ModuleDict(
            {name: NormalizeBlock([tree.ports[key].shape]) for key, name in self._names.items()}
        )

    def read(
        self, observations: Any, keys: Iterable[str], dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """The observations called ``keys`` as tensors with their leading axes."""
        tensors = self.tree.to_tensors(observations, dtype=dtype, device=device, keys=keys)
        if len(tensors) > 1:
            self.tree.leading(tensors)  # else a batch of one and one of many would be broadcast
        for key in self.keys:
            if key in tensors:
                tensors[key] = self.normalizers[self._names[key]](tensors[key])
        return tensors

    def update(self, observations: Any, dtype: torch.dtype, device: torch.device) -> None:
        """Count a batch of observations into the running statistics."""
        tensors = self.tree.to_tensors(observations, dtype=dtype, device=device, keys=self.keys)
        for key, value in tensors.items():
            self.normalizers[self._names[key]].update(value)  # type: ignore[operator]

    def leading(self, tensors: dict[str, Tensor]) -> tuple[int, ...]:
        """The leading axes that all ``tensors`` share."""
        return self.tree.leading(tensors)


def _module_names(keys: Iterable[str]) -> dict[str, str]:
    """For each key of any text a name of its own that an ``nn.ModuleDict`` takes."""
    taken = set(dir(nn.ModuleDict))  # such as "type"
    names = {}
    for key in keys:
        names[key] = module_name(key, taken)
        taken.add(names[key])
    return names
