"""`composer train --trainer rllib`: PPO of RLlib's new API stack, by its Algorithm."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.environment import environment_maker
from composer.training.evaluation import greedy
from composer.training.trainer import (
    MOST_COUNTED,
    Phase,
    Report,
    StoppedError,
    Task,
    TrainerState,
    no_phase,
    restore_optimizer,
    setting_problems,
)
from perception_blocks.registry import missing_extra
from perception_blocks.settings import (
    Coefficient,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
)

try:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from composer.adapters.rllib.checks import checked
    from composer.adapters.rllib.module import (
        CONFIG_KEY,
        ComposedModule,
        GivenModel,
        refuse_untrainable,
    )
    from composer.adapters.rllib.reporting import Reporter, ReportingLearner, learner_of
    from composer.adapters.rllib.runners import begin_anew, environments, start_ray, told
except ImportError as error:
    raise missing_extra("composer train --trainer rllib", error, "rllib") from error

__all__ = ["RllibTrainer"]

ENVIRONMENT = "composer-environment"
METRICS = {
    "policy_loss": "loss/policy",
    "vf_loss": "loss/value",
    "entropy": "entropy",
    "mean_kl_loss": "kl",
    "vf_explained_var": "explained_variance",
    "default_optimizer_learning_rate": "learning_rate",
}


@dataclass(frozen=True)
class PpoSettings:
    """The settings of RLlib's PPO under their names in ``PPOConfig``, with its defaults.

    ``train_batch_size_per_learner`` counts the steps of all environments between two updates. The environments are
    divided among ``num_env_runners`` processes; with 0, the default, they are in this one. ``max_seq_len`` are the
    steps of the sequences that memory learns from.
    """

    train_batch_size_per_learner: PositiveInt = 4000
    minibatch_size: PositiveInt = 128
    num_epochs: PositiveInt = 30
    shuffle_batch_per_epoch: bool = True
    lr: PositiveFloat = 5e-5
    gamma: Probability = 0.99
    lambda_: Probability = 1.0
    clip_param: PositiveFloat = 0.3
    vf_clip_param: PositiveFloat = 10.0
    vf_loss_coeff: Coefficient = 1.0
    entropy_coeff: Coefficient = 0.0
    use_kl_loss: bool = True
    kl_coeff: Coefficient = 0.2
    kl_target: PositiveFloat = 0.01
    grad_clip: PositiveFloat | None = None
    max_seq_len: PositiveInt = 20
    num_env_runners: NonNegativeInt = 0


class RllibTrainer:
    """A composed model in the hands of RLlib's PPO, whose learner is in this process."""

    algorithms: ClassVar[Sequence[str]] = ("ppo",)

    def __init__(self, task: Task, model: Model) -> None:
        refuse_untrainable(model, model.observation_space, {"PPO": "ppo"})
        self._task, self._settings = task, PpoSettings(**task.settings)
        self._reporter = Reporter()
        self._algorithm: Algorithm | None = None
        self._stop_ray = start_ray(self._settings.num_env_runners)
        self._folder = tempfile.mkdtemp(prefix="composer-")
        try:
            with told(self._folder):
                self._algorithm = algorithm = checked(self._config(model)).build_algo()
            self._learner = learner_of(algorithm)
            self._learner.reporter = self._reporter
            self._begin(task.seed)
        except BaseException:
            self.close()
            raise
        self.model = model
        self.act = greedy(one_policy(model.policy))

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        problems = setting_problems(PpoSettings, task)
        return problems or [*_batch_problems(task), *_runner_problems(task)]

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made; the last rollout may go beyond."""
        assert self._algorithm is not None
        reporter = self._reporter
        reporter.report, reporter.phase = report, phase
        if not self._is_begun:
            self._begin(None)
        try:
            while reporter.steps < steps:
                phase("collecting")
                with told(self._folder):
                    metrics = _metrics(self._algorithm.train())
                if not report(reporter.steps, [], metrics):
                    break
        except StoppedError:
            self._is_begun = False

    def state(self) -> TrainerState:
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "kl_coeff": float(self._learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]),
        }

    def restore(self, state: TrainerState, steps: int) -> None:
        if not 0 <= state["kl_coeff"] < MOST_COUNTED:
            raise ValueError(f"its coefficient of the KL divergence is {state['kl_coeff']}")
        self.model.load_state_dict(state["model"])
        restore_optimizer(self._optimizer, state["optimizer"])
        coefficient = self._learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]
        coefficient.fill_(state["kl_coeff"])  # type: ignore[union-attr]
        self._reporter.steps = steps
        self._begin(self._task.seed + steps)  # else the first episodes would come again

    def close(self) -> None:
        algorithm, self._algorithm = self._algorithm, None
        if algorithm is not None:
            algorithm.stop()
            shutil.rmtree(str(algorithm.logdir), ignore_errors=True)
        self._stop_ray()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._learner.get_optimizer(DEFAULT_MODULE_ID)

    def _begin(self, seed: int | None) -> None:
        """New episodes, with nothing collected, and the learner's weights in all that acts."""
        assert self._algorithm is not None
        assert self._algorithm.env_runner_group is not None
        weights = self._learner.module[DEFAULT_MODULE_ID].get_state(inference_only=True)
        envs = self._task.envs // max(1, self._settings.num_env_runners)
        self._algorithm.env_runner_group.foreach_env_runner(
            partial(begin_anew, weights=weights, seed=seed, envs=envs)  # type: ignore[arg-type]
        )
        self._reporter.forget()
        self._is_begun = True

    def _config(self, model: Model) -> PPOConfig:
        task, settings = self._task, asdict(self._settings)
        runners, length = settings.pop("num_env_runners"), settings.pop("max_seq_len")
        maker = environment_maker(task)
        tell = self._folder if runners else None
        register_env(ENVIRONMENT, partial(environments, maker, task.subprocess, tell))
        given = {CONFIG_KEY: {"model": GivenModel(model)}, "max_seq_len": length}
        device = torch.device(task.device)
        config = (
            PPOConfig()
            .environment(ENVIRONMENT, normalize_actions=False)
            .env_runners(
                num_env_runners=runners,
                num_envs_per_env_runner=task.envs // max(1, runners),
                gym_env_vectorize_mode="vector_entry_point",
            )
            .learners(
                num_learners=0,
                learner_class=ReportingLearner,
                num_gpus_per_learner=int(device.type == "cuda"),
                local_gpu_idx=device.index or 0,
            )
            .training(**settings)
            .fault_tolerance(restart_failed_env_runners=False)
            .rl_module(rl_module_spec=RLModuleSpec(ComposedModule, model_config=given))
            .debugging(seed=task.seed)
        )
        if runners == 0:
            reporter = self._reporter
            config.callbacks(on_episode_step=reporter.step, on_episode_end=reporter.end)
        return config


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an update by our names."""
    numbers = result["learners"][DEFAULT_MODULE_ID]
    named = {ours: float(numbers[name]) for name, ours in METRICS.items() if name in numbers}
    return {name: number for name, number in named.items() if math.isfinite(number)}


def _batch_problems(task: Task) -> list[str]:
    settings = PpoSettings(**task.settings)
    size, batch = settings.minibatch_size, settings.train_batch_size_per_learner
    if size <= batch:
        return []
    return [
        f"'minibatch_size' must be at most 'train_batch_size_per_learner', which is {batch:,}, got {size:,}"
    ]


def _runner_problems(task: Task) -> list[str]:
    runners = PpoSettings(**task.settings).num_env_runners
    problems = []
    if runners and task.envs % runners:
        problems.append(
            f"'num_env_runners' must divide the {task.envs} environments (--envs), got {runners}; "
            f"write --envs {runners * math.ceil(task.envs / runners)}"
        )
    if runners and task.subprocess:
        problems.append(
            "'num_env_runners' are processes of RLlib, which --subprocess would add others to; leave out one of the two"
        )
    return problems
