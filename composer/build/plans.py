"""What is known of each network of a policy before it is built: the spaces of its actors, read once, and what follows.

For one Space there is one `PolicyPlan`. For actors there is one for each network: one for a group whose agents share
their weights, one for each agent with weights of its own. What a spec says by name (``ignore``, ``distributions`` and
so on) holds in every plan that has such a name, and is wrong where none has; ``<group>/<name>`` speaks of one group.

A critic is built over the same plans: `PlannedGroup.plan_of` an actor has the Ports that it sees, in ``notes.shared``
those of what its policy shares, and the observer that reads for it. What a critic reads it marks in ``notes.read``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from composer.build.context import BuildContext, BuildNotes, VisiblePorts
from composer.build.observation_groups import group_names, named_observations
from composer.distributions.joint import ActionDistributions
from composer.distributions.rules import DistributionRuleError, build_distributions
from composer.errors import Path, Problems, SpecError
from composer.network.network import ACTOR, Network
from composer.spaces.actors import Actor, Actors, serve
from composer.spaces.json_form import spaces_differ
from composer.spaces.lookup import Spaces
from composer.spaces.observer import Observer
from composer.spaces.tree import SpaceError, SpaceTree, flatten_space, walk_space
from composer.spec.keys import PREVIOUS, is_within
from composer.spec.model_spec import CriticSpec, ModelSpec, NetworkSpec, PolicySpec
from composer.spec.references import names_value, written_values
from perception_blocks.port import Port, format_shape
from perception_blocks.words import Suggestion, hint, listing

__all__ = [
    "PlannedGroup",
    "PolicyPlan",
    "is_separate",
    "only_network",
    "plan_groups",
    "separate_paths",
]

IS_OBSERVED = (
    "is an observation here, and that is what networks read; to tell a network which actor it acts for, rename the "
    "observation in the environment"
)
Networks: TypeAlias = PolicySpec | CriticSpec


@dataclass
class PolicyPlan:
    """What one network of the policy plays.

    ``name`` is the network's ("policy", "policy/speaker", "policy/piston/0"), ``actors`` are those that it acts for
    (none: the environment has one Space). ``ports`` are the observations as networks see them, ``families`` the
    distributions of the actions. ``notes`` say of this plan's networks what they read, and what the policy shares.
    """

    name: str
    group: str | None
    actors: tuple[Actor, ...]
    network: NetworkSpec
    context: BuildContext
    notes: BuildNotes
    observations: SpaceTree
    actions: SpaceTree
    families: ActionDistributions
    served: tuple[Actor, ...]  # with those of the group that have networks of their own
    ignored: tuple[str, ...]
    rules_are_wrong: bool
    unasked: dict[str, str]  # what `previous` could add, and why it did not
    ports: dict[str, Port] = field(default_factory=dict)
    observer: Observer = field(init=False)
    masks: dict[str, str] = field(default_factory=dict)  # action -> observation

    @property
    def readable_ports(self) -> dict[str, Port]:
        """What a critic may read of the plan's actors, by key: what they observe and what their policy shares."""
        return {**self.ports, **self.notes.shared}

    def visible_ports(self, spec: NetworkSpec, served: Sequence[Actor]) -> VisiblePorts:
        """The values that a network may see, and why not others; all observations while the list itself is wrong.

        Of a network that acts for the actors ``served``, the value `ACTOR` says which it is.
        """
        hidden = self.unasked | dict.fromkeys(self.ignored, "is left out by 'ignore'")
        told, untold = self._told(spec, served)
        hidden |= untold
        listed = [name for name in spec.observations or () if name not in {**told, **untold}]
        named = [named_observations(name, self.ports) for name in listed]
        if spec.observations is None or not all(named):
            return VisiblePorts({**self.ports, **told}, hidden)
        wanted = [key for keys in named for key in keys]
        seen = {*wanted, *(self.ports[key].mask for key in wanted)}
        reason = "is not among the 'observations' that this network may see"
        hidden |= {key: reason for key in self.ports if key not in seen}
        visible = {key: port for key, port in self.ports.items() if key in seen}
        return VisiblePorts({**visible, **told}, hidden)

    def _told(
        self, spec: NetworkSpec, served: Sequence[Actor]
    ) -> tuple[dict[str, Port], dict[str, str]]:
        """The Port of `ACTOR` where a network may read it, and why it may not; nothing where that is another value.

        A graph may read it; a template and a class, which read all there is, if their ``observations`` name it.
        """
        if named_observations(ACTOR, self.ports):
            return {}, {}
        if spec.graph is not None and ACTOR in written_values(spec.graph):
            return {}, {}
        why = _why_untold(served)
        if why is not None:
            return {}, {ACTOR: why}
        is_read = spec.graph is not None or ACTOR in (spec.observations or ())
        port = Port((), dtype=torch.int64, cardinality=len(served))
        return ({ACTOR: port} if is_read else {}), {}

    def refuse_unknown(self, spec: NetworkSpec, served: Sequence[Actor]) -> None:
        """Note each of the ``observations`` that a network may see which there is not."""
        told, untold = self._told(spec, served)
        is_observed = named_observations(ACTOR, self.ports)
        if is_observed and len(served) > 1 and names_value(spec, ACTOR):
            warnings.warn(f"{ACTOR!r} {IS_OBSERVED}", stacklevel=2)
        for index, key in enumerate(spec.observations or ()):
            if key not in told and not named_observations(key, self.ports):
                path = (*spec.path, "observations", index)
                why = f"{key!r} {untold[key]}" if key in untold else self.not_an_observation(key)
                self.context.problems.add(path, why)

    def refuse_untellable(self, spec: NetworkSpec, network: Network) -> None:
        """Note a network that reads `ACTOR` where it cannot be told: beside no other input, and in its own ``act``."""
        if ACTOR not in network.in_ports or ACTOR in self.readable_ports:
            return
        kind, message = type(network.module), ""
        if len(network.in_ports) == 1:
            message = f"the network reads {ACTOR!r} alone; let it read an observation too"
        elif hasattr(kind, "act"):
            message = f"{kind.__name__!r} defines 'act' itself, which is not told the {ACTOR!r}; leave {ACTOR!r} out"
        if message:
            self.context.problems.add(spec.path, message, key=True)

    def not_an_observation(self, key: str) -> str:
        """Why ``key`` is no observation that can be used."""
        if is_within(key, self.ignored):
            return f"{key!r} is left out by 'ignore'"
        if key in self.unasked:
            return f"{key!r} {self.unasked[key]}"
        groups = group_names(self.ports)
        if key in groups:
            members = listing(named_observations(key, self.ports))
            return f"{key!r} is a group of observations; name one of them: {members}"
        near = hint(key, [*self.ports, *groups], listed=self.ports)
        return f"{key!r} is not an observation" + near

    def local(self, name: str, known: Iterable[str]) -> str:
        """``name`` as it is called in this plan: ``<group>/<name>`` without its group."""
        return _local(name, _prefix(self.group), known)

    def refuse_unread(self) -> None:
        """Note each observation that no network reads."""
        masking = {port.mask for port in self.ports.values()}  # a mask goes where its value goes
        whose = "" if self.group is None else f" of {self.group!r}"
        path = ("policy",) if self.group is None else self.network.path
        read = {*masking, *self.notes.read, *self.masks.values()}
        for key in self.ports:
            if key not in read:
                message = f"the observation {key!r}{whose} is read by no network; "
                message += "name it under 'ignore' if that is meant"
                self.context.problems.add(path, message, key=True)


