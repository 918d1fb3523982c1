"""A critic as its spec and the environment's spaces ask for it, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from composer.build import build_network
from composer.construction import SeededConstruction
from composer.critic import CRITICS, Critic
from composer.demand import Context, Demand
from composer.model_spec import CriticSpec, ModelSpec, NetworkSpec
from composer.observer import Observer
from composer.tree import listing
from perception_blocks.port import Port

__all__ = ["build_critic"]


def build_critic(
    spec: ModelSpec,
    observer: Observer,
    visible: Callable[[NetworkSpec], dict[str, Port]],
    context: Context,
    dtype: torch.dtype,
) -> tuple[Critic, list[SeededConstruction]] | None:
    """The critic of ``spec``, once its policy is built; None where there is none, or problems were noted.

    ``visible`` gives the observations that a network may see.
    """
    if spec.critic is None:
        return None
    network = _single_network(spec.critic, context)
    if spec.critic.kind not in CRITICS:
        path = (*spec.critic.path, "kind")
        message = (
            f"critics of kind {spec.critic.kind!r} are not supported yet; use {listing(CRITICS)}"
        )
        context.problems.add(path, message)
        return None
    policy = spec.policy.networks[None]
    if any(name not in context.shared for name in policy.shares):
        return None  # the policy failed: what it would share is not known
    ports = {**visible(network), **context.shared}
    for name in (name for node in (policy.graph or {}).values() for name in node.writes):
        advice = f"share it: write shares: [{name}] in the policy"
        context.hidden.setdefault(name, f"belongs to the policy; {advice}")
    demand = Demand({"value": (1,)}, {"value": "a critic"}, (), "value")
    built = build_network("critic", network, ports, demand, context)
    if built is None:
        return None
    kind: Any = CRITICS.get(spec.critic.kind)
    return kind(built[0], observer, shared=policy.shares, dtype=dtype), [built[1]]


def _single_network(spec: CriticSpec, context: Context) -> NetworkSpec:
    if None not in spec.networks:
        context.problems.add(
            (*spec.path, "networks"),
            "networks by step or agent need an environment with steps or agents",
        )
        context.problems.raise_if_any()
    return spec.networks[None]
