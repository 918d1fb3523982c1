"""Environments that show the last action and reward among their observations: one wrapper for each interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, overload

import gymnasium
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from composer.spaces.episode_starts import first_steps
from composer.spaces.pettingzoo import agent_spaces, is_pettingzoo
from composer.spaces.previous import Recalled, add_previous, checked_names, why_not_recalled
from composer.spaces.tree import first_tensor
from composer.spec.keys import RECALLED

__all__ = ["with_previous"]


@overload
def with_previous(
    env: VectorEnv, previous: Iterable[str] = ..., autoreset_mode: AutoresetMode | str | None = ...
) -> VectorEnv: ...
@overload
def with_previous(env: gymnasium.Env, previous: Iterable[str] = ...) -> gymnasium.Env: ...
@overload
def with_previous(env: Any, previous: Iterable[str] = ...) -> Any: ...
def with_previous(
    env: Any,
    previous: Iterable[str] = RECALLED,
    autoreset_mode: AutoresetMode | str | None = None,
) -> Any:
    """``env`` with its last action and reward among the observations: what ``previous`` of a spec asks for.

    ``env`` is an environment of gymnasium, a vector environment, or a parallel environment of PettingZoo, in which each
    agent has its own. Observations become a Dict with the entry ``previous``: under the keys of the actions (``action``
    for one) what `step` was given, choices one-hot, and under ``reward`` the reward (1,). All are zero in the first
    observation of an episode. ``previous`` is that of the spec (``model.spec.previous``); without names, or where
    ``env`` has these observations already, it is returned as it is. ``autoreset_mode`` is as for `first_steps`.

    Raises ValueError for an environment with other observations of that name, and for what cannot be wrapped.

    >>> import gymnasium
    >>> env = with_previous(gymnasium.make("CartPole-v1"))
    >>> _ = env.reset(seed=0)
    >>> env.step(1)[0]["previous"]
    {'action': array([0., 1.], dtype=float32), 'reward': array([1.], dtype=float32)}
    """
    names = checked_names(previous)
    if not names or _all_have(env, names):
        return env
    if why := why_not_recalled(env):
        raise ValueError(why)
    if is_pettingzoo(env):
        return RecallingParallelEnv(env, names)
    if isinstance(env, VectorEnv):
        if _has(env.single_observation_space, env.single_action_space, names):
            return env
        return RecallingVectorEnv(env, names, autoreset_mode)
    if not isinstance(env, gymnasium.Env):
        raise ValueError(
            "with_previous takes an environment of gymnasium, a vector environment or a parallel environment of "
            f"PettingZoo, got a {type(env).__name__}"
        )
    if _has(env.observation_space, env.action_space, names):
        return env
    return RecallingEnv(env, names)


def _all_have(env: Any, names: tuple[str, ...]) -> bool:
    """Whether all agents, or steps, of ``env`` have these observations; False where it has neither."""
    if is_pettingzoo(env):
        seen, taken = agent_spaces(env)
    else:
        inner = getattr(env, "unwrapped", env)
        seen, taken = (getattr(inner, f"{kind}_spaces", None) for kind in ("observation", "action"))
    if not (isinstance(seen, Mapping) and isinstance(taken, Mapping)):
        return False
    return all(_has(space, taken[key], names) for key, space in seen.items() if key in taken)


def _has(
    observation_space: gymnasium.Space, action_space: gymnasium.Space, names: tuple[str, ...]
) -> bool:
    return add_previous(observation_space, action_space, names) is observation_space


class RecallingEnv(gymnasium.Wrapper, RecordConstructorArgs):
    """An environment of gymnasium; `with_previous` makes it."""

    def __init__(self, env: gymnasium.Env, previous: tuple[str, ...]) -> None:
        RecordConstructorArgs.__init__(self, previous=previous)
        super().__init__(env)
        self._recalled = Recalled(env.observation_space, env.action_space, previous)
        self.observation_space = self._recalled.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._recalled.observation(observation, self._recalled.nothing()), info

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, *rest = self.env.step(action)
        values = self._recalled.values(action, reward)
        return (self._recalled.observation(observation, values), reward, *rest)  # type: ignore[return-value]


class RecallingVectorEnv(VectorWrapper):
    """A vector environment; `with_previous` makes it. Where its observations are tensors, so is what is added."""

    def __init__(
        self,
        env: VectorEnv,
        previous: tuple[str, ...],
        autoreset_mode: AutoresetMode | str | None = None,
    ) -> None:
        super().__init__(env)
        space, action_space = env.single_observation_space, env.single_action_space
        self._recalled = Recalled(space, action_space, previous)
        self.single_observation_space = self._recalled.space
        self.observation_space = batch_space(self._recalled.space, env.num_envs)
        self._starts = first_steps(env, autoreset_mode)
        self._values = self._recalled.nothing((env.num_envs,))

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = None if options is None else options.get("reset_mask")
        observation, info = self.env.reset(seed=seed, options=options)
        self._starts.reset(mask)
        if mask is None:
            self._values = self._recalled.nothing((self.num_envs,), first_tensor(observation))
        else:
            self._values = _forgotten(self._values, mask)
        return self._recalled.observation(observation, self._values), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        self._starts.update(terminations, truncations)
        like = first_tensor(observation)
        values = self._recalled.values(actions, rewards, (self.num_envs,), like)
        if "final_obs" in infos:
            infos = {**infos, "final_obs": self._with_values(infos["final_obs"], values)}
        self._values = _forgotten(values, self._starts.resets)
        observation = self._recalled.observation(observation, self._values)
        return observation, rewards, terminations, truncations, infos

    def _with_values(self, last: Any, values: dict[str, Any]) -> Any:
        """The last observations of episodes, of which the next have begun: an array of objects, or a batch."""
        if not (isinstance(last, np.ndarray) and last.dtype == object):
            return self._recalled.observation(last, values)
        rows = last.copy()
        for index in np.flatnonzero([each is not None for each in last]):
            row = {key: value[index] for key, value in values.items()}
            rows[index] = self._recalled.observation(last[index], row)
        return rows


def _forgotten(values: Mapping[str, Any], where: Any) -> dict[str, Any]:
    """A copy of ``values`` with zeros in the rows ``where`` an episode begins."""
    forgotten: dict[str, Any] = {}
    for key, value in values.items():
        rows: Any = (
            torch.as_tensor(where, device=value.device) if isinstance(value, Tensor) else where
        )
        forgotten[key] = value.clone() if isinstance(value, Tensor) else value.copy()
        forgotten[key][rows] = 0
    return forgotten


class RecallingParallelEnv:
    """A parallel environment of PettingZoo, each of whose agents sees its own last action and reward."""

    def __init__(self, env: Any, previous: tuple[str, ...]) -> None:
        self.env = env
        self._recalled = {
            agent: Recalled(env.observation_space(agent), env.action_space(agent), previous)
            for agent in env.possible_agents
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "env":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.env, name)

    @property
    def observation_spaces(self) -> dict[Any, gymnasium.Space]:
        return {agent: recalled.space for agent, recalled in self._recalled.items()}

    def observation_space(self, agent: Any) -> gymnasium.Space:
        return self._recalled[agent].space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._shown(observations, {}, {}), infos

    def step(self, actions: Mapping[Any, Any]) -> Any:
        result = self.env.step(actions)
        if not (isinstance(result, tuple) and len(result) == 5):
            return result  # which whoever steps it refuses
        observations, rewards, *rest = result
        return (self._shown(observations, actions, rewards), rewards, *rest)

    def _shown(
        self, observations: Any, actions: Mapping[Any, Any], rewards: Mapping[Any, Any]
    ) -> Any:
        if not isinstance(observations, Mapping):
            return observations
        shown = {}
        for agent, observation in observations.items():
            recalled = self._recalled[agent]
            values = recalled.nothing()
            if agent in actions:  # else it was not there in the last step
                values = recalled.values(actions[agent], rewards.get(agent, 0.0))
            shown[agent] = recalled.observation(observation, values)
        return shown
