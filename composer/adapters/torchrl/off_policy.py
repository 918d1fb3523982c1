"""DQN and SAC with TorchRL: steps go into a replay buffer, from which each update draws steps, or sequences of them."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase, unravel_key
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import EGreedyModule
from torchrl.objectives import DQNLoss, LossModule, SACLoss, SoftUpdate

from composer.adapters.torchrl.algorithm import Algorithm, Settings
from composer.adapters.torchrl.fields import Key, fields_of, shown
from composer.adapters.torchrl.models import TorchRLModules, to_torchrl
from composer.adapters.torchrl.modules import sequence
from composer.adapters.torchrl.sequences import refuse_lengths
from composer.model import Model
from composer.policy.structured import one_policy
from composer.spaces.tree import SpaceTree
from composer.training.trainer import TrainerState, refuse_other_steps
from perception_blocks.settings import NonNegativeInt, PositiveFloat, PositiveInt, Probability

__all__ = ["Dqn", "DqnSettings", "Sac", "SacSettings"]

LossFunction = Literal["l2", "l1", "smooth_l1"]


@dataclass(frozen=True)
class OffPolicySettings(Settings):
    """``updates`` is the number of updates after each batch; the first is after ``learning_starts`` steps.

    With memory an update learns from sequences of ``sequence_length`` steps (None is 16), ``batch_size`` steps in all;
    the first ``burn_in`` of each (None is a quarter) only warm up its state.
    """

    frames_per_batch: PositiveInt = 16
    updates: PositiveInt = 16
    batch_size: PositiveInt = 128
    buffer_size: PositiveInt = 100_000
    learning_starts: NonNegativeInt = 1000
    tau: Probability = 0.005
    loss_function: LossFunction = "smooth_l1"
    max_grad_norm: PositiveFloat = 10.0
    sequence_length: PositiveInt | None = None
    burn_in: NonNegativeInt | None = None

    def lengths(self, model: Model, envs: int) -> tuple[int, int]:
        """``sequence_length`` and ``burn_in``, (1, 0) without memory. Raises ValueError where they do not fit."""
        if not model.has_memory:
            for name in ("sequence_length", "burn_in"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name!r} is for models with memory; leave it out")
            return 1, 0
        length = self.sequence_length or 16
        burn_in = length // 4 if self.burn_in is None else self.burn_in
        refuse_lengths(length, burn_in)
        if length > self.buffer_size // envs:
            raise ValueError(
                f"sequence_length must be at most {self.buffer_size // envs}, the steps of each environment in a "
                f"buffer_size of {self.buffer_size} for {envs}, got {length}"
            )
        return length, burn_in


@dataclass(frozen=True)
class DqnSettings(OffPolicySettings):
    """The probability of a random action falls from ``eps_init`` to ``eps_end`` in ``annealing_num_steps`` steps."""

    learning_rate: PositiveFloat = 1e-3
    frames_per_batch: PositiveInt = 64
    double_dqn: bool = True
    eps_init: Probability = 1.0
    eps_end: Probability = 0.05
    annealing_num_steps: PositiveInt = 10_000


@dataclass(frozen=True)
class SacSettings(OffPolicySettings):
    """``target_entropy`` is of actions on a scale from -1 to 1; None is minus the number of their dimensions."""

    alpha_init: PositiveFloat = 1.0
    target_entropy: float | None = None


S = TypeVar("S", bound=OffPolicySettings)


class OffPolicy(Algorithm[S]):
    """A replay buffer, and targets that follow softly. It explores at random as long as ``_chance`` says.

    Without memory the buffer holds single steps; with it, the steps of each environment in a row.
    """

    loss_type: ClassVar[type[LossModule]]

    def __init__(self, model: Model, env: EnvBase, settings: S) -> None:
        self._length, burn_in = settings.lengths(model, env.batch_size[0])
        modules = to_torchrl(model, env, loss=self.loss_type, burn_in=burn_in)
        loss, actor, self._chance = self.pieces(modules, settings)
        device = one_policy(model.policy).device
        self._chance.to(device)
        super().__init__(modules, settings, loss, sequence(actor, self._chance))
        loss.make_value_estimator(gamma=settings.gamma)
        self._targets = SoftUpdate(loss, tau=settings.tau)
        self._axes = 2 if self.model.has_memory else 1  # of what is stored: steps, environments
        example = env.fake_tensordict()
        read: list[Any] = loss.in_keys
        followed = {unravel_key(("next", key)) for key in read} & set(example.keys(True, True))
        self._stored: list[Any] = list(dict.fromkeys([*read, *followed]))
        self._example = _leaves(example.reshape(-1)[:1].select(*self._stored))
        if self.model.has_memory:
            self._buffer = modules.sequence_buffer(
                settings.buffer_size, sequence_length=self._length, batch_size=settings.batch_size
            )
        else:
            self._buffer = ReplayBuffer(
                storage=LazyTensorStorage(settings.buffer_size, device=device),
                batch_size=settings.batch_size,
            )

    @abstractmethod
    def pieces(self, modules: TorchRLModules, settings: S) -> tuple[LossModule, Any, Any]:
        """The loss, the actor, and the module after it that says how often actions are random."""

    def learn(self, batch: TensorDictBase, steps: int) -> None:
        self._put(batch if self.model.has_memory else batch.reshape(-1))
        is_short = len(self._buffer) < self._length * len(batch)
        if steps < self.settings.learning_starts or is_short:
            return
        for _ in range(self.settings.updates):
            self._update(self._buffer.sample())
            self._targets.step()

    def state(self) -> TrainerState:
        return {**super().state(), "loss": self.loss.state_dict(), "buffer": self._kept()}

    def restore(self, state: TrainerState, steps: int) -> None:
        super().restore(state, steps)
        self.loss.load_state_dict(state["loss"])
        self._buffer.empty()
        kept = state["buffer"]
        if kept:
            self._refuse_values(kept)
            stored = TensorDict(kept, batch_size=next(iter(kept.values())).shape[: self._axes])
            self._put(stored.transpose(0, 1) if self.model.has_memory else stored)

    def _refuse_values(self, kept: Mapping[Key, torch.Tensor]) -> None:
        """Raise ValueError for steps that no environment gives: they would break an update much later."""
        if kept.keys() != self._example.keys():
            raise ValueError("its replay buffer holds other values than this run stores")
        shape = next(iter(kept.values())).shape[: self._axes]
        if shape.numel() > self.settings.buffer_size:
            raise ValueError(f"its replay buffer holds {shape.numel():,} steps")
        policy = one_policy(self.model.policy)
        actions, seen = map(_spaces_by_key, (policy.action_tree, policy.observer.tree))
        seen |= {unravel_key(("next", key)): space for key, space in seen.items()} | actions
        for key, example in self._example.items():
            like = example.expand(*shape, *example.shape[1:])
            refuse_other_steps(shown(key), kept[key], like, seen.get(key), key in actions)

    def _put(self, steps: TensorDictBase) -> None:
        with _quiet():
            self._buffer.extend(steps.select(*self._stored))

    def _kept(self) -> dict[Key, torch.Tensor]:
        """The buffer's steps by key on the CPU, oldest first, ready to be written into an empty buffer."""
        if not len(self._buffer):
            return {}
        steps = self._buffer.storage[:]
        begin = self._buffer.write_count % len(steps)
        return _leaves(steps[torch.arange(len(steps)).roll(-begin)].select(*self._stored).cpu())


