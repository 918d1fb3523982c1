"""The order of a graph of names, and its mistakes: cycles, and unknown, unused and duplicate names.

No torch and no shapes: the graph of a network uses a `Dag`, the check of a spec without shapes and the diagram too.

networkx sorts, and finds cycles. Importing it takes 0.1 s, as long as a whole check of a spec's structure, so it is not
imported for a graph whose nodes are declared after all that they read, as most are: it is sorted, and has no cycle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from perception_blocks.words import did_you_mean

if TYPE_CHECKING:
    from networkx import DiGraph

__all__ = ["Dag", "DagNode", "DagProblem", "NODE_NAME", "node_name_problem"]

MAX_CYCLES = 20  # reported at once; each takes a walk over the whole graph
MOST_SHOWN = 12  # names of one cycle; of a longer one the middle is left out
NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MOST_LISTED = 12
_TAKEN_NAMES = {
    "_": "'_' in 'out' drops an output",
    "training": "torch keeps a module's mode under this name",
}


def node_name_problem(name: str) -> str | None:
    """Why no node may be called ``name``, or None if one may.

    >>> node_name_problem("latent"), node_name_problem("latent-1")
    (None, "the node name 'latent-1' must start with a letter or '_' and hold letters, digits and '_' only")
    """
    if name in _TAKEN_NAMES:
        return f"{name!r} is no name for a node: {_TAKEN_NAMES[name]}; choose another name"
    if NODE_NAME.fullmatch(name):
        return None
    rule = "must start with a letter or '_' and hold letters, digits and '_' only"
    return f"the node name {name!r} {rule}"


@dataclass(slots=True)  # not frozen: there is one for each node
class DagNode:
    """A step that reads some names and writes others; by default it writes its own name."""

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = field(default=())
    title: str | None = None  # how messages call it, if not by its name in quotes

    def __post_init__(self) -> None:
        if not self.writes:
            self.writes = (self.name,)

    @property
    def label(self) -> str:
        return self.title or repr(self.name)


@dataclass(frozen=True)
class DagProblem:
    """One thing wrong: ``node`` is None where an input or an output is at fault; ``name`` is the offending name."""

    kind: str  # duplicate | unknown | cycle | unused_input | unused_node | unknown_output
    message: str
    node: str | None = None
    name: str | None = None


class Dag:
    """Nodes over ``inputs`` (None: unknown, so any unwritten name may be an input) towards ``outputs`` (None: all).

    >>> dag = Dag([DagNode("b", ("a",)), DagNode("a", ("x",))], inputs=["x"], outputs=["b"])
    >>> [node.name for node in dag.order()]
    ['a', 'b']
    >>> [p.message for p in Dag([DagNode("a", ("y",))], inputs=["x1", "y1"], outputs=["a"]).problems()][0]
    "'a' reads 'y', which is neither an input nor a node's output; did you mean 'y1'?"
    """

    def __init__(
        self, nodes: Iterable[DagNode], inputs: Iterable[str] | None, outputs: Iterable[str] | None
    ) -> None:
        self.nodes = list(nodes)
        self.inputs = None if inputs is None else list(inputs)
        self.outputs = None if outputs is None else list(outputs)
        self._by_name = {node.name: node for node in self.nodes}
        self.writer: dict[str, DagNode] = {}
        for node in self.nodes:
            for name in node.writes:
                self.writer.setdefault(name, node)

    def problems(self) -> list[DagProblem]:
        """Everything that is wrong, in the order of the nodes."""
        problems = self._duplicates() + self._unknown()
        problems += [self._cycle_problem(cycle) for cycle in self.cycles()]
        # What a broken reference leaves unused is the consequence, not the mistake.
        return problems or self._unused()

    def order(self) -> list[DagNode]:
        """The nodes that the outputs need, each after all it reads, otherwise as they were declared.

        Only for a Dag without problems of order.
        """
        needed = self.needed()
        return [node for node in self._sorted if node.name in needed]

    def partial_order(self) -> list[DagNode]:
        """All nodes, each once by its name: those that can be ordered, then those in a cycle or behind one.

        >>> nodes = [DagNode("b", ("c",)), DagNode("c", ("b",)), DagNode("e", ("d",)), DagNode("d", ("x",))]
        >>> [node.name for node in Dag(nodes, None, None).partial_order()]
        ['d', 'e', 'b', 'c']
        """
        waits = {name: {w.name for w in self._writers_of(n)} for name, n in self._by_name.items()}
        readers: dict[str, list[str]] = {}
        for name, writers in waits.items():
            for writer in writers:
                readers.setdefault(writer, []).append(name)
        order = [name for name, writers in waits.items() if not writers]
        for name in order:  # which grows
            for reader in readers.get(name, ()):
                waits[reader].remove(name)
                if not waits[reader]:
                    order.append(reader)
        behind = [name for name, writers in waits.items() if writers]
        return [self._by_name[name] for name in (*order, *behind)]

    def needed(self) -> set[str]:
        """Names of the nodes that some output depends on. Only for a Dag without problems of order."""
        if self.outputs is None:
            return {node.name for node in self.nodes}
        names, read = set(), set(self.outputs)
        for node in reversed(self._sorted):
            if not read.isdisjoint(node.writes):
                names.add(node.name)
                read.update(node.reads)
        return names

    def sinks(self) -> list[str]:
        """Written names that no node reads."""
        read = {name for node in self.nodes for name in node.reads}
        return [name for node in self.nodes for name in node.writes if name not in read]

    def cycles(self) -> list[list[str]]:
        """The nodes of up to 20 cycles, each before the node that reads it; no node is in two of them."""
        cycles: list[list[str]] = []
        if self._is_sorted:
            return cycles
        import networkx

        graph = self._graph()
        while len(cycles) < MAX_CYCLES and _keep_those_before_cycles(graph):
            cycles.append([writer for writer, _ in networkx.find_cycle(graph)])
            graph.remove_nodes_from(cycles[-1])
        return cycles

    def to_networkx(self) -> DiGraph:
        """The inputs and nodes as a `networkx.DiGraph`, for its algorithms; changing it changes nothing here.

        A node has a ``kind``, "input" or "node"; an edge has ``values``, the names of all values that go along it. An
        input with the name of a node whose outputs have other names is called ``("input", name)``.

        >>> graph = Dag([DagNode("a", ("x",), ("b", "c")), DagNode("d", ("c", "b"))], ["x"], None).to_networkx()
        >>> list(graph.edges(data="values"))
        [('x', 'a', ('x',)), ('a', 'd', ('c', 'b'))]
        """
        import networkx

        graph = networkx.DiGraph()
        inputs = self.input_names()
        graph.add_nodes_from(inputs.values(), kind="input")
        graph.add_nodes_from(self._by_name, kind="node")
        sources = inputs | {name: node.name for name, node in self.writer.items()}
        for node in self._by_name.values():
            for name in dict.fromkeys(name for name in node.reads if name in sources):
                values = graph.get_edge_data(sources[name], node.name, {}).get("values", ())
                graph.add_edge(sources[name], node.name, values=(*values, name))
        return graph

    def input_names(self) -> dict[str, str | tuple[str, str]]:
        """The inputs, and what they are called in `to_networkx`."""
        known = self.inputs
        if known is None:
            known = [name for node in self.nodes for name in node.reads]
        return {
            name: ("input", name) if name in self._by_name else name
            for name in known
            if name not in self.writer
        }

    @cached_property
    def _sorted(self) -> list[DagNode]:
        """Each node after all it reads, otherwise as declared."""
        if self._is_sorted:
            return self.nodes
        import networkx

        place = {node.name: index for index, node in enumerate(self.nodes)}
        order = networkx.lexicographical_topological_sort(self._graph(), place.__getitem__)
        return [self._by_name[name] for name in order]

    @cached_property
    def _is_sorted(self) -> bool:
        """Whether each node is declared after all it reads."""
        seen = set()
        for node in self._by_name.values():
            if any(writer.name not in seen for writer in self._writers_of(node)):
                return False
            seen.add(node.name)
        return True

    def _graph(self) -> DiGraph:
        """The nodes alone, with an edge from each node to each that reads it."""
        import networkx

        graph = networkx.DiGraph()
        for node in self._by_name.values():
            graph.add_node(node.name)
            graph.add_edges_from((writer.name, node.name) for writer in self._writers_of(node))
        return graph

    def _writers_of(self, node: DagNode) -> list[DagNode]:
        return [self.writer[name] for name in node.reads if name in self.writer]

    def _duplicates(self) -> list[DagProblem]:
        problems = []
        seen: dict[str, str] = dict.fromkeys(self.inputs or (), "an input")
        names: set[str] = set()
        for node in self.nodes:
            if node.name in names:
                message = f"the name {node.name!r} is used by two nodes"
                problems.append(DagProblem("duplicate", message, node.name, node.name))
                continue
            names.add(node.name)
            for name in node.writes:
                if name in seen:
                    what = "node" if name == node.name else "output"
                    message = f"the {what} {name!r} is named like {seen[name]}; choose another name"
                    problems.append(DagProblem("duplicate", message, node.name, name))
                seen[name] = f"an output of {node.name!r}"
        return problems

    def _unknown(self) -> list[DagProblem]:
        known = dict.fromkeys([*(self.inputs or ()), *self.writer])
        named = [*(self.inputs or ())]
        named += [value for value, writer in self.writer.items() if writer.title is None]
        # Of a node with a title, what it writes under another name: near names may be meant, others are not told.
        more = [v for v, writer in self.writer.items() if writer.title and v != writer.name]
        problems = []
        for node in self.nodes if self.inputs is not None else ():
            for name in dict.fromkeys(node.reads):
                if name not in known:
                    problems.append(self._unknown_read(node, name, named, more))
        for name in self.outputs or ():
            if name not in known:
                message = f"the output {name!r} is no node's output" + did_you_mean(name, known)
                problems.append(DagProblem("unknown_output", message, None, name))
        return problems

    def _unknown_read(
        self, node: DagNode, name: str, known: list[str], more: list[str]
    ) -> DagProblem:
        """The problem, with a suggestion: an input, or what another node writes, unless that node has a title."""
        others = (value for value in known if value not in node.writes)
        few = [] if len(known) > MOST_LISTED + len(node.writes) else list(others)
        near = did_you_mean(name, [*(few or others), *more]) or _listing(few)
        message = f"{node.label} reads {name!r}, which is neither an input nor a node's output"
        return DagProblem("unknown", message + near, node.name, name)

    def _cycle_problem(self, cycle: list[str]) -> DagProblem:
        shown = [self._by_name[name].label for name in [*cycle, cycle[0]]]
        if len(cycle) == 1:
            message = (
                f"{shown[0]} reads itself; if it is to read an input of that name, rename the node"
            )
        elif len(shown) <= MOST_SHOWN:
            message = f"the nodes form a cycle: {' -> '.join(shown)}"
        else:
            shown[4:-3] = ["..."]  # the name before the last closes the cycle
            message = f"{len(cycle)} nodes form a cycle: {' -> '.join(shown)}"
        return DagProblem("cycle", message, cycle[0], cycle[0])

    def _unused(self) -> list[DagProblem]:
        problems = []
        needed = self.needed()
        for node in self.nodes:
            if node.name not in needed:
                message = f"nothing uses {node.label}: it reaches no output"
                problems.append(DagProblem("unused_node", message, node.name, node.name))
        read = {name for node in self.nodes for name in node.reads} | set(self.outputs or ())
        for name in self.inputs or ():
            if name not in read:
                problems.append(
                    DagProblem("unused_input", f"the input {name!r} is read by no node", None, name)
                )
        return problems


def _keep_those_before_cycles(graph: DiGraph) -> bool:
    """Remove the nodes that no cycle depends on; whether any are left.

    All that is left leads into a cycle, so a search for one need not turn back: `find_cycle` would take quadratic time.
    """
    import networkx

    removed: list[str] = []
    try:
        for generation in networkx.topological_generations(graph.reverse(copy=False)):
            removed += generation
    except networkx.NetworkXUnfeasible:  # it gave all of those first
        pass
    graph.remove_nodes_from(removed)
    return bool(graph)


def _listing(names: list[str]) -> str:
    """The end of a message: all ``names``, if there are few."""
    return f"; there is {', '.join(map(repr, names))}" if 0 < len(names) <= MOST_LISTED else ""
