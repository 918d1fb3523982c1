"""A critic as its spec and the environment's spaces ask for it, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from composer.build.construction import BuiltNetwork, SeededConstruction
from composer.build.context import BuildContext, Requirements, VisiblePorts
from composer.build.network_builder import build_network
from composer.build.plans import PolicyPlan, only_network, separate_paths
from composer.critic.base import CriticKind, CriticModule, CriticSetup, SpaceCritic
from composer.critic.structured import StructuredCriticBase
from composer.critic.targets import Targeted
from composer.critic.values import RAW_NAMES, ValueRequirements
from composer.errors import Problems
from composer.network.network import Network
from composer.spaces.actors import Actors
from composer.spaces.tree import SpaceTree
from composer.spec.model_spec import CRITICS, CriticSpec, ModelSpec, NetworkSpec
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.graph.construct import add_place
from perception_blocks.measure import measure
from perception_blocks.port import Port
from perception_blocks.registry import MissingExtraError
from perception_blocks.words import describe, listing

__all__ = [
    "BuiltCritic",
    "asked_of_kind",
    "CriticBuilder",
    "build_critic",
    "built_of_kind",
    "critic_network",
    "critic_setup",
    "kind_of",
    "network_requirements",
    "policy_failed",
    "policy_values",
    "refuse_one_actor",
    "refuse_settings",
    "value_normalizer",
    "with_target",
]

BuiltCritic: TypeAlias = tuple[CriticModule | StructuredCriticBase, list[SeededConstruction]]
C = TypeVar("C", bound=nn.Module)


@dataclass(frozen=True)
class CriticBuilder:
    """What the critic of several ``actors`` is built from; ``plans`` are those of their policies, by flat name."""

    critic: CriticSpec
    actors: Actors
    plans: Mapping[str, PolicyPlan]
    context: BuildContext
    dtype: torch.dtype

    @property
    def problems(self) -> Problems:
        return self.context.problems


def build_critic(spec: ModelSpec, plan: PolicyPlan, dtype: torch.dtype) -> BuiltCritic | None:
    """The critic of ``spec`` for an environment with one Space, once its policy (``plan``) is built.

    None where there is none, or problems were noted.
    """
    critic = spec.critic
    if critic is None:
        return None
    network = only_network(critic, "a critic", plan.context.problems)
    kind = kind_of(critic, plan.context)
    if kind is None:
        return None
    if refuse_one_actor(kind, critic, plan.context, "has one space only"):
        return None
    member = kind.member()
    stack = "'stack' stacks the observations of several actors, but this environment has one space"
    refused = {**member.refused, "stack": stack}
    refused.pop("separate", None)  # which has been noted
    refuse_settings(critic, refused, plan.context)
    if policy_failed(plan):
        return None
    built = critic_network("critic", critic, member, network, plan)
    if built is None:
        return None
    make = partial(member.build, built[0], critic_setup(critic, plan, dtype))
    judge = built_of_kind(make, member, critic, plan.context)
    return None if judge is None else (with_target(judge, built[1]), [built[1]])


def kind_of(critic: CriticSpec, context: BuildContext) -> type[CriticKind] | None:
    """The class that is registered for the kind of critic; None where it cannot be had, which is noted."""
    path = (*critic.path, "kind")
    try:
        kind = CRITICS.get(critic.kind)
    except MissingExtraError as error:
        context.problems.add(path, str(error), needs_extra=True)
        return None
    problem = "which is no critic; derive it from composer.critic.Critic"
    if isinstance(kind, type) and issubclass(kind, CriticModule | StructuredCriticBase):
        if kind.member.__func__ is not CriticKind.member.__func__:  # type: ignore[attr-defined]
            return kind
        problem = (
            "which does not define member(), the class of the critic of each network; register a class that is derived "
            "from composer.critic.Critic and returns this one from structured()"
        )
    message = f"the critic kind {critic.kind!r} is {describe(kind)}, {problem}"
    context.problems.add(path, message)
    return None


def refuse_one_actor(
    kind: type[CriticKind], critic: CriticSpec, context: BuildContext, environment: str
) -> bool:
    """Whether ``kind`` is for several actors only, while the ``environment`` has one, which is noted.

    A user's kind is for several actors only where one of the built-in classes would stand for it, without what it
    overrides.
    """
    lost = _is_users(kind) and not _is_users(kind.member())
    if kind.serves_space and not lost:
        return False
    message = (
        f"a critic of kind {critic.kind!r} is for several actors; this environment {environment}"
    )
    if kind.serves_space:
        message += (
            "; write kind: state, or let its member() return a class of yours that is derived from "
            "composer.critic.Critic"
        )
    context.problems.add((*critic.path, "kind"), message)
    return True


def _is_users(kind: type) -> bool:
    """Whether a class is no part of this package."""
    return not kind.__module__.startswith("composer.")


def asked_of_kind(
    kind: type[CriticModule], actions: SpaceTree | None, critic: CriticSpec, context: BuildContext
) -> ValueRequirements | None:
    """What a ``kind`` asks of its network; None where it returns something else, which is noted."""
    with noted_kind(kind, critic, context):
        asked = kind.requirements(actions)
    if isinstance(asked, ValueRequirements):
        return asked
    rule = "it must return ValueRequirements, as super().requirements() does"
    message = f"{kind.__qualname__}.requirements returned {describe(asked)}; {rule}"
    context.problems.add((*critic.path, "kind"), f"{kind.__module__}.{message}")
    return None


def built_of_kind(
    make: Callable[[], C], kind: type[CriticKind], critic: CriticSpec, context: BuildContext
) -> C | None:
    """The critic of a ``kind`` that ``make`` returns; None where it is none or has no value, which is noted."""
    with noted_kind(kind, critic, context):
        judge = make()
        problem = _wrong_critic(judge) if _is_users(kind) else ""
    if not problem:
        return judge
    context.problems.add((*critic.path, "kind"), f"{kind.__module__}.{kind.__qualname__}{problem}")
    return None


@contextmanager
def noted_kind(kind: type[CriticKind], critic: CriticSpec, context: BuildContext) -> Iterator[None]:
    """An exception from a user's ``kind`` passes through, with a note that says where the spec names it."""
    try:
        yield
    except Exception as error:
        if _is_users(kind):
            position = context.source.position((*critic.path, "kind"))
            label = f"critic ({kind.__module__}.{kind.__qualname__})"
            add_place(error, f"{position}: {label}" if position else label, kind)
        raise


