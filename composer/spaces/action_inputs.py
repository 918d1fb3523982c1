"""An action as numbers that a network reads, or as the choice of one Q value among many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from composer.spaces.kinds import Leaf
from composer.spaces.tree import SpaceTree, drawn_actions
from perception_blocks.port import Port

__all__ = ["ActionInputs"]


class ActionInputs:
    """The actions of a space, each as one vector ``action/<name>``: one-hot where it is a choice, else its numbers.

    Actions are as distributions have them: zero-based, by flat key or in the structure of the space; of what
    ``policy.from_environment`` returns and of samples. Gradients flow through.
    """

    def __init__(self, tree: SpaceTree) -> None:
        self._tree = drawn_actions(tree)
        leaves = self._tree.leaves
        self.shapes = {key: leaf.shape for key, leaf in leaves.items()}
        self.counts = {key: _counts(leaf) for key, leaf in leaves.items()}
        self.widths = {
            key: sum(self.counts[key]) or math.prod(leaf.shape) for key, leaf in leaves.items()
        }
        self.ports = {f"action/{key}": Port((width,)) for key, width in self.widths.items()}

    @property
    def are_choices(self) -> bool:
        """Whether every action is a Discrete or MultiDiscrete, so that each choice can have a Q value."""
        return all(self.counts.values())

    def read(self, action: object, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """By ``action/<name>`` the vectors (..., width).

        Raises ValueError for an action of another shape or structure, and for a choice that there is not.
        """
        values = self._tree.to_tensors(action, dtype=dtype, device=device)
        return {f"action/{key}": self.vector(key, value, dtype) for key, value in values.items()}

    def vector(self, key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The vector (..., width) of the action ``key``, whose ``value`` (..., *action shape) a distribution has."""
        axes, counts = len(self._tree.leaves[key].shape), self.counts[key]
        flat = value.flatten(-axes) if axes else value.unsqueeze(-1)
        if not counts:
            return flat.to(dtype)
        codes = [functional.one_hot(flat[..., i], count) for i, count in enumerate(counts)]
        return torch.cat(codes, dim=-1).to(dtype)

    def joint_choices(self, keys: Iterable[str], most: int) -> dict[str, Tensor] | None:
        """All joint choices of the actions ``keys``, (combinations, *action shape) each.

        None where one of them is no choice (a Box), and where there are more than ``most`` combinations.
        """
        options: list[Tensor] = []
        sizes: dict[str, int] = {}
        for key in keys:
            leaf = self._tree.leaves[key]
            if leaf.kind == "box":
                return None
            counts = self.counts[key] or [2] * math.prod(leaf.shape)
            sizes[key] = len(counts)
            options += [torch.arange(count, device="cpu") for count in counts]
        if math.prod(map(len, options)) > most:
            return None
        joint = torch.cartesian_prod(*options).reshape(-1, len(options))
        return {
            key: part.reshape(-1, *self._tree.leaves[key].shape)
            for key, part in zip(sizes, joint.split(list(sizes.values()), -1), strict=True)
        }

    def chosen(self, q_values: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Tensor:
        """The Q value (..., 1) of an action, from those of all choices (..., width) of every action.

        It is the mean over all choices that make up the action. ``vectors`` are those that `read` returns.
        """
        total = sum((q_values[key] * vectors[f"action/{key}"]).sum(-1, True) for key in self.counts)
        return total / self._choices  # type: ignore[operator]

    def best(self, q_values: Mapping[str, Tensor]) -> Tensor:
        """The Q value (..., 1) of the action that has the highest one."""
        total = sum(
            part.amax(-1, True)
            for key, counts in self.counts.items()
            for part in q_values[key].split(counts, dim=-1)
        )
        return total / self._choices  # type: ignore[operator]

    @property
    def _choices(self) -> int:
        return sum(map(len, self.counts.values()))


def _counts(leaf: Leaf) -> list[int]:
    """How many choices each element of an action has; none where it is no choice."""
    known = leaf.port.cardinality
    if known is None:
        return []
    return [known] if isinstance(known, int) else list(known)
