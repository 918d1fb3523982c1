"""What all algorithms that train with TorchRL have in common: a loss, who explores, and one step of an optimiser."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.objectives import LossModule

from composer.adapters.algorithm_needs import AlgorithmNeeds, problems
from composer.model import Model
from composer.policy.structured import one_policy
from composer.spaces.tree import format_space
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


class Algorithm(ABC):
    """Learns by ``loss`` from what ``explorer`` collects; what it trains is ``model``.

    Made as ``(model, env, settings)``, with ``settings`` of ``settings_type``.
    """

    settings_type: ClassVar[type[Settings]]
    random_frames = 0  # so many steps at the beginning of a run are drawn without the explorer

    def __init__(
        self,
        model: Model,
        settings: Settings,
        loss: LossModule,
        explorer: TensorDictModuleBase,
    ) -> None:
        self.model, self.settings = model, settings
        self.loss, self.explorer = loss, explorer
        self._learning = [each for each in loss.parameters() if each.requires_grad]
        self._optimizer = torch.optim.Adam(self._learning, lr=settings.learning_rate, eps=1e-5)

    @abstractmethod
    def learn(self, batch: TensorDictBase, steps: int) -> None:
        """Learn from ``batch`` (environments, steps), after which ``steps`` have been made in all."""

    def state(self) -> TrainerState:
        """What there is beside the weights of the model."""
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
    if reasons:
        lines = "".join(f"\n  {problem}" for problem in reasons)
        raise ValueError(f"{algorithm} of torchrl cannot train this model:{lines}")


def _several(model: Model) -> Iterator[str]:
    actions = one_policy(model.policy).distributions
    if len(actions) > 1:
        yield f"it learns one action, but there are {', '.join(map(repr, actions))}"


def _not_one_choice(model: Model) -> Iterator[str]:
    """What dqn cannot train."""
    policy = one_policy(model.policy)
    leaves = [*policy.action_tree.leaves.values()]
    if len(leaves) > 1 or not isinstance(leaves[0].space, spaces.Discrete):
        shown = format_space(policy.action_space)
        yield f"it learns a value for each choice of one Discrete action, got {shown}"
    elif leaves[0].start != 0:
        yield f"it counts choices from 0, got {format_space(leaves[0].space)}"
    yield from _memory(model)


def _not_one_action(model: Model) -> Iterator[str]:
    """What sac cannot train."""
    yield from _several(model)
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
    "ppo": AlgorithmNeeds(lambda model: iter(()), "state"),
    "a2c": AlgorithmNeeds(_several, "state"),
    "dqn": AlgorithmNeeds(_not_one_choice, None, "any"),
    "sac": AlgorithmNeeds(_not_one_action, "state_action", "bounded", _of_copies, of_boxes=True),
}
