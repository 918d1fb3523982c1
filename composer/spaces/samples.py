"""Random values of a space as batches, by flat key and in the dtypes of the environment."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.spaces.kinds import Leaf, kind_of
from composer.spaces.tree import SpaceTree

__all__ = ["SpaceSampler", "batch_of", "random_values", "space_dtype"]


class SpaceSampler:
    """Draws values of ``tree`` from ``seed``; the space's own random state stays as it is."""

    def __init__(self, tree: SpaceTree, seed: int) -> None:
        self.tree = tree
        self._space = _seeded(tree.space, seed)

    def draw(self, leading: tuple[int, ...], keys: Iterable[str]) -> dict[str, Tensor]:
        """The values called ``keys`` with ``leading`` axes; values that vary in size are padded to the longest."""
        count = int(np.prod(leading))
        batch = batch_of(self._space, [self._space.sample() for _ in range(count)])
        drawn = {key: self._tensor(key, batch) for key in keys}
        return {key: value.reshape(*leading, *value.shape[1:]) for key, value in drawn.items()}

    def _tensor(self, key: str, batch: Any) -> Tensor:
        leaf = self.tree.leaves[key]
        if leaf.kind in ("variable", "mask"):
            read = self.tree.to_tensors(batch, dtype=torch.float32, keys=[key])[key]
            return read.to(space_dtype(leaf))
        for part in leaf.path:
            batch = batch[part]
        return torch.from_numpy(np.asarray(batch)).to(space_dtype(leaf))


def random_values(space: Space, count: int, seed: int) -> list[Any]:
    """``count`` values of ``space`` that follow from ``seed``; its own random state stays as it is."""
    space = _seeded(space, seed)
    return [space.sample() for _ in range(count)]


def _seeded(space: Space, seed: int) -> Space:
    space = copy.deepcopy(space)
    space.seed(seed)
    return space


def space_dtype(leaf: Leaf) -> torch.dtype:
    """The dtype of an environment's value; of a set or graph, of the padded tensor."""
    return leaf.port.dtype if leaf.kind in ("variable", "mask") else leaf.dtype


def batch_of(space: Space, samples: Sequence[Any]) -> Any:
    """Samples as one value with a batch axis: arrays in the structure of the space, tuples of what varies in size."""
    if isinstance(space, spaces.Dict):
        return {k: batch_of(part, [s[k] for s in samples]) for k, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        parts = enumerate(space.spaces)
        return tuple(batch_of(part, [s[index] for s in samples]) for index, part in parts)
    return tuple(samples) if kind_of(space) is None else np.stack(samples)
