"""A network as data: named inputs, and blocks wired by name.

A `Graph` is a declaration; nothing is built and no shape is known until an InferenceBlock is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from perception_blocks.base_block import block_name
from perception_blocks.dag import Dag, DagNode, DagProblem, node_name_problem
from perception_blocks.port import Port, Shape, as_port
from perception_blocks.words import did_you_mean

if TYPE_CHECKING:
    from networkx import DiGraph

__all__ = ["Block", "BlockSource", "Graph", "GraphError", "GraphProblem", "Node"]

# Graphs within one another: a module calls the next, and Python's stack has an end.
MAX_NESTING = 100
LEFT_OUT = "left out"  # the kind of a problem that is known where the node was wired

Block: TypeAlias = type[nn.Module] | nn.Module
# What a node may name as its block: an exception says why there is none.
BlockSource: TypeAlias = "Block | str | Callable[..., object] | Graph | Exception | None"


@dataclass(frozen=True)
class GraphProblem:
    """One mistake: ``path`` names the node (outer graphs first), ``key`` what is wrong about it."""

    path: tuple[str, ...]
    key: str | None  # in, out, block, each, same_as, init, or a setting
    message: str
    of_key: bool = False  # the key itself is at fault (misspelt), not its value
    blocks_order: bool = False  # the nodes cannot be put in an order before this is mended
    kind: str = ""  # of a problem between nodes: the DagProblem's kind; LEFT_OUT
    name: str | None = None  # the value that a problem between nodes is about
    # Values that explain it, of the graph in which the node stands, each with what is to be said of it.
    related: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def within(self, outer: str) -> GraphProblem:
        return replace(self, path=(outer, *self.path))

    def __str__(self) -> str:
        return f"node {'/'.join(self.path)!r}: {self.message}" if self.path else self.message


class GraphError(ValueError):
    """All errors in a graph, as ``problems``; ``ports`` are the values that are known in spite of them."""

    def __init__(
        self, problems: Iterable[GraphProblem], ports: Mapping[str, Port] | None = None
    ) -> None:
        self.problems = tuple(problems)
        self.ports = dict(ports or {})
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True)
class Node:
    """A block and its wiring.

    ``inputs`` are positional (a tuple) or by argument name of ``forward`` (a mapping). ``out`` maps the names of values
    in this graph to outputs of the block: their index, or the inner name for a nested graph; None drops one.
    """

    name: str
    block: BlockSource
    inputs: tuple[str, ...] | Mapping[str, str]
    settings: Mapping[str, object] = field(default_factory=dict)
    out: tuple[str, ...] | Mapping[str, str] | None = None
    each: int = 0
    same_as: str | None = None
    init: object = None
    group: str | None = None  # the module that holds it, where that is not the network itself
    copies: int | None = None  # of a nested graph, each with weights of its own: an ensemble

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs if isinstance(self.inputs, tuple) else tuple(self.inputs.values())

    @property
    def writes(self) -> tuple[str, ...]:
        if self.out is None:
            return (self.value_name,)
        return tuple(name for name in self.out if name != "_")

    @property
    def path(self) -> tuple[str, ...]:
        """Where it is found below its network: ``("latent",)``, ``("heads", "move")``."""
        return (self.name,) if self.group is None else (self.group, self.name)

    @property
    def title(self) -> str:
        """How messages call it."""
        return repr("/".join(self.path))

    @property
    def value_name(self) -> str:
        """The name of its first output: a node in a group lives in a namespace of its own."""
        return self.name if self.group is None else f"{self.group}:{self.name}"


class Graph:
    """Blocks connected by name, from ``inputs`` (name -> shape or Port).

    >>> graph = Graph({"inventory": (16,)})
    >>> graph.add("latent", "dense", "inventory", hidden_units=[32])
    'latent'
    """

    def __init__(self, inputs: Mapping[str, Port | Shape], *, optional: Iterable[str] = ()) -> None:
        self.inputs: dict[str, Port] = {name: as_port(port) for name, port in inputs.items()}
        masks = {port.mask for port in self.inputs.values() if port.mask is not None}
        self.optional = masks.union(optional)  # inputs that no node needs to name
        # Inputs that are made of a node's output outside: the node's value -> the input, which stands after the node.
        self.drawn: dict[str, str] = {}
        self.nodes: list[Node] = []

    def add(
        self,
        name: str,
        /,  # a block may have a setting called name
        block: BlockSource = None,
        inputs: str | Sequence[str] | Mapping[str, str] = (),
        *,
        out: Sequence[str] | Mapping[str, str] | None = None,
        each: int = 0,
        same_as: str | None = None,
        init: object = None,
        group: str | None = None,
        copies: int | None = None,
        **settings: object,
    ) -> str:
        """Add a node; returns its name.

        ``block`` is a registered name, a PerceptionBlock or ``nn.Module`` class, a ready module, a function, or
        another Graph (then ``inputs`` maps inner names to outer ones, and ``out`` lists inner names). ``each`` applies
        the block to every element of the first ``each`` feature axes; ``same_as`` reuses the module of another node.
        ``copies`` makes an ensemble of a Graph: as many networks in one batched call, whose outputs gain a first axis.

        Raises ValueError for a malformed node. InferenceBlock reports all errors between nodes at once.
        """
        if isinstance(inputs, str):
            inputs = (inputs,)
        wires = dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)
        outs = dict(out) if isinstance(out, Mapping) else None if out is None else tuple(out)
        node = Node(name, block, wires, settings, outs, each, same_as, init, group, copies)
        self.add_node(node)
        return name

    def add_node(self, node: Node) -> None:
        """Add a node that is ready. Raises ValueError for a malformed one."""
        wrong = None if node.group is not None else node_name_problem(node.name)
        if wrong:
            raise ValueError(wrong)
        if (node.block is None) == (node.same_as is None):
            raise ValueError(f"node {node.name!r} needs exactly one of block and same_as")
        if isinstance(node.each, bool) or not isinstance(node.each, int) or node.each < 0:
            raise ValueError(f"'each' of node {node.name!r} is a number of axes, got {node.each!r}")
        _refuse_copies(node)
        if isinstance(node.block, Graph):
            if not isinstance(node.inputs, Mapping):
                node = replace(node, inputs={inner: inner for inner in node.inputs})
            if isinstance(node.out, tuple):
                node = replace(node, out={inner: inner for inner in node.out})
        self.nodes.append(node)

    def dag(self, outputs: Iterable[str] | None) -> Dag:
        """The order of the nodes towards ``outputs``, and what is wrong with it."""
        inputs = [name for name in self.inputs if name not in self.drawn.values()]
        return Dag(self._dag_nodes(self.drawn), inputs, outputs)

    def _dag_nodes(self, drawn: Mapping[str, str]) -> list[DagNode]:
        """The nodes, which write what is ``drawn`` of their values too."""
        return [
            DagNode(
                node.value_name,
                node.reads,
                (*node.writes, *(drawn[value] for value in node.writes if value in drawn)),
                node.group and node.title,
            )
            for node in self.nodes
        ]

    def to_networkx(self) -> DiGraph:
        """The inputs and nodes as a `networkx.DiGraph`, for its algorithms; changing it changes nothing here.

        A node has a ``kind``, "input" or "node", an input its ``shape``, any other node the name of its ``block``. An
        edge has ``values``, the names of all values that go along it. A head is called ``heads:<name>``, and an input
        with the name of a node whose outputs have other names ``("input", name)``.
        """
        dag = self.dag(None)
        graph = dag.to_networkx()
        for name, known_as in dag.input_names().items():
            graph.nodes[known_as]["shape"] = self.inputs[name].shape
        blocks = {node.name: node for node in self.nodes if node.group is None}
        for node in self.nodes:
            graph.nodes[node.value_name]["block"] = _block_word(
                blocks.get(node.same_as or "", node)
            )
        return graph

    def problems_of(self, dag: Dag) -> list[GraphProblem]:
        """Mistakes that show without shapes: cycles, unknown, unread, duplicate and unused names of this graph."""
        problems = [*self._nesting_problems(), *self._same_as_problems()]
        by_key = {node.value_name: node for node in self.nodes}
        for problem in dag.problems():
            if problem.kind == "unused_input" and problem.name in self.optional:
                continue
            problems.append(_in_node(self._explained(problem), by_key))
        return problems

    def _explained(self, problem: DagProblem) -> DagProblem:
        """``problem``; of a cycle that only what is drawn closes with the reason why there cannot be one."""
        if problem.kind != "cycle" or not self.drawn:
            return problem
        if any(problem.node in cycle for cycle in Dag(self._dag_nodes({}), None, None).cycles()):
            return problem
        title = next(n.title for n in self.nodes if n.value_name == problem.node)
        message = (
            problem.message
            if "form a cycle" in problem.message
            else f"{title} reads its own action"
        )
        advice = "no head can read an action that is drawn from its own output; let one of them read other values"
        return replace(problem, message=f"{message}; {advice}")

    def _nesting_problems(self) -> list[GraphProblem]:
        """The first node that holds too many graphs within one another; a graph may even hold itself."""
        left = [(n.block, n.path, 1) for n in self.nodes if isinstance(n.block, Graph)]
        seen: set[tuple[int, int]] = set()  # graphs that were looked into, each at its depth
        while left:
            graph, path, depth = left.pop()
            if depth > MAX_NESTING:
                message = f"graphs are nested in it more than {MAX_NESTING} deep"
                advice = "does one hold itself? Put the nodes of inner graphs into outer ones"
                return [GraphProblem(path, "block", f"{message}; {advice}", blocks_order=True)]
            if (id(graph), depth) not in seen:
                seen.add((id(graph), depth))
                inner = (node.block for node in graph.nodes)
                left += [(below, path, depth + 1) for below in inner if isinstance(below, Graph)]
        return []

    def _same_as_problems(self) -> list[GraphProblem]:
        nodes = {node.name: node for node in self.nodes if node.group is None}
        shared = [node for node in self.nodes if node.same_as is not None]
        messages = [(node.name, _same_as_problem(node, nodes)) for node in shared]
        return [GraphProblem((name,), "same_as", text) for name, text in messages if text]


def _block_word(node: Node) -> str:
    """What a summary calls the block of a node."""
    if isinstance(node.block, Graph):
        return "graph" if node.copies is None else "ensemble"
    if isinstance(node.block, str):
        return node.block
    is_module = isinstance(node.block, type | nn.Module)
    return block_name(node.block) if is_module else "functional"


def _refuse_copies(node: Node) -> None:
    """Raise ValueError where ``node`` cannot have its `copies`."""
    copies = node.copies
    if copies is None:
        return
    if not isinstance(node.block, Graph):
        raise ValueError(f"'copies' of node {node.name!r} needs a nested graph as its block")
    if isinstance(copies, bool) or not isinstance(copies, int):
        raise ValueError(f"'copies' of node {node.name!r} is a number of networks, got {copies!r}")
    if copies < 1:
        raise ValueError(f"'copies' of node {node.name!r} is at least 1, got {copies}")


def _same_as_problem(node: Node, nodes: Mapping[str, Node]) -> str | None:
    name = str(node.same_as)
    other = nodes.get(name)
    if other is None or other is node:
        near = did_you_mean(name, [known for known in nodes if known != node.name])
        return f"'same_as' names the unknown node {name!r}" + near
    if other.same_as is not None:
        return f"'same_as' names {name!r}, which is itself 'same_as'; name {other.same_as!r}"
    if node.settings:
        return f"a node with 'same_as' has the settings of {name!r}; remove {min(node.settings)!r}"
    return None


def _in_node(problem: DagProblem, nodes: Mapping[str, Node]) -> GraphProblem:
    path: tuple[str, ...] = ()
    key = None
    if problem.node is not None:
        node = nodes[problem.node]
        path = node.path
        key = {"unknown": "in", "duplicate": "out" if node.out else None}.get(problem.kind)
    blocks_order = problem.kind in ("cycle", "duplicate")
    return GraphProblem(path, key, problem.message, False, blocks_order, problem.kind, problem.name)
