"""PPO and A2C with TorchRL: they learn from each batch of steps once, and then discard it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives import A2CLoss, ClipPPOLoss, LossModule
from torchrl.objectives.value import GAE

from composer.adapters.torchrl.algorithm import Algorithm, Settings
from composer.adapters.torchrl.models import to_torchrl
from composer.model import Model
from perception_blocks.settings import Coefficient, PositiveFloat, PositiveInt, Probability

__all__ = ["A2c", "A2cSettings", "Ppo", "PpoSettings"]

VALUES = "state_value"


@dataclass(frozen=True)
class OnPolicySettings(Settings):
    lmbda: Probability = 0.95
    entropy_coeff: Coefficient = 0.0
    critic_coeff: Coefficient = 0.5
    loss_critic_type: Literal["l2", "l1", "smooth_l1"] = "l2"


@dataclass(frozen=True)
class PpoSettings(OnPolicySettings):
    """``minibatch_size`` counts steps of all environments together, as ``frames_per_batch`` does."""

    epochs: PositiveInt = 10
    minibatch_size: PositiveInt = 64
    clip_epsilon: PositiveFloat = 0.2


@dataclass(frozen=True)
class A2cSettings(OnPolicySettings):
    learning_rate: PositiveFloat = 7e-4
    frames_per_batch: PositiveInt = 64


S = TypeVar("S", bound=OnPolicySettings)


class OnPolicy(Algorithm[S]):
    """Advantages by GAE. The action mask holds for collecting and for learning.

    With memory it learns from whole sequences, the steps of one environment in one batch.
    """

    loss_type: ClassVar[type[LossModule]]

    def __init__(self, model: Model, env: EnvBase, settings: S) -> None:
        modules = to_torchrl(model, env, mask_training=True, loss=self.loss_type)
        assert modules.critic_inference is not None
        self._values = modules.critic_inference
        self._advantage = GAE(gamma=settings.gamma, lmbda=settings.lmbda, value_network=None)
        loss = self.loss_type(
            modules.actor_training,  # type: ignore[call-arg]
            modules.critic_training,
            entropy_bonus=settings.entropy_coeff > 0,
            entropy_coeff=settings.entropy_coeff,
            critic_coeff=settings.critic_coeff,
            loss_critic_type=settings.loss_critic_type,
            **self.loss_settings(settings),
        )
        super().__init__(modules, settings, loss, modules.collecting)

    def loss_settings(self, settings: S) -> dict[str, object]:
        """The arguments of this loss alone."""
        return {}

    def parts(self, batch: TensorDictBase) -> Iterator[TensorDictBase]:
        """The steps of each update."""
        yield batch

    def learn(self, batch: TensorDictBase, steps: int) -> None:
        self._judge(batch)
        for part in self.parts(batch):
            self._update(part)
        if self.model.critic.value_normalizer is not None:  # type: ignore[union-attr]
            self.model.update_normalizers(returns=batch["value_target"])

    @torch.no_grad()
    def _judge(self, batch: TensorDictBase) -> None:
        """Write advantages and value targets.

        The recorded states are the ones that the present weights reach, so each step is valued by itself, and the step
        after it too: GAE's own pass over the sequence would not tell its episode from the next.
        """
        for part in (batch, batch.get("next")):
            flat = part.select(*self._values.in_keys).reshape(-1)
            part.set(VALUES, self._values(flat)[VALUES].reshape(*batch.batch_size, 1))
        self._advantage(batch)


class Ppo(OnPolicy[PpoSettings]):
    """Several passes over each batch, in minibatches, with clipped updates."""

    settings_type = PpoSettings
    loss_type = ClipPPOLoss

    def loss_settings(self, settings: PpoSettings) -> dict[str, object]:
        return {"clip_epsilon": settings.clip_epsilon, "normalize_advantage": True}

    def parts(self, batch: TensorDictBase) -> Iterator[TensorDictBase]:
        """Minibatches in a random order: of steps, or of sequences where there is memory."""
        size = self.settings.minibatch_size
        if self.model.has_memory:
            size = max(1, size // batch.shape[1])
        else:
            batch = batch.reshape(-1)
        for _ in range(self.settings.epochs):
            for rows in torch.randperm(len(batch), device=batch.device).split(size):
                if len(rows) > 1 or self.model.has_memory:  # one advantage has no deviation
                    yield batch[rows]


class A2c(OnPolicy[A2cSettings]):
    """One update for each batch."""

    settings_type = A2cSettings
    loss_type = A2CLoss