def _wrong_critic(judge: object) -> str:
    """What is wrong with what a user's kind has built, after its name; nothing if all is well."""
    if not isinstance(judge, CriticModule | StructuredCriticBase):
        return f".build returned {describe(judge)}; it must return the critic"
    if not isinstance(judge, CriticModule):
        return ""
    ports = judge.network.out_ports

    def read(critic: CriticModule, *outputs: Tensor) -> str:
        values = critic.values_of(dict(zip(ports, outputs, strict=True)))
        if not isinstance(values, Mapping):
            return f".values_of returned {describe(values)}; it must return a dict of values"
        try:
            critic.number_of(values)
        except KeyError as error:
            got = listing(values) or "nothing"
            return f".values_of returned {got}, but no {error.args[0]!r}, which critic.value reads"
        return ""

    return measure(judge, list(ports.values()), read)


def refuse_settings(critic: CriticSpec, refused: Mapping[str, str], context: BuildContext) -> None:
    """Note each setting of the spec that is ``refused``, which says why."""
    alone = {
        "stack": critic.stack,
        "ensemble": critic.ensemble > 1,
        "normalize_value": critic.normalize_value,
    }
    paths = [(*critic.path, key) for key, is_set in alone.items() if is_set]
    for path in [*paths, *separate_paths(critic)]:
        if path[-1] in refused:
            context.problems.add(path, refused[str(path[-1])], key=True)