class Dqn(OffPolicy[DqnSettings]):
    """The policy's logits are the values of its choices, so that its mode is greedy; it explores by epsilon-greedy.

    Greedy and random actions are legal by the action mask, and so are the actions whose values make the target.
    """

    settings_type = DqnSettings
    loss_type = DQNLoss

    def pieces(self, modules: TorchRLModules, settings: DqnSettings) -> tuple[LossModule, Any, Any]:
        actor = modules.q_actor
        assert actor is not None
        assert modules.q_actor_training is not None
        choice: Any = actor[-1]
        chance: Any = EGreedyModule(
            actor.spec,
            eps_init=float(settings.eps_init),
            eps_end=float(settings.eps_end),
            annealing_num_steps=settings.annealing_num_steps,
            action_key=choice.out_keys[0],
            action_mask_key=choice.action_mask_key,
        )
        loss = DQNLoss(
            modules.q_actor_training,
            double_dqn=settings.double_dqn,
            loss_function=settings.loss_function,
            action_space="categorical",
        )
        return loss, actor, chance

    def learn(self, batch: TensorDictBase, steps: int) -> None:
        super().learn(batch, steps)
        self._chance.step(batch.numel())

    def state(self) -> TrainerState:
        return {**super().state(), "eps": float(self._chance.eps)}

    def restore(self, state: TrainerState, steps: int) -> None:
        super().restore(state, steps)
        if not 0 <= state["eps"] <= 1:
            raise ValueError(f"its probability of a random action is {state['eps']}")
        self._chance.eps.fill_(state["eps"])


