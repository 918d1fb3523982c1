"""Deterministic actions: the outputs of a network, squashed into the bounds of a Box, as TD3 and DDPG train them."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from composer.distributions.base import (
    ActionDistribution,
    Distribution,
    check_temperature,
    is_bounded,
    misfit,
    wide,
)
from composer.distributions.bounds import keep_bounds, kept_bounds, refuse_mask, squashed
from composer.distributions.candidates import Candidates, padded, refuse_no_count
from composer.spaces.kinds import Leaf

__all__ = ["Deterministic", "DeterministicDistribution"]


class DeterministicDistribution(Distribution):
    """A distribution with one possible action, ``action`` (..., *action shape). It has no density."""

    has_density = False

    def __init__(self, action: Tensor, event_dims: int = 0, *, key: str = "action") -> None:
        self.action = action
        self._event_dims = event_dims
        self._key = key

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.action.detach()

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.action

    def mode(self) -> Tensor:
        return self.action

    def log_prob(self, action: Tensor) -> Tensor:
        self._refuse("log_prob")

    def top_k(self, k: int) -> Candidates:
        """The action, whose probability is 1."""
        refuse_no_count(k)
        shape = self.action.shape[: self.action.dim() - self._event_dims]
        return padded(self.action, self.action.new_zeros(shape), k)

    def entropy(self) -> Tensor:
        self._refuse("entropy")

    def kl(self, other: object) -> Tensor:
        self._refuse("kl")

    def row(self) -> Tensor:
        """The action."""
        dims = self._event_dims
        return self.action.flatten(-dims) if dims else self.action.unsqueeze(-1)

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"the action {self._key!r} is deterministic, which has no {what}; use 'squashed_gaussian'"
        )


class Deterministic(ActionDistribution):
    """A deterministic action: logits (..., one per dimension), squashed into the Box's bounds by tanh."""

    allows_minus_infinity = False
    has_density = False

    def __init__(self, leaf: Leaf) -> None:
        if not is_bounded(leaf):
            raise misfit("deterministic", leaf, "a Box action with finite bounds")
        super().__init__(leaf, math.prod(leaf.shape))
        self.same_bounds = keep_bounds(self, leaf)

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> DeterministicDistribution:
        """``temperature`` has no effect."""
        check_temperature(temperature)
        refuse_mask(mask, "deterministic", self.key)
        u = wide(logits)
        u = u.reshape((*u.shape[:-1], *self.action_shape))
        bounds = self.same_bounds or kept_bounds(self, u.dtype)
        return self._of(squashed(u, bounds))

    def of_row(self, row: Tensor) -> DeterministicDistribution:
        return self._of(row.reshape((*row.shape[:-1], *self.action_shape)))

    def _of(self, action: Tensor) -> DeterministicDistribution:
        return DeterministicDistribution(action, len(self.action_shape), key=self.key)
