"""The models of an experiment, as interfaces see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from composer.model import Model

__all__ = ["ExperimentModel"]


class ExperimentModel:
    """A model, its optimiser (None: never trained) and its tokenizer.

    ``network`` is the policy, or with ``is_critic`` the critic, whose head has width 1.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        is_critic: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        tokenizer: Any = None,
        max_length: int | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.is_critic = is_critic
        self.optimizer = optimizer
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def network(self) -> nn.Module:
        raise NotImplementedError

    def logits(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """Logits (N, vocabulary) of the token after each of ``tokens`` (N,), sequences one after the other."""
        raise NotImplementedError

    def scores(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """A critic's values (N,), one at each token."""
        raise NotImplementedError

    def step(self, loss: Tensor) -> float:
        """Gradients of ``loss``, clipped, and a step of the optimiser; returns the norm before it was clipped."""
        raise NotImplementedError
