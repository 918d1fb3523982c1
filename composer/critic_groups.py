"""Critics of several actors, as a spec asks for them: one value for each, or one of what all of them observe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from composer.action_inputs import ActionInputs
from composer.actors import Actor, Actors, serve, shortened
from composer.build import build_network
from composer.construction import SeededConstruction
from composer.critic import SpaceCritic
from composer.critic_parts import (
    critic_network,
    critic_over,
    hide_policy_values,
    value_demand,
    value_normalizer,
)
from composer.demand import Context
from composer.group_policy import GroupPolicy, SeparatePolicies, stacked_networks
from composer.model_spec import CriticSpec, ModelSpec, NetworkSpec
from composer.network import Network
from composer.roles import Group
from composer.shared_state import CentralInput, SharedStateCritic
from composer.state_action import StateActionCritic
from composer.structured_critic import (
    PREV_VALUE,
    ActorCritic,
    DeltaStateCritic,
    StructuredCritic,
)
from composer.structured_state_action import StructuredStateActionCritic
from composer.tree import listing
from composer.value_heads import ValueReader
from perception_blocks.port import Port, format_shape
from perception_blocks.registry import did_you_mean

__all__ = ["build_actor_critic"]

Built = tuple[Network, SeededConstruction]
Made = tuple[Any, list[SeededConstruction]]


def build_actor_critic(
    spec: ModelSpec,
    actors: Actors,
    groups: Sequence[Group],
    context: Context,
    dtype: torch.dtype,
) -> Made | None:
    """The critic of ``spec`` for several actors, once their policies (``groups``) are built; None as `build_critic`."""
    if spec.critic is None:
        return None
    builder = _Builder(spec.critic, actors, groups, context, dtype)
    before = len(context.problems)
    builder.refuse_settings()
    if len(context.problems) > before or builder.policy_failed():
        return None
    return builder.central() if spec.critic.kind == "shared_state" else builder.by_actor()


class _Builder:
    """One run; problems are gathered in the context."""

    def __init__(
        self,
        critic: CriticSpec,
        actors: Actors,
        groups: Sequence[Group],
        context: Context,
        dtype: torch.dtype,
    ) -> None:
        self.critic = critic
        self.actors = actors
        self.groups = groups
        self.problems = context.problems
        self.context = context
        self.dtype = dtype
        self.roles = {a.name: group.role_of(a) for group in groups for a in group.actors}
        self.observers = {name: role.observer for name, role in self.roles.items()}
        self.chained = critic.kind == "delta_state" and len(actors) > 1  # values of steps in turn

    def policy_failed(self) -> bool:
        """Whether it is not known what some policy would share."""
        roles = self.roles.values()
        return any(
            name not in role.context.shared for role in roles for name in role.network.shares
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

    # --- a value for each actor ---

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
        made: list[GroupPolicy] = []
        constructions: list[SeededConstruction] = []
        for key in names:
            group = self._group(key, served[key], later=self.chained and bool(made))
            if group is None:
                return None
            made.append(group[0])
            constructions += group[1]
        return self._together(made, constructions[-1]), constructions

    def _together(self, made: Sequence[GroupPolicy], last: SeededConstruction) -> ActorCritic:
        """The critics of all groups as one; ``last`` of its constructions gives weights."""
        if self.chained:
            normalizer = value_normalizer(self.critic)
            return DeltaStateCritic(self.actors, made, self.observers, normalizer)
        if self.critic.kind != "state_action":
            return StructuredCritic(self.actors, made, self.observers)
        actions = {name: ActionInputs(role.actions) for name, role in self.roles.items()}
        critic = StructuredStateActionCritic(self.actors, made, self.observers, actions)
        critic.make_target()
        last.when_weights_exist(critic.make_target)
        return critic

    def _place(self, actor: Actor) -> int:
        """Where an actor's network stands among those of the policy."""
        return next(i for i, group in enumerate(self.groups) if actor in group.actors)

    def _group(
        self, key: str | None, members: tuple[Actor, ...], later: bool
    ) -> tuple[GroupPolicy, list[SeededConstruction]] | None:
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
            return GroupPolicy(key, members, self._critic(members[0], built[0])), [built[1]]
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
        module = SeparatePolicies(critics, ensemble, why_looped)
        return GroupPolicy(key, members, module), [construction for _, construction in networks]

    def _network(
        self, name: str, spec: NetworkSpec, actor: Actor, members: Sequence[Actor], later: bool
    ) -> Built | None:
        role = self.roles[actor.name]
        ports = {**role.visible(spec), **role.context.shared}
        hide_policy_values(role.network, role.context)
        if later:
            self._refuse_taken(spec, ports)
            ports[PREV_VALUE] = Port((1,))
        built = critic_network(name, self.critic, spec, ports, role)
        if built is not None:
            for member in members:
                self.roles[member.name].context.read |= set(built[0].in_ports)
        return built

    def _refuse_taken(self, spec: NetworkSpec, ports: Mapping[str, Port]) -> None:
        if PREV_VALUE in ports:
            message = (
                f"{PREV_VALUE!r} is what the value before is called here; rename the other one"
            )
            self.problems.add(spec.path, message)

    def _critic(self, actor: Actor, network: Network) -> SpaceCritic:
        spec = replace(self.critic, normalize_value=False) if self.chained else self.critic
        return critic_over(network, spec, self.roles[actor.name], self.dtype)

    def _unlike(self, members: Sequence[Actor]) -> str | None:
        """How what two of ``members`` observe and share differs, in words; None where all is equal."""
        first = members[0]
        for actor in members[1:]:
            ours, theirs = (self._ports(a) | self._actions(a) for a in (first, actor))
            for key in [*ours, *theirs]:
                if key not in ours or key not in theirs:
                    owner = first if key in ours else actor
                    return f"of {first.name!r} and {actor.name!r} only {owner.name!r} has {key!r}"
                if not _alike(ours[key], theirs[key]):
                    return _difference(key, first.name, ours[key], actor.name, theirs[key])
        return None

    def _ports(self, actor: Actor) -> dict[str, Port]:
        """What the critic may read of an actor, by key."""
        role = self.roles[actor.name]
        return {**role.ports, **role.context.shared}

    def _actions(self, actor: Actor) -> dict[str, Port]:
        """The actions of an actor, by the names under which a critic of actions has them."""
        if self.critic.kind != "state_action":
            return {}
        leaves = self.roles[actor.name].actions.leaves
        return {f"action/{key}": leaf.port for key, leaf in leaves.items()}

    # --- one value of what all observe ---

    def central(self) -> Made | None:
        if None not in self.critic.networks:
            message = (
                "one network values what all actors observe; write it directly, without 'networks'"
            )
            self.problems.add((*self.critic.path, "networks"), message, key=True)
            return None
        uncounted = [actor.name for actor in self.actors if actor.is_open]
        if uncounted:
            message = (
                f"a critic of what all actors observe needs to know how many there are; those of {listing(uncounted)} "
                "are not counted"
            )
            self.problems.add(self.critic.path, message, key=True)
            return None
        spec = self.critic.networks[None]
        sources = self._sources()
        seen = self._visible(spec, sources)
        if sources is None or seen is None:
            return None
        context = replace(self.context, read=set(), hidden={}, shared={})
        for role in self.roles.values():
            hide_policy_values(role.network, context)
        out_of_sight = [name for name in sources if name not in seen]
        reason = "is not among the 'observations' that this network may see"
        context.hidden |= dict.fromkeys(out_of_sight, reason)
        ports = {name: source.port for name, source in seen.items()}
        built = build_network("critic", spec, ports, value_demand(self.critic), context)
        if built is None:
            return None
        network, construction = built
        for source in (sources[name] for name in network.in_ports):
            for actor in source.actors:
                self.roles[actor].context.read.add(source.key)
        critic = SharedStateCritic(
            network, ValueReader(network.module, ["value"]), self.actors, self.observers, sources,
            dtype=self.dtype, value_normalizer=value_normalizer(self.critic),
        )  # fmt: skip
        return critic, [construction]

    def _sources(self) -> dict[str, CentralInput] | None:
        """The inputs of a central network by name; None where they cannot be put together."""
        owners: dict[str, list[Actor]] = {}
        for actor in self.actors:
            for key in self._ports(actor):
                owners.setdefault(key, []).append(actor)
        sources: dict[str, CentralInput] = {}
        before = len(self.problems)
        for key, members in owners.items():
            together = self.critic.stack and len(members) > 1
            for one in [members] if together else [[actor] for actor in members]:
                name = key if together else f"{one[0].name}/{key}"
                source = self._stacked(key, one) if together else self._single(key, one[0])
                if name in sources:
                    first = sources[name].actors[0]
                    message = f"two inputs are called {name!r}: of {first!r} and of {one[0].name!r}; rename one"
                    self.problems.add(self.critic.path, message, key=True)
                if source is not None:
                    sources[name] = source
        return None if len(self.problems) > before else sources

    def _single(self, key: str, actor: Actor) -> CentralInput:
        port = self._ports(actor)[key]
        if port.mask is not None:
            port = replace(port, mask=f"{actor.name}/{port.mask}")
        return CentralInput((actor.name,), key, port, is_shared=self._is_shared(key, actor))

    def _stacked(self, key: str, members: Sequence[Actor]) -> CentralInput | None:
        """The value ``key`` of several actors on a new first axis; None where theirs differ."""
        named = self.critic.networks[None].observations
        is_shared = self._is_shared(key, members[0])
        ports = [self._ports(actor)[key] for actor in members]
        for actor, port in zip(members, ports):
            if _alike(ports[0], port):
                continue
            if is_shared or named is None or key in named:  # else the network may not see it
                difference = _difference(key, members[0].name, ports[0], actor.name, port)
                way_out = "leave 'stack' out, or name other 'observations'"
                message = f"'stack' needs values of one form, but {difference}; {way_out}"
                self.problems.add((*self.critic.path, "stack"), message, key=True)
            return None
        port = ports[0]
        cardinality = port.cardinality
        if isinstance(cardinality, tuple):
            cardinality = cardinality * len(members)
        port = replace(
            port, shape=(len(members), *port.shape), cardinality=cardinality, **_bounds(port)
        )
        names = tuple(actor.name for actor in members)
        return CentralInput(names, key, port, stacked=True, is_shared=is_shared)

    def _is_shared(self, key: str, actor: Actor) -> bool:
        return key not in self.roles[actor.name].ports

    def _visible(
        self, spec: NetworkSpec, sources: Mapping[str, CentralInput] | None
    ) -> dict[str, CentralInput] | None:
        """The inputs that the network may see, with the masks of these."""
        if sources is None or spec.observations is None:
            return None if sources is None else dict(sources)
        before = len(self.problems)
        for index, name in enumerate(spec.observations):
            if name not in sources:
                near = did_you_mean(name, sources) or f"; there is {shortened(sources)}"
                path = (*spec.path, "observations", index)
                self.problems.add(path, f"{name!r} is not an observation{near}")
        if len(self.problems) > before:
            return None
        masks = {sources[name].port.mask for name in spec.observations}
        wanted = {*spec.observations, *masks}
        return {n: s for n, s in sources.items() if n in wanted or s.is_shared}


def _bounds(port: Port) -> dict[str, Any]:
    """Bounds of a stack: those that hold for all elements alike."""
    known = {"low": port.low, "high": port.high}
    return {
        name: bound if isinstance(bound, int | float) else None for name, bound in known.items()
    }


def _alike(first: Port, second: Port) -> bool:
    return replace(first, source=()) == replace(second, source=())


def _difference(key: str, first: str, ours: Port, second: str, theirs: Port) -> str:
    if ours.shape != theirs.shape:
        shapes = f"{format_shape(ours.shape)} and {format_shape(theirs.shape)}"
        return f"{key!r} of {first!r} and {second!r} has the shapes {shapes}"
    return f"{key!r} of {first!r} and {second!r} differs in its kind of numbers, its bounds or its mask"
