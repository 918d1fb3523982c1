"""From a spec and an environment's spaces to policy and critic, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from composer.build.construction import SeededConstruction
from composer.build.context import Context, Demand
from composer.build.critic import build_critic
from composer.build.network_builder import build_network
from composer.build.plans import Group, Role, read_groups
from composer.build.stacking import stacked_networks
from composer.build.structured_critic import build_critic_by_actor
from composer.critic.base import CriticModule
from composer.critic.structured import CriticByActor
from composer.distributions.base import DISTRIBUTIONS
from composer.network.groups import GroupPart, SeparateParts
from composer.network.network import Network
from composer.policy.policy import Policy
from composer.policy.structured import StructuredPolicy
from composer.spaces.actors import Actors
from composer.spec.model_spec import ModelSpec
from composer.wrappers.composed import offer_of
from composer.wrappers.wrapping import check_wrap

__all__ = ["Parts", "build_parts"]

BuiltNetwork = tuple[Network, SeededConstruction]


@dataclass(frozen=True)
class Parts:
    """A policy and, where the spec has one, its critic; ``constructions`` give them their weights."""

    policy: Policy | StructuredPolicy
    critic: CriticModule | CriticByActor | None
    constructions: list[SeededConstruction]


def build_parts(
    spec: ModelSpec,
    context: Context,
    spaces: tuple[Any, Any],
    actors: Actors | None,
    dtype: torch.dtype,
) -> Parts:
    """Policy and critic, without weights so far, of an environment with one Space (``spaces``) or with ``actors``.

    Raises SpecError with everything that is wrong with the spec. An exception from a user's own class passes through.
    """
    groups = read_groups(spec, context, spaces, actors)
    built = {group.name: _networks(group) for group in groups}
    _check_wrap(spec, context, actors, groups[0], built[groups[0].name])
    if actors is None:
        critic = build_critic(spec, groups[0].roles[0], dtype)
    else:
        critic = build_critic_by_actor(spec, actors, groups, context, dtype)
    if not context.problems:
        context.effects.note(context.problems)
        for role in (role for group in groups for role in group.roles):
            role.refuse_unread()
    context.problems.raise_if_any()
    made = [GroupPart(g.name, g.actors, _module(g, built[g.name], dtype)) for g in groups]
    policy = made[0].module if actors is None else StructuredPolicy(actors, made)
    assert not isinstance(policy, SeparateParts)
    constructions = [construction for networks in built.values() for _, construction in networks]
    if critic is None:
        return Parts(policy, None, constructions)
    return Parts(policy, critic[0], [*constructions, *critic[1]])


def _check_wrap(
    spec: ModelSpec,
    context: Context,
    actors: Actors | None,
    group: Group,
    built: list[BuiltNetwork],
) -> None:
    """Note what is wrong with the wrappers of a policy, as far as what is in them is known."""
    path, role = (*spec.policy.path, "wrap"), group.roles[0]
    if actors is not None and spec.policy.wrap:
        message = "'wrap' is for a policy of one actor; wrap each with composer.model_wrap(model.policy[actor], ...)"
        context.problems.add(path, message, key=True)
        return
    known = built and not role.rules_are_wrong
    offer = offer_of(role.families, bool(built[0][0].state_shapes)) if known else None
    check_wrap(spec.policy.wrap, path, offer, context.problems)


# --- the policy -------------------------------------------------------------------------------------------------------


def _networks(group: Group) -> list[BuiltNetwork]:
    """The network of each role; fewer where problems were noted."""
    built = []
    for role in group.roles:
        network = _policy_network(role)
        if network is None and group.unlike is None:
            return []  # the others would fail alike
        built += [network] if network else []
    return built


def _policy_network(role: Role) -> BuiltNetwork | None:
    spec, problems = role.network, role.context.problems
    widths = role.families.logits_shapes
    reasons = {}
    if not role.rules_are_wrong:
        for name, family in role.families.items():
            reasons[name] = f"its distribution {DISTRIBUTIONS.name_of(type(family))!r}"
    for index, name in enumerate(spec.shares):
        if name in widths or name in role.ports:
            what = "an action" if name in widths else "an observation"
            path = (*spec.path, "shares", index)
            problems.add(path, f"{name!r} is also {what}; rename the node")
    shares = tuple(name for name in spec.shares if name not in {**widths, **role.ports})
    demand = Demand(widths, reasons, shares, "action", {"action_logits_shapes": widths})
    return build_network(role.name, spec, role.visible(spec), demand, role.context)


def _module(group: Group, built: list[BuiltNetwork], dtype: torch.dtype) -> Any:
    """The Policy that a group shares, or the policies of its agents over weights that are stacked where they can be."""
    if not group.separate:
        return _policy(group.roles[0], built[0][0], dtype)
    networks, ensemble, why_looped = stacked_networks(built, group.unlike)
    policies = [_policy(role, net, dtype) for role, net in zip(group.roles, networks, strict=True)]
    return SeparateParts(policies, ensemble, why_looped)


def _policy(role: Role, network: Network, dtype: torch.dtype) -> Policy:
    return Policy(
        network, role.observer, role.actions, role.families,
        masks=role.masks, shares=role.network.shares, dtype=dtype,
    )  # fmt: skip
