"""Steps of an environment with a model that draws its actions, kept for what is measured on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from gymnasium.vector import VectorEnv

from composer.errors import RefusedError
from composer.model import Model
from composer.network.network import State
from composer.policy.policy import Policy
from composer.policy.structured import StructuredPolicy
from composer.spaces.actors import flat_name
from composer.spaces.json_form import spaces_differ
from composer.spaces.lookup import environment_spaces, is_by_actor
from composer.spaces.pettingzoo import is_pettingzoo
from composer.spaces.recalling import with_previous
from perception_blocks.words import few_of

__all__ = ["Played", "ProbeError", "Rewards", "drawn", "played", "prepared"]

Rewards: TypeAlias = float | dict[str, float]
"""The reward of one step: one for all, or by actor."""


class ProbeError(RefusedError):
    """A model cannot be probed; the message says why and what to do."""


@dataclass
class Played:
    """Steps in order: what was observed, the actions as distributions have them (None where a class acts), rewards.

    ``firsts`` says of each step whether an episode begins with it, ``lasts`` whether one ends, ``resets`` by actor who
    is new.
    """

    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)
    rewards: list[Rewards] = field(default_factory=list)
    firsts: list[bool] = field(default_factory=list)
    lasts: list[bool] = field(default_factory=list)
    resets: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rewards)


class _Game(Protocol):
    """An environment of any kind: observations of those who act next, an actor's or by actor."""

    def begin(self, seed: int | None) -> Any: ...

    def mask(self) -> Any: ...

    def step(self, actions: Any) -> tuple[Any, Rewards, bool]: ...


def prepared(model: Model, env: Any) -> Any:
    """``env`` as ``model`` observes it. Raises ProbeError where its spaces are others, and for a vector environment."""
    if isinstance(env, VectorEnv):
        raise ProbeError(
            "probe acts in one environment, got a vector environment; give one of its environments"
        )
    previous = model.spec.previous
    try:
        env = with_previous(env, previous) if previous else env
        spaces = environment_spaces(env)
    except ValueError as error:
        raise ProbeError(str(error)) from error
    wanted = (model.observation_space, model.action_space)
    problems = dict.fromkeys(  # an actor lacks both spaces
        line
        for root, mine, theirs in zip(("observation", "action"), wanted, spaces, strict=True)
        for line in _differences(root, mine, theirs)
    )
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ProbeError(f"the model is for other spaces than those of the environment:{lines}")
    return env


def _differences(root: str, mine: Any, theirs: Any) -> list[str]:
    """As `spaces_differ`, where an environment may lack actors that the model has."""
    if is_by_actor(mine) != is_by_actor(theirs):
        of, its = (
            f"for the actors {few_of(map(flat_name, each))}" if is_by_actor(each) else "for one"
            for each in (mine, theirs)
        )
        return [f"the {root} space of the model is {of}, and that of the environment {its}"]
    if not is_by_actor(mine):
        return spaces_differ(mine, theirs, root)
    missing = [flat_name(key) for key in theirs if key not in mine]
    lines = [f"the model has no actor {few_of(missing)}"] if missing else []
    both = [key for key in theirs if key in mine]  # the model may know more actors
    ours, its = ({key: each[key] for key in both} for each in (mine, theirs))
    return lines + spaces_differ(ours, its, root)


def played(model: Model, env: Any, steps: int, seed: int) -> Played:
    """``steps`` of ``env`` with actions of ``model``, the first episode seeded with ``seed``.

    Raises ProbeError where the environment fails, or the model cannot act on what it gives.
    """
    game = _game(env)
    result = Played()
    policy = model.policy
    state = policy.initial_state() if policy.has_memory else None
    first, present = True, frozenset()
    observations: Any = None
    for step in range(steps):
        if first:
            with _told(result, "begins an episode"):
                observations = game.begin(seed if step == 0 else None)
        # Some environments fill one array again and again.
        observations = copy.deepcopy(observations)
        resets = _resets(policy, observations, first, present)
        mask = copy.copy(game.mask())
        with _explained(model, step + 1):
            actions, for_environment, state = drawn(policy, observations, state, resets, mask)
        present = frozenset(observations) if isinstance(policy, StructuredPolicy) else present
        result.observations.append(observations)
        result.actions.append(actions)
        result.masks.append(mask)
        result.firsts.append(first)
        result.resets.append(resets)
        with _told(result, "takes a step"):
            observations, reward, first = game.step(for_environment)
        result.rewards.append(_finite(reward, len(result)))
        result.lasts.append(first)
    return result


