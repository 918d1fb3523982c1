"""What an algorithm of Stable-Baselines3 cannot do with a model, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymnasium import Space, spaces

from composer.continuous_actions import Gaussian
from composer.deterministic_actions import Deterministic
from composer.distributions import DISTRIBUTIONS
from composer.model import Model
from composer.space_lookup import is_by_actor
from composer.spaces import format_space

__all__ = ["refuse", "several_actors"]

ON_POLICY = ("PPO", "A2C", "MaskablePPO", "RecurrentPPO")
CONTINUOUS = ("SAC", "TD3")


def refuse(model: Model, algorithm: str) -> None:
    """Raise ValueError with every reason why ``algorithm`` cannot train ``model``."""
    problems = list(_problems(model, algorithm))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{algorithm} cannot train this model:{lines}")


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
        yield from _of_state_critic(model, algorithm)
    elif algorithm in CONTINUOUS:
        yield from _of_action_critic(model, algorithm)
    elif isinstance(model.policy.action_space, spaces.Discrete):
        yield from _of_choices(model)


def _of_actions(policy: Any, algorithm: str) -> Iterator[str]:
    space = policy.action_space
    shown = format_space(space)
    if algorithm == "DQN" and not isinstance(space, spaces.Discrete):
        yield f"it learns a value for each choice of one Discrete action, got {shown}; use PPO, SAC or TD3"
        return
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


def _of_distribution(key: str, family: Any, algorithm: str) -> Iterator[str]:
    deterministic = isinstance(family, Deterministic)
    name = DISTRIBUTIONS.name_of(type(family)) or type(family).__name__
    rule = f"- {{action: {key}, distribution: "
    if algorithm == "TD3" and not deterministic:
        yield (
            f"its actor is deterministic, but {key!r} has the distribution {name!r}; "
            f"write under 'distributions': {rule}deterministic}}"
        )
    elif algorithm in ("SAC", *ON_POLICY) and deterministic:
        yield (
            f"it learns from chances, but {key!r} is deterministic; "
            f"write under 'distributions': {rule}squashed_gaussian}}"
        )
    elif algorithm == "SAC" and isinstance(family, Gaussian):
        yield (
            f"it needs actions within their bounds, which the gaussian of {key!r} leaves; "
            f"write under 'distributions': {rule}squashed_gaussian}}"
        )


def _of_memory(model: Model, algorithm: str) -> Iterator[str]:
    if algorithm == "RecurrentPPO" and not model.has_memory:
        yield "neither its policy nor its critic has memory; use PPO"
    elif algorithm != "RecurrentPPO" and model.has_memory:
        yield "it has memory, which only RecurrentPPO of sb3-contrib carries from step to step; use that"


def _of_state_critic(model: Model, algorithm: str) -> Iterator[str]:
    critic = model.spec.critic
    if critic is None:
        yield f"{algorithm} needs the value of a state; add a critic to the spec"
    elif critic.kind == "state_action":
        yield f"{algorithm} needs the value of a state, but the critic is of kind 'state_action'; write kind: state"
    elif critic.ensemble > 1:
        yield f"{algorithm} needs one value of a state, but the critic gives {critic.ensemble}; leave out 'ensemble'"


def _of_action_critic(model: Model, algorithm: str) -> Iterator[str]:
    critic = model.spec.critic
    if critic is None:
        yield f"{algorithm} needs the value of an action; add a critic of kind state_action, with ensemble: 2"
    elif critic.kind != "state_action":
        yield (
            f"{algorithm} needs the value of an action, but the critic is of kind {critic.kind!r}; "
            "write kind: state_action, and ensemble: 2"
        )


def _of_choices(model: Model) -> Iterator[str]:
    if model.policy.masks:
        yield "DQN explores with any action, legal or not, so no 'action_mask' can be kept; use PPO"
    if model.spec.critic is not None:
        yield (
            "DQN learns one network, whose values choose the action: the policy, whose logits they are. "
            "A critic would leave one of the two untrained; leave it out, as the override critic=null does"
        )


def _are_choices(space: Space) -> bool:
    """Whether sb3-contrib has masks for it: choices on at most one axis."""
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return len(space.shape) == 1
    return isinstance(space, spaces.Discrete)
