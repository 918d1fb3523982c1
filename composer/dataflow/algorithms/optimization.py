"""How a model of an experiment is trained: AdamW, and its learning rate over the iterations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from perception_blocks.settings import (
    Coefficient,
    PositiveFloat,
    Probability,
    Range,
    SettingsError,
    check_settings,
)

__all__ = ["OptimizerSettings", "optimizer_settings"]

Momentum = Annotated[float, Range(0.0, 0.999999999)]


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter, 2019) and the learning rate over a run's iterations.

    Gradients whose norm is above ``gradient_clipping`` are scaled down to it; None clips nothing. The learning rate
    rises to ``lr`` over the first ``warmup_steps_proportion`` of the iterations, and by ``lr_scheduler_type`` stays
    there or falls towards ``min_lr_ratio * lr``, along a line or half a cosine. Raises SettingsError with all
    that is wrong.
    """

    lr: PositiveFloat
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    eps: PositiveFloat = 1e-5
    weight_decay: Coefficient = 0.05
    gradient_clipping: PositiveFloat | None = 1.0
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps_proportion: Probability = 0.0
    min_lr_ratio: Probability = 0.0

    def __post_init__(self) -> None:
        problems = check_settings(OptimizerSettings, vars(self), "the optimiser", skip=0)
        if problems:
            raise SettingsError(problems)

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """The optimiser of those ``parameters`` that are trained. Raises ValueError where none is."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            raise ValueError("all weights are frozen, so there is nothing to train; leave out 'lr'")
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(
            trained, lr=self.lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay
        )

    def lr_at(self, iteration: int, iterations: int) -> float:
        """The learning rate of an iteration, counted from 0.

        >>> settings = OptimizerSettings(lr=1.0, lr_scheduler_type="linear", warmup_steps_proportion=0.5)
        >>> [settings.lr_at(i, 8) for i in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        warmup = round(self.warmup_steps_proportion * iterations)
        if iteration < warmup:
            return self.lr * (iteration + 1) / warmup
        if self.lr_scheduler_type == "constant":
            return self.lr
        left = 1.0 - min((iteration - warmup) / max(iterations - warmup, 1), 1.0)
        if self.lr_scheduler_type == "cosine":
            left = 0.5 - 0.5 * math.cos(math.pi * left)
        return self.lr * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * left)


def optimizer_settings(given: Mapping[str, object]) -> OptimizerSettings:
    """The settings ``given`` in an experiment. Raises SettingsError with all that is wrong with them.

    >>> optimizer_settings({"lr": 0.1, "beta_1": 0.5})
    Traceback (most recent call last):
    ...
    perception_blocks.settings.SettingsError: 'beta_1' is not a setting of the optimiser; did you mean 'beta1'?
    """
    problems = check_settings(OptimizerSettings, given, "the optimiser", skip=0)
    if problems:
        raise SettingsError(problems)
    return OptimizerSettings(**given)  # type: ignore[arg-type]