def drawn(
    policy: Policy | StructuredPolicy,
    observations: Any,
    state: State | None,
    resets: Any,
    mask: Any,
) -> tuple[Any, Any, State | None]:
    """Actions as the distribution has them and as the environment takes them, and the state after."""
    arguments: tuple[Any, ...] = (observations,)
    if policy.has_memory:
        arguments += (state, resets)
    with torch.no_grad():
        if policy.class_that_acts is not None:
            result = policy.act(*arguments)
            actions, state = policy._split(result)
            return None, actions, state
        distribution, state = policy._split(policy.distribution(*arguments, mask=mask))
        if isinstance(policy, Policy):
            actions = distribution.sample()
        else:
            actions = {key: each.sample() for key, each in distribution.items()}
        return actions, policy.to_environment(actions), state


def _resets(policy: Any, observations: Any, first: bool, present: frozenset) -> Any:
    """Whether the episode begins; of several actors by actor: one that is new begins with a new memory too."""
    if isinstance(policy, Policy):
        return torch.tensor(first)
    return {key: torch.tensor(first or key not in present) for key in observations}


def _finite(reward: Rewards, step: int) -> Rewards:
    for number in reward.values() if isinstance(reward, dict) else [reward]:
        if not math.isfinite(number):
            raise ProbeError(f"the environment gave the reward {number} in step {step + 1}")
    return reward


@contextmanager
def _explained(model: Model, step: int) -> Iterator[None]:
    """Raise ProbeError where ``model`` cannot act in ``step``, with the first weight that is no number."""
    try:
        yield
    except ValueError as error:
        weights = model.named_parameters()
        wrong = next((name for name, w in weights if not bool(w.isfinite().all())), None)
        advice = f"; the weight {wrong!r} is NaN or infinite" if wrong else ""
        raise ProbeError(f"the model cannot act in step {step}: {error}{advice}") from error


@contextmanager
def _told(steps: Played, what: str) -> Iterator[None]:
    """Raise what the environment raises as ProbeError."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ProbeError(
            f"the environment fails where it {what}, after {len(steps)} steps: {reason}"
        ) from error


def _game(env: Any) -> _Game:
    if not is_pettingzoo(env):
        return _Gymnasium(env)
    return _Alternating(env) if hasattr(env, "agent_iter") else _Parallel(env)


class _Gymnasium:
    """An environment of gymnasium, of one actor or by step."""

    def __init__(self, env: Any) -> None:
        self._env = env
        has_masks = hasattr(env, "has_wrapper_attr") and env.has_wrapper_attr("action_masks")
        self._masks: Callable[[], Any] | None = None
        if has_masks:
            self._masks = env.get_wrapper_attr("action_masks")

    def begin(self, seed: int | None) -> Any:
        return self._env.reset(seed=seed)[0]

    def mask(self) -> Any:
        return None if self._masks is None else self._masks()

    def step(self, actions: Any) -> tuple[Any, Rewards, bool]:
        observation, reward, terminated, truncated, _ = self._env.step(actions)
        return observation, float(reward), bool(terminated or truncated)


class _Parallel:
    """A parallel environment of PettingZoo; agents that have ended observe nothing more."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def begin(self, seed: int | None) -> Any:
        return self._present(self._env.reset(seed=seed)[0])

    def mask(self) -> None:
        return None

    def step(self, actions: Any) -> tuple[Any, Rewards, bool]:
        observations, rewards, *_ = self._env.step(dict(actions))
        return self._present(observations), _by_name(rewards), not self._env.agents

    def _present(self, observations: Mapping[Any, Any]) -> dict[Any, Any]:
        return {agent: observations[agent] for agent in self._env.agents}


class _Alternating:
    """An environment of PettingZoo in which one agent acts at a time (AEC)."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def begin(self, seed: int | None) -> Any:
        self._env.reset(seed=seed)
        return self._next()

    def mask(self) -> None:
        return None

    def step(self, actions: Any) -> tuple[Any, Rewards, bool]:
        (action,) = actions.values()
        self._env.step(action)
        rewards = _by_name(self._env.rewards)
        observations = self._next()
        return observations, rewards, not observations

    def _next(self) -> dict[Any, Any]:
        """The observation of the agent that acts next; nothing where the episode is over."""
        while self._env.agents:
            observation, _, terminated, truncated, _ = self._env.last()
            if not (terminated or truncated):
                return {self._env.agent_selection: observation}
            self._env.step(None)
        return {}


def _by_name(rewards: Mapping[Any, Any]) -> dict[str, float]:
    return {flat_name(agent): float(reward) for agent, reward in rewards.items()}
