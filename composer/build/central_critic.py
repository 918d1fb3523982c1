"""The central critic of several actors as a spec asks for it: which inputs it has, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from composer.build.context import VisiblePorts
from composer.build.critic import BuiltCritic, CriticBuilder, policy_values, with_target
from composer.build.network_builder import build_network
from composer.build.observation_groups import group_names, named_observations
from composer.build.plans import PolicyPlan
from composer.critic.central import PRESENT, CentralCritic, CentralInput
from composer.network.network import ACTOR
from composer.spaces.action_inputs import ActionInputs
from composer.spaces.actors import Actor, Actors
from composer.spec.keys import is_within
from composer.spec.model_spec import NetworkSpec
from perception_blocks.port import Port, format_shape
from perception_blocks.words import few_of, hint, listing

__all__ = ["CentralCriticBuilder", "alike", "difference"]

FOR_ALL = (
    "says which actor a network acts for, and this critic is for all of them at once; leave it out"
)


@dataclass(frozen=True)
class CentralCriticBuilder(CriticBuilder):
    """Builds a critic with one value for all ``actors``; ``plans`` are by flat name."""

    actors: Actors
    plans: Mapping[str, PolicyPlan]
    kind: type[CentralCritic]

    def build(self) -> BuiltCritic | None:
        """The critic; None where problems were noted."""
        if not self._is_possible():
            return None
        spec = self.critic.networks[None]
        sources = self._sources()
        visible = None if sources is None else self._visible_ports(spec, sources)
        if sources is None or visible is None:
            return None
        required = self.requirements(self.kind, None)
        if required is None:
            return None
        notes = next(iter(self.plans.values())).notes.of_another()
        built = build_network("critic", spec, visible, required[1], self.context, notes)
        if built is None or self._refuse_unread(spec, sources, built[0].in_ports):
            return None
        network, construction = built
        for source in (sources[name] for name in network.in_ports if name in sources):
            for actor in source.actors:
                self.plans[actor].notes.read.add(source.key)
        observers = {name: plan.observer for name, plan in self.plans.items()}
        more: dict[str, Any] = {"actions": self.action_inputs} if self.kind.takes_action else {}
        critic = self.built(
            self.kind, self.kind, network, self.actors, observers, sources,
            dtype=self.dtype, value_normalizer=self.value_normalizer(), **more,
        )  # fmt: skip
        return None if critic is None else (with_target(critic, construction), [construction])

    @cached_property
    def action_inputs(self) -> dict[str, ActionInputs]:
        """What reads the action of each actor; of none where the critic values states."""
        if not self.kind.takes_action:
            return {}
        return {name: ActionInputs(plan.actions) for name, plan in self.plans.items()}

    def _is_possible(self) -> bool:
        """Whether there is one network, of a number of actors that is known; else it is noted."""
        if None not in self.critic.networks:
            message = f"one network reads the {self.kind.sees} of all actors; write it directly, without 'networks'"
            self.problems.add((*self.critic.path, "networks"), message, key=True)
            return False
        uncounted = [actor.name for actor in self.actors if actor.is_open]
        if uncounted:
            message = (
                f"a critic of the {self.kind.sees} of all actors needs a known number of agents; it is not known for "
                f"{listing(uncounted)}"
            )
            self.problems.add(self.critic.path, message, key=True)
        return not uncounted

    def _sources(self) -> dict[str, CentralInput] | None:
        """The inputs of a central network by name; None where they cannot be put together."""
        owners: dict[str, list[Actor]] = {}
        before = len(self.problems)
        for actor in self.actors:
            self._refuse_named_like_actions(actor)
            for key in self._ports(actor):
                owners.setdefault(key, []).append(actor)
        sources: dict[str, CentralInput] = {}
        for key, members in owners.items():
            together = self.critic.stack and len(members) > 1
            for served in [members] if together else [[actor] for actor in members]:
                name = key if together else f"{served[0].name}/{key}"
                source = self._stacked(key, served) if together else self._single(key, served[0])
                if name in sources:
                    first = sources[name].actors[0]
                    message = f"two inputs are called {name!r}: of {first!r} and of {served[0].name!r}; rename one"
                    self.problems.add(self.critic.path, message, key=True)
                if source is not None:
                    sources[name] = source
        return None if len(self.problems) > before else sources

    def _ports(self, actor: Actor) -> dict[str, Port]:
        """What the network may read of an actor, by key."""
        ports = self.plans[actor.name].readable_ports
        return {**ports, **self._actions(actor)}

    def _actions(self, actor: Actor) -> dict[str, Port]:
        """The actions of an actor as the network reads them; none where the critic values states."""
        read = self.action_inputs.get(actor.name)
        return {} if read is None else read.ports

    def _refuse_named_like_actions(self, actor: Actor) -> None:
        for key in self.plans[actor.name].readable_ports.keys() & self._actions(actor):
            message = (
                f"the observation {key!r} of {actor.name!r} is called as the action is that the critic reads; "
                "rename it, or name it under 'ignore'"
            )
            self.problems.add(self.critic.path, message, key=True)

    def _refuse_unread(
        self, spec: NetworkSpec, sources: Mapping[str, CentralInput], read: Mapping[str, Port]
    ) -> bool:
        """Whether the network does not read an action; it is noted."""
        actions = [name for name, source in sources.items() if source.kind == "action"]
        unread = [name for name in actions if name not in read]
        if unread:
            message = (
                f"the critic does not read {few_of(unread)}; a Q value must depend on the whole actions of all "
                "actors"
            )
            self.problems.add(spec.path, message, key=True)
        return bool(unread)

    def _single(self, key: str, actor: Actor) -> CentralInput:
        port = self._ports(actor)[key]
        if port.mask is not None:
            port = replace(port, mask=f"{actor.name}/{port.mask}")
        return self._source(key, port, (actor.name,))

    def _stacked(self, key: str, members: Sequence[Actor]) -> CentralInput | None:
        """The value ``key`` of several actors on a new first axis; None where theirs differ."""
        named = self.critic.networks[None].observations
        is_observed = self._kind(key, members[0]) == "observation"
        forms = [self._form(key, actor) for actor in members]
        for actor, form in zip(members, forms):
            if alike(forms[0], form):
                continue
            if not is_observed or named is None or is_within(key, named):  # else out of sight
                said = difference(key, members[0].name, forms[0], actor.name, form)
                way_out = "leave 'stack' out"
                if self._kind(key, members[0]) != "action":  # which it must read
                    way_out += ", or name other 'observations'"
                message = f"'stack' needs values of one form, but {said}; {way_out}"
                self.problems.add((*self.critic.path, "stack"), message, key=True)
            return None
        port = self._ports(members[0])[key]
        cardinality = port.cardinality
        if isinstance(cardinality, tuple):
            cardinality = cardinality * len(members)
        # Bounds of a stack are those that hold for all elements alike.
        low, high = (b if isinstance(b, int | float) else None for b in (port.low, port.high))
        shape = (len(members), *port.shape)
        port = replace(port, shape=shape, cardinality=cardinality, low=low, high=high)
        names = tuple(actor.name for actor in members)
        return self._source(key, port, names, stacked=True)

    def _source(
        self, key: str, port: Port, actors: tuple[str, ...], stacked: bool = False
    ) -> CentralInput:
        kind = self._kind(key, self.actors[actors[0]])
        normalized = any(key in self.plans[name].observer.keys for name in actors)
        return CentralInput(kind, key, port, actors, stacked, normalized)

    def _kind(self, key: str, actor: Actor) -> Literal["observation", "action", "shared"]:
        if key in self._actions(actor):
            return "action"
        return "observation" if key in self.plans[actor.name].ports else "shared"

    def _form(self, key: str, actor: Actor) -> Port:
        """What tells a value of one actor from that of another: of an action, what the vector is made of."""
        actions = self.plans[actor.name].actions.leaves
        name = key.removeprefix("action/")
        return actions[name].port if key in self._actions(actor) else self._ports(actor)[key]

    def _visible_ports(
        self, spec: NetworkSpec, sources: Mapping[str, CentralInput]
    ) -> VisiblePorts | None:
        """What the network may read and why not the rest; None where its list is wrong, which is noted."""
        seen = self._seen(spec, sources)
        if seen is None:
            return None
        ports = {name: source.port for name, source in seen.items()}
        # Templates and classes, which read all there is, read who is present if told to.
        named = spec.observations
        if PRESENT not in sources and (
            spec.graph is not None if named is None else PRESENT in named
        ):
            ports[PRESENT] = Port((len(self.actors),), low=0.0, high=1.0)
        hidden = {} if named_observations(ACTOR, ports) else {ACTOR: FOR_ALL}
        for plan in self.plans.values():
            hidden |= policy_values(plan.network)
        reason = "is not among the 'observations' that this network may see"
        out_of_sight = [name for name in (*sources, PRESENT) if name not in ports]
        return VisiblePorts(ports, {**hidden, **dict.fromkeys(out_of_sight, reason)})

    def _seen(
        self, spec: NetworkSpec, sources: Mapping[str, CentralInput]
    ) -> Mapping[str, CentralInput] | None:
        """The inputs that the network may see, with the masks of these; actions and shared values are among them."""
        if spec.observations is None:
            return sources
        before = len(self.problems)
        seen = {n: source for n, source in sources.items() if source.kind != "action"}
        ports = {name: source.port for name, source in seen.items()}
        wanted: set[str | None] = set()
        for index, name in enumerate(spec.observations):
            named = named_observations(name, ports)
            wanted |= {*named, *(ports[key].mask for key in named)}
            if not named and name == ACTOR:
                self.problems.add((*spec.path, "observations", index), f"{name!r} {FOR_ALL}")
            elif not named and name != PRESENT:
                known = [*seen, PRESENT, *group_names(seen)]
                near = hint(name, known, listed=seen, shown=few_of)
                path = (*spec.path, "observations", index)
                self.problems.add(path, f"{name!r} is not an observation" + near)
        if len(self.problems) > before:
            return None
        return {n: s for n, s in sources.items() if n in wanted or s.kind != "observation"}


def alike(first: Port, second: Port) -> bool:
    return replace(first, source=()) == replace(second, source=())


def difference(key: str, first: str, ours: Port, second: str, theirs: Port) -> str:
    if ours.shape != theirs.shape:
        shapes = f"{format_shape(ours.shape)} and {format_shape(theirs.shape)}"
        return f"{key!r} of {first!r} and {second!r} has the shapes {shapes}"
    return f"{key!r} of {first!r} and {second!r} differs in its kind of numbers, its bounds or its mask"
