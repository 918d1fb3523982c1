"""RLlib's distributions of a composed policy: RLlib rebuilds one from a row of numbers, by a class alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from ray.rllib.core.distribution.distribution import Distribution as HostDistribution
from torch import Tensor

from composer.distributions.base import Distribution
from composer.policy.policy import Policy
from composer.spaces.kinds import Leaf, to_space_value, unrounded
from composer.spaces.tree import SpaceTree

__all__ = ["ComposedDistribution", "distribution_class"]


class ComposedDistribution(HostDistribution):
    """The distribution of ``row`` (..., P), which `Distribution.row` made: no weight, observation or mask is read.

    Actions are the environment's, in its structure; the numbers of a Box stay as they were drawn, since densities are
    of the draw. `distribution_class` makes the class of a policy.
    """

    policy: ClassVar[Policy]
    actions: ClassVar[_HostActions]

    def __init__(self, row: Tensor, *, deterministic: bool = False) -> None:
        self.distribution: Distribution = self.policy.distribution_of_row(row)
        self._row = row
        self._deterministic = deterministic

    @classmethod
    def from_logits(cls, logits: Any, **_: Any) -> ComposedDistribution:
        return cls(logits)

    @classmethod
    def required_input_dim(cls, space: object, **_: Any) -> int:  # type: ignore[override]
        return sum(family.row_width for _, family in cls.policy.distributions.items())

    def sample(self, **_: Any) -> Any:
        with torch.no_grad():
            return self.rsample()

    def rsample(self, **_: Any) -> Any:
        drawn = self.distribution.mode() if self._deterministic else self.distribution.sample()
        return self.actions.to_host(drawn)

    def logp(self, value: Any, **_: Any) -> Tensor:
        return self.distribution.log_prob(self.actions.from_host(value, self.policy.dtype))

    def entropy(self, **_: Any) -> Tensor:
        return self.distribution.entropy()

    def kl(self, other: HostDistribution, **_: Any) -> Tensor:
        assert isinstance(other, ComposedDistribution)
        return self.distribution.kl(other.distribution)

    def to_deterministic(self) -> ComposedDistribution:
        return type(self)(self._row, deterministic=True)


class _HostActions:
    """Actions of distributions as the environment's, in tensors, and back."""

    def __init__(self, tree: SpaceTree) -> None:
        leaves = {key: unrounded(leaf) for key, leaf in tree.leaves.items()}
        self._tree = SpaceTree(tree.space, tree.root, leaves)
        self._space = tree
        self._only = next(iter(leaves))

    def to_host(self, drawn: Tensor | Mapping[str, Tensor], *, within_bounds: bool = False) -> Any:
        """``drawn`` in the structure of the space; ``within_bounds`` as the environment takes it, whole and legal."""
        flat = drawn if isinstance(drawn, Mapping) else {self._only: drawn}
        leaves = (self._space if within_bounds else self._tree).leaves
        values = {key: _outward(leaf, flat[key], within_bounds) for key, leaf in leaves.items()}
        return values[self._only] if self._tree.is_single else self._tree.unflatten(values)

    def from_host(self, action: Any, dtype: torch.dtype) -> Any:
        flat = self._tree.to_tensors(action, dtype=dtype)
        return flat[self._only] if self._tree.is_single else flat


def _outward(leaf: Leaf, value: Tensor, within_bounds: bool) -> Tensor:
    """A value as the environment's; unless ``within_bounds`` is asked for, numbers as they were drawn."""
    is_drawn = leaf.kind == "box" and not within_bounds
    return value.float() if is_drawn else to_space_value(leaf, value)


def distribution_class(policy: Policy) -> type[ComposedDistribution]:
    """The class whose ``from_logits`` rebuilds the distributions of ``policy``."""
    about = {"policy": policy, "actions": _HostActions(policy.action_tree)}
    return type("ComposedDistribution", (ComposedDistribution,), about)