@dataclass(frozen=True)
class PlannedGroup:
    """The actors that one description of a network serves; ``name`` is None where it serves all.

    With ``separate`` there is a plan, and a network, for each of them, else one for all.
    """

    name: str | None
    actors: tuple[Actor, ...]
    network: NetworkSpec
    separate: bool
    plans: tuple[PolicyPlan, ...]
    unlike: str | None = None  # which two have other spaces, in words

    def plan_of(self, actor: Actor) -> PolicyPlan:
        return self.plans[self.actors.index(actor) if self.separate else 0]


def _unasked(previous: tuple[str, ...], seen: SpaceTree, actions: SpaceTree) -> dict[str, str]:
    """The observations that `previous` would add if it listed more, each with what to write."""
    names = {f"{PREVIOUS}/{key}": "action" for key in actions.leaves}
    names.setdefault(f"{PREVIOUS}/reward", "reward")
    return {
        key: f"is not asked for; write {PREVIOUS}: [{', '.join([*previous, name])}] at the top of the spec"
        for key, name in names.items()
        if name not in previous and key not in seen.leaves
    }


def plan_groups(
    spec: ModelSpec,
    context: BuildContext,
    notes: BuildNotes,
    spaces: Spaces,
    actors: Actors | None,
) -> list[PlannedGroup]:
    """The groups of the policy's networks; of an environment with one Space (``spaces``), the only one.

    What is wrong is noted in ``context.problems``. Raises SpecError where nothing more can be said.
    """
    planner = _GroupPlanner(spec, context, notes)
    groups = [planner.alone(*spaces)] if actors is None else planner.groups(actors)
    planner.misses.report(context, planner.plans)
    if None in groups or not groups:
        raise SpecError(context.problems)  # nothing more can be said
    return [group for group in groups if group is not None]