class Sac(OffPolicy[SacSettings]):
    """The loss trains copies of the critic; after each batch they are written into the model, targets included."""

    settings_type = SacSettings
    loss_type = SACLoss

    def __init__(self, model: Model, env: EnvBase, settings: SacSettings) -> None:
        super().__init__(model, env, settings)
        if not self.modules.critic_copies:  # TorchRL has drawn new weights for an only critic
            loss: Any = self.loss
            weights: Any = TensorDict.from_module(loss.qvalue_network)
            for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
                params.data.update_(weights.data.unsqueeze(0))

    def pieces(self, modules: TorchRLModules, settings: SacSettings) -> tuple[LossModule, Any, Any]:
        model = modules.model
        copies, critic = list(modules.critic_copies), modules.critic_training
        assert critic is not None
        loss = SACLoss(
            modules.actor_training,
            copies or critic,  # type: ignore[arg-type]
            num_qvalue_nets=max(1, len(copies)),
            loss_function=settings.loss_function,
            alpha_init=settings.alpha_init,
            target_entropy=_target_entropy(model, settings),
            deactivate_vmap=model.critic.has_memory,  # type: ignore[union-attr]
        )
        begin = float(settings.learning_starts > 0)  # as `_explore` says
        chance: Any = EGreedyModule(modules.actor_inference.spec, eps_init=begin, eps_end=0.0)
        return loss, modules.collecting, chance

    def learn(self, batch: TensorDictBase, steps: int) -> None:
        super().learn(batch, steps)
        self.modules.adopt(self.loss)
        self._explore(steps)

    def restore(self, state: TrainerState, steps: int) -> None:
        super().restore(state, steps)
        self._explore(steps)

    def _explore(self, steps: int) -> None:
        """All actions are random until ``learning_starts``; the memory goes on, as it could not in a random rollout."""
        self._chance.eps.fill_(float(steps < self.settings.learning_starts))


def _leaves(data: TensorDictBase) -> dict[Key, torch.Tensor]:
    return dict(data.items(include_nested=True, leaves_only=True))


def _spaces_by_key(tree: SpaceTree) -> dict[Key, spaces.Space]:
    fields = fields_of(tree, tree.leaves, encoding="categorical")
    return {field.key: field.leaf.space for field in fields.values()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TorchRL's messages about a new storage."""
    logger = logging.getLogger("torchrl")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _target_entropy(model: Model, settings: SacSettings) -> float:
    """The target entropy on the environment's scale: plus the logarithm of half the range of each dimension."""
    (leaf,) = one_policy(model.policy).action_tree.leaves.values()
    space = leaf.space
    assert isinstance(space, spaces.Box)
    wanted = -float(np.prod(space.shape))
    if settings.target_entropy is not None:
        wanted = settings.target_entropy
    half = (space.high.astype(np.float64) - space.low) / 2
    return wanted + float(np.log(half).sum())
