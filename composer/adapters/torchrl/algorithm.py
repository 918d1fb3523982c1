"""Base of the algorithms that train with TorchRL: a loss, an explorer, and the step of an optimiser."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.objectives import LossModule

from composer.adapters.needs import AlgorithmNeeds, anything, problems, refuse_for
from composer.adapters.torchrl.checks import not_one_choice, several
from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.trainer import TrainerState, refuse_other_state
from perception_blocks.settings import PositiveFloat, PositiveInt, Probability

__all__ = ["Algorithm", "Settings", "ALGORITHMS", "refuse"]


@dataclass(frozen=True)
class Settings:
    """Of all algorithms. ``frames_per_batch`` counts the steps of all environments between two updates."""

    learning_rate: PositiveFloat = 3e-4
    frames_per_batch: PositiveInt = 2048
    gamma: Probability = 0.99
    max_grad_norm: PositiveFloat = 0.5


S = TypeVar("S", bound=Settings)


class Algorithm(ABC, Generic[S]):
    """Trains ``model`` by ``loss`` on the steps that ``explorer`` collects.

    A subclass is created as ``(model, env, settings)``, with ``settings`` of ``settings_type``.
    """

    settings_type: ClassVar[type[Settings]]
    random_frames = 0  # steps with random actions, at the beginning of a run

    def __init__(
        self,
        model: Model,
        settings: S,
        loss: LossModule,
        explorer: TensorDictModuleBase,
    ) -> None:
        self.model, self.settings = model, settings
        self.loss, self.explorer = loss, explorer
        self._learning = [each for each in loss.parameters() if each.requires_grad]
        self._optimizer = torch.optim.Adam(self._learning, lr=settings.learning_rate, eps=1e-5)

    @abstractmethod
    def learn(self, batch: TensorDictBase, steps: int) -> None:
        """Learn from ``batch`` (environments, steps), the last of ``steps`` steps in all."""

    def state(self) -> TrainerState:
        """The state beside the weights of the model."""
        return {"optimizer": self._optimizer.state_dict()}

    def restore(self, state: TrainerState) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        refuse_other_state(self._optimizer)

    def _update(self, data: TensorDictBase) -> None:
        """One step of the optimiser on the sum of all losses of ``data``."""
        losses = self.loss(data)
        total: Any = sum(value for name, value in losses.items() if name.startswith("loss"))
        self._optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self._learning, self.settings.max_grad_norm)
        self._optimizer.step()


def refuse(model: Model, algorithm: str) -> None:
    """Raise ValueError with every reason why ``algorithm``, one of `ALGORITHMS`, cannot train ``model``."""
    reasons = [*problems(model, algorithm, ALGORITHMS), *_private_keys(model)]
    refuse_for(f"{algorithm} of torchrl", reasons)


def _no_dqn(model: Model) -> Iterator[str]:
    yield from not_one_choice(model)
    yield from _memory(model)


def _no_sac(model: Model) -> Iterator[str]:
    yield from several(model)
    yield from _memory(model)


def _private_keys(model: Model) -> Iterator[str]:
    keys = [
        key for key in one_policy(model.policy).observer.tree.leaves if re.search("(^|/)_", key)
    ]
    if keys:
        yield (
            f"its collector drops what begins with '_', such as the observation {keys[0]!r}; rename it, or use the "
            "trainer sb3"
        )


def _memory(model: Model) -> Iterator[str]:
    if model.has_memory:
        yield "it has memory, but the replay buffer holds single steps"


def _of_copies(model: Model) -> Iterator[str]:
    """Why TorchRL's loss cannot train copies of the critic."""
    critic = model.critic
    if critic is not None and critic.shared:
        shared = ", ".join(map(repr, critic.shared))
        yield (
            f"its loss trains copies of the critic alone, which cannot read {shared} of the policy; "
            "let the critic read observations instead, or use the trainer sb3"
        )
    if critic is not None and critic.value_normalizer is not None:
        yield "a replay buffer has no returns, so that 'normalize_value' has nothing to count; leave it out"


ALGORITHMS: Mapping[str, AlgorithmNeeds] = {
    "ppo": AlgorithmNeeds(anything, "state"),
    "a2c": AlgorithmNeeds(several, "state"),
    "dqn": AlgorithmNeeds(_no_dqn, None, "any"),
    "sac": AlgorithmNeeds(_no_sac, "state_action", "bounded", _of_copies, of_boxes=True),
}
