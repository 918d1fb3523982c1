"""Critics of several actors, as a spec asks for them: one value for each, or one of what all of them observe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from composer.build.central_critic import alike, build_central_critic, difference, readable_ports
from composer.build.construction import SeededConstruction
from composer.build.context import BuildContext
from composer.build.critic import (
    critic_around,
    critic_network,
    hide_policy_values,
    value_normalizer,
)
from composer.build.plans import PlannedGroup
from composer.build.stacking import stacked_networks
from composer.critic.actions import ActionInputs
from composer.critic.base import SpaceCritic
from composer.critic.delta_state import PREV_VALUE, DeltaStateCritic
from composer.critic.state_action import StateActionCritic
from composer.critic.structured import StructuredCritic, StructuredCriticBase
from composer.critic.structured_state_action import StructuredStateActionCritic
from composer.network.groups import GroupNetworks, SeparateNetworks
from composer.network.network import Network
from composer.spaces.actors import Actor, Actors, serve
from composer.spec.model_spec import CriticSpec, ModelSpec, NetworkSpec
from perception_blocks.port import Port
from perception_blocks.words import listing

__all__ = ["build_critic_by_actor"]

Built = tuple[Network, SeededConstruction]
Made = tuple[Any, list[SeededConstruction]]


def build_critic_by_actor(
    spec: ModelSpec,
    actors: Actors,
    groups: Sequence[PlannedGroup],
    context: BuildContext,
    dtype: torch.dtype,
) -> Made | None:
    """The critic of ``spec`` for several actors, once their policies (``groups``) are built; None as `build_critic`."""
    if spec.critic is None:
        return None
    builder = _StructuredCriticBuilder(spec.critic, actors, groups, context, dtype)
    before = len(context.problems)
    builder.refuse_settings()
    if len(context.problems) > before or builder.policy_failed():
        return None
    if spec.critic.kind == "shared_state":
        return build_central_critic(spec.critic, actors, builder.plans, context, dtype)
    return builder.by_actor()


class _StructuredCriticBuilder:
    """One run; problems are gathered in the context."""

    def __init__(
        self,
        critic: CriticSpec,
        actors: Actors,
        groups: Sequence[PlannedGroup],
        context: BuildContext,
        dtype: torch.dtype,
    ) -> None:
        self.critic = critic
        self.actors = actors
        self.groups = groups
        self.problems = context.problems
        self.context = context
        self.dtype = dtype
        self.plans = {a.name: group.plan_of(a) for group in groups for a in group.actors}
        self.observers = {name: plan.observer for name, plan in self.plans.items()}
        self.chained = critic.kind == "delta_state" and len(actors) > 1  # values of steps in turn

    def policy_failed(self) -> bool:
        """Whether some actor has no policy, or it is not known what one would share."""
        if len(self.plans) < len(self.actors):
            return True
        plans = self.plans.values()
        return any(
            name not in plan.context.shared for plan in plans for name in plan.network.shares
        )

    def refuse_settings(self) -> None:
        """Note settings that say nothing of this kind of critic."""
        kind = self.critic.kind
        separate = [n.path for n in self.critic.networks.values() if n.separate]
        separate += [self.critic.path] if self.critic.separate else []
        found: dict[str, tuple[list[Any], str]] = {
            "stack": (
                [self.critic.path] if self.critic.stack and kind != "shared_state" else [],
                "'stack' puts the observations of all actors together, for kind: shared_state",
            ),
            "ensemble": (
                [self.critic.path] if self.critic.ensemble > 1 and kind == "delta_state" else [],
                "a value that builds on the one before is one number; leave 'ensemble' out",
            ),
            "separate": (
                separate if kind not in ("state", "state_action") else [],
                "'separate' gives each agent a critic of its own, for kind: state and kind: state_action",
            ),
        }
        for key, (paths, message) in found.items():
            for path in paths:
                self.problems.add((*path, key), message, key=True)

    def by_actor(self) -> Made | None:
        networks = self.critic.networks
        paths = {key: network.path for key, network in networks.items()}
        before = len(self.problems)
        served = serve(self.actors, paths, self.problems, (*self.critic.path, "networks"))
        for key in served:
            if str(key) in StateActionCritic.added:
                message = f"{str(key)!r} is what a part of the critic itself is called; rename the step or agent"
                self.problems.add(paths[key], message, key=True)
        if len(self.problems) > before:
            return None
        if self.chained and len(served) == 1:
            message = (
                "the first step gives a value and each later one a difference: a critic of kind 'delta_state' needs "
                "'networks' by step"
            )
            self.problems.add(self.critic.path, message, key=True)
            return None
        names = (
            sorted(served, key=lambda key: self._place(served[key][0])) if self.chained else served
        )
        made: list[GroupNetworks] = []
        constructions: list[SeededConstruction] = []
        for key in names:
            group = self._group(key, served[key], later=self.chained and bool(made))
            if group is None:
                return None
            made.append(group[0])
            constructions += group[1]
        return self._together(made, constructions[-1]), constructions

    def _together(
        self, made: Sequence[GroupNetworks], last: SeededConstruction
    ) -> StructuredCriticBase:
        """The critics of all groups as one; ``last`` of its constructions gives weights."""
        if self.chained:
            normalizer = value_normalizer(self.critic)
            return DeltaStateCritic(self.actors, made, self.observers, normalizer)
        if self.critic.kind != "state_action":
            return StructuredCritic(self.actors, made, self.observers)
        actions = {name: ActionInputs(plan.actions) for name, plan in self.plans.items()}
        critic = StructuredStateActionCritic(self.actors, made, self.observers, actions)
        critic.make_target()
        last.when_weights_exist(critic.make_target)
        return critic

    def _place(self, actor: Actor) -> int:
        """Where an actor's network stands among those of the policy."""
        return next(i for i, group in enumerate(self.groups) if actor in group.actors)

    def _group(
        self, key: str | None, members: tuple[Actor, ...], later: bool
    ) -> tuple[GroupNetworks, list[SeededConstruction]] | None:
        """The critic of the actors that one network is for; of ``later`` steps it reads the value before."""
        spec = self.critic.networks[key]
        name = "critic" if key is None else f"critic/{key}"
        unlike = self._unlike(members)
        if not (self.critic.separate or spec.separate):
            if unlike:
                way_out = (
                    "give them networks of their own under 'networks', or write separate: true"
                )
                self.problems.add(spec.path, f"one network values them, but {unlike}; {way_out}")
                return None
            built = self._network(name, spec, members[0], members, later)
            if built is None:
                return None
            return GroupNetworks(key, members, self._critic(members[0], built[0])), [built[1]]
        uncounted = [actor.name for actor in members if actor.is_open]
        if uncounted:
            message = f"'separate' needs a known number of agents; those of {listing(uncounted)} are not counted"
            self.problems.add(spec.path, f"{message}: leave it out")
            return None
        each = [self._network(f"{name}/{i}", spec, a, (a,), later) for i, a in enumerate(members)]
        networks = [built for built in each if built is not None]
        if len(networks) < len(members):
            return None
        own, ensemble, why_looped = stacked_networks(networks, unlike)
        critics = [self._critic(a, net) for a, net in zip(members, own, strict=True)]
        module = SeparateNetworks(critics, ensemble, why_looped)
        return GroupNetworks(key, members, module), [construction for _, construction in networks]

    def _network(
        self, name: str, spec: NetworkSpec, actor: Actor, members: Sequence[Actor], later: bool
    ) -> Built | None:
        plan = self.plans[actor.name]
        ports = {**plan.visible(spec), **plan.context.shared}
        hide_policy_values(plan.network, plan.context)
        if later:
            self._refuse_taken(spec, ports)
            ports[PREV_VALUE] = Port((1,))
        built = critic_network(name, self.critic, spec, ports, plan)
        if built is not None:
            for member in members:
                self.plans[member.name].context.read |= set(built[0].in_ports)
        return built

    def _refuse_taken(self, spec: NetworkSpec, ports: Mapping[str, Port]) -> None:
        if PREV_VALUE in ports:
            message = (
                f"{PREV_VALUE!r} is what the value before is called here; rename the other one"
            )
            self.problems.add(spec.path, message)

    def _critic(self, actor: Actor, network: Network) -> SpaceCritic:
        spec = replace(self.critic, normalize_value=False) if self.chained else self.critic
        return critic_around(network, spec, self.plans[actor.name], self.dtype)

    def _unlike(self, members: Sequence[Actor]) -> str | None:
        """How what two of ``members`` observe and share differs, in words; None where all is equal."""
        first = members[0]
        for actor in members[1:]:
            ours, theirs = (self._read_of(a) for a in (first, actor))
            for key in [*ours, *theirs]:
                if key not in ours or key not in theirs:
                    owner = first if key in ours else actor
                    return f"of {first.name!r} and {actor.name!r} only {owner.name!r} has {key!r}"
                if not alike(ours[key], theirs[key]):
                    return difference(key, first.name, ours[key], actor.name, theirs[key])
        return None

    def _read_of(self, actor: Actor) -> dict[str, Port]:
        """What the critic may read of an actor; its actions by the names under which a critic of actions has them."""
        plan = self.plans[actor.name]
        if self.critic.kind != "state_action":
            return readable_ports(plan)
        actions = {f"action/{key}": leaf.port for key, leaf in plan.actions.leaves.items()}
        return readable_ports(plan) | actions
