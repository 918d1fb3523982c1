"""What an algorithm of `composer train --trainer torchrl` cannot do with a model, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gymnasium import spaces

from composer.adapters.algorithm_needs import Algorithm, bounded_boxes, problems
from composer.model import Model
from composer.spaces import format_space

__all__ = ["ALGORITHMS", "refuse"]


def refuse(model: Model, algorithm: str) -> None:
    """Raise ValueError with every reason why ``algorithm``, one of `ALGORITHMS`, cannot train ``model``."""
    found = [*problems(model, algorithm, ALGORITHMS), *_private_keys(model)]
    if found:
        lines = "".join(f"\n  {problem}" for problem in found)
        raise ValueError(f"{algorithm} of torchrl cannot train this model:{lines}")


def _several(model: Model) -> Iterator[str]:
    actions = model.policy.distributions
    if len(actions) > 1:
        yield f"it learns one action, but there are {', '.join(map(repr, actions))}"


def _not_one_choice(model: Model) -> Iterator[str]:
    """What dqn cannot train."""
    leaves = [*model.policy.action_tree.leaves.values()]
    if len(leaves) > 1 or not isinstance(leaves[0].space, spaces.Discrete):
        shown = format_space(model.policy.action_space)
        yield f"it learns a value for each choice of one Discrete action, got {shown}"
    elif leaves[0].start != 0:
        yield f"it counts choices from 0, got {format_space(leaves[0].space)}"
    yield from _memory(model)


def _not_one_box(model: Model) -> Iterator[str]:
    """What sac cannot train."""
    yield from _several(model)
    yield from bounded_boxes(model)
    yield from _memory(model)


def _private_keys(model: Model) -> Iterator[str]:
    keys = [key for key in model.policy.observer.tree.leaves if re.search("(^|/)_", key)]
    if keys:
        yield (
            f"its collector drops what begins with '_', such as the observation {keys[0]!r}; rename it, or use the "
            "trainer sb3"
        )


def _memory(model: Model) -> Iterator[str]:
    if model.has_memory:
        yield "it has memory, but the replay buffer holds single steps"


def _of_copies(model: Model) -> Iterator[str]:
    """Of what TorchRL's loss trains copies of."""
    critic = model.critic
    if critic is not None and critic.shared:
        shared = ", ".join(map(repr, critic.shared))
        yield (
            f"its loss trains copies of the critic alone, which cannot read {shared} of the policy; "
            "let the critic read observations instead, or use the trainer sb3"
        )
    if critic is not None and critic.value_normalizer is not None:
        yield "a replay buffer has no returns, so that 'normalize_value' has nothing to count; leave it out"


ALGORITHMS: Mapping[Any, Algorithm] = {
    "ppo": Algorithm(lambda model: iter(()), "state"),
    "a2c": Algorithm(_several, "state"),
    "dqn": Algorithm(_not_one_choice, None, "any"),
    "sac": Algorithm(_not_one_box, "state_action", "bounded", more=_of_copies),
}
