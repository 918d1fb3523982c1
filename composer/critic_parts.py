"""A critic as its spec and the environment's spaces ask for it, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from composer.action_inputs import ActionInputs
from composer.build import build_network
from composer.construction import SeededConstruction
from composer.critic import Critic, CriticModule
from composer.demand import Context, Demand
from composer.model_spec import CriticSpec, ModelSpec, NetworkSpec
from composer.network import Network
from composer.roles import Role
from composer.state_action import Q_VALUES, StateActionCritic
from composer.value_heads import RAW_NAMES, ValueReader
from perception_blocks.port import Port
from perception_blocks.scale import NormalizeBlock

__all__ = ["build_critic", "hide_policy_values", "value_demand", "value_normalizer"]

Ports = Mapping[str, Port]
Made = tuple[CriticModule, list[SeededConstruction]]


def build_critic(spec: ModelSpec, role: Role, dtype: torch.dtype) -> Made | None:
    """The critic of ``spec`` for an environment with one Space, once its policy (``role``) is built.

    None where there is none, or problems were noted.
    """
    if spec.critic is None:
        return None
    network = _single_network(spec.critic, role.context)
    _refuse_settings(spec.critic, role.context)
    if any(name not in role.context.shared for name in role.network.shares):
        return None  # the policy failed: what it would share is not known
    ports = {**role.visible(network), **role.context.shared}
    hide_policy_values(role.network, role.context)
    if spec.critic.kind == "state_action":
        return _state_action(spec.critic, network, ports, role, dtype)
    return _state(spec.critic, network, ports, role, dtype)


def hide_policy_values(policy: NetworkSpec, context: Context) -> None:
    """Let a critic that reads what a policy does not share be told how to share it."""
    for name in (name for node in (policy.graph or {}).values() for name in node.writes):
        advice = f"share it: write shares: [{name}] in the policy"
        context.hidden.setdefault(name, f"belongs to the policy; {advice}")


def _state(
    critic: CriticSpec, spec: NetworkSpec, ports: Ports, role: Role, dtype: torch.dtype
) -> Made | None:
    """A critic of states; of one space the central value and the sum of differences are no other."""
    built = build_network("critic", spec, ports, value_demand(critic), role.context)
    if built is None:
        return None
    network, construction = built
    made = Critic(
        network, role.observer, ValueReader(network.module, ["value"]),
        shared=role.network.shares, dtype=dtype, value_normalizer=value_normalizer(critic),
    )  # fmt: skip
    return made, [construction]


def _state_action(
    critic: CriticSpec, spec: NetworkSpec, ports: Ports, role: Role, dtype: torch.dtype
) -> Made | None:
    """A critic of actions: with a Q value for each choice where all are choices, else with the action as an input."""
    actions = ActionInputs(role.actions)
    demand, ports = _of_actions(critic, ports, actions, role.context)
    built = build_network("critic", spec, ports, demand, role.context)
    if built is None or _refuse_unread_actions(critic, built[0], actions, role.context):
        return None
    network, construction = built
    made = StateActionCritic(
        network, role.observer, ValueReader(network.module, demand.heads), actions,
        shared=role.network.shares, dtype=dtype, copies=critic.ensemble,
        value_normalizer=value_normalizer(critic),
    )  # fmt: skip
    made.make_target()
    construction.when_weights_exist(made.make_target)
    return made, [construction]


def _of_actions(
    critic: CriticSpec, ports: Ports, actions: ActionInputs, context: Context
) -> tuple[Demand, Ports]:
    """What a network that judges actions must give, and what it reads."""
    added = StateActionCritic.added
    if actions.are_choices:
        reason = "is no input here: each choice of an action has a Q value of its own"
        context.hidden |= dict.fromkeys(actions.ports, reason)
        heads = {name + Q_VALUES: (width,) for name, width in actions.widths.items()}
        reasons = {
            name + Q_VALUES: f"a Q value for each choice of {name!r}" for name in actions.widths
        }
        logits = {name: (width,) for name, width in actions.widths.items()}
        injected = {"action_logits_shapes": logits}
        return _demand(critic, heads, reasons, added, injected), ports
    for name in [name for name in actions.ports if name in ports]:
        message = (
            f"the observation {name!r} is called as the action is that the critic reads; "
            "rename it, or name it under 'ignore'"
        )
        context.problems.add(critic.path, message, key=True)
    demand = _demand(critic, {"q_value": (1,)}, {"q_value": "a critic"}, added)
    return demand, {**ports, **actions.ports}


def value_demand(critic: CriticSpec) -> Demand:
    """What a network that values states must give."""
    return _demand(critic, {"value": (1,)}, {"value": "a critic"}, Critic.added)


def _demand(
    critic: CriticSpec,
    heads: Mapping[str, tuple[int, ...]],
    reasons: Mapping[str, str],
    added: tuple[str, ...],
    injected: Mapping[str, Any] | None = None,
) -> Demand:
    extras = tuple(f"{head}_{raw}" for head in heads for raw in RAW_NAMES)
    return Demand(
        heads, reasons, (), "value", injected or {},
        extras=extras, added=added, copies=critic.ensemble,
    )  # fmt: skip


def _refuse_unread_actions(
    critic: CriticSpec, network: Network, actions: ActionInputs, context: Context
) -> bool:
    """Whether the network leaves out an action: its value would not depend on it."""
    if actions.are_choices:
        return False
    unread = [name for name in actions.ports if name not in network.in_ports]
    for name in unread:
        message = (
            f"the critic does not read {name!r}; the value of an action must depend on all of it"
        )
        context.problems.add(critic.path, message, key=True)
    return bool(unread)


def _refuse_settings(critic: CriticSpec, context: Context) -> None:
    """Note settings that say nothing of this kind of critic."""
    if critic.stack:
        message = (
            "'stack' puts the observations of several actors together; there is one space only"
        )
        context.problems.add((*critic.path, "stack"), message, key=True)


def value_normalizer(critic: CriticSpec) -> NormalizeBlock | None:
    return NormalizeBlock([(1,)], clip=None) if critic.normalize_value else None


def _single_network(spec: CriticSpec, context: Context) -> NetworkSpec:
    if None not in spec.networks:
        context.problems.add(
            (*spec.path, "networks"),
            "networks by step or agent need an environment with steps or agents",
        )
        context.problems.raise_if_any()
    return spec.networks[None]
