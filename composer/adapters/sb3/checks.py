"""Models that an algorithm of Stable-Baselines3 cannot train are refused, with every reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from gymnasium import Space, spaces

from composer.adapters.needs import AlgorithmNeeds, problems
from composer.model import Model
from composer.policy.structured import one_policy
from composer.spaces.actors import ActorKey
from composer.spaces.lookup import is_by_actor
from composer.spaces.tree import format_space

__all__ = ["ALGORITHMS", "refuse", "several_actors"]


def refuse(model: Model, algorithm: str, names: Mapping[str, str] | None = None) -> None:
    """Raise ValueError with every reason why ``algorithm`` cannot train ``model``.

    ``names`` maps names of classes to what the caller calls the algorithms.
    """
    if is_by_actor(model.observation_space):
        reasons = [f"it acts for {several_actors(model.observation_space)}"]
    else:
        reasons = problems(model, algorithm, ALGORITHMS)
    if reasons:
        lines = "".join(f"\n  {problem}" for problem in reasons)
        text = f"{algorithm} cannot train this model:{lines}"
        for cls, name in (names or {}).items():
            text = re.sub(rf"(?<!')\b{cls}\b", name, text)  # not of actions, which are quoted
        raise ValueError(text)


def several_actors(spaces_by_actor: Iterable[ActorKey]) -> str:
    """The end of a message that names the actors and says that one policy of one agent is trained."""
    names = ", ".join(map(repr, spaces_by_actor))
    return f"several steps or agents ({names}); Stable-Baselines3 trains one policy of one agent"


def _memory(model: Model) -> Iterator[str]:
    if model.has_memory:
        yield "it has memory, which only RecurrentPPO of sb3-contrib carries from step to step"


def _no_memory(model: Model) -> Iterator[str]:
    if not model.has_memory:
        yield "neither its policy nor its critic has memory"


def _no_choices(model: Model) -> Iterator[str]:
    """What MaskablePPO cannot train."""
    space = one_policy(model.policy).action_space
    if not _are_choices(space):
        shown = format_space(space)
        yield f"it masks the choices of one Discrete, MultiDiscrete or MultiBinary action, got {shown}"
    yield from _memory(model)


def _not_one_choice(model: Model) -> Iterator[str]:
    """What DQN cannot train."""
    policy = one_policy(model.policy)
    space = policy.action_space
    shown = format_space(space)
    if not isinstance(space, spaces.Discrete):
        yield f"it learns a value for each choice of one Discrete action, got {shown}"
    elif space.start:
        yield f"it finds the value of an action by its number, so that these must begin with 0, got {shown}"
    elif policy.masks:
        yield "it explores with any action, legal or not, so no 'action_mask' can be kept"
    yield from _memory(model)


def _are_choices(space: Space) -> bool:
    """Whether sb3-contrib has masks for it: choices on at most one axis."""
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return len(space.shape) == 1
    return isinstance(space, spaces.Discrete)


ALGORITHMS: Mapping[str, AlgorithmNeeds] = {
    "PPO": AlgorithmNeeds(_memory, "state"),
    "A2C": AlgorithmNeeds(_memory, "state"),
    "RecurrentPPO": AlgorithmNeeds(_no_memory, "state"),
    "MaskablePPO": AlgorithmNeeds(_no_choices, "state", is_advised=False),
    "DQN": AlgorithmNeeds(_not_one_choice, None, "any"),
    "SAC": AlgorithmNeeds(_memory, "state_action", "bounded", of_boxes=True),
    "TD3": AlgorithmNeeds(_memory, "state_action", "deterministic", of_boxes=True),
}
