"""The actors of an environment, its steps and agents, and the network that serves each.

An actor is a step, an agent, or an agent within a step. `read_actors` makes them of spaces by key, `serve` assigns the
networks of a spec to them. At run time `Actors.entries` reads a mapping by key, such as observations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from gymnasium import Space

from composer.errors import Path, Problem, Problems, SpecError
from perception_blocks.words import did_you_mean, few_of, hint, is_writable, listing

__all__ = ["Actor", "ActorKey", "Actors", "Entry", "counted_spaces", "read_actors", "serve"]

X = TypeVar("X")

ActorKey: TypeAlias = str | int | tuple[str | int, str | int | None]
"""A step or an agent, or (step, agent); (step, None) is all agents of a step whose number is not known."""


@dataclass(frozen=True, eq=False)
class Actor:
    """An agent, a step, or an agent in a step, with its ``observation_space`` and ``action_space``."""

    key: ActorKey
    observation_space: Space
    action_space: Space

    @cached_property
    def name(self) -> str:
        """The key as one text: ``0`` is "0", ``("pick", 1)`` is "pick/1"."""
        return flat_name(self.key)

    @property
    def step(self) -> str | None:
        """The step of an agent within a step."""
        return str(self.key[0]) if isinstance(self.key, tuple) else None

    @property
    def type(self) -> str | None:
        """The name of a PettingZoo agent without its number: "adversary" of "adversary_0"."""
        match = re.fullmatch(r"(.+)_\d+", self.name)
        return match[1] if match else None

    @property
    def is_open(self) -> bool:
        """Whether it stands for all agents of its step, of any number."""
        return isinstance(self.key, tuple) and self.key[1] is None


class Entry(NamedTuple, Generic[X]):
    """A value of a mapping by key: its actor, the actor's flat name, and the key as the caller wrote it."""

    key: Any
    name: str
    actor: Actor
    value: X

    @property
    def is_whole_step(self) -> bool:
        """Whether the value is of all agents of a step together, with an axis for them."""
        return self.actor.is_open and self.name == self.actor.name