def only_network(spec: Networks, gives: str, problems: Problems) -> NetworkSpec:
    """The network for an environment with one Space; to each agent ``separate`` would give ``gives``, which is noted.

    Raises SpecError where there are several.
    """
    if None not in spec.networks:
        message = "networks by step or agent need an environment with steps or agents"
        message += "; this one takes a single network"
        problems.add((*spec.path, "networks"), message)
        problems.raise_if_any()
    message = f"'separate' gives each agent {gives} of its own, but this environment has no agents"
    for path in separate_paths(spec):
        problems.add(path, f"{message}; leave it out", key=True)
    return spec.networks[None]


def separate_paths(spec: Networks) -> list[Path]:
    """Where ``separate`` is written."""
    return [(*n.path, "separate") for n in (spec, *spec.networks.values()) if n.separate]


def is_separate(
    spec: Networks,
    network: NetworkSpec,
    actors: Sequence[Actor],
    who: str,
    unlike: str | None,
    problems: Problems,
) -> bool:
    """Whether each of the ``actors`` of ``network`` has weights of its own; what stands in the way is noted.

    ``who`` says that they share a network, ``unlike`` why they cannot.
    """
    separate = spec.separate or network.separate
    if unlike and not separate:
        way_out = "give them networks of their own under 'networks', or write separate: true"
        problems.add(network.path, f"{who}, but {unlike}; {way_out}")
    uncounted = [actor.name for actor in actors if actor.is_open]
    if separate and uncounted:
        where = network.path if network.separate else spec.path
        message = (
            f"'separate' needs a known number of agents; it is not known for {listing(uncounted)}"
        )
        problems.add((*where, "separate"), f"{message}: leave it out", key=True)
        return False
    return separate


