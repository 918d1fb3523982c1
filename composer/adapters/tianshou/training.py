"""`composer train --trainer tianshou`: PPO and A2C of Tianshou, by its collector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Optional, SupportsFloat

import gymnasium
import numpy as np
import torch

from composer.adapters.tianshou.models import critic, policy, refuse_for_algorithm
from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.environment import EnvironmentMaker, environment_maker
from composer.training.evaluation import greedy
from composer.training.trainer import (
    Phase,
    Report,
    RunningEpisodes,
    StoppedError,
    Task,
    TrainerState,
    no_phase,
    restore_optimizer,
    setting_problems,
)
from perception_blocks.registry import missing_extra
from perception_blocks.settings import Coefficient, PositiveFloat, PositiveInt, Probability

try:
    from tianshou.algorithm.modelfree.a2c import A2C, A2CTrainingStats
    from tianshou.algorithm.modelfree.ppo import PPO
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer
    from tianshou.env import BaseVectorEnv, DummyVectorEnv, SubprocVectorEnv
    from tianshou.utils.torch_utils import policy_within_training_step
except ImportError as error:
    raise missing_extra("composer train --trainer tianshou", error, "tianshou") from error

__all__ = ["TianshouTrainer"]

MOST_STEPS = 2048  # between two updates, as Tianshou has it


@dataclass(frozen=True)
class A2cSettings:
    """The settings of Tianshou's A2C and of its trainer, under their names there and with their defaults.

    ``collection_step_num_env_steps`` counts steps of all environments together; None is 2048, or a few more, so that
    every environment makes as many.
    """

    collection_step_num_env_steps: Optional[PositiveInt] = None  # noqa: UP045
    update_step_num_repetitions: PositiveInt = 1
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    gamma: Probability = 0.99
    gae_lambda: Probability = 0.95
    vf_coef: Coefficient = 0.5
    ent_coef: Coefficient = 0.01
    max_grad_norm: Optional[PositiveFloat] = None  # noqa: UP045


@dataclass(frozen=True)
class PpoSettings(A2cSettings):
    eps_clip: PositiveFloat = 0.2
    value_clip: bool = False
    advantage_normalization: bool = True
    recompute_advantage: bool = False


SETTINGS: dict[str, type[A2cSettings]] = {"ppo": PpoSettings, "a2c": A2cSettings}
ALGORITHMS: dict[str, type[A2C]] = {"ppo": PPO, "a2c": A2C}
TRAINERS_OWN = ("collection_step_num_env_steps", "update_step_num_repetitions", "batch_size", "lr")


class TianshouTrainer:
    """A composed model in the hands of an on-policy algorithm of Tianshou."""

    algorithms: ClassVar[Sequence[str]] = tuple(ALGORITHMS)

    def __init__(self, task: Task, model: Model) -> None:
        refuse_for_algorithm(model, task.algorithm)
        _seed(task.seed)
        self.model = model.to(task.device)
        self.act = greedy(one_policy(model.policy))
        self._task, self._settings = task, SETTINGS[task.algorithm](**task.settings)
        self._rollout = _rollout(self._settings, task.envs)
        self._policy = policy(model)
        given = {k: v for k, v in asdict(self._settings).items() if k not in TRAINERS_OWN}
        self._algorithm = ALGORITHMS[task.algorithm](
            policy=self._policy,
            critic=critic(self._policy),
            optim=AdamOptimizerFactory(lr=self._settings.lr),
            **given,
        )
        model.prepare_optimizer(self._optimizer)
        self._steps = 0
        self._envs = _environments(task)
        try:
            buffer = VectorReplayBuffer(self._rollout, task.envs)
            self._collector = Collector[CollectStats](
                self._algorithm, self._envs, buffer, on_step_hook=self._after_step
            )
            self._begin(task.seed)
        except BaseException:
            self.close()
            raise

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        kind = SETTINGS[task.algorithm]
        return setting_problems(kind, task) or _of_rollouts(task)

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made; the last rollout may go beyond."""
        self._report = report
        if not self._is_begun:
            self._begin(None)
        try:
            while self._steps < steps:
                phase("collecting")
                with policy_within_training_step(self._policy):
                    self._collector.collect(n_step=self._rollout)
                    phase("updating")
                    metrics = self._updated()
                if not report(self._steps, [], metrics):
                    break
        except StoppedError:
            self._is_begun = False

    def state(self) -> TrainerState:
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: TrainerState, steps: int) -> None:
        self.model.load_state_dict(state["model"])
        restore_optimizer(self._optimizer, state["optimizer"])
        self._steps = steps
        seed = self._task.seed + steps  # else the first episodes would come again
        _seed(seed)
        self._begin(seed)

    def close(self) -> None:
        if not self._envs.is_closed:
            self._envs.close()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._algorithm.optim._optim

    def _begin(self, seed: int | None) -> None:
        """New episodes, with nothing collected."""
        if seed is not None:
            self._envs.seed(seed)  # the n-th environment with seed + n
        self._collector.reset()
        self._policy.forget()
        self._running = RunningEpisodes(self._task.envs)
        self._is_begun = True

    def _after_step(self, action_batch: Any, rollout_batch: Any) -> None:
        episodes = self._running.add(rollout_batch.rew, rollout_batch.done)
        self._steps += self._task.envs
        if not self._report(self._steps, episodes):
            raise StoppedError

    def _updated(self) -> dict[str, float]:
        """Learn from what was collected; the numbers of this update by our names."""
        settings = self._settings
        statistics = self._algorithm.update(
            self._collector.buffer, settings.batch_size, settings.update_step_num_repetitions
        )
        assert isinstance(statistics, A2CTrainingStats)
        self._policy.count_observations()
        self._collector.reset_buffer(keep_statistics=True)
        return {
            "loss/policy": statistics.actor_loss.mean,
            "loss/value": statistics.vf_loss.mean,
            "entropy": statistics.ent_loss.mean,
            "learning_rate": settings.lr,
        }


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # by which Tianshou shuffles its batches


class _WithoutInfo(gymnasium.Wrapper):
    """An environment without infos, which Tianshou would store, whatever they are."""

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        observation, _ = self.env.reset(**settings)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, reward, terminated, truncated, {}


def _without_info(maker: EnvironmentMaker) -> gymnasium.Env:
    return _WithoutInfo(maker())


def _environments(task: Task) -> BaseVectorEnv:
    makers = [partial(_without_info, environment_maker(task))] * task.envs
    if task.subprocess:
        return SubprocVectorEnv(makers, context="forkserver")  # type: ignore[arg-type]
    return DummyVectorEnv(makers)


def _rollout(settings: A2cSettings, envs: int) -> int:
    """The steps of all environments between two updates."""
    return settings.collection_step_num_env_steps or envs * math.ceil(MOST_STEPS / envs)


def _of_rollouts(task: Task) -> list[str]:
    settings = SETTINGS[task.algorithm](**task.settings)
    steps, problems = _rollout(settings, task.envs), []
    if steps % task.envs:
        fits = task.envs * math.ceil(steps / task.envs)
        problems.append(
            f"'collection_step_num_env_steps' must be a multiple of the {task.envs} environments (--envs), "
            f"got {steps}; write {fits}"
        )
    is_normalized = isinstance(settings, PpoSettings) and settings.advantage_normalization
    if is_normalized and min(settings.batch_size, steps) == 1:
        problems.append(
            "'advantage_normalization' divides by the deviation within a batch, and batches here have one step; give "
            "'batch_size' and 'collection_step_num_env_steps' at least 2, or write advantage_normalization=false"
        )
    return problems
