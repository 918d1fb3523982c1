"""What the networks of a model are built from and must give, and what becomes known on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from composer.build.budget import Budget
from composer.build.construction import SeededConstruction
from composer.errors import Path, Problems
from composer.network.network import Network
from composer.source.load import Source
from composer.spec.model_spec import NetworkSpec, NodeSpec
from composer.spec.places import NodePath
from composer.template.expansion import Effects
from perception_blocks.graph.built import BuiltModule
from perception_blocks.init import initializer
from perception_blocks.port import Port, Shape, format_shape

__all__ = ["ADDED", "BuildContext", "BuildNotes", "Outcome", "Requirements", "VisiblePorts"]
__all__ += ["checked_rule", "width_problem"]

# Names that a policy gives to children of its own: beside a user's, and beside the nodes of a graph.
ADDED = ("distributions", "normalizers")


@dataclass(frozen=True)
class BuildContext:
    """What is given to all that is built for one model; ``problems`` gathers what is wrong, ``budget`` what is made.

    ``broken`` are the places where the structure of the spec is wrong: a node there is not built, and of the others
    only what is wrong with their blocks and settings is said, see `BuildNotes.faults`. ``goes_on``: whatever can be
    built is built in spite of problems, to know more of it.
    """

    source: Source
    problems: Problems
    allow: tuple[str, ...]
    seed: int
    meta: bool
    budget: Budget
    broken: frozenset[Path] = frozenset()
    goes_on: bool = False
    construction: Callable[..., SeededConstruction] = SeededConstruction

    def is_broken(self, node: NodeSpec) -> bool:
        """Whether the structure of ``node`` itself is wrong; a node inside of it may be."""
        around, without_inner_nodes = self._around_broken
        return node.path in (around if node.graph is None else without_inner_nodes)

    @cached_property
    def _around_broken(self) -> tuple[frozenset[Path], frozenset[Path]]:
        """The paths from the top to the broken places, and those of them that do not go on into a graph."""
        pairs = {(path[:n], path[n : n + 1]) for path in self.broken for n in range(len(path) + 1)}
        without = (path for path, below in pairs if below != ("graph",))
        return frozenset(path for path, _ in pairs), frozenset(without)


@dataclass
class BuildNotes:
    """What became known while the networks of one plan were built; what has a path as its key is of the model."""

    read: set[str] = field(default_factory=set)  # observations that some network reads
    shared: dict[str, Port] = field(default_factory=dict)  # what the policy hands to the critic
    # Of each of these values, the observations that it is made of.
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    expanded: dict[Path, NetworkSpec] = field(default_factory=dict)  # templates as graphs
    effects: Effects = field(default_factory=Effects)  # of templates
    # Of each node of the spec, what was built of it, by its path in the model: also of a network that failed.
    built: dict[Path, dict[NodePath, BuiltModule]] = field(default_factory=dict)
    # Of each network and nested graph of the spec, the values in it that are known.
    ports: dict[Path, dict[str, Port]] = field(default_factory=dict)
    networks: dict[Path, list[Network]] = field(default_factory=dict)  # that could be built
    # What is wrong with the block or a setting of a node, whatever the rest of the spec says.
    faults: set[tuple[Path, str]] = field(default_factory=set)

    def of_another(self) -> BuildNotes:
        """Notes of another plan of the same model."""
        return BuildNotes(
            expanded=self.expanded, effects=self.effects, built=self.built, ports=self.ports,
            networks=self.networks, faults=self.faults,
        )  # fmt: skip

    def add_built(self, network: Path, place: Path, path: NodePath, built: BuiltModule) -> None:
        """Note what was built of the node at ``place`` of the spec, in ``network``, and at ``path`` below it."""
        self.built.setdefault(place, {})[path] = built
        node, step = built.node.node, built.node.step
        if node.group is not None:
            return  # a head's value is not for other nodes
        is_nested = len(place) > len(network) + 2 and place[-2] == "graph"
        self.ports.setdefault(place[:-2] if is_nested else network, {}).update(built.node.out_ports)
        if step.inner is not None:
            inner = [replace(p, shape=p.shape[node.each :]) for p in built.node.in_ports]
            self.ports.setdefault(place, {}).update(zip(step.inner[0], inner))


class VisiblePorts(NamedTuple):
    """The values that a network may read, and in words why others are out of its reach."""

    ports: Mapping[str, Port]
    hidden: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """A network, or None where problems were noted, with what it reads and the Ports of what it gives, if known."""

    network: Network | None = None
    read: Collection[str] = ()
    ports: Mapping[str, Port] = field(default_factory=dict)


@dataclass(frozen=True)
class Requirements:
    """What a network must give: for each head its width, and in words what asks for it; and other values by name.

    A head without reason may have any width: what it should be is not known because of another mistake.
    """

    heads: Mapping[str, tuple[int, ...]]
    reasons: Mapping[str, str]
    values: tuple[str, ...] = ()
    kind: str = "action"  # what a head is for, in messages
    # Constructor arguments of a custom class, beside those of the spec.
    injected: Mapping[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()  # what a custom class may return besides
    added: tuple[str, ...] = ADDED  # children that the network gets, whose names no other may have
    drawn: Mapping[str, Port] = field(default_factory=dict)  # actions that a graph may read
    copies: int = 1  # networks with weights of their own, in one call


def checked_rule(rule: object, path: Path, context: BuildContext) -> object:
    """``rule``, how weights are drawn, as a spec has it; None where it is wrong, which is noted at ``path``."""
    try:
        initializer(rule)
    except ValueError as error:
        context.problems.add(path, str(error))
        return None
    return rule


def width_problem(head: str, got: Shape, requirements: Requirements) -> str | None:
    """What is wrong with a head of shape ``got``; None if nothing is, or nothing can be said."""
    if head not in requirements.reasons or got == requirements.heads[head]:
        return None
    shown, needed = format_shape(got), format_shape(requirements.heads[head])
    return (
        f"the head {head!r} has the shape {shown}, but {requirements.reasons[head]} needs {needed}"
    )
