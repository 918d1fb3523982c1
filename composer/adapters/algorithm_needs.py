"""What algorithms need of a critic and of distributions, in words that the trainers share."""

from __future__ import annotations

from collections.abc import Iterator

from composer.continuous_actions import Gaussian
from composer.deterministic_actions import Deterministic
from composer.distributions import ActionDistribution
from composer.model import Model

__all__ = ["action_values", "bounded_chances", "chances", "one_network", "state_values"]

_RULE = "write under 'distributions': - {{action: {}, distribution: squashed_gaussian}}"


def state_values(model: Model, algorithm: str) -> Iterator[str]:
    """Why the critic has not the one value of a state that ``algorithm`` needs."""
    critic = model.spec.critic
    if critic is None:
        yield f"{algorithm} needs the value of a state; add a critic to the spec"
    elif critic.kind == "state_action":
        yield f"{algorithm} needs the value of a state, but the critic is of kind 'state_action'; write kind: state"
    elif critic.ensemble > 1:
        yield f"{algorithm} needs one value of a state, but the critic gives {critic.ensemble}; leave out 'ensemble'"


def action_values(model: Model, algorithm: str) -> Iterator[str]:
    """Why the critic does not value actions, as ``algorithm`` needs it."""
    critic = model.spec.critic
    if critic is None:
        yield f"{algorithm} needs the value of an action; add a critic of kind state_action, with ensemble: 2"
    elif critic.kind != "state_action":
        yield (
            f"{algorithm} needs the value of an action, but the critic is of kind {critic.kind!r}; "
            "write kind: state_action, and ensemble: 2"
        )


def one_network(model: Model, algorithm: str) -> Iterator[str]:
    """Why the policy would not be the one network that ``algorithm`` learns."""
    if model.spec.critic is not None:
        yield (
            f"{algorithm} learns one network, whose values choose the action: the policy, whose logits they are. "
            "A critic would leave one of the two untrained; leave it out, as the override critic=null does"
        )


def chances(key: str, family: ActionDistribution) -> Iterator[str]:
    """Why the distribution ``family`` of the action ``key`` gives no chances to learn from."""
    if isinstance(family, Deterministic):
        yield f"it learns from chances, but {key!r} is deterministic; {_RULE.format(key)}"


def bounded_chances(key: str, family: ActionDistribution) -> Iterator[str]:
    """The same where actions must stay within their bounds, too."""
    yield from chances(key, family)
    if isinstance(family, Gaussian):
        yield f"it needs actions within their bounds, which the gaussian of {key!r} leaves; {_RULE.format(key)}"
