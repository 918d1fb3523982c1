"""A critic as its spec and the environment's spaces ask for it, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from composer.build.construction import SeededConstruction
from composer.build.context import BuildContext, Requirements
from composer.build.network_builder import build_network
from composer.build.plans import PolicyPlan
from composer.critic.actions import ActionInputs
from composer.critic.base import CriticModule, SpaceCritic
from composer.critic.state import Critic
from composer.critic.state_action import Q_VALUES, StateActionCritic
from composer.critic.values import RAW_NAMES, ValueReader
from composer.network.network import Network
from composer.spec.model_spec import CriticSpec, ModelSpec, NetworkSpec
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.port import Port

__all__ = [
    "build_critic",
    "critic_network",
    "critic_around",
    "hide_policy_values",
    "value_requirements",
]
__all__ += ["value_normalizer"]

Ports = Mapping[str, Port]
BuiltCritic = tuple[CriticModule, list[SeededConstruction]]


def build_critic(spec: ModelSpec, plan: PolicyPlan, dtype: torch.dtype) -> BuiltCritic | None:
    """The critic of ``spec`` for an environment with one Space, once its policy (``plan``) is built.

    None where there is none, or problems were noted.
    """
    if spec.critic is None:
        return None
    network = _single_network(spec.critic, plan.context)
    _refuse_settings(spec.critic, plan.context)
    if any(name not in plan.context.shared for name in plan.network.shares):
        return None  # the policy failed: what it would share is not known
    ports = {**plan.visible(network), **plan.context.shared}
    hide_policy_values(plan.network, plan.context)
    built = critic_network("critic", spec.critic, network, ports, plan)
    if built is None:
        return None
    made, construction = critic_around(built[0], spec.critic, plan, dtype), built[1]
    if isinstance(made, StateActionCritic):
        made.make_target()
        construction.when_weights_exist(made.make_target)
    return made, [construction]


def hide_policy_values(policy: NetworkSpec, context: BuildContext) -> None:
    """Let a critic that reads what a policy does not share be told how to share it."""
    for name in (name for node in (policy.graph or {}).values() for name in node.writes):
        advice = f"share it: write shares: [{name}] in the policy"
        context.hidden.setdefault(name, f"belongs to the policy; {advice}")


def critic_network(
    name: str, critic: CriticSpec, spec: NetworkSpec, ports: Ports, plan: PolicyPlan
) -> tuple[Network, SeededConstruction] | None:
    """The network ``spec`` of a critic, called ``name``, which may read ``ports``; None where problems were noted."""
    if critic.kind != "state_action":
        return build_network(name, spec, ports, value_requirements(critic), plan.context)
    actions = ActionInputs(plan.actions)
    requirements, ports = _of_actions(critic, spec, ports, actions, plan.context)
    built = build_network(name, spec, ports, requirements, plan.context)
    if built is None or _refuse_unread_actions(spec, built[0], actions, plan.context):
        return None
    return built


def critic_around(
    network: Network, critic: CriticSpec, plan: PolicyPlan, dtype: torch.dtype
) -> SpaceCritic:
    """The critic that ``network`` is for. One of actions has no target so far.

    Of one Space the central value and the sum of differences are no other than the value of a state.
    """
    keywords: dict[str, Any] = {
        "shared": plan.network.shares,
        "dtype": dtype,
        "value_normalizer": value_normalizer(critic),
    }
    if critic.kind != "state_action":
        reader = ValueReader(network.form, ["value"])
        return Critic(network, plan.observer, reader, **keywords)
    actions = ActionInputs(plan.actions)
    reader = ValueReader(network.form, _heads_of(actions))
    return StateActionCritic(
        network, plan.observer, reader, actions, copies=critic.ensemble, **keywords
    )


def _heads_of(actions: ActionInputs) -> dict[str, tuple[int, ...]]:
    """What a network that judges actions must give."""
    if actions.are_choices:
        return {name + Q_VALUES: (width,) for name, width in actions.widths.items()}
    return {"q_value": (1,)}


def _of_actions(
    critic: CriticSpec,
    spec: NetworkSpec,
    ports: Ports,
    actions: ActionInputs,
    context: BuildContext,
) -> tuple[Requirements, Ports]:
    """What is asked of a network that judges actions, and what it may read."""
    heads, added = _heads_of(actions), StateActionCritic.added
    if actions.are_choices:
        reason = "is no input here: each choice of an action has a Q value of its own"
        context.hidden |= dict.fromkeys(actions.ports, reason)
        reasons = {
            name + Q_VALUES: f"a Q value for each choice of {name!r}" for name in actions.widths
        }
        logits = {name: (width,) for name, width in actions.widths.items()}
        injected = {"action_logits_shapes": logits}
        return _requirements(critic, heads, reasons, added, injected), ports
    for name in [name for name in actions.ports if name in ports]:
        message = (
            f"the observation {name!r} is called as the action is that the critic reads; "
            "rename it, or name it under 'ignore'"
        )
        context.problems.add(spec.path, message, key=True)
    requirements = _requirements(critic, heads, {"q_value": "a critic"}, added)
    return requirements, {**ports, **actions.ports}


def value_requirements(critic: CriticSpec) -> Requirements:
    """What a network that values states must give."""
    return _requirements(critic, {"value": (1,)}, {"value": "a critic"}, Critic.added)


def _requirements(
    critic: CriticSpec,
    heads: Mapping[str, tuple[int, ...]],
    reasons: Mapping[str, str],
    added: tuple[str, ...],
    injected: Mapping[str, Any] | None = None,
) -> Requirements:
    extras = tuple(f"{head}_{raw}" for head in heads for raw in RAW_NAMES)
    return Requirements(
        heads, reasons, (), "value", injected or {},
        extras=extras, added=added, copies=critic.ensemble,
    )  # fmt: skip


def _refuse_unread_actions(
    spec: NetworkSpec, network: Network, actions: ActionInputs, context: BuildContext
) -> bool:
    """Whether the network leaves out an action: its value would not depend on it."""
    if actions.are_choices:
        return False
    unread = [name for name in actions.ports if name not in network.in_ports]
    for name in unread:
        message = (
            f"the critic does not read {name!r}; the value of an action must depend on all of it"
        )
        context.problems.add(spec.path, message, key=True)
    return bool(unread)


def _refuse_settings(critic: CriticSpec, context: BuildContext) -> None:
    """Note settings that say nothing of this kind of critic."""
    if critic.stack:
        message = (
            "'stack' puts the observations of several actors together; there is one space only"
        )
        context.problems.add((*critic.path, "stack"), message, key=True)
    for part in (critic, *critic.networks.values()):
        if part.separate:
            message = "'separate' gives each agent a critic of its own, but this environment has no agents"
            message += "; leave it out"
            context.problems.add((*part.path, "separate"), message, key=True)


def value_normalizer(critic: CriticSpec) -> NormalizeBlock | None:
    return NormalizeBlock([(1,)], clip=None) if critic.normalize_value else None


def _single_network(spec: CriticSpec, context: BuildContext) -> NetworkSpec:
    if None not in spec.networks:
        context.problems.add(
            (*spec.path, "networks"),
            "networks by step or agent need an environment with steps or agents; this one takes a single network",
        )
        context.problems.raise_if_any()
    return spec.networks[None]
