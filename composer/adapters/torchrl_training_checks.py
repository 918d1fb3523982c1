"""What an algorithm of `composer train --trainer torchrl` cannot do with a model, in words."""

from __future__ import annotations

from collections.abc import Iterator

from gymnasium import spaces

from composer.adapters.algorithm_needs import (
    action_values,
    bounded_chances,
    chances,
    one_network,
    state_values,
)
from composer.model import Model
from composer.spaces import format_space

__all__ = ["refuse"]


def refuse(model: Model, algorithm: str) -> None:
    """Raise ValueError with every reason why ``algorithm``, one of `_PROBLEMS`, cannot train ``model``."""
    problems = list(_PROBLEMS[algorithm](model, algorithm))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{algorithm} of torchrl cannot train this model:{lines}")


def _of_on_policy(model: Model, name: str) -> Iterator[str]:
    actions = model.policy.distributions
    if name == "a2c" and len(actions) > 1:
        yield f"it learns one action, but there are {', '.join(map(repr, actions))}; use ppo"
    for key, family in actions.items():
        yield from chances(key, family)
    yield from state_values(model, name)


def _of_dqn(model: Model, name: str) -> Iterator[str]:
    leaves = [*model.policy.action_tree.leaves.values()]
    if len(leaves) > 1 or not isinstance(leaves[0].space, spaces.Discrete):
        shown = format_space(model.policy.action_space)
        yield f"it learns a value for each choice of one Discrete action, got {shown}; use ppo or sac"
    elif leaves[0].start != 0:
        yield f"it counts choices from 0, got {format_space(leaves[0].space)}; use ppo"
    yield from _of_replay(model)
    yield from one_network(model, name)


def _of_sac(model: Model, name: str) -> Iterator[str]:
    leaves = model.policy.action_tree.leaves
    if len(leaves) > 1:
        yield f"it learns one action, but there are {', '.join(map(repr, leaves))}; use ppo"
    for key, leaf in leaves.items():
        if isinstance(leaf.space, spaces.Box):
            yield from bounded_chances(key, model.policy.distributions[key])
        else:
            yield f"it needs Box actions, but {key!r} is {format_space(leaf.space)}; use ppo or dqn"
    yield from _of_replay(model)
    yield from action_values(model, name)
    yield from _of_copies(model)


def _of_replay(model: Model) -> Iterator[str]:
    if model.has_memory:
        yield "it has memory, but the replay buffer holds single steps; use ppo"


def _of_copies(model: Model) -> Iterator[str]:
    """Of what TorchRL's loss trains copies of."""
    critic = model.critic
    if critic is not None and critic.shared:
        shared = ", ".join(map(repr, critic.shared))
        yield (
            f"its loss trains copies of the critic alone, which cannot read {shared} of the policy; "
            "leave out 'shares', or use the trainer sb3"
        )
    if critic is not None and critic.value_normalizer is not None:
        yield "a replay buffer has no returns, so that 'normalize_value' has nothing to count; leave it out"


_PROBLEMS = {"ppo": _of_on_policy, "a2c": _of_on_policy, "dqn": _of_dqn, "sac": _of_sac}
