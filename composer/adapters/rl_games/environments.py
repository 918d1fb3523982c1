"""Environments of gymnasium as rl_games steps them: many at once, each begun anew where an episode ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.adapters.host import HostObservations
from composer.adapters.rl_games.hosted import OBSERVATION, STATES, HostedActions
from composer.spaces.lookup import make_environment
from composer.spaces.tree import flatten_space, to_environment
from perception_blocks.registry import missing_extra

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rl_games.common import env_configurations, vecenv
        from rl_games.common.ivecenv import IVecEnv
except ImportError as error:
    raise missing_extra("composer.adapters.rl_games", error, "rl-games") from error

__all__ = ["ENVIRONMENT", "GymnasiumEnvironments", "register_environment"]

ENVIRONMENT = "composer"
TYPE = "COMPOSER"
_UNBOUNDED = np.iinfo(np.int64)


def register_environment(name: str) -> None:
    """Let configs write ``env_name: name`` with ``env_config: {id: CartPole-v1}``."""
    vecenv.register(TYPE, lambda _, actors, **settings: GymnasiumEnvironments(actors, **settings))
    creator = {
        "vecenv_type": TYPE,
        "env_creator": lambda **settings: GymnasiumEnvironments(1, **settings),
    }
    env_configurations.register(name, creator)


class GymnasiumEnvironments(IVecEnv):
    """``count`` environments ``id`` of gymnasium, or those that ``make`` gives, stepped one after the other.

    The n-th is seeded with ``seed + n`` once, further ``settings`` are those of the environment. Observations are
    tensors on ``device``, nested ones by flat key. An episode that is over begins anew in the same step; where it was
    cut off, ``time_outs`` says so. Numbers of actions are clipped to their bounds. The masks of ``use_action_masks``
    are those of ``action_masks()``; environments with ``state()`` and ``state_space`` have states of a central critic.
    ``ignore`` and ``texts`` are those of the spec, for observations of any size.
    """

    def __init__(
        self,
        count: int,
        id: str | None = None,
        *,
        make: Callable[[], gymnasium.Env] | None = None,
        ignore: Sequence[str] = (),
        texts: Mapping[str, Mapping[str, object]] | None = None,
        seed: int | None = None,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        if make is None and id is None:
            raise ValueError(
                "env_config needs the id of an environment; write env_config: {id: CartPole-v1}"
            )
        if make is None:
            make_environment(str(id)).close()  # whose errors name the id
        create = make or partial(gymnasium.make, id, **settings)
        self.envs = [create() for _ in range(count)]
        self._seed, self._device = seed, device
        first = self.envs[0]
        self.model_spaces = (first.observation_space, first.action_space)
        tree = flatten_space(first.observation_space, OBSERVATION, ignore, texts)
        self._observations = HostObservations(tree, "rl_games")
        self._action_tree = flatten_space(first.action_space, "action")
        self._actions = HostedActions(self._action_tree)
        self.observation_space = stored(self._observations.space)
        self.action_space = self._actions.space
        self._has_states = all(first.has_wrapper_attr(name) for name in ("state", "state_space"))

    def get_env_info(self) -> dict[str, Any]:  # type: ignore[override]
        info = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "model_spaces": self.model_spaces,
            "agents": 1,
            "value_size": 1,
        }
        if self._has_states:
            info["state_space"] = self.envs[0].get_wrapper_attr("state_space")
        return info

    def reset(self) -> dict[str, Any]:
        observations = []
        for number, env in enumerate(self.envs):
            seed = None if self._seed is None else self._seed + number
            observations.append(env.reset(seed=seed)[0])
        self._seed = None  # else every reset would play the same episodes
        return self._batch(observations)

    def step(self, actions: Tensor) -> tuple[dict[str, Any], Tensor, Tensor, dict[str, Tensor]]:
        drawn = self._actions.from_host(actions.cpu(), (len(self.envs),))
        by_key = (
            drawn if isinstance(drawn, Mapping) else {next(iter(self._action_tree.leaves)): drawn}
        )
        observations, rewards, dones, cut = [], [], [], []
        for number, env in enumerate(self.envs):
            mine = {key: value[number] for key, value in by_key.items()}
            action = to_environment(self._action_tree, mine, as_numpy=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()
            observations.append(observation)
            rewards.append(float(reward))
            dones.append(bool(terminated or truncated))
            cut.append(bool(truncated and not terminated))
        return (
            self._batch(observations),
            torch.tensor(rewards, device=self._device),
            torch.tensor(dones, device=self._device),
            {"time_outs": torch.tensor(cut, device=self._device)},
        )

    def has_action_masks(self) -> bool:  # type: ignore[override]
        return self.envs[0].has_wrapper_attr("action_masks")

    def get_action_masks(self) -> np.ndarray:
        masks = [env.get_wrapper_attr("action_masks")() for env in self.envs]
        return np.stack([_side_by_side(mask) for mask in masks])

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _batch(self, observations: Sequence[Any]) -> dict[str, Any]:
        """What rl_games calls ``obs``, and ``states`` of a central critic."""
        batch = {"obs": self._stacked(observations)}
        if self._has_states:
            batch[STATES] = _states(
                [env.get_wrapper_attr("state")() for env in self.envs], self._device
            )
        return batch

    def _stacked(self, observations: Sequence[Any]) -> Any:
        if self._observations.is_flat:
            observations = [self._observations.flat(observation) for observation in observations]
        return _states(observations, self._device)


def stored(space: Space) -> Space:
    """``space``, a part of which rl_games cannot store as it is: bits and several choices become numbers."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: stored(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.MultiBinary | spaces.MultiDiscrete):
        return spaces.Box(_UNBOUNDED.min, _UNBOUNDED.max, space.shape, np.int64)
    return space


def _states(values: Sequence[Any], device: str) -> Any:
    """Values of a space side by side, as tensors that rl_games can store."""
    if isinstance(values[0], Mapping):
        return {key: _states([value[key] for value in values], device) for key in values[0]}
    array = np.stack([np.asarray(value) for value in values])
    if array.dtype.kind in "bi":
        array = array.astype(np.int64)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
    return torch.as_tensor(array, device=device)


def _side_by_side(mask: Any) -> np.ndarray:
    """The mask of several choices, by key or in a tuple, as one row."""
    if isinstance(mask, Mapping | tuple | list) and not isinstance(mask, np.ndarray):
        parts = mask.values() if isinstance(mask, Mapping) else mask
        return np.concatenate([np.atleast_1d(np.asarray(part, bool)) for part in parts]).ravel()
    return np.asarray(mask, bool).ravel()
