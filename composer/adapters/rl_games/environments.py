"""Environments of gymnasium as rl_games steps them: many at once, each begun anew where an episode ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.adapters.host import HostObservations
from composer.adapters.rl_games.hosted import OBSERVATION, STATES, HostedActions
from composer.spaces.lookup import make_environment
from composer.spaces.recalling import with_previous
from composer.spaces.tree import flatten_space, to_environment
from perception_blocks.registry import missing_extra

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rl_games.common import env_configurations, vecenv
        from rl_games.common.ivecenv import IVecEnv
except ImportError as error:
    raise missing_extra("composer.adapters.rl_games", error, "rl-games") from error

__all__ = ["ENVIRONMENT", "GymnasiumEnvironments", "as_tensors", "register_environment"]

ENVIRONMENT = "composer"
TYPE = "COMPOSER"
OBS = "obs"  # what rl_games calls the observations of the actor
_UNBOUNDED = np.iinfo(np.int64)


def register_environment(name: str) -> None:
    """Let configs write ``env_name: name`` with ``env_config: {id: CartPole-v1}``."""
    vecenv.register(TYPE, lambda _, actors, **settings: GymnasiumEnvironments(actors, **settings))
    creator = {
        "vecenv_type": TYPE,
        "env_creator": lambda **settings: GymnasiumEnvironments(1, **settings),
    }
    env_configurations.register(name, creator)


class HostedEnv(gymnasium.Wrapper):
    """An environment whose observations rl_games can store, under ``obs``; where it has states, they are ``states``.

    Actions are arrays of numbers, or of choices from 0, as `HostedActions` has them for one environment.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        ignore: Sequence[str] = (),
        texts: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        super().__init__(env)
        self.model_spaces = (env.observation_space, env.action_space)
        tree = flatten_space(env.observation_space, OBSERVATION, ignore, texts)
        self._observations = HostObservations(tree, "rl_games")
        self._tree = flatten_space(env.action_space, "action")
        self.actions = HostedActions(self._tree)
        self.has_states = all(env.has_wrapper_attr(name) for name in ("state", "state_space"))
        parts = {OBS: self._observations.space}
        if self.has_states:
            parts[STATES] = env.get_wrapper_attr("state_space")
        self.observation_space = spaces.Dict(parts)
        self.action_space = _as_array(self.actions.space)

    def reset(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**settings)
        return self._observed(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        drawn = self.actions.from_host(torch.as_tensor(np.asarray(action)), ())
        by_key = drawn if isinstance(drawn, Mapping) else {next(iter(self._tree.leaves)): drawn}
        taken = to_environment(self._tree, by_key, as_numpy=True)
        observation, *rest = self.env.step(taken)
        return (self._observed(observation), *rest)  # type: ignore[return-value]

    def _observed(self, observation: Any) -> dict[str, Any]:
        host = self._observations
        parts = {OBS: host.flat(observation) if host.is_flat else observation}
        if self.has_states:
            parts[STATES] = self.env.get_wrapper_attr("state")()
        return parts


class GymnasiumEnvironments(IVecEnv):
    """``count`` environments ``id`` of gymnasium, or those that ``make`` gives, in `gymnasium.vector`.

    The n-th is seeded with ``seed + n`` once; further ``settings`` are those of the environment. With ``subprocess``
    each has a process. Observations are tensors on ``device``, nested ones by flat key. An episode that is over begins
    anew in the same step; where it was cut off, ``time_outs`` says so. Numbers of actions are clipped to their bounds.
    The masks of ``use_action_masks`` are those of ``action_masks()``; environments with ``state()`` and ``state_space``
    have states of a central critic. ``ignore``, ``texts`` and ``previous`` are those of the spec.
    """

    def __init__(
        self,
        count: int,
        id: str | None = None,
        *,
        make: Callable[[], gymnasium.Env] | None = None,
        ignore: Sequence[str] = (),
        texts: Mapping[str, Mapping[str, object]] | None = None,
        previous: Iterable[str] = (),
        seed: int | None = None,
        device: str = "cpu",
        subprocess: bool = False,
        **settings: Any,
    ) -> None:
        if make is None and id is None:
            raise ValueError(
                "env_config needs the id of an environment; write env_config: {id: CartPole-v1}"
            )
        if make is None:
            make_environment(str(id)).close()  # whose errors name the id
        create = make or partial(gymnasium.make, id, **settings)
        if previous:
            create = partial(_recalling, create, tuple(previous))
        first = HostedEnv(create(), ignore, texts)
        self.model_spaces = first.model_spaces
        seen: Any = first.observation_space
        self.observation_space = stored(seen[OBS])
        self.action_space = first.actions.space
        self._states = seen.spaces.get(STATES)
        self._has_masks = first.has_wrapper_attr("action_masks")
        first.close()
        vector = gymnasium.vector.AsyncVectorEnv if subprocess else gymnasium.vector.SyncVectorEnv
        self.envs = vector(
            [partial(_hosted, create, ignore, texts)] * count,
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        )
        self._seed, self._device = seed, device

    def get_env_info(self) -> dict[str, Any]:  # type: ignore[override]
        info = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "model_spaces": self.model_spaces,
            "agents": 1,
            "value_size": 1,
        }
        return info if self._states is None else {**info, "state_space": self._states}

    def reset(self) -> Any:
        observations, _ = self.envs.reset(seed=self._seed)
        self._seed = None  # else every reset would play the same episodes
        return as_tensors(observations, self._device)

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        # The players of rl_games squeeze the axis of a lone environment away.
        taken = actions.cpu().numpy().reshape(self.envs.action_space.shape)
        observations, rewards, ended, cut, _ = self.envs.step(taken)
        return (
            as_tensors(observations, self._device),
            torch.as_tensor(rewards, dtype=torch.float32, device=self._device),
            torch.as_tensor(ended | cut, device=self._device),
            {"time_outs": torch.as_tensor(cut & ~ended, device=self._device)},
        )

    def has_action_masks(self) -> bool:  # type: ignore[override]
        return self._has_masks

    def get_action_masks(self) -> np.ndarray:
        return np.stack([_side_by_side(mask) for mask in self.envs.call("action_masks")])

    def close(self) -> None:
        self.envs.close()


