"""The environment of a run, checked at every step: a wrong value ends the run with a message."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import Space, spaces, wrappers
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from composer.source.load import load_source
from composer.spaces.lookup import make_environment
from composer.spaces.pettingzoo import agent_spaces, is_pettingzoo
from composer.spaces.previous import checked_names
from composer.spaces.recalling import with_previous
from composer.spec.keys import PREVIOUS
from composer.training.telling import TellingEnvironment, tell_folder, telling
from composer.training.trainer import Task, TrainingError
from perception_blocks.words import printable

__all__ = ["CheckedEnvironment", "EnvironmentMaker", "JointEnvironment", "environment_maker"]
__all__ += ["training_environment", "vector_environment", "vectorized", "why_not_sent"]

# The wrappers of `gymnasium.make`, which rely on valid values.
_OF_GYMNASIUM = (wrappers.TimeLimit, wrappers.OrderEnforcing, wrappers.PassiveEnvChecker)
_FLAG = (bool, np.bool_)
_WHOLE = (int, np.int64)  # types that Discrete.contains takes 20 times as long to check


@dataclass(frozen=True)
class EnvironmentMaker:
    """Makes an environment of a run, checked; also in another process, which it can be sent to."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spec: EnvSpec | None = None  # of gymnasium: another process has not registered it yet
    tell: str | None = None  # the folder where another process says why it ends
    previous: tuple[str, ...] = ()  # as in the spec

    def __call__(self) -> gymnasium.Env:
        """Raises SpecError where there is no such environment."""
        if self.spec is not None:
            gymnasium.registry.setdefault(self.spec.id, self.spec)
        if self.tell is None or multiprocessing.parent_process() is None:
            return training_environment(self.name, self.arguments, self.previous)
        # Ctrl-C is sent to all processes of a terminal; the run's decides what comes of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with telling(self.tell):
            env = training_environment(self.name, self.arguments, self.previous)
        return TellingEnvironment(env, self.tell)


def environment_maker(task: Task) -> EnvironmentMaker:
    """What makes the environments of ``task``, all ``task.envs`` of them alike: the trainer gives each its seed."""
    spec = gymnasium.registry.get(task.environment.rpartition(":")[2])
    previous = _previous_of(task.spec) if task.spec else ()
    return EnvironmentMaker(task.environment, dict(task.env_set), spec, tell_folder(), previous)


@lru_cache(maxsize=4)
def _previous_of(spec: str) -> tuple[str, ...]:
    """What the spec of a task lists under `previous`."""
    return checked_names(load_source(spec).data.get(PREVIOUS, []))


def vector_environment(task: Task) -> VectorEnv:
    """The environments of ``task`` as one of gymnasium's vector environments, which resets within the last step."""
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    return vectorized(environment_maker(task), task.envs, task.subprocess, mode)


def vectorized(
    make: Callable[[], gymnasium.Env],
    count: int,
    subprocess: bool,
    mode: gymnasium.vector.AutoresetMode,
) -> VectorEnv:
    """``count`` environments as one of gymnasium's vector environments, if ``subprocess`` with a process for each."""
    makers = [make] * count
    if subprocess:
        return gymnasium.vector.AsyncVectorEnv(makers, context="forkserver", autoreset_mode=mode)
    return gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def why_not_sent(maker: EnvironmentMaker) -> str | None:
    """Why an environment cannot be made in another process, in words; None if it can."""
    try:
        pickle.dumps(maker)
    except Exception as error:  # whatever a class of the user raises
        return f"--subprocess: the environment {maker.name!r} cannot be sent to another process: {error}"
    return None


# --- what an environment gives is checked ---


def training_environment(
    name: str, arguments: Mapping[str, Any] | None = None, previous: tuple[str, ...] = ()
) -> gymnasium.Env:
    """The environment called ``name``, made with ``arguments``, checked; of several agents a `JointEnvironment`.

    Observations have the last action and reward that ``previous`` lists.

    Raises SpecError where there is none, and TrainingError for agents that take turns.
    """
    env = make_environment(name, arguments=arguments)
    if is_pettingzoo(env):
        takes_turns = hasattr(env, "agent_iter")
        return JointEnvironment(env if takes_turns else with_previous(env, previous), name)
    return with_previous(_checked(env, name), previous)


