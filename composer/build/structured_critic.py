"""Critics of several actors, as a spec asks for them: one value for each, or one of what all of them observe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from composer.build.central_critic import CentralCriticBuilder, alike, difference
from composer.build.construction import BuiltNetwork, SeededConstruction
from composer.build.context import BuildContext
from composer.build.critic import BuiltCritic, CriticBuilder, policy_failed, with_target
from composer.build.plans import PlannedGroup, PolicyPlan, is_separate
from composer.build.stacking import stacked_networks
from composer.critic.base import CriticSetup, SpaceCritic
from composer.critic.central import CentralCritic
from composer.critic.structured import StructuredCriticBase
from composer.critic.targets import Targeted
from composer.network.groups import GroupNetworks, SeparateNetworks
from composer.network.network import Network
from composer.spaces.actors import Actor, Actors, serve
from composer.spec.model_spec import ModelSpec, NetworkSpec
from perception_blocks.port import Port

__all__ = ["build_critic_by_actor"]


def build_critic_by_actor(
    spec: ModelSpec,
    actors: Actors,
    groups: Sequence[PlannedGroup],
    context: BuildContext,
    dtype: torch.dtype,
) -> BuiltCritic | None:
    """The critic of ``spec`` for several actors, once their policies (``groups``) are built; None as `build_critic`."""
    if spec.critic is None:
        return None
    builder = CriticBuilder(spec.critic, context, dtype)
    kind = builder.kind_class()
    if kind is None:
        return None
    structured = kind.structured()
    if len(actors) == 1 and getattr(structured, "previous", None):  # no value builds on another
        if builder.refuse_one_actor(kind, "has one actor only"):
            return None
        structured = kind.member().structured()
    if structured is None:
        which = f"a critic of kind {spec.critic.kind!r} is for one space"
        builder.note_kind(f"{which}; this environment has steps or agents")
        return None
    before = len(context.problems)
    builder.refuse_settings(kind.refused)
    plans = {a.name: group.plan_of(a) for group in groups for a in group.actors}
    failed = not context.goes_on and any(policy_failed(plan) for plan in plans.values())
    unknown = failed or len(plans) < len(actors)
    if len(context.problems) > before or unknown:
        return None
    given = (spec.critic, context, dtype, actors, plans)
    if issubclass(structured, CentralCritic):
        return CentralCriticBuilder(*given, structured).build()
    assert issubclass(structured, StructuredCriticBase)
    return _StructuredCriticBuilder(*given, kind.member(), structured, groups).build()


@dataclass(frozen=True)
class _StructuredCriticBuilder(CriticBuilder):
    """Builds a critic that has a value for each actor: a ``member`` of each network, all of them as one."""

    actors: Actors
    plans: Mapping[str, PolicyPlan]  # of their policies, by flat name
    member: type[SpaceCritic]
    structured: type[StructuredCriticBase]
    groups: Sequence[PlannedGroup]  # of the policy

    @property
    def previous(self) -> str | None:
        """The name of the previous value in later networks, where values build on one another."""
        return self.structured.previous

    @cached_property
    def setups(self) -> dict[str, CriticSetup]:
        """The arguments of the critic of each actor."""
        return {name: self.setup(plan) for name, plan in self.plans.items()}

    def build(self) -> BuiltCritic | None:
        networks = self.critic.networks
        paths = {key: network.path for key, network in networks.items()}
        before = len(self.problems)
        served = serve(self.actors, paths, self.problems, (*self.critic.path, "networks"))
        for key in served:
            if str(key) in {*Targeted.added, *self.member.added}:
                message = f"{str(key)!r} is the name of a part of the critic itself; rename the step or agent"
                self.problems.add(paths[key], message, key=True)
        if len(self.problems) > before and not self.context.goes_on:
            return None
        if self.previous and len(served) == 1:
            message = (
                "the first step gives a value and each later one a difference: a critic of kind "
                f"{self.critic.kind!r} needs 'networks' by step"
            )
            self.problems.add(self.critic.path, message, key=True)
            if not self.context.goes_on:
                return None
        names = (
            sorted(served, key=lambda key: self._place(served[key][0])) if self.previous else served
        )
        built: list[GroupNetworks] = []
        constructions: list[SeededConstruction] = []
        for key in names:
            group = self._group(key, served[key], later=bool(self.previous and built))
            if group is None:
                return None
            built.append(group[0])
            constructions += group[1]
        if len(self.problems) > before:
            return None
        structured = self.structured
        critic = self.built(structured, structured.build, self.actors, built, self.setups)
        return None if critic is None else (with_target(critic, constructions[-1]), constructions)

    def _place(self, actor: Actor) -> int:
        """The index of the policy's group that serves ``actor``."""
        return next(i for i, group in enumerate(self.groups) if actor in group.actors)

    def _group(
        self, key: str | None, members: tuple[Actor, ...], later: bool
    ) -> tuple[GroupNetworks, list[SeededConstruction]] | None:
        """The critic of the actors that one network is for; of ``later`` steps it reads the value before."""
        spec = self.critic.networks[key]
        name = "critic" if key is None else f"critic/{key}"
        unlike = self._unlike(members)
        before, who = len(self.problems), "one network values them"
        separate = is_separate(self.critic, spec, members, who, unlike, self.problems)
        if len(self.problems) > before:
            return None
        served = [(actor, (actor,)) for actor in members] if separate else [(members[0], members)]
        built = [
            self._network(f"{name}/{i}" if separate else name, spec, *pair, members, later)
            for i, pair in enumerate(served)
        ]
        networks = [each for each in built if each is not None]
        if len(networks) < len(built):
            return None
        stacked = stacked_networks(networks, unlike) if separate else ([networks[0][0]], None, None)
        critics = []
        for (actor, _), network in zip(served, stacked[0], strict=True):
            critic = self._critic(actor, network)
            if critic is None:
                return None  # the others are of the same class
            critics.append(critic)
        module = SeparateNetworks(critics, *stacked[1:]) if separate else critics[0]
        return GroupNetworks(key, members, module), [construction for _, construction in networks]

    def _network(
        self,
        name: str,
        spec: NetworkSpec,
        actor: Actor,
        sharing: Sequence[Actor],
        members: Sequence[Actor],
        later: bool,
    ) -> BuiltNetwork | None:
        """The network of ``actor``, with whom others are ``sharing`` it; ``members`` are all for whom it is written."""
        plan, previous = self.plans[actor.name], self.previous if later else None
        built = self.network(name, self.member, spec, plan, members, previous)
        if built is not None:
            for member in sharing:
                self.plans[member.name].notes.read |= set(built[0].in_ports)
        return built

    def _critic(self, actor: Actor, network: Network) -> SpaceCritic | None:
        setup = self.setups[actor.name]
        if self.previous:  # one normalizer serves all of them
            setup = replace(setup, value_normalizer=None)
        return self.built(self.member, self.member.build, network, setup)

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
        if not self.member.takes_action:
            return plan.readable_ports
        actions = {f"action/{key}": leaf.port for key, leaf in plan.actions.leaves.items()}
        return plan.readable_ports | actions