def _recalling(make: Callable[[], gymnasium.Env], previous: tuple[str, ...]) -> gymnasium.Env:
    return with_previous(make(), previous)


def _hosted(
    make: Callable[[], gymnasium.Env],
    ignore: Sequence[str],
    texts: Mapping[str, Mapping[str, object]] | None,
) -> gymnasium.Env:
    return HostedEnv(make(), ignore, texts)


def _as_array(space: Space) -> Space:
    """A space of the same actions as one array: what `gymnasium.vector` splits into the environments'."""
    if isinstance(space, spaces.Tuple):
        return spaces.MultiDiscrete([int(part.n) for part in space.spaces])  # type: ignore[attr-defined]
    if isinstance(space, spaces.Box):
        return spaces.Box(-np.inf, np.inf, space.shape, np.float32)  # of numbers as drawn
    return space


def stored(space: Space) -> Space:
    """``space``, a part of which rl_games cannot store as it is: bits and several choices become numbers."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: stored(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.MultiBinary | spaces.MultiDiscrete):
        return spaces.Box(_UNBOUNDED.min, _UNBOUNDED.max, space.shape, np.int64)
    return space


def as_tensors(values: Any, device: str) -> Any:
    """Arrays, or dicts of them, as tensors that rl_games can store."""
    if isinstance(values, Mapping):
        return {key: as_tensors(value, device) for key, value in values.items()}
    array = np.asarray(values)
    if array.dtype.kind in "bi":
        array = array.astype(np.int64)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
    return torch.tensor(array, device=device)  # a copy: gymnasium writes into its arrays again


def _side_by_side(mask: Any) -> np.ndarray:
    """The mask of several choices, by key or in a tuple, as one row."""
    if isinstance(mask, Mapping | tuple | list) and not isinstance(mask, np.ndarray):
        parts = mask.values() if isinstance(mask, Mapping) else mask
        return np.concatenate([np.atleast_1d(np.asarray(part, bool)) for part in parts]).ravel()
    return np.asarray(mask, bool).ravel()
