"""What an algorithm of Stable-Baselines3 cannot do with a model, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gymnasium import Space, spaces

from composer.adapters.algorithm_needs import (
    action_values,
    bounded_chances,
    chances,
    one_network,
    state_values,
)
from composer.deterministic_actions import Deterministic
from composer.distributions import DISTRIBUTIONS, ActionDistribution
from composer.model import Model
from composer.space_lookup import is_by_actor
from composer.spaces import format_space

__all__ = ["refuse", "several_actors"]

ON_POLICY = ("PPO", "A2C", "MaskablePPO", "RecurrentPPO")
CONTINUOUS = ("SAC", "TD3")


def refuse(model: Model, algorithm: str, names: Mapping[str, str] | None = None) -> None:
    """Raise ValueError with every reason why ``algorithm`` cannot train ``model``.

    ``names`` are those of the algorithms where they are not called by their classes.
    """
    problems = list(_problems(model, algorithm))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        text = f"{algorithm} cannot train this model:{lines}"
        for own, name in (names or {}).items():
            text = re.sub(rf"(?<!')\b{own}\b", name, text)  # not of actions, which are quoted
        raise ValueError(text)


def several_actors(spaces_by_actor: Any) -> str:
    """Who acts, and that no algorithm here is for them."""
    names = ", ".join(map(repr, spaces_by_actor))
    return f"several steps or agents ({names}); Stable-Baselines3 trains one policy of one agent"


def _problems(model: Model, algorithm: str) -> Iterator[str]:
    if is_by_actor(model.observation_space):
        yield f"it acts for {several_actors(model.observation_space)}"
        return
    yield from _of_actions(model.policy, algorithm)
    yield from _of_memory(model, algorithm)
    if algorithm in ON_POLICY:
        yield from state_values(model, algorithm)
    elif algorithm in CONTINUOUS:
        yield from action_values(model, algorithm)
    elif isinstance(model.policy.action_space, spaces.Discrete):
        yield from _of_choices(model)


def _of_actions(policy: Any, algorithm: str) -> Iterator[str]:
    space = policy.action_space
    shown = format_space(space)
    if algorithm == "DQN" and not isinstance(space, spaces.Discrete):
        yield f"it learns a value for each choice of one Discrete action, got {shown}; use PPO, SAC or TD3"
        return
    if algorithm == "DQN" and space.start:
        yield f"it finds the value of an action by its number, so that these must begin with 0, got {shown}; use PPO"
    if algorithm == "MaskablePPO" and not _are_choices(space):
        yield (
            "it masks the choices of one Discrete, MultiDiscrete or MultiBinary action, "
            f"got {shown}; use PPO, which keeps to the spec's 'action_mask'"
        )
        return
    for key, leaf in policy.action_tree.leaves.items():
        if algorithm in CONTINUOUS and not isinstance(leaf.space, spaces.Box):
            yield f"it needs Box actions, but {key!r} is {format_space(leaf.space)}; use PPO or DQN"
        else:
            yield from _of_distribution(key, policy.distributions[key], algorithm)


def _of_distribution(key: str, family: ActionDistribution, algorithm: str) -> Iterator[str]:
    if algorithm == "SAC":
        yield from bounded_chances(key, family)
    elif algorithm in ON_POLICY:
        yield from chances(key, family)
    elif algorithm == "TD3" and not isinstance(family, Deterministic):
        name = DISTRIBUTIONS.name_of(type(family)) or type(family).__name__
        yield (
            f"its actor is deterministic, but {key!r} has the distribution {name!r}; "
            f"write under 'distributions': - {{action: {key}, distribution: deterministic}}"
        )


def _of_memory(model: Model, algorithm: str) -> Iterator[str]:
    if algorithm == "RecurrentPPO" and not model.has_memory:
        yield "neither its policy nor its critic has memory; use PPO"
    elif algorithm != "RecurrentPPO" and model.has_memory:
        yield "it has memory, which only RecurrentPPO of sb3-contrib carries from step to step; use that"


def _of_choices(model: Model) -> Iterator[str]:
    if model.policy.masks:
        yield "DQN explores with any action, legal or not, so no 'action_mask' can be kept; use PPO"
    yield from one_network(model, "DQN")


def _are_choices(space: Space) -> bool:
    """Whether sb3-contrib has masks for it: choices on at most one axis."""
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return len(space.shape) == 1
    return isinstance(space, spaces.Discrete)
