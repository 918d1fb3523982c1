"""From a spec and an environment's spaces to policy and critic, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from composer.build.construction import BuiltNetwork, SeededConstruction
from composer.build.context import BuildContext, BuildNotes, Requirements
from composer.build.critic import build_critic
from composer.build.network_builder import build_network
from composer.build.plans import PlannedGroup, PolicyPlan, plan_groups
from composer.build.stacking import stacked_networks
from composer.build.structured_critic import build_critic_by_actor
from composer.critic.base import CriticModule
from composer.critic.structured import StructuredCriticBase
from composer.distributions.base import DISTRIBUTIONS
from composer.errors import Path
from composer.network.groups import GroupNetworks, SeparateNetworks
from composer.network.network import Network
from composer.policy.policy import Policy
from composer.policy.structured import AnyPolicy, StructuredPolicy
from composer.spaces.action_inputs import ActionInputs
from composer.spaces.actors import Actors
from composer.spaces.lookup import Spaces
from composer.spec.model_spec import ModelSpec, NetworkSpec
from composer.wrappers.composed import drawn_later, offer_of
from composer.wrappers.wrapping import check_wrap

__all__ = ["PolicyAndCritic", "build_policy_and_critic"]


@dataclass(frozen=True)
class PolicyAndCritic:
    """A policy and, where the spec has one, its critic; ``constructions`` give them their weights.

    ``expanded`` are the networks of templates, as graphs, by their path in the spec.
    """

    policy: AnyPolicy
    critic: CriticModule | StructuredCriticBase | None
    constructions: list[SeededConstruction]
    expanded: dict[Path, NetworkSpec]


def build_policy_and_critic(
    spec: ModelSpec,
    context: BuildContext,
    spaces: Spaces,
    actors: Actors | None,
    dtype: torch.dtype,
    notes: BuildNotes | None = None,
) -> PolicyAndCritic:
    """Policy and critic, without weights yet, of an environment with one Space (``spaces``) or with ``actors``.

    ``notes`` gets what becomes known of networks and nodes, also where the spec is wrong.

    Raises SpecError with everything that is wrong with the spec. An exception from a user's own class passes through.
    """
    notes = BuildNotes() if notes is None else notes
    groups = plan_groups(spec, context, notes, spaces, actors)
    built = {group.name: _networks(group) for group in groups}
    _check_wrap(spec, context, actors, groups[0], built[groups[0].name])
    if actors is None:
        critic = build_critic(spec, groups[0].plans[0], dtype)
    else:
        critic = build_critic_by_actor(spec, actors, groups, context, dtype)
    if not context.problems:
        notes.effects.note(context.problems)
        for plan in (plan for group in groups for plan in group.plans):
            plan.refuse_unread()
    context.problems.raise_if_any()
    networks = [GroupNetworks(g.name, g.actors, _module(g, built[g.name], dtype)) for g in groups]
    policy = networks[0].module if actors is None else StructuredPolicy(actors, networks)
    assert not isinstance(policy, SeparateNetworks)
    constructions = [construction for networks in built.values() for _, construction in networks]
    if critic is None:
        return PolicyAndCritic(policy, None, constructions, notes.expanded)
    return PolicyAndCritic(policy, critic[0], [*constructions, *critic[1]], notes.expanded)


def _check_wrap(
    spec: ModelSpec,
    context: BuildContext,
    actors: Actors | None,
    group: PlannedGroup,
    built: list[BuiltNetwork],
) -> None:
    """Note what is wrong with the wrappers of a policy, as far as what is in them is known."""
    path, plan = (*spec.policy.path, "wrap"), group.plans[0]
    if actors is not None and spec.policy.wrap:
        message = "'wrap' is for a policy of one actor; wrap each with composer.model_wrap(model.policy[actor], ...)"
        context.problems.add(path, message, key=True)
        return
    after = built[0][0].after if built else {}
    if after and spec.policy.wrap:
        context.problems.add(path, drawn_later(*next(iter(after.items()))), key=True)
        return
    known = built and not plan.rules_are_wrong
    offer = offer_of(plan.families, bool(built[0][0].state_shapes)) if known else None
    check_wrap(spec.policy.wrap, path, offer, context.problems)


# --- the policy -------------------------------------------------------------------------------------------------------


def _networks(group: PlannedGroup) -> list[BuiltNetwork]:
    """The network of each plan; fewer where problems were noted."""
    built = []
    for plan in group.plans:
        network = _policy_network(plan)
        if network is None and group.unlike is None:
            return []  # the others would fail alike
        built += [network] if network else []
    return built


def _policy_network(plan: PolicyPlan) -> BuiltNetwork | None:
    spec, problems = plan.network, plan.context.problems
    widths = plan.families.logits_shapes
    reasons = {}
    if not plan.rules_are_wrong:
        for name, family in plan.families.items():
            reasons[name] = f"its distribution {DISTRIBUTIONS.name_of(type(family))!r}"
    for index, name in enumerate(spec.shares):
        if name in widths or name in plan.ports:
            what = "an action" if name in widths else "an observation"
            path = (*spec.path, "shares", index)
            problems.add(path, f"{name!r} is also {what}; rename the node")
    shares = tuple(name for name in spec.shares if name not in {**widths, **plan.ports})
    # A single head has no other action to read.
    drawn = ActionInputs(plan.actions).ports if len(widths) > 1 else {}
    requirements = Requirements(
        widths, reasons, shares, "action", {"action_logits_shapes": widths}, drawn=drawn
    )
    plan.refuse_unknown(spec, plan.served)
    visible = plan.visible_ports(spec, plan.served)
    built = build_network(plan.name, spec, visible, requirements, plan.context, plan.notes)
    if built is not None:
        plan.refuse_untellable(spec, built[0])
    return built


def _module(
    group: PlannedGroup, built: list[BuiltNetwork], dtype: torch.dtype
) -> Policy | SeparateNetworks:
    """The Policy that a group shares, or the policies of its agents over weights that are stacked where they can be."""
    if not group.separate:
        return _policy(group.plans[0], built[0][0], dtype)
    networks, ensemble, why_looped = stacked_networks(built, group.unlike)
    policies = [_policy(plan, net, dtype) for plan, net in zip(group.plans, networks, strict=True)]
    return SeparateNetworks(policies, ensemble, why_looped)


def _policy(plan: PolicyPlan, network: Network, dtype: torch.dtype) -> Policy:
    return Policy(
        network, plan.observer, plan.actions, plan.families,
        masks=plan.masks, shares=plan.network.shares, dtype=dtype,
    )  # fmt: skip
