"""The requirements of algorithms on actions, memory, critics and distributions, with the messages of all trainers.

Each trainer has one table of its algorithms (`AlgorithmNeeds`). From it follow the reasons why an algorithm cannot
train a model, and the way out: a setting of the spec to change, or the algorithms of the same table that can train it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from gymnasium import spaces

from composer.critic.base import can_stand_for
from composer.distributions.base import DISTRIBUTIONS, is_bounded
from composer.distributions.continuous import Gaussian
from composer.distributions.deterministic import Deterministic
from composer.model import Model
from composer.policy.structured import one_policy
from composer.spaces.tree import format_space

__all__ = ["AlgorithmNeeds", "anything", "problems", "refuse_for"]

ADVISED = {
    "state": "critic: {kind: state, template: {}}",
    "state_action": "critic: {kind: state_action, ensemble: 2, template: {}}",
    "choices": "critic: {kind: state_action, template: {}}",
}
KINDS = {"state": "state", "state_action": "state_action", "choices": "state_action"}
BOUND_THEM = (
    ", or give the environment's actions bounds, as gymnasium.wrappers.TransformAction does"
)


def anything(model: Model) -> Iterator[str]:
    """No reason against any model."""
    return iter(())


@dataclass(frozen=True)
class AlgorithmNeeds:
    """One row of a trainer's table.

    ``refuses`` says why the actions, the mask or the memory of a model cannot be trained, which no other critic or
    distribution would change; with ``of_boxes``, all actions must be Boxes with finite bounds. ``critic`` is the kind
    that is needed ("choices": of actions, without an ensemble), None where there must be no critic; ``family`` says
    which distributions serve. ``more`` says what else of the critic is in the way, each with its way out.
    """

    refuses: Callable[[Model], Iterator[str]]
    critic: Literal["state", "state_action", "choices"] | None
    family: Literal["any", "chances", "bounded", "deterministic"] = "chances"
    more: Callable[[Model], Iterator[str]] = anything
    of_boxes: bool = False
    is_advised: bool = True  # not where the environment must be made for it


def problems(model: Model, name: str, table: Mapping[str, AlgorithmNeeds]) -> list[str]:
    """Why the algorithm ``name`` of ``table`` cannot train ``model``, each reason with a way out that works."""
    algorithm = table[name]
    refused = list(_refused(model, algorithm))
    if refused:
        out = _way_out(model, table)
        return [f"{reason}{out}{more}" for reason, more in refused]
    return [
        *_of_distributions(model, algorithm.family),
        *(problem for problem, _ in _of_critic(model, name, algorithm.critic)),
        *algorithm.more(model),
    ]


def refuse_for(trainer: str, reasons: Iterable[str]) -> None:
    """Raise ValueError with every one of ``reasons`` why ``trainer`` cannot train a model."""
    lines = "".join(f"\n  {reason}" for reason in reasons)
    if lines:
        raise ValueError(f"{trainer} cannot train this model:{lines}")


def _way_out(model: Model, table: Mapping[str, AlgorithmNeeds]) -> str:
    """The algorithms that can train ``model`` and what they need besides, as the end of a message: ``; use PPO``."""
    fit = [n for n, row in table.items() if row.is_advised and not any(_refused(model, row))]
    needs = {name: _needs(model, table[name]) for name in fit}
    if not fit:
        return ""
    fewest = needs[min(fit, key=lambda name: len(needs[name]))]
    names = [name for name in fit if needs[name] == fewest]
    listed = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"; use {listed}" + (f" with {' and '.join(fewest)}" if fewest else "")


def _refused(model: Model, row: AlgorithmNeeds) -> Iterator[tuple[str, str]]:
    """Each reason against the model's actions, mask or memory, and what else would help."""
    for key, leaf in one_policy(model.policy).action_tree.leaves.items() if row.of_boxes else ():
        shown = format_space(leaf.space)
        if not isinstance(leaf.space, spaces.Box):
            yield f"it needs Box actions, but {key!r} is {shown}", ""
        elif not is_bounded(leaf):
            yield f"it needs Box actions with finite bounds, but {key!r} is {shown}", BOUND_THEM
    for reason in row.refuses(model):
        yield reason, ""


def _needs(model: Model, row: AlgorithmNeeds) -> list[str]:
    """The changes in the spec that it needs, in a few words each."""
    others = _other_families(model, row.family)
    needs = [f"distribution: {family} for {key!r}" for key, family in others]
    return needs + [change for _, change in _of_critic(model, "", row.critic)]


# --- critics ---


def _of_critic(model: Model, name: str, needed: str | None) -> Iterator[tuple[str, str]]:
    """Why the critic does not serve the algorithm ``name``, and the change in the spec in a few words."""
    critic = model.spec.critic
    if needed is None:
        if critic is not None:
            yield (
                f"{name} learns one network, whose values choose the action: the policy, whose logits they are. "
                "A critic would leave one of the two untrained; leave it out, as --set critic=null does",
                "critic: null",
            )
        return
    what = "the value of a state" if needed == "state" else "the value of an action"
    advised = ADVISED[needed]
    if critic is None:
        yield f"{name} needs {what}; add a critic such as {advised}", advised
    elif not can_stand_for(critic.kind, KINDS[needed]):
        got = f"but the critic is of kind {critic.kind!r}"
        yield f"{name} needs {what}, {got}; give it one such as {advised}", advised
    elif needed != "state_action" and critic.ensemble > 1:
        got = f"but the critic gives {critic.ensemble}"
        yield f"{name} needs {what} once, {got}; leave out 'ensemble'", "no 'ensemble'"


# --- distributions ---


def _of_distributions(model: Model, family: str) -> Iterator[str]:
    for key, other in _other_families(model, family):
        distribution = one_policy(model.policy).distributions[key]
        name = DISTRIBUTIONS.name_of(type(distribution)) or type(distribution).__name__
        if isinstance(distribution, Deterministic):
            reason = f"it learns from chances, but {key!r} is deterministic"
        elif family == "deterministic":
            reason = f"its actor is deterministic, but {key!r} has the distribution {name!r}"
        else:
            reason = f"it needs actions within their bounds, which the {name} of {key!r} leaves"
        yield f"{reason}; {_rule(model, key, other)}"


def _other_families(model: Model, family: str) -> Iterator[tuple[str, str]]:
    """The actions whose distribution does not fit, each with one that does."""
    for key, distribution in one_policy(model.policy).distributions.items():
        if family == "deterministic":
            if not isinstance(distribution, Deterministic):
                yield key, "deterministic"
        elif family != "any" and (
            isinstance(distribution, Deterministic)
            or (family == "bounded" and isinstance(distribution, Gaussian))
        ):
            yield key, "squashed_gaussian"  # whose Box has bounds, or `refuses` had said so


def _rule(model: Model, key: str, family: str) -> str:
    """How to give the action ``key`` another distribution."""
    kind = one_policy(model.policy).action_tree.leaves[key].kind
    for rule in model.spec.distributions:
        if rule.entry.get("action") == key or rule.entry.get("space") == kind:
            return f"write distribution: {family} in its entry of 'distributions'"
    return f"write under 'distributions': - {{action: {key}, distribution: {family}}}"