def _checked(env: gymnasium.Env, name: str) -> gymnasium.Env:
    inner, outer = env, None
    while isinstance(inner, _OF_GYMNASIUM):
        outer, inner = inner, inner.env
    checked = CheckedEnvironment(inner, name)
    if outer is None:
        return checked
    outer.env = checked
    return env


class CheckedEnvironment(gymnasium.Wrapper):
    """Raises TrainingError for an invalid step, and for an observation outside its space."""

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self._name = name
        self._space = env.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[object, dict[str, object]]:
        result = self.env.reset(seed=seed, options=options)
        if type(result) is not tuple or len(result) != 2 or not isinstance(result[1], dict):
            self._refuse("reset", _described(result), "it returns (observation, info)")
        self._check(result[0], "reset")
        return result

    def step(self, action: object) -> tuple[object, SupportsFloat, bool, bool, dict[str, object]]:
        result = self.env.step(action)
        if type(result) is not tuple or len(result) != 5:
            form = "(observation, reward, terminated, truncated, info)"
            self._refuse("step", _described(result), f"it returns {form}")
        observation, reward, terminated, truncated, info = result
        self._check(observation, "step")
        if type(reward) is not float or not math.isfinite(reward):
            self._check_reward(reward)
        if not isinstance(terminated, _FLAG) or not isinstance(truncated, _FLAG):
            self._check_flag("terminated", terminated)
            self._check_flag("truncated", truncated)
        if not isinstance(info, dict):
            self._refuse("step", f"as the info {_described(info)}", "it must be a dict")
        return result

    def _check_reward(self, reward: Any) -> None:
        is_number = isinstance(reward, (int, float, np.number, np.bool_)) or (
            getattr(reward, "shape", None) == () and not isinstance(reward, np.generic)
        )
        if not is_number or not math.isfinite(float(reward)):
            shown = float(reward) if is_number else _described(reward)
            raise TrainingError(
                f"the environment {self._name!r} gave the reward {shown}; a reward must be a finite number"
            )

    def _check_flag(self, name: str, value: object) -> None:
        if not isinstance(value, _FLAG) and not (type(value) is int and value in (0, 1)):
            self._refuse("step", f"as {name!r} {_described(value)}", "it must be true or false")

    def _check(self, observation: object, method: str) -> None:
        wrong = _wrong(self._space, observation, ())
        if wrong is not None:
            space, value, path = wrong
            of = f" for the observation {'/'.join(path)!r}" if path else ""
            self._refuse(method, f"{_described(value)}{of}", f"its space is {_shown(space)}")

    def _refuse(self, method: str, what: str, rule: str) -> None:
        raise TrainingError(f"{method}() of the environment {self._name!r} returned {what}; {rule}")