def with_target(critic: C, construction: SeededConstruction) -> C:
    """``critic``, with a target copy if its class has one, made anew once ``construction`` gives weights."""
    if isinstance(critic, Targeted):
        critic.make_target()
        construction.when_weights_exist(critic.make_target)
    return critic


def policy_failed(plan: PolicyPlan) -> bool:
    """Whether it is not known what the policy of ``plan`` would share."""
    return any(name not in plan.notes.shared for name in plan.network.shares)


def policy_values(policy: NetworkSpec) -> dict[str, str]:
    """The values in a policy, with how to share them: for a critic that reads what the policy does not share."""
    names = (name for node in (policy.graph or {}).values() for name in node.writes)
    advice = "belongs to the policy; share it: write shares: [{}] in the policy"
    return {name: advice.format(name) for name in names}


def critic_network(
    name: str,
    critic: CriticSpec,
    member: type[SpaceCritic],
    spec: NetworkSpec,
    plan: PolicyPlan,
    previous: str | None = None,
) -> BuiltNetwork | None:
    """The network ``spec`` of a critic, called ``name``, over what ``plan`` sees and shares; None where it cannot be.

    It may read the value before its own by the name ``previous``.
    """
    asked = asked_of_kind(member, plan.actions, critic, plan.context)
    if asked is None:
        return None
    plan.refuse_unknown(spec)
    seen, hidden = plan.visible_ports(spec)
    ports = {**seen, **plan.notes.shared}
    if previous is not None:
        if previous in ports:
            message = f"{previous!r} is the name of the previous value here; rename the other one"
            plan.context.problems.add(spec.path, message)
        ports[previous] = Port((1,))
    for action in [action for action in asked.actions if action in ports]:
        message = (
            f"the observation {action!r} is called as the action is that the critic reads; "
            "rename it, or name it under 'ignore'"
        )
        plan.context.problems.add(spec.path, message, key=True)
    requirements = network_requirements(critic, asked, member.added)
    hidden = {**policy_values(plan.network), **hidden, **asked.hidden}
    visible = VisiblePorts({**ports, **asked.actions}, hidden)
    built = build_network(name, spec, visible, requirements, plan.context, plan.notes)
    if built is None or _refuse_unread(asked.actions, spec, built[0], plan.context):
        return None
    return built


def critic_setup(critic: CriticSpec, plan: PolicyPlan, dtype: torch.dtype) -> CriticSetup:
    """What the critic is made of that judges the actors of ``plan``."""
    shared, normalizer = plan.network.shares, value_normalizer(critic)
    return CriticSetup(plan.observer, plan.actions, shared, dtype, critic.ensemble, normalizer)


def network_requirements(
    critic: CriticSpec, asked: ValueRequirements, added: tuple[str, ...]
) -> Requirements:
    """What ``asked`` is of each network of a critic, which has the children ``added`` beside the network's."""
    extras = tuple(f"{head}_{raw}" for head in asked.heads for raw in RAW_NAMES)
    return Requirements(
        asked.heads, asked.reasons, (), "value", asked.injected,
        extras=extras, added=added, copies=critic.ensemble,
    )  # fmt: skip


def _refuse_unread(
    actions: Iterable[str], spec: NetworkSpec, network: Network, context: BuildContext
) -> bool:
    """Whether the network leaves out one of ``actions``: its value would not depend on it."""
    unread = [name for name in actions if name not in network.in_ports]
    for name in unread:
        message = f"the critic does not read {name!r}; a Q value must depend on the whole action"
        context.problems.add(spec.path, message, key=True)
    return bool(unread)


def value_normalizer(critic: CriticSpec) -> NormalizeBlock | None:
    return NormalizeBlock([(1,)], clip=None) if critic.normalize_value else None
