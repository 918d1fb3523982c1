"""Base of the algorithms that train with TorchRL: a loss, an explorer, and the step of an optimiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.objectives import LossModule

from composer.adapters.torchrl.models import TorchRLModules
from composer.training.trainer import TrainerState, restore_optimizer
from perception_blocks.settings import PositiveFloat, PositiveInt, Probability

__all__ = ["Algorithm", "Settings"]


METRICS = {
    "loss_objective": "loss/policy",
    "loss_actor": "loss/policy",
    "loss_critic": "loss/value",
    "loss_qvalue": "loss/value",
    "loss": "loss/value",
    "loss_alpha": "loss/alpha",
    "entropy": "entropy",
    "kl_approx": "kl",
    "clip_fraction": "clip_fraction",
    "alpha": "alpha",
}
"""TorchRL's names of its numbers -> the names of `composer train`."""


@dataclass(frozen=True)
class Settings:
    """Of all algorithms. ``frames_per_batch`` counts the steps of all environments between two updates."""

    learning_rate: PositiveFloat = 3e-4
    frames_per_batch: PositiveInt = 2048
    gamma: Probability = 0.99
    max_grad_norm: PositiveFloat = 0.5


S = TypeVar("S", bound=Settings)


class Algorithm(ABC, Generic[S]):
    """Trains ``modules`` of a model by ``loss`` on the steps that ``explorer`` collects.

    A subclass is created as ``(model, env, settings)``, with ``settings`` of ``settings_type``.
    """

    settings_type: ClassVar[type[Settings]]
    _last: TensorDictBase | None = None  # what the loss of the last update gave

    def __init__(
        self,
        modules: TorchRLModules,
        settings: S,
        loss: LossModule,
        explorer: TensorDictModuleBase,
    ) -> None:
        self.model, self.modules, self.settings = modules.model, modules, settings
        self.loss, self.explorer = loss, explorer
        self._learning = [each for each in loss.parameters() if each.requires_grad]
        self._optimizer = torch.optim.Adam(self._learning, lr=settings.learning_rate, eps=1e-5)
        self.model.prepare_optimizer(self._optimizer)

    @abstractmethod
    def learn(self, batch: TensorDictBase, steps: int) -> None:
        """Learn from ``batch`` (environments, steps), the last of ``steps`` steps in all."""

    def state(self) -> TrainerState:
        """The state beside the weights of the model."""
        return {"optimizer": self._optimizer.state_dict()}

    def restore(self, state: TrainerState, steps: int) -> None:
        """Restore the ``state`` after ``steps`` steps."""
        restore_optimizer(self._optimizer, state["optimizer"])

    def _update(self, data: TensorDictBase) -> None:
        """One step of the optimiser on the sum of all losses of ``data``."""
        losses = self.loss(data)
        total: Any = sum(value for name, value in losses.items() if name.startswith("loss"))
        self._optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self._learning, self.settings.max_grad_norm)
        self._optimizer.step()
        self._last = losses.detach()

    def metrics(self) -> dict[str, float] | None:
        """The numbers of the last update as `composer train` calls them; None if there was none since the last call."""
        last, self._last = self._last, None
        if last is None:
            return None
        numbers = {METRICS[n]: float(value) for n, value in last.items() if n in METRICS}
        return {**numbers, "learning_rate": float(self._optimizer.param_groups[0]["lr"])}
