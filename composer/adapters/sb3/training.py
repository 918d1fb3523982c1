"""`composer train --trainer sb3`: the algorithms of Stable-Baselines3 and sb3-contrib."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, Literal, Optional

import gymnasium
import numpy as np
import torch

from composer.adapters.needs import refuse
from composer.adapters.sb3.agents import UpdateNormalizers, agent, wrap
from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.environment import EnvironmentMaker, environment_maker
from composer.training.evaluation import greedy
from composer.training.trainer import (
    MOST_COUNTED,
    Episode,
    Phase,
    Report,
    Task,
    TrainerState,
    no_phase,
    refuse_other_state,
    refuse_other_steps,
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
    from sb3_contrib import MaskablePPO, RecurrentPPO
    from sb3_contrib.common.maskable.utils import is_masking_supported
    from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
except ImportError as error:
    raise missing_extra("composer train --trainer sb3", error, "sb3") from error

__all__ = ["Sb3Trainer"]

ALGORITHMS: dict[str, type] = {
    "ppo": PPO,
    "a2c": A2C,
    "dqn": DQN,
    "sac": SAC,
    "td3": TD3,
    "maskable_ppo": MaskablePPO,
    "recurrent_ppo": RecurrentPPO,
}
NAMES = {algorithm.__name__: name for name, algorithm in ALGORITHMS.items()}
# What a text can give and neither the task nor the spec decides. Values that the library accepts, but fails with later
# or learns nothing by, are refused here; of those that are None its own annotations hold.
SETTINGS: dict[str, object] = {
    "action_noise": Optional[PositiveFloat],  # noqa: UP045
    "learning_rate": PositiveFloat,
    **dict.fromkeys(("gamma", "gae_lambda", "tau"), Probability),
    **dict.fromkeys(("exploration_initial_eps", "exploration_final_eps"), Probability),
    **dict.fromkeys(("clip_range", "max_grad_norm"), PositiveFloat),
    **dict.fromkeys(("vf_coef", "target_policy_noise", "target_noise_clip"), Coefficient),
    **dict.fromkeys(("clip_range_vf", "target_kl"), Optional[PositiveFloat]),  # noqa: UP045
    "exploration_fraction": Probability,
    "learning_starts": NonNegativeInt,
    "gradient_steps": PositiveInt | Literal[-1],  # as many as steps were collected
    "sde_sample_freq": PositiveInt | Literal[-1],  # -1: once, when steps begin to be collected
    "train_freq": PositiveInt,  # of 0 its loop has no end
    **dict.fromkeys(("n_steps", "n_epochs", "batch_size", "buffer_size"), PositiveInt),
    **dict.fromkeys(("target_update_interval", "policy_delay", "stats_window_size"), PositiveInt),
    **dict.fromkeys(("ent_coef", "target_entropy", "normalize_advantage", "rms_prop_eps"), None),
    **dict.fromkeys(("use_rms_prop", "use_sde", "use_sde_at_warmup", "device"), None),
}
METRICS = {  # our names of what the library logs
    "loss": "loss/total", "policy_gradient_loss": "loss/policy", "policy_loss": "loss/policy",
    "actor_loss": "loss/policy", "value_loss": "loss/value", "critic_loss": "loss/critic",
    "entropy_loss": "entropy", "approx_kl": "kl", "ent_coef": "entropy_coefficient",
    "ent_coef_loss": "loss/entropy_coefficient",
}  # fmt: skip


class Sb3Trainer:
    """A composed model in the hands of an algorithm of Stable-Baselines3, all of whose defaults stay what they are.

    ``action_noise``, where an algorithm has it, is the standard deviation of normal noise on a scale from -1 to 1.
    """

    algorithms: ClassVar[Sequence[str]] = tuple(ALGORITHMS)

    def __init__(self, task: Task, model: Model) -> None:
        self._task = task
        algorithm = ALGORITHMS[task.algorithm]
        refuse(model, algorithm.__name__, "sb3", NAMES)
        vector = SubprocVecEnv if task.subprocess else DummyVecEnv
        self._envs = vector([partial(_environment, environment_maker(task), model)] * task.envs)
        settings = {"device": task.device, **task.settings}
        if settings.get("action_noise") is not None:
            size = gymnasium.spaces.flatdim(model.action_space)  # type: ignore[arg-type]
            deviations = np.full(size, settings["action_noise"])
            settings["action_noise"] = NormalActionNoise(np.zeros(size), deviations)
        try:
            if algorithm is MaskablePPO and not is_masking_supported(self._envs):
                raise ValueError(
                    f"maskable_ppo asks the environment for its masks, but {task.environment!r} has no "
                    "action_masks(); define it there, or use ppo, which applies the action_mask of the spec"
                )
            self._agent = agent(algorithm, model, self._envs, seed=task.seed, **settings)
        except BaseException as error:
            self._envs.close()
            if isinstance(error, AssertionError):  # so the library refuses numbers
                raise ValueError(f"{algorithm.__name__} of Stable-Baselines3: {error}") from error
            raise
        self.model: Model = self._agent.policy.model
        self.act = greedy(one_policy(self.model.policy), masked=task.algorithm == "maskable_ppo")

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        algorithm = ALGORITHMS[task.algorithm]
        known = _settings(algorithm)
        problems = setting_problems(make_dataclass(task.algorithm, known.items()), task)
        device = task.settings.get("device")
        if isinstance(device, str) and not _is_device(device):
            problems.append(
                f"'device' must be 'auto' or a device of torch such as 'cpu', got {device!r}"
            )
        if task.settings.get("use_sde") is not True:
            problems += [
                f"{name!r} has no effect without use_sde; set use_sde=true too"
                for name in ("sde_sample_freq", "use_sde_at_warmup")
                if name in task.settings and name in known
            ]
        return problems

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made, or a few more: PPO and A2C learn from whole rollouts."""
        self._agent.learn(
            steps - self._agent.num_timesteps,
            callback=[_Reporting(report, phase), UpdateNormalizers()],
            reset_num_timesteps=False,
        )

    def state(self) -> TrainerState:
        trained = self._agent
        _, names = trained._get_torch_save_params()
        state = {
            "parameters": trained.get_parameters(),
            "tensors": {name: getattr(trained, name) for name in names if hasattr(trained, name)},
            "updates": trained._n_updates,
        }
        buffer = getattr(trained, "replay_buffer", None)
        return state if buffer is None else {**state, "buffer": _kept(buffer)}

    def restore(self, state: TrainerState, steps: int) -> None:
        trained = self._agent
        trained.set_parameters(state["parameters"])
        parts = [attrgetter(name)(trained) for name in trained._get_torch_save_params()[0]]
        for optimizer in (part for part in parts if isinstance(part, torch.optim.Optimizer)):
            refuse_other_state(optimizer)
        for name, value in state["tensors"].items():
            getattr(trained, name).data.copy_(value)
        if not 0 <= state["updates"] < MOST_COUNTED:
            raise ValueError(f"it has made {state['updates']:,} updates")
        trained._n_updates = state["updates"]
        trained.num_timesteps = steps
        trained.set_random_seed(self._task.seed + steps)  # else the first episodes would come again
        if "buffer" in state:
            _fill(trained.replay_buffer, state["buffer"])

    def close(self) -> None:
        self._envs.close()


