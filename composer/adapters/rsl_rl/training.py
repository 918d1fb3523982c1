"""`composer train --trainer rsl_rl`: PPO of rsl_rl, by its OnPolicyRunner."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from composer.adapters.needs import refuse, refuse_for
from composer.adapters.rsl_rl.environments import GymnasiumVecEnv
from composer.adapters.rsl_rl.models import Actor, Critic
from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.environment import vector_environment
from composer.training.evaluation import greedy
from composer.training.trainer import (
    Episode,
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
    from rsl_rl.algorithms import PPO
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict
except ImportError as error:
    raise missing_extra("composer train --trainer rsl_rl", error, "rsl-rl") from error

__all__ = ["RslRlTrainer"]

METRICS = {"value": "loss/value", "surrogate": "loss/policy", "entropy": "entropy"}


@dataclass(frozen=True)
class Settings:
    """rsl_rl's own, with its defaults. ``num_steps_per_env`` are the steps of each environment between two updates."""

    num_steps_per_env: PositiveInt = 24
    num_learning_epochs: PositiveInt = 5
    num_mini_batches: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["adaptive", "fixed"] = "adaptive"
    desired_kl: PositiveFloat = 0.01
    clip_param: PositiveFloat = 0.2
    gamma: Probability = 0.99
    lam: Probability = 0.95
    value_loss_coef: Coefficient = 1.0
    entropy_coef: Coefficient = 0.01
    max_grad_norm: PositiveFloat = 1.0
    use_clipped_value_loss: bool = True
    normalize_advantage_per_mini_batch: bool = False
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"


class RslRlTrainer:
    """A composed model in the hands of rsl_rl's PPO, all of whose defaults stay what they are."""

    algorithms: ClassVar[Sequence[str]] = ("ppo",)

    def __init__(self, task: Task, model: Model) -> None:
        refuse(model, "PPO", "rsl_rl", {"PPO": "ppo"})
        self._settings = Settings(**task.settings)
        refuse_for("ppo of rsl_rl", _batch_problems(self._settings, task.envs, model.has_memory))
        self._task = task
        self._steps = 0
        torch.manual_seed(task.seed)
        self._env = _environment(task, task.seed)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints the networks
                self._runner = OnPolicyRunner(
                    self._env, self._config(model), log_dir=None, device=task.device
                )
        except BaseException:
            self._env.close()
            raise
        model.prepare_optimizer(self._runner.alg.optimizer)
        self.model = model
        self.act = greedy(one_policy(model.policy))

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        return setting_problems(Settings, task)

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made, or a few more: it learns from whole rollouts."""
        algorithm = self._runner.alg
        assert isinstance(algorithm, _Ppo)
        algorithm.metrics = None

        def after(episodes: list[Episode]) -> None:
            self._steps += self._env.num_envs
            metrics, algorithm.metrics = algorithm.metrics, None
            if not report(self._steps, episodes, metrics):
                raise StoppedError

        self._env.after_step, algorithm.phase = after, phase
        try:
            while self._steps < steps:
                phase("collecting")
                self._runner.learn(1)
            if algorithm.metrics is not None:
                report(self._steps, [], algorithm.metrics)
        except StoppedError:
            algorithm.storage.clear()  # what it has of a rollout
        finally:
            algorithm.eval_mode()

    def state(self) -> TrainerState:
        algorithm = self._runner.alg
        optimizer = algorithm.optimizer.state_dict()
        # The adapted rate is kept beside it: a group of an optimiser says what the settings say.
        groups = [
            {**each, "lr": self._settings.learning_rate} for each in optimizer["param_groups"]
        ]
        return {
            "model": self.model.state_dict(),
            "optimizer": {**optimizer, "param_groups": groups},
            "learning_rate": float(algorithm.learning_rate),
        }

    def restore(self, state: TrainerState, steps: int) -> None:
        algorithm = self._runner.alg
        self.model.load_state_dict(state["model"])
        restore_optimizer(algorithm.optimizer, state["optimizer"])
        if not 0 < state["learning_rate"] < 1:
            raise ValueError(f"its learning rate is {state['learning_rate']}")
        algorithm.learning_rate = state["learning_rate"]
        for group in algorithm.optimizer.param_groups:
            group["lr"] = algorithm.learning_rate
        self._steps = steps
        seed = self._task.seed + steps  # else the first episodes would come again
        torch.manual_seed(seed)
        self._env.begin(seed)
        for part in (algorithm.actor, algorithm.critic):
            part.reset()

    def close(self) -> None:
        self._env.close()

    def _config(self, model: Model) -> dict[str, Any]:
        def actor(obs: Any, groups: Any, name: str, actions: int) -> Actor:
            return Actor.of(model, obs, groups, name, actions)

        settings = asdict(self._settings)
        groups = self._env.obs_groups
        return {
            "num_steps_per_env": settings.pop("num_steps_per_env"),
            "save_interval": 1,
            "obs_groups": {"actor": groups, "critic": groups},
            "algorithm": {"class_name": _Ppo, **settings},
            "actor": {"class_name": actor},
            "critic": {"class_name": Critic},
        }


class _Ppo(PPO):
    """PPO that says when it learns, and what came of it."""

    phase: Phase = staticmethod(no_phase)
    metrics: Mapping[str, float] | None = None

    def update(self) -> dict[str, float]:
        self.phase("updating")
        losses = super().update()
        named = {METRICS.get(name, name): float(value) for name, value in losses.items()}
        self.metrics = {**named, "learning_rate": float(self.learning_rate)}
        return losses


class _CountedEnv(GymnasiumVecEnv):
    """An environment that hands the episodes that are over to ``after_step``."""

    after_step: Callable[[list[Episode]], None]

    def begin(self, seed: int | None) -> None:
        super().begin(seed)
        self._running = RunningEpisodes(self.num_envs)

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        result = super().step(actions)
        _, rewards, over, _ = result
        self.after_step(self._running.add(rewards.cpu().numpy(), over.cpu().numpy()))
        return result


def _environment(task: Task, seed: int) -> _CountedEnv:
    envs: VectorEnv = vector_environment(task)
    try:
        return _CountedEnv(envs, seed=seed, device=task.device)
    except BaseException:
        envs.close()
        raise


def _batch_problems(settings: Settings, envs: int, has_memory: bool) -> list[str]:
    """Mini-batches in which there would be nothing."""
    count, steps = settings.num_mini_batches, settings.num_steps_per_env
    if has_memory and count > envs:
        return [
            f"with memory, the environments are divided into mini-batches, but num_mini_batches is {count} and there "
            f"are {envs}; give --envs {count}, or num_mini_batches={envs}"
        ]
    if count > envs * steps:
        return [
            f"a rollout has {envs * steps} steps, but num_mini_batches is {count}; make it at most that"
        ]
    return []
