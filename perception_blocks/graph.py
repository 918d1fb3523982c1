"""A network as data: named inputs, and blocks wired by name.

A `Graph` is a declaration; nothing is built and no shape is known until an InferenceBlock is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perception_blocks.dag import Dag, DagNode, DagProblem
from perception_blocks.port import Port, Shape, as_port
from perception_blocks.registry import did_you_mean

__all__ = ["Graph", "GraphError", "GraphProblem", "Node", "NODE_NAME"]

NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class GraphProblem:
    """One mistake: ``path`` names the node (outer graphs first), ``key`` what is wrong about it."""

    path: tuple[str, ...]
    key: str | None  # in, out, block, each, same_as, init, or a setting
    message: str
    of_key: bool = False  # the key itself is at fault (misspelt), not its value

    def within(self, outer: str) -> GraphProblem:
        return GraphProblem((outer, *self.path), self.key, self.message, self.of_key)

    def __str__(self) -> str:
        return f"node {'/'.join(self.path)!r}: {self.message}" if self.path else self.message


class GraphError(ValueError):
    """Everything that is wrong with a graph, as ``problems``."""

    def __init__(self, problems: Iterable[GraphProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True)
class Node:
    """A block and its wiring.

    ``inputs`` are positional (a tuple) or by argument name of ``forward`` (a mapping). ``out`` maps the names of values
    in this graph to outputs of the block: their index, or the inner name for a nested graph; None drops one.
    """

    name: str
    block: Any
    inputs: tuple[str, ...] | Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    out: tuple[str, ...] | Mapping[str, str] | None = None
    each: int = 0
    same_as: str | None = None
    init: Any = None
    group: str | None = None  # the module that holds it, where that is not the network itself

    @property
    def reads(self) -> tuple[str, ...]:
        values = self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs
        return tuple(values)

    @property
    def writes(self) -> tuple[str, ...]:
        if self.out is None:
            return (self.value_name,)
        return tuple(name for name in self.out if name != "_")

    @property
    def value_name(self) -> str:
        """The name of its first output: a node in a group lives in a namespace of its own."""
        return self.name if self.group is None else f"{self.group}:{self.name}"


class Graph:
    """Blocks wired by name, from ``inputs`` (name -> shape or Port).

    >>> graph = Graph({"inventory": (16,)})
    >>> graph.add("latent", "dense", "inventory", hidden_units=[32])
    'latent'
    """

    def __init__(self, inputs: Mapping[str, Port | Shape], *, optional: Iterable[str] = ()) -> None:
        self.inputs: dict[str, Port] = {name: as_port(port) for name, port in inputs.items()}
        self.optional = set(optional)  # inputs that may stay unread
        self.nodes: list[Node] = []

    def add(
        self,
        name: str,
        block: Any = None,
        inputs: str | Sequence[str] | Mapping[str, str] = (),
        *,
        out: Sequence[str] | Mapping[str, str] | None = None,
        each: int = 0,
        same_as: str | None = None,
        init: Any = None,
        group: str | None = None,
        **settings: Any,
    ) -> str:
        """Add a node; returns its name.

        ``block`` is a registered name, a PerceptionBlock or ``nn.Module`` class, a ready module, a function, or another
        Graph (then ``inputs`` maps inner names to outer ones, and ``out`` lists inner names). ``each`` applies the block
        to every element of the first ``each`` feature axes; ``same_as`` reuses the module of another node.

        Raises ValueError for a malformed node; what is wrong between nodes is found by InferenceBlock, all at once.
        """
        if group is None and not NODE_NAME.fullmatch(name):
            raise ValueError(
                f"a node's name is letters, digits and '_', not starting with a digit; got {name!r}"
            )
        if (block is None) == (same_as is None):
            raise ValueError(f"node {name!r} needs exactly one of block and same_as")
        if isinstance(each, bool) or not isinstance(each, int) or each < 0:
            raise ValueError(f"'each' of node {name!r} is a number of axes, got {each!r}")
        wires = (
            dict(inputs)
            if isinstance(inputs, Mapping)
            else (inputs,)
            if isinstance(inputs, str)
            else tuple(inputs)
        )
        outs = dict(out) if isinstance(out, Mapping) else None if out is None else tuple(out)
        if isinstance(block, Graph) and not isinstance(wires, dict):
            wires = {inner: inner for inner in wires}
        if isinstance(block, Graph) and isinstance(outs, tuple):
            outs = {inner: inner for inner in outs}
        self.nodes.append(Node(name, block, wires, settings, outs, each, same_as, init, group))
        return name

    def dag(self, outputs: Iterable[str] | None) -> Dag:
        """The order of the nodes towards ``outputs``, and what is wrong with it."""
        nodes = [
            DagNode(node.name if node.group is None else node.value_name, node.reads, node.writes)
            for node in self.nodes
        ]
        return Dag(nodes, self.inputs, outputs)

    def problems(self, outputs: Iterable[str] | None) -> list[GraphProblem]:
        """Mistakes that show without shapes: cycles, unknown, unread, duplicate and unused names."""
        found = self._same_as_problems()
        by_key = {node.value_name: node for node in self.nodes}
        for problem in self.dag(outputs).problems():
            if problem.kind == "unused_input" and problem.name in self.optional:
                continue
            found.append(_in_node(problem, by_key))
        return found

    def _same_as_problems(self) -> list[GraphProblem]:
        nodes = {node.name: node for node in self.nodes if node.group is None}
        problems = []
        for node in self.nodes:
            if node.same_as is None:
                continue
            other = nodes.get(node.same_as)
            if other is None or other is node:
                near = did_you_mean(node.same_as, [name for name in nodes if name != node.name])
                message = f"'same_as' names the unknown node {node.same_as!r}{near}"
            elif other.same_as is not None:
                message = f"'same_as' names {node.same_as!r}, which is itself 'same_as'; name {other.same_as!r}"
            elif node.settings:
                message = f"a node with 'same_as' has the settings of {node.same_as!r}; remove {min(node.settings)!r}"
            else:
                continue
            problems.append(GraphProblem((node.name,), "same_as", message))
        return problems


def _in_node(problem: DagProblem, nodes: Mapping[str, Node]) -> GraphProblem:
    if problem.node is None:
        return GraphProblem((), None, problem.message)
    node = nodes.get(problem.node)
    path = (
        (problem.node,)
        if node is None
        else (node.name,)
        if node.group is None
        else (node.group, node.name)
    )
    keys = {"unknown": "in", "duplicate": "out" if node is not None and node.out else None}
    return GraphProblem(path, keys.get(problem.kind), problem.message)
