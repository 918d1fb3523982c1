"""PPO with TorchRL: what is learned from each batch of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from composer.adapters.torchrl import to_torchrl
from composer.model import Model
from perception_blocks.settings import PositiveFloat, PositiveInt, Probability, Range

__all__ = ["Ppo", "PpoSettings"]

Coefficient = Annotated[float, Range(low=0.0)]
VALUES = "state_value"


@dataclass(frozen=True)
class PpoSettings:
    """``frames_per_batch`` and ``minibatch_size`` count steps of all environments together."""

    learning_rate: PositiveFloat = 3e-4
    frames_per_batch: PositiveInt = 2048
    epochs: PositiveInt = 10
    minibatch_size: PositiveInt = 64
    gamma: Probability = 0.99
    lmbda: Probability = 0.95
    clip_epsilon: PositiveFloat = 0.2
    entropy_coeff: Coefficient = 0.0
    critic_coeff: Coefficient = 0.5
    loss_critic_type: Literal["l2", "l1", "smooth_l1"] = "l2"
    max_grad_norm: PositiveFloat = 0.5


class Ppo:
    """Updates of ``model``. What acts keeps to the action mask, and so does what learns of it.

    With memory, whole sequences are learned from: those of one environment in one batch.
    """

    settings_type = PpoSettings

    def __init__(self, model: Model, env: EnvBase, settings: PpoSettings, steps: int) -> None:
        modules: Any = to_torchrl(model, env, mask_training=True, loss=ClipPPOLoss)
        self.model, self.settings = model, settings
        self.explorer = modules.collecting
        self._values: Any = modules.critic_inference
        self._advantage = GAE(gamma=settings.gamma, lmbda=settings.lmbda, value_network=None)
        self.loss = ClipPPOLoss(
            modules.actor_training,
            modules.critic_training,
            clip_epsilon=settings.clip_epsilon,
            entropy_bonus=settings.entropy_coeff > 0,
            entropy_coeff=settings.entropy_coeff,
            critic_coeff=settings.critic_coeff,
            loss_critic_type=settings.loss_critic_type,
            normalize_advantage=True,
        )
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(learning, lr=settings.learning_rate, eps=1e-5)

    def learn(self, batch: TensorDictBase, steps: int) -> None:
        """Learn from ``batch`` (environments, steps), several times over."""
        self._judge(batch)
        for _ in range(self.settings.epochs):
            for part in self._parts(batch):
                losses = self.loss(part)
                names = ("loss_objective", "loss_critic", "loss_entropy")
                self._step(sum(losses[name] for name in names if losses.get(name) is not None))
        if self.model.critic.value_normalizer is not None:  # type: ignore[union-attr]
            self.model.update_normalizers(returns=batch["value_target"])

    def state(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def _judge(self, batch: TensorDictBase) -> None:
        """Write advantages and value targets.

        States that were recorded are those that the weights of now would reach: so each step is valued by itself, and
        the one after it too, whose episode GAE's own pass over the sequence would not tell from the next.
        """
        for part in (batch, batch.get("next")):
            flat = part.select(*self._values.in_keys).reshape(-1)
            part.set(VALUES, self._values(flat)[VALUES].reshape(*batch.batch_size, 1))
        self._advantage(batch)

    def _parts(self, batch: TensorDictBase) -> Iterator[TensorDictBase]:
        """``batch`` in a random order, in minibatches: of steps, or of sequences where there is memory."""
        size = self.settings.minibatch_size
        if self.model.has_memory:
            size = max(1, size // batch.shape[1])
        else:
            batch = batch.reshape(-1)
        for rows in torch.randperm(len(batch)).split(size):
            if len(rows) > 1 or self.model.has_memory:  # the advantages of one have no deviation
                yield batch[rows]

    def _step(self, loss: Tensor | int) -> None:
        assert isinstance(loss, Tensor)
        self._optimizer.zero_grad()
        loss.backward()
        learning = self._optimizer.param_groups[0]["params"]
        nn.utils.clip_grad_norm_(learning, self.settings.max_grad_norm)
        self._optimizer.step()
