"""`composer train --trainer rl_games`: PPO of rl_games, for choices or for numbers."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from composer.adapters.needs import NEEDS, problems, refuse_actors, refuse_for
from composer.adapters.rl_games.environments import GymnasiumEnvironments
from composer.adapters.rl_games.hosted import Composed
from composer.adapters.rl_games.models import register
from composer.host.optimizing import nothing_to_train
from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.environment import environment_maker
from composer.training.evaluation import greedy
from composer.training.trainer import (
    MOST_COUNTED,
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rl_games.algos_torch.a2c_continuous import A2CAgent
        from rl_games.algos_torch.a2c_discrete import DiscreteA2CAgent
        from rl_games.common.algo_observer import AlgoObserver
        from rl_games.common.tr_helpers import DefaultRewardsShaper
except ImportError as error:
    raise missing_extra("composer train --trainer rl_games", error, "rl-games") from error

__all__ = ["RlGamesTrainer"]


@dataclass(frozen=True)
class PpoSettings:
    """The settings of rl_games' PPO under their names there.

    ``minibatch_size`` counts steps of all environments together; None is a quarter of the steps between two updates.
    ``seq_length`` is for models with memory.
    """

    horizon_length: PositiveInt = 128
    minibatch_size: PositiveInt | None = None
    mini_epochs: PositiveInt = 4
    seq_length: PositiveInt = 16
    learning_rate: PositiveFloat = 3e-4
    lr_schedule: Literal["constant", "linear", "adaptive"] = "constant"
    kl_threshold: PositiveFloat = 0.008
    gamma: Probability = 0.99
    tau: Probability = 0.95
    e_clip: PositiveFloat = 0.2
    clip_value: bool = False
    critic_coef: Coefficient = 1.0
    entropy_coef: Coefficient = 0.0
    grad_norm: PositiveFloat = 0.5
    truncate_grads: bool = True
    normalize_advantage: bool = True
    value_bootstrap: bool = True
    use_action_masks: bool = False


class RlGamesTrainer:
    """A composed model in the hands of PPO of rl_games, whose files go into a folder that is removed."""

    algorithms: ClassVar[Sequence[str]] = ("ppo",)

    def __init__(self, task: Task, model: Model) -> None:
        algorithm = _refuse(model)
        register()
        torch.manual_seed(task.seed)
        self.model = model
        self._task = task
        self._steps = 0
        settings = PpoSettings(**task.settings)
        self._folder = tempfile.mkdtemp()
        self._envs = _Reporting(task, model)
        self._observer = _Phases()
        try:
            if settings.use_action_masks and not self._envs.has_action_masks():
                raise ValueError(
                    f"use_action_masks asks the environment for its masks, but {task.environment!r} has no "
                    "action_masks(); define it there, or leave it out: the action_mask of the spec applies by itself"
                )
            with contextlib.redirect_stdout(io.StringIO()):
                self._agent = _agent(algorithm, self._config(algorithm, settings))
        except BaseException:
            self.close()
            raise
        model.prepare_optimizer(self._agent.optimizer)
        self.act = greedy(one_policy(model.policy), masked=settings.use_action_masks)

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        problems = setting_problems(PpoSettings, task)
        if problems:
            return problems
        settings = PpoSettings(**task.settings)
        steps, size = settings.horizon_length * task.envs, settings.minibatch_size
        if size is not None and steps % size:
            return [
                f"'minibatch_size' must divide the {steps:,} steps between two updates (horizon_length times --envs), "
                f"got {size:,}"
            ]
        return []

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made; the last rollout may go beyond."""
        agent = self._agent
        self._envs.begin(self._steps, report)
        self._observer.phase = phase
        agent.init_tensors()
        agent.obs = agent.env_reset()
        try:
            while self._envs.steps < steps:
                phase("collecting")
                agent.update_epoch()
                metrics = _metrics(agent, agent.train_epoch())
                agent.dataset.update_values_dict(None)
                agent.frame += agent.curr_frames
                if not report(self._envs.steps, [], metrics):
                    break
        except StoppedError:
            pass
        self._steps = self._envs.steps
        agent.set_eval()  # which counts what was seen since

    def state(self) -> TrainerState:
        agent = self._agent
        return {
            "model": self.model.state_dict(),
            "optimizer": agent.optimizer.state_dict(),
            "epoch": agent.epoch_num,
            "learning_rate": float(agent.last_lr),
        }

    def restore(self, state: TrainerState, steps: int) -> None:
        agent = self._agent
        if not 0 <= state["epoch"] < MOST_COUNTED or not 0 < state["learning_rate"] < 1e3:
            raise ValueError(
                "its count of updates or its learning rate is no number that training gives"
            )
        self.model.load_state_dict(state["model"])
        restore_optimizer(agent.optimizer, state["optimizer"])
        agent.epoch_num, agent.last_lr = state["epoch"], state["learning_rate"]
        agent.frame = self._steps = steps
        torch.manual_seed(self._task.seed + steps)  # else the first episodes would come again
        self._envs.seed_again(self._task.seed + steps)

    def close(self) -> None:
        self._envs.close()
        agent = getattr(self, "_agent", None)
        if agent is not None:
            agent.writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _config(self, algorithm: str, settings: PpoSettings) -> dict[str, Any]:
        """rl_games' own config, for an agent that is made without its Runner."""
        task, model = self._task, self.model
        steps = settings.horizon_length * task.envs
        quarter = steps // 4 if steps % 4 == 0 else steps
        schedule = None if settings.lr_schedule == "constant" else settings.lr_schedule
        critic = model.critic
        return {
            "algo": {"name": algorithm},
            "model": {"name": "composer"},
            "network": {"name": "composer", "spec": Composed(model)},
            "config": {
                **asdict(settings),
                "minibatch_size": settings.minibatch_size or quarter,
                "seq_length": settings.seq_length if model.has_memory else 1,
                "lr_schedule": schedule,
                "max_epochs": max(1, -(-task.steps // steps)),
                "num_actors": task.envs,
                "normalize_input": False,
                "normalize_value": critic is not None and critic.value_normalizer is not None,
                "clip_actions": False, "bounds_loss_coef": 0.0,
                "name": "run", "env_name": "composer", "vec_env": self._envs,
                "env_info": self._envs.get_env_info(),
                "device": task.device, "device_name": task.device,
                "reward_shaper": DefaultRewardsShaper(),
                "features": {"observer": self._observer},
                "train_dir": self._folder, "print_stats": False,
            },
        }  # fmt: skip


def _refuse(model: Model) -> str:
    """rl_games' algorithm for the actions of ``model``. Raises ValueError with every reason against it."""
    refuse_actors(model.observation_space, "rl_games")
    kinds = {leaf.kind for leaf in one_policy(model.policy).action_tree.leaves.values()}
    algorithm = "a2c_continuous" if kinds == {"box"} else "a2c_discrete"
    reasons = [*problems(model, algorithm, NEEDS["rl_games"].algorithms), *nothing_to_train(model)]
    refuse_for("ppo of rl_games", [reason.replace(algorithm, "ppo") for reason in reasons])
    return algorithm


def _agent(algorithm: str, params: dict[str, Any]) -> Any:
    kind = A2CAgent if algorithm == "a2c_continuous" else DiscreteA2CAgent
    return kind(base_name="run", params=params)


def _metrics(agent: Any, result: Sequence[Any]) -> dict[str, float]:
    """The numbers of one update by our names; `train_epoch` returns losses in this order, times before them."""
    policy, value, *_, entropies, divergences, rate, _ = result[4:]
    means = {"loss/policy": policy, "loss/value": value, "entropy": entropies, "kl": divergences}
    numbers = {name: float(torch.stack(list(each)).detach().mean()) for name, each in means.items()}
    return {**numbers, "learning_rate": float(rate)}


class _Phases(AlgoObserver):
    """Tells when rl_games begins to learn from a rollout."""

    phase: Phase = staticmethod(no_phase)  # type: ignore[assignment]

    def after_steps(self) -> None:
        self.phase("updating")


class _Reporting(GymnasiumEnvironments):
    """The environments of a task; they report every step, and the episodes that ended in it."""

    def __init__(self, task: Task, model: Model) -> None:
        super().__init__(
            task.envs, make=environment_maker(task), seed=task.seed, device=task.device,
            ignore=model.spec.ignore, texts=model.spec.texts, subprocess=task.subprocess,
        )  # fmt: skip
        self.steps = 0

    def begin(self, steps: int, report: Report) -> None:
        """Count on from ``steps``."""
        self.steps, self._report = steps, report

    def seed_again(self, seed: int) -> None:
        self._seed = seed

    def reset(self) -> Any:
        self._running = RunningEpisodes(self.envs.num_envs)
        return super().reset()

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        observations, rewards, dones, infos = super().step(actions)
        self.steps += len(rewards)
        episodes = self._running.add(rewards.cpu().numpy(), dones.cpu().numpy())
        if not self._report(self.steps, episodes, None):
            raise StoppedError
        return observations, rewards, dones, infos