class JointEnvironment(gymnasium.Env):
    """A parallel environment of PettingZoo as one: observations and actions by agent, the reward is the sum of theirs.

    Observations are of the agents that act in the next step. It is terminated when no agent is left, truncated when one
    of the last was. ``info`` has what PettingZoo gives by agent: "rewards", "terminations", "truncations", and as
    "last" the observations of those that were truncated. Raises TrainingError for an invalid step.
    """

    def __init__(self, env: Any, name: str) -> None:
        if hasattr(env, "agent_iter"):
            env.close()
            raise TrainingError(
                f"the agents of {name!r} take turns (AEC), and only environments in which all act at once (parallel) "
                "are trained; write its loop with model.policy.act"
            )
        self._env, self._name = env, name
        self.observation_spaces, self.action_spaces = agent_spaces(env)
        self.render_mode = getattr(env, "render_mode", None)

    @property
    def agents(self) -> list[str | int]:
        """The agents that act in the next step."""
        return list(self._env.agents)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[dict[Any, object], dict[str, Any]]:
        observations, _ = self._env.reset(seed=seed, options=options)
        self._check(observations, self.agents, "reset")
        return {agent: observations[agent] for agent in self.agents}, {}

    def step(
        self, action: Mapping[Any, object]
    ) -> tuple[dict[Any, object], float, bool, bool, dict[str, Any]]:
        acting = self.agents
        result = self._env.step(dict(action))
        if type(result) is not tuple or len(result) != 5:
            form = "(observations, rewards, terminations, truncations, infos)"
            raise TrainingError(
                f"step() of the environment {self._name!r} returned {_described(result)}; it returns {form}"
            )
        observations, rewards, terminations, truncations, _ = result
        cut = [a for a in acting if truncations.get(a, False) and a in observations]
        self._check(observations, dict.fromkeys([*self.agents, *cut]), "step")
        rewards = {agent: self._reward(agent, rewards.get(agent, 0.0)) for agent in acting}
        is_over = not self.agents
        was_cut = is_over and any(truncations.get(agent, False) for agent in acting)
        info = {
            "rewards": rewards, "terminations": terminations, "truncations": truncations,
            "last": {agent: observations[agent] for agent in cut},
        }  # fmt: skip
        observations = {agent: observations[agent] for agent in self.agents}
        return observations, sum(rewards.values()), is_over and not was_cut, was_cut, info

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()

    def _reward(self, agent: object, reward: Any) -> float:
        try:
            number = float(reward)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise TrainingError(
                f"the environment {self._name!r} gave {agent!r} the reward {_described(reward)}; "
                "a reward must be a finite number"
            )
        return number

    def _check(self, observations: Any, agents: Iterable[str | int], method: str) -> None:
        """Raise TrainingError unless each of ``agents`` has an observation of its space."""
        what = f"{method}() of the environment {self._name!r} returned"
        if not isinstance(observations, Mapping):
            raise TrainingError(
                f"{what} {_described(observations)}; observations are a dict by agent"
            )
        for agent in agents:
            if agent not in observations:
                raise TrainingError(
                    f"{what} no observation of {agent!r}, which acts in the next step"
                )
            wrong = _wrong(self.observation_spaces[agent], observations[agent], ())
            if wrong is not None:
                space, value, path = wrong
                of = f" of the observation {'/'.join(path)!r}" if path else ""
                raise TrainingError(
                    f"{what} for {agent!r} {_described(value)}{of}; its space is {_shown(space)}"
                )


def _wrong(
    space: Space, value: object, path: tuple[str, ...]
) -> tuple[Space, object, tuple[str, ...]] | None:
    """The part of ``value`` that its space does not have, with that space and where it is; None if all is well.

    Numbers beyond the bounds of a Box pass, as environments give them.
    """
    if isinstance(space, spaces.Box):
        return None if _fits(space, value) else (space, value, path)
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            return space, value, path
        parts = [(space.spaces[key], value[key], str(key)) for key in space.spaces]
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            return space, value, path
        parts = [(s, v, str(i)) for i, (s, v) in enumerate(zip(space.spaces, value, strict=True))]
    else:
        return None if _is_in(space, value) else (space, value, path)
    wrong_parts = (_wrong(part, inner, (*path, name)) for part, inner, name in parts)
    return next((wrong for wrong in wrong_parts if wrong is not None), None)


def _fits(space: spaces.Box, value: object) -> bool:
    if type(value) is np.ndarray and value.dtype == space.dtype:
        return value.shape == space.shape
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return False
    return array.shape == space.shape and np.can_cast(array.dtype, space.dtype, "same_kind")


def _is_in(space: Space, value: Any) -> bool:
    if type(space) is spaces.Discrete and type(value) in _WHOLE:
        return bool(space.start <= value < space.start + space.n)
    try:
        return bool(space.contains(value))
    except (TypeError, ValueError, AttributeError):
        return False


def _described(value: object) -> str:
    """A value that an environment returned, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, Mapping):
        return f"a dict of {_shown(list(value))}"
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    return _shown(value)


def _shown(value: object) -> str:
    return printable(repr(value), 200)