class _UnmatchedNames:
    """Names that a plan does not have: wrong only where no plan has them."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, bool], list[str]] = {}

    def add(self, path: Path, message: str, key: bool = False) -> None:
        self._found.setdefault((path, key), []).append(message)

    def report(self, context: BuildContext, plans: int) -> None:
        """Note what all ``plans`` miss; of several messages one that knows a near name."""
        for (path, key), messages in self._found.items():
            if len(messages) == plans:
                best = next(
                    (text for text in messages if isinstance(text, Suggestion)), messages[0]
                )
                context.problems.add(path, best, key=key)


class _GroupPlanner:
    """Reads the spaces of every plan against the whole spec."""

    def __init__(self, spec: ModelSpec, context: BuildContext, notes: BuildNotes) -> None:
        self.spec = spec
        self.context = context
        self.notes = notes
        self.problems = context.problems
        self.misses = _UnmatchedNames()
        self.plans = 0  # read up to now

    def alone(self, observation_space: Any, action_space: Any) -> PlannedGroup | None:
        """The group of an environment that has one Space."""
        network = only_network(self.spec.policy, "weights", self.problems)
        plan = self._plan("policy", None, (), (), network, observation_space, action_space)
        return None if plan is None else PlannedGroup(None, (), network, False, (plan,))

    def groups(self, actors: Actors) -> list[PlannedGroup | None]:
        policy = self.spec.policy
        paths = {key: network.path for key, network in policy.networks.items()}
        served = serve(actors, paths, self.problems, (*policy.path, "networks"))
        return [self._group(name, members) for name, members in served.items() if members]

    def _group(self, name: str | None, actors: tuple[Actor, ...]) -> PlannedGroup | None:
        policy = self.spec.policy
        network = policy.networks[name]
        unlike = _unlike(actors)
        who = f"the network {name!r} serves {len(actors)} actors"
        who = "one network serves all actors" if name is None else who
        separate = is_separate(policy, network, actors, who, unlike, self.problems)
        base = "policy" if name is None else f"policy/{name}"
        of_plan = (
            {f"{base}/{i}": (a,) for i, a in enumerate(actors)} if separate else {base: actors}
        )
        plans = [
            self._plan(
                title,
                name,
                using,
                actors,
                network,
                using[0].observation_space,
                using[0].action_space,
            )
            for title, using in of_plan.items()
        ]
        if None in plans:
            return None
        return PlannedGroup(
            name, actors, network, separate, tuple(plan for plan in plans if plan), unlike
        )

    def _plan(
        self,
        name: str,
        group: str | None,
        actors: tuple[Actor, ...],
        served: tuple[Actor, ...],
        network: NetworkSpec,
        observation_space: Any,
        action_space: Any,
    ) -> PolicyPlan | None:
        self.plans += 1
        prefix = _prefix(group)
        observations = self._tree(observation_space, "observation", prefix)
        actions = self._tree(action_space, "action", prefix, ignore=False)
        if observations is None or actions is None:
            return None
        before = len(self.problems)
        families = self._families(actions, prefix)
        plan = PolicyPlan(
            name, group, actors, network, self.context, self.notes.of_another(),
            observations, actions, families, served,
            ignored=tuple(self.spec.ignore),
            rules_are_wrong=len(self.problems) > before,
            unasked=_unasked(self.spec.previous, observations, actions),
            ports=dict(observations.ports),
        )  # fmt: skip
        self._observe(plan)
        self._mask(plan)
        return plan

    def _tree(self, space: Any, root: str, prefix: str, *, ignore: bool = True) -> SpaceTree | None:
        """The leaves of ``space``; where only `ignore` and `texts` are wrong, as if these entries were not there."""
        known = {key for key, _, _ in walk_space(space, root, inner=True)}
        ignored = {i: _local(name, prefix, known) for i, name in enumerate(self.spec.ignore)}
        texts = {_local(name, prefix, known): (name, t) for name, t in self.spec.texts.items()}
        if not ignore:
            ignored, texts = {}, {}
        while True:
            declared = {key: settings for key, (_, settings) in texts.items()}
            try:
                return flatten_space(space, root, list(ignored.values()), declared)
            except SpaceError as error:
                indices = list(ignored)
                for place, message in error.problems:
                    if place is None:
                        self.problems.add((), message)
                    elif isinstance(place, str):
                        self.misses.add(("texts", texts.pop(place)[0]), message, key=True)
                    else:
                        self.misses.add(("ignore", indices[place]), message)
                        del ignored[indices[place]]
                if any(place is None for place, _ in error.problems):
                    return None

    def _families(self, actions: SpaceTree, prefix: str) -> ActionDistributions:
        """The distribution of each action; where rules are wrong, as if they were not there."""
        rules = list(self.spec.distributions)
        while True:
            entries = [_local_rule(rule.entry, prefix, actions) for rule in rules]
            try:
                return build_distributions(actions, entries)
            except DistributionRuleError as error:
                for index, setting, message, misspelt in error.problems:
                    path = rules[index].path
                    place = (*path, setting) if setting else path
                    if setting in ("action", "space"):
                        self.misses.add(place, message)
                    else:
                        self.problems.add(place, message, key=misspelt)
                wrong = {problem.rule for problem in error.problems}
                rules = [rule for index, rule in enumerate(rules) if index not in wrong]

    def _observe(self, plan: PolicyPlan) -> None:
        """Its observer, and the Ports of what that normalises."""
        known: dict[str, None] = {}
        for index, name in enumerate(self.spec.normalize):
            path = ("normalize", index)
            local = plan.local(name, [*plan.ports, *group_names(plan.ports)])
            keys = named_observations(local, plan.ports)
            wrong = {key: why for key in keys if (why := self._not_normalised(plan, key))}
            if not keys:
                self.misses.add(path, plan.not_an_observation(name))
            elif len(wrong) == len(keys):  # of a group, what holds no numbers stays as it is
                self.problems.add(path, next(iter(wrong.values())))
            known |= dict.fromkeys(key for key in keys if key not in wrong)
        for key in known:
            plan.ports[key] = replace(
                plan.ports[key], dtype=torch.float32, low=None, high=None, normalized=True
            )
        plan.observer = Observer(plan.observations, known)

    def _not_normalised(self, plan: PolicyPlan, key: str) -> str:
        """Why the observation ``key`` cannot be normalised; nothing if it can."""
        if plan.ports[key].is_integer:
            return f"{key!r} holds integers, such as categories; only numbers are normalised"
        if key in plan.observations.masks:
            return f"{key!r} is a mask; only numbers are normalised"
        return ""

    def _mask(self, plan: PolicyPlan) -> None:
        """The observations that mask its actions."""
        path = (*self.spec.policy.path, "action_mask")
        for name, observation in self.spec.policy.action_mask.items():
            action = plan.local(name, plan.families)
            key = plan.local(observation, plan.ports)
            if action not in plan.families:
                message = f"{name!r} is no action" + hint(name, plan.families)
                self.misses.add((*path, name), message, key=True)
            elif key not in plan.ports:
                only = "" if plan.group is None else f"; '<group>/{action}' masks one group only"
                self.problems.add((*path, name), plan.not_an_observation(key) + only)
            elif plan.ports[key].shape != plan.families[action].logits_shape:
                got = format_shape(plan.ports[key].shape)
                needed = format_shape(plan.families[action].logits_shape)
                message = f"the mask {key!r} has the shape {got}, but the logits of {action!r} have {needed}"
                self.problems.add((*path, name), message)
            else:
                plan.masks[action] = key


def _why_untold(served: Sequence[Actor]) -> str | None:
    """Why a network that acts for ``served`` cannot read which of them it acts for; None where it can."""
    if not served:
        return "says which of several actors a network acts for, and here it acts for one; leave it out"
    uncounted = [actor.name for actor in served if actor.is_open]
    if uncounted:
        return f"counts the actors of a network, and the number of {listing(uncounted)} is not known; leave it out"
    return None


def _prefix(group: str | None) -> str:
    return "" if group is None else f"{group}/"


def _local(name: str, prefix: str, known: Iterable[str]) -> str:
    """``name`` as it is called in one group: ``<group>/<name>`` without the group's ``prefix``."""
    return name[len(prefix) :] if name.startswith(prefix) and name not in known else name


def _local_rule(entry: Mapping[str, Any], prefix: str, actions: SpaceTree) -> Mapping[str, Any]:
    action = entry.get("action")
    if not isinstance(action, str):
        return entry
    return {**entry, "action": _local(action, prefix, actions.leaves)}


def _unlike(actors: tuple[Actor, ...]) -> str | None:
    """How the spaces of two of ``actors`` differ, in words; None where all are equal."""
    first = actors[0]
    for actor in actors[1:]:
        for kind in ("observation", "action"):
            ours, theirs = (getattr(a, f"{kind}_space") for a in (first, actor))
            differences = [] if ours is theirs else spaces_differ(ours, theirs, kind)
            if differences:
                return f"the {kind} spaces of {first.name!r} and {actor.name!r} differ ({differences[0]})"
    return None