class _Reporting(BaseCallback):
    """Reports every step, and the episodes that ended in it; stops where the answer is False."""

    def __init__(self, report: Report, phase: Phase) -> None:
        super().__init__()
        self._report = report
        self._phase = phase
        self._is_updated = False

    def _on_rollout_start(self) -> None:
        self._phase("collecting")

    def _on_rollout_end(self) -> None:
        self._phase("updating")
        self._is_updated = True

    def _on_training_end(self) -> None:
        if self._is_updated:
            self._report(self.num_timesteps, [], self._metrics())

    def _on_step(self) -> bool:
        ended = [info["episode"] for info in self.locals["infos"] if "episode" in info]
        episodes = [Episode(float(each["r"]), int(each["l"])) for each in ended]
        return self._report(self.num_timesteps, episodes, self._metrics())

    def _metrics(self) -> dict[str, float] | None:
        """The numbers of the update since the last call by our names, if there was one.

        Its ``entropy_loss`` is the entropy, negated.
        """
        if not self._is_updated:
            return None
        self._is_updated = False
        numbers = {
            METRICS.get(name, name): float(value)
            for key, value in self.logger.name_to_value.items()
            if (name := key.removeprefix("train/")) != key and name != "n_updates"
        }
        if "entropy" in numbers:
            numbers["entropy"] = -numbers["entropy"]
        return numbers or None


