"""`composer train --trainer skrl`: PPO and A2C of skrl, in a loop of our own over its agents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from torch import Tensor

from composer.adapters.needs import refuse
from composer.adapters.skrl.agents import ALGORITHMS, agent
from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.environment import vector_environment
from composer.training.evaluation import greedy
from composer.training.trainer import (
    Episode,
    Phase,
    Report,
    RunningEpisodes,
    Task,
    TrainerState,
    no_phase,
    restore_optimizer,
    setting_problems,
)
from perception_blocks.registry import missing_extra
from perception_blocks.settings import Coefficient, PositiveFloat, PositiveInt, Probability

try:
    from skrl.agents.torch.a2c import A2C
    from skrl.agents.torch.ppo import PPO
    from skrl.envs.wrappers.torch.gymnasium_envs import GymnasiumWrapper
except ImportError as error:
    raise missing_extra("composer train --trainer skrl", error, "skrl") from error

__all__ = ["SkrlTrainer"]

METRICS = {
    "Loss / Policy loss": "loss/policy",
    "Loss / Value loss": "loss/value",
    "Loss / Entropy loss": "loss/entropy",
    "Learning / Learning rate": "learning_rate",
}
SILENT = {"write_interval": 0, "checkpoint_interval": 0}


@dataclass(frozen=True)
class A2cSettings:
    """skrl's own, with its defaults. ``rollouts`` are the steps of each environment between two updates."""

    rollouts: PositiveInt = 16
    mini_batches: PositiveInt = 1
    discount_factor: Probability = 0.99
    gae_lambda: Probability = 0.95
    learning_rate: PositiveFloat = 1e-3
    grad_norm_clip: Coefficient = 0.5
    entropy_loss_scale: Coefficient = 0.0
    time_limit_bootstrap: bool = False
    sequence_length: Optional[PositiveInt] = None  # noqa: UP045


@dataclass(frozen=True)
class PpoSettings(A2cSettings):
    mini_batches: PositiveInt = 2
    learning_epochs: PositiveInt = 8
    ratio_clip: PositiveFloat = 0.2
    value_clip: Coefficient = 0.2
    value_loss_scale: Coefficient = 2.5
    kl_threshold: Coefficient = 0.0


KINDS: Mapping[str, tuple[type, type]] = {"ppo": (PPO, PpoSettings), "a2c": (A2C, A2cSettings)}
NAMES = {name: name.lower() for name in ALGORITHMS}


class SkrlTrainer:
    """A composed model in the hands of an agent of skrl, all of whose defaults stay what they are."""

    algorithms: ClassVar[Sequence[str]] = tuple(KINDS)

    def __init__(self, task: Task, model: Model) -> None:
        algorithm, kind = KINDS[task.algorithm]
        refuse(model, algorithm.__name__, "skrl", NAMES)
        settings = asdict(kind(**task.settings))
        length = settings.pop("sequence_length")
        self._task = task
        self._steps = 0
        torch.manual_seed(task.seed)
        self._env = _Environments(task)
        try:
            cfg = {**settings, "experiment": SILENT}
            trained: Any = agent(
                algorithm, model, self._env, cfg=cfg, states=False, sequence_length=length
            )
        except BaseException:
            self._env.close()
            raise
        self._agent = trained
        self._agent.init()
        self._agent.enable_training_mode(True)
        self._observations, _ = self._env.reset()
        self.model = model
        self.act = greedy(one_policy(model.policy))

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        _, kind = KINDS[task.algorithm]
        return setting_problems(kind, task)

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made, or a few more: it learns from whole rollouts."""
        rollouts = self._agent.cfg.rollouts
        phase("collecting")
        while self._steps < steps or self._agent._rollout % rollouts:
            episodes = self._step()
            updates = self._agent._rollout % rollouts == rollouts - 1
            if updates:
                phase("updating")
            self._agent.post_interaction(timestep=self._steps, timesteps=steps)
            metrics = self._metrics() if updates else None
            if not report(self._steps, episodes, metrics):
                return
            if updates:
                phase("collecting")

    def state(self) -> TrainerState:
        return {"model": self.model.state_dict(), "optimizer": self._agent.optimizer.state_dict()}

    def restore(self, state: TrainerState, steps: int) -> None:
        trained = self._agent
        self.model.load_state_dict(state["model"])
        restore_optimizer(trained.optimizer, state["optimizer"])
        self._steps = steps
        seed = self._task.seed + steps  # else the first episodes would come again
        torch.manual_seed(seed)
        self._observations = self._env.begin(seed)
        trained._rollout = 0
        trained.memory.reset()
        for states in getattr(trained, "_rnn_initial_states", {}).values():
            for each in states:
                each.zero_()

    def close(self) -> None:
        self._env.close()

    @torch.no_grad()
    def _step(self) -> list[Episode]:
        """One step of all environments, recorded; the episodes that are over with it."""
        seen, when = self._observations, {"timestep": self._steps, "timesteps": self._task.steps}
        actions, _ = self._agent.act(seen, None, **when)
        following, rewards, terminated, truncated, infos = self._env.step(actions)
        episodes = self._env.over(rewards, terminated | truncated)
        self._agent.record_transition(
            observations=seen, states=None, actions=actions, rewards=rewards,
            next_observations=following, next_states=None,
            terminated=terminated, truncated=truncated, infos=infos, **when,
        )  # fmt: skip
        self._observations = following
        self._steps += self._env.num_envs
        return episodes

    def _metrics(self) -> dict[str, float]:
        """The numbers of the last update by our names; skrl's own list of them would grow without end."""
        tracked = self._agent.tracking_data
        numbers = {
            ours: float(np.mean(tracked[name])) for name, ours in METRICS.items() if name in tracked
        }
        scale = self._agent.cfg.entropy_loss_scale
        if scale and "loss/entropy" in numbers:
            numbers["entropy"] = -numbers.pop("loss/entropy") / scale
        tracked.clear()
        return {name: number for name, number in numbers.items() if math.isfinite(number)}


class _Environments(GymnasiumWrapper):
    """skrl's wrapper of the task's environments, which counts their episodes."""

    def __init__(self, task: Task) -> None:
        vector = vector_environment(task)
        vector.device = task.device  # type: ignore[attr-defined]  # where skrl looks for it
        super().__init__(vector)
        self._seed = task.seed
        self._running = RunningEpisodes(task.envs)

    def begin(self, seed: int) -> Tensor:
        """Begin all episodes anew: their first observations."""
        self._seed, self._reset_once = seed, True
        self._running = RunningEpisodes(self.num_envs)
        return self.reset()[0]

    def over(self, rewards: Tensor, over: Tensor) -> list[Episode]:
        return self._running.add(rewards.flatten().cpu().numpy(), over.flatten().cpu().numpy())