class Actors:
    """All actors of an environment, in its order."""

    def __init__(self, actors: Iterable[Actor]) -> None:
        self._by_name = {actor.name: actor for actor in actors}
        self.has_open = any(actor.is_open for actor in self)

    def __iter__(self) -> Iterator[Actor]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __getitem__(self, name: str) -> Actor:
        return self._by_name[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def observation_space(self) -> dict[ActorKey, Space]:
        """The observation spaces by key, as `read_actors` takes them."""
        return {actor.key: actor.observation_space for actor in self}

    @property
    def action_space(self) -> dict[ActorKey, Space]:
        return {actor.key: actor.action_space for actor in self}

    def find(self, key: object) -> tuple[str, Actor] | None:
        """The flat name and the actor of ``key``, in any of its forms; None for a key of no actor.

        An agent of a step with any number of agents has its own name and the step's actor.
        """
        name = key if isinstance(key, str) else flat_name(key)
        actor = self._by_name.get(name)
        if actor is not None:
            return name, actor
        step, slash, agent = name.partition("/")
        actor = self._by_name.get(step)
        return (name, actor) if slash and agent and actor is not None and actor.is_open else None

    def entries(self, values: object, what: str) -> list[Entry[Any]]:
        """The entries of a mapping by key, in its order; messages call its values ``what`` ("observations").

        Raises ValueError for anything but a mapping, for keys of no actor, and for two keys of one actor.
        """
        if not isinstance(values, Mapping):
            names = few_of(self.names)
            raise ValueError(
                f"{what} come as a dict by actor ({names}), got a {type(values).__name__}"
            )
        by_name: dict[str, Entry] = {}
        for key, value in values.items():
            name_and_actor = self.find(key)
            if name_and_actor is None:
                raise ValueError(self._unknown(values, what))
            name, actor = name_and_actor
            if name in by_name:
                raise ValueError(
                    f"{what} of {name!r} are given twice, as {by_name[name].key!r} and {key!r}"
                )
            by_name[name] = Entry(key, name, actor, value)
        return list(by_name.values())

    def by_name(self, values: Mapping[Any, X] | None, what: str) -> dict[str, X]:
        """The values of a mapping by key (None: of none) by flat name. Raises ValueError as `entries` does."""
        if values is None:
            return {}
        return {entry.name: entry.value for entry in self.entries(values, what)}

    def _unknown(self, values: Iterable[object], what: str) -> str:
        unknown = [key for key in values if self.find(key) is None]
        near = did_you_mean(flat_name(unknown[0]), self.names) if len(unknown) == 1 else ""
        near = near or f"; there is {few_of(self.names)}"
        return f"{what} of unknown actors: {few_of(unknown)}{near}"


def flat_name(key: object) -> str:
    """An actor's key as text.

    >>> flat_name(0), flat_name(("pick", 1)), flat_name(("pick", None))
    ('0', 'pick/1', 'pick')
    """
    if isinstance(key, tuple):
        return "/".join(str(part) for part in key if part is not None)
    return str(key)


def read_actors(
    observation_space: Mapping[Any, Space], action_space: Mapping[Any, Space]
) -> Actors:
    """The actors of spaces by key. Raises SpecError for keys that are wrong, collide, or have only one of the two."""
    problems = [_wrong_key(key) for key in (*observation_space, *action_space)]
    actions = {flat_name(key): space for key, space in action_space.items()}
    names = {flat_name(key): key for key in observation_space}
    for space, kind in ((observation_space, "observation"), (action_space, "action")):
        problems += _colliding(space, kind)
    for has, lacks, known, others in (
        ("an observation", "action", names, actions),
        ("an action", "observation", actions, names),
    ):
        for name in (name for name in known if name not in others):
            text = f"{name!r} has {has} space but no {lacks} space{_near(name, others)}"
            problems.append(text)
    if not names and not actions:
        problems.append("there are no actors: the mapping of spaces is empty")
    messages = dict.fromkeys(filter(None, problems))
    if messages:
        raise SpecError([Problem(message) for message in messages])
    return Actors(Actor(key, observation_space[key], actions[name]) for name, key in names.items())


def counted_spaces(
    spaces: Mapping[Any, X], agent_counts: Mapping[Any, int | None]
) -> dict[ActorKey, X]:
    """Spaces by step as spaces by (step, agent); ``agent_counts`` has a step's number of agents, None if unknown.

    >>> counted_spaces({"pick": 1, "place": 2, "look": 3}, {"place": 2, "look": None})
    {'pick': 1, ('place', 0): 2, ('place', 1): 2, ('look', None): 3}
    """
    unknown = [step for step in agent_counts if step not in spaces]
    wrong = {
        s: n for s, n in agent_counts.items() if n is not None and not (_is_number(n) and n >= 1)
    }
    messages = [
        f"agent_counts speaks of the step {s!r}, which has no spaces{_near(s, spaces)}"
        for s in unknown
    ]
    messages += [
        f"agent_counts of {s!r} is a number of at least 1 or None, got {n!r}"
        for s, n in wrong.items()
    ]
    if messages:
        raise SpecError([Problem(message) for message in messages])
    counted: dict[ActorKey, X] = {}
    for step, space in spaces.items():
        count = agent_counts.get(step, 1)
        if count == 1:
            counted[step] = space
        else:
            counted |= {
                (step, agent): space for agent in ([None] if count is None else range(count))
            }
    return counted


def serve(
    actors: Actors, networks: Mapping[str | None, Path], problems: Problems, path: Path
) -> dict[str | None, tuple[Actor, ...]]:
    """The actors that each network serves, by the network's key (None: the only network).

    A key is an actor's name, or a step, or the type of agents called ``<key>_<number>``. ``networks`` has the place of
    each key, where a key that serves no actor is noted; actors that no key or several keys serve are noted at ``path``.
    """
    served: dict[str | None, tuple[Actor, ...]] = {}
    by: dict[str, list[str]] = {name: [] for name in actors.names}
    for key, place in networks.items():
        served[key] = tuple(actors) if key is None else _meant(key, actors)
        for actor in served[key]:
            by[actor.name].append(str(key))
        if not served[key]:
            near = hint(key, _addresses(actors), listed=actors.names, shown=few_of)
            problems.add(place, f"the network {key!r} serves no actor" + near, key=True)
    lost = [name for name, by_keys in by.items() if not by_keys]
    if lost:
        problems.add(
            path, f"no network serves {few_of(lost)}; there are networks for {listing(served)}"
        )
    for name, by_keys in by.items():
        if len(by_keys) > 1:
            several = f"{len(by_keys)} networks, {listing(by_keys)}"
            problems.add(path, f"{name!r} is served by {several}; keep one of them")
    return served


def _meant(key: str, actors: Actors) -> tuple[Actor, ...]:
    """The actors called ``key``, else those of that step, else those of that type."""
    for attribute in ("name", "step", "type"):
        meant = tuple(actor for actor in actors if getattr(actor, attribute) == key)
        if meant:
            return meant
    return ()


def _addresses(actors: Actors) -> list[str]:
    """All keys that networks may have."""
    addresses = [address for a in actors for address in (a.name, a.step, a.type) if address]
    return list(dict.fromkeys(addresses))


def _wrong_key(key: object) -> str | None:
    parts = key if isinstance(key, tuple) else (key,)
    size = 2 if isinstance(key, tuple) else 1
    open_end = size == 2 and parts[-1:] == (None,)
    named = [(isinstance(p, str) and p != "") or _is_number(p) for p in parts[: size - open_end]]
    if len(parts) != size or not all(named):
        return f"an actor is a text, a number or (step, agent), got {key!r}"
    name = flat_name(key)
    half = "holds half of a surrogate pair, which no file can hold; rename it"
    return None if is_writable(name) else f"the actor {name!r} {half}"


def _colliding(spaces: Iterable[object], kind: str) -> Iterator[str]:
    """Messages about keys with the same text, and keys that begin with another key: names of their parts collide."""
    first: dict[str, object] = {}
    for key in spaces:
        name = flat_name(key)
        other = first.setdefault(name, key)
        if other is not key:
            yield f"the {kind} spaces of {other!r} and {key!r} have the same name {name!r}; rename one"
    for name, key in first.items():
        above = [name[: match.start()] for match in re.finditer("/", name)]
        for outer in (outer for outer in above if outer in first):
            yield f"{first[outer]!r} stands beside its own part {key!r}; an actor is one or the other"


def _near(name: object, known: Iterable[object]) -> str:
    return did_you_mean(str(name), [flat_name(key) for key in known])


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