def _environment(make: EnvironmentMaker, model: Model) -> gymnasium.Env:
    return wrap(Monitor(make()), model)


# --- settings ---


def _settings(algorithm: type) -> dict[str, object]:
    """Its settings, and what each of them may be."""
    arguments = inspect.signature(algorithm).parameters
    return {
        n: SETTINGS[n] or argument.annotation for n, argument in arguments.items() if n in SETTINGS
    }


def _is_device(value: Any) -> bool:
    try:
        return value == "auto" or bool(torch.device(value))
    except RuntimeError:
        return False


# --- replay buffers as tensors ---


def _kept(buffer: ReplayBuffer) -> dict[str, Any]:
    """The collected steps, by the names of the buffer's arrays."""
    size = buffer.size()

    def steps(array: Any) -> Any:
        if isinstance(array, dict):
            return {key: steps(part) for key, part in array.items()}
        return torch.from_numpy(array[:size].copy())

    arrays = {name: steps(getattr(buffer, name)) for name in _spaces_of(buffer)}
    return {"arrays": arrays, "at": buffer.pos, "full": bool(buffer.full)}


def _fill(buffer: ReplayBuffer, kept: Mapping[str, Any]) -> None:
    """Copy ``kept`` into ``buffer``. Raises ValueError for what is not of this buffer."""
    at, full = kept["at"], kept["full"]
    if type(at) is not int or not 0 <= at < buffer.buffer_size or type(full) is not bool:
        raise ValueError("its position in the replay buffer is outside this buffer")
    size = buffer.buffer_size if full else at
    spaces = _spaces_of(buffer)
    stored, given = _parts({name: getattr(buffer, name) for name in spaces}), _parts(kept["arrays"])
    if stored.keys() != given.keys():
        raise ValueError("its replay buffer holds other values than this run stores")
    for name, space in _parts(spaces).items():
        like = torch.from_numpy(stored[name][:size])
        refuse_other_steps(name, given[name], like, space, name == "actions")
        like.copy_(given[name])
    buffer.pos, buffer.full = at, full


def _spaces_of(buffer: ReplayBuffer) -> dict[str, gymnasium.Space | None]:
    """The spaces of the values of its arrays; None for rewards. Actions of a Box are stored from -1 to 1."""
    seen, taken, flag = (
        buffer.observation_space,
        buffer.action_space,
        gymnasium.spaces.MultiBinary(1),
    )
    if isinstance(taken, gymnasium.spaces.Box):
        taken = gymnasium.spaces.Box(-1, 1, taken.shape)
    return {
        "observations": seen, "next_observations": seen, "actions": taken, "rewards": None,
        "dones": flag, "timeouts": flag,
    }  # fmt: skip


def _parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The ``values`` by name, and what those hold that are mappings by ``name/key``."""
    parts: dict[str, Any] = {}
    for name, value in values.items():
        is_mapping = isinstance(value, Mapping)
        parts |= {f"{name}/{k}": v for k, v in value.items()} if is_mapping else {name: value}
    return parts
