"""Random values of a space as batches, by flat key and in the dtypes of the environment."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.spaces.kinds import Leaf, kind_of, torch_dtype
from composer.spaces.tree import SpaceTree

__all__ = ["SpaceSampler", "space_dtype"]


class SpaceSampler:
    """Draws values of ``tree`` from ``seed``; the space's own random state stays as it is."""

    def __init__(self, tree: SpaceTree, seed: int) -> None:
        self.tree = tree
        self._space = copy.deepcopy(tree.space)
        self._space.seed(seed)

    def draw(self, leading: tuple[int, ...], keys: Iterable[str]) -> dict[str, Tensor]:
        """The values called ``keys`` with ``leading`` axes; values that vary in size are padded to the longest."""
        count = int(np.prod(leading))
        batch = _batched(self._space, [self._space.sample() for _ in range(count)])
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


def space_dtype(leaf: Leaf) -> torch.dtype:
    """The dtype of an environment's value; of a set or graph, of the padded tensor."""
    return leaf.port.dtype if leaf.kind in ("variable", "mask") else torch_dtype(leaf.space)


def _batched(space: Space, samples: Sequence[Any]) -> Any:
    """Samples as one value with a batch axis: arrays in the structure of the space, tuples of what varies in size."""
    if isinstance(space, spaces.Dict):
        return {k: _batched(part, [s[k] for s in samples]) for k, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        parts = enumerate(space.spaces)
        return tuple(_batched(part, [s[index] for s in samples]) for index, part in parts)
    return tuple(samples) if kind_of(space) is None else np.stack(samples)
