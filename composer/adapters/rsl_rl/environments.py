"""gymnasium's vector environments as rsl_rl's."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import getitem
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from composer.spaces.recalling import with_previous
from composer.spaces.tree import SpaceTree, flatten_space, format_space
from perception_blocks.registry import missing_extra

try:
    from rsl_rl.env import VecEnv
    from tensordict import TensorDict
except ImportError as error:
    raise missing_extra("composer.adapters.rsl_rl.vector_env", error, "rsl-rl") from error

__all__ = ["GymnasiumVecEnv", "vector_env"]

ENDLESS = 2**31 - 1  # steps of an episode without a limit


def vector_env(
    env: str | VectorEnv,
    num_envs: int = 1,
    *,
    seed: int | None = None,
    device: str = "cpu",
    previous: Iterable[str] = (),
) -> GymnasiumVecEnv:
    """An environment of rsl_rl over ``env``: the id of an environment of gymnasium, or a vector environment.

    Observations are groups under the model's flat keys: ``observation`` for a space without parts, else the names in
    the Dict, nested ones with slashes. Actions are a Box, clipped to its bounds on the way. ``previous`` adds the last
    action and reward, as `composer.with_previous` does. Raises ValueError for
    actions that are no Box, observations that vary in size, and a vector environment that does not reset within the
    last step.
    """
    if isinstance(env, str):
        env = gymnasium.make_vec(
            env, num_envs, vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )  # fmt: skip
    env = with_previous(env, previous)
    return GymnasiumVecEnv(env, seed=seed, device=device)


class GymnasiumVecEnv(VecEnv):
    """A vector environment of gymnasium in the form of rsl_rl; `vector_env` makes it.

    ``observation_space`` and ``action_space`` are those of one environment: give them in the config of the actor where
    the model should know bounds, images and choices.
    """

    def __init__(self, env: VectorEnv, *, seed: int | None = None, device: str = "cpu") -> None:
        action = env.single_action_space
        problems = []
        if not isinstance(action, spaces.Box):
            problems.append(
                f"rsl_rl's actions are one vector of numbers, a Box, but its action is {format_space(action)}; "
                "train it with the trainer sb3 or skrl"
            )
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            problems.append(
                "rsl_rl expects the first observation of the next episode with the last step, but it resets by "
                f"{mode}; make it with autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP"
            )
        tree = flatten_space(env.single_observation_space, "observation")
        varying = [key for key, port in tree.ports.items() if None in port.shape]
        if varying:
            problems.append(
                f"rsl_rl stores observations of one size, but {', '.join(map(repr, varying))} varies; "
                "pad it in a wrapper of the environment"
            )
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise ValueError(f"rsl_rl cannot run this environment:{lines}")
        assert isinstance(action, spaces.Box)
        self.env = env
        self.observation_space = env.single_observation_space
        self.action_space = action
        self.num_envs = env.num_envs
        self.num_actions = int(np.prod(action.shape))
        self.device = device
        self.cfg = {}
        limit = None if env.spec is None else env.spec.max_episode_steps
        self.max_episode_length = limit or ENDLESS
        self.step_dt = (
            1.0  # seconds of a step, by which random network distillation scales its rewards
        )
        self._tree: SpaceTree = tree
        self.begin(seed)

    def begin(self, seed: int | None) -> None:
        """Begin all episodes anew."""
        self._lengths = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        self._observation, _ = self.env.reset(seed=seed)

    @property
    def obs_groups(self) -> list[str]:
        """The names of the observation groups."""
        return list(self._tree.leaves)

    @property
    def unwrapped(self) -> GymnasiumVecEnv:
        return self

    @property
    def episode_length_buf(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many steps each episode has made (n,)."""
        return self._lengths

    @episode_length_buf.setter
    def episode_length_buf(self, value: Tensor) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise ValueError(
            "environments of gymnasium begin their episodes at the start; call "
            "runner.learn(iterations) without init_at_random_ep_len"
        )

    def get_observations(self) -> TensorDict:
        """The observations of all environments, (n, ...) by group."""
        groups = {
            key: self._tensor(reduce(getitem, leaf.path, self._observation))  # type: ignore[arg-type]
            for key, leaf in self._tree.leaves.items()
        }
        return TensorDict(groups, batch_size=[self.num_envs])  # type: ignore[arg-type]

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """Observations, rewards (n,), whether an episode ended (n,), and ``time_outs`` (n,) among the extras."""
        box = self.action_space
        taken = actions.detach().cpu().numpy().reshape(self.num_envs, *box.shape)
        taken = np.clip(taken, box.low, box.high).astype(box.dtype)
        self._observation, reward, terminated, truncated, info = self.env.step(taken)
        over = torch.as_tensor(terminated | truncated, device=self.device)
        self._lengths = (self._lengths + 1).masked_fill(over, 0)
        cut_off = torch.as_tensor(truncated & ~terminated, device=self.device)
        extras = {"time_outs": cut_off, "info": info}
        return self.get_observations(), self._tensor(reward), over.long(), extras

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _tensor(self, value: object) -> Tensor:
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return torch.as_tensor(array, device=self.device)
