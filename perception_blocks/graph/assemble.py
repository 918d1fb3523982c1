"""From a Graph to built nodes: in order, each block is given its shapes and constructed.

Everything that can be wrong with a node is found here, for all nodes in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from perception_blocks.base_block import PerceptionBlock, block_label, block_name
from perception_blocks.graph.built import BuiltModule, BuiltNode
from perception_blocks.graph.collector import collection_paused
from perception_blocks.graph.construct import (
    Construction,
    NodeConstruction,
    construct,
    outputs_of,
    resolve_block,
)
from perception_blocks.graph.graph import Block, Graph, GraphError, GraphProblem, Node
from perception_blocks.graph.wiring import (
    CombinedNodeError,
    NodeError,
    filled,
    kept_mask,
    module_name,
    nested_graph,
    nested_outputs,
    output_names,
    strip_each,
    wires,
    with_masks,
)
from perception_blocks.lowering.program import Step
from perception_blocks.port import InputShapeError, Port, Shape, format_shape
from perception_blocks.settings import SettingsError, check_settings

__all__ = ["BuiltNode", "assemble"]

M = TypeVar("M", bound=nn.Module)

# Makes the network of a nested graph from its outputs, its path and its number of copies (None: just one network).
Nest = Callable[[Graph, list[str], tuple[str, ...], int | None], Any]


def assemble(
    graph: Graph,
    outputs: Sequence[str],
    root: nn.Module,
    construction: Construction,
    nest: Nest,
    path: tuple[str, ...],
) -> list[BuiltNode]:
    """Build what ``outputs`` need, register the modules below ``root``, and return the nodes in order.

    Raises GraphError with every problem found; an exception from a user's own class passes through, with a note.
    """
    dag = graph.dag(outputs)
    problems = graph.problems_of(dag)
    assembly = _Assembly(graph, root, construction, nest, path)
    nodes = {node.value_name: node for node in graph.nodes}
    if any(problem.blocks_order for problem in problems):
        assembly.refuse(problem for problem in problems if problem.blocks_order)
        order = dag.partial_order()
    elif problems:  # all nodes are checked then: a mistake may have cut off others
        order = graph.dag(None).order()
    else:
        order = dag.order()
    with collection_paused():
        for step in order:
            assembly.add(nodes[step.name])
    if problems or assembly.problems:
        raise GraphError([*problems, *assembly.problems], assembly.ports)
    return assembly.built


# Keys that a node with `same_as` has itself.
_WIRING = ("in", "out", "each", "same_as")


class _ReportedError(Exception):
    """The node cannot be built for a reason that is reported already."""


class _Assembly:
    """The state of one run over the nodes of a graph."""

    def __init__(
        self,
        graph: Graph,
        root: nn.Module,
        construction: Construction,
        nest: Nest,
        path: tuple[str, ...],
    ) -> None:
        self.ports: dict[str, Port] = dict(graph.inputs)
        self.problems: list[GraphProblem] = []
        self._noted: set[GraphProblem] = set()
        self.built: list[BuiltNode] = []
        self._root = root
        self._construction = construction
        self._nest = nest
        self._path = path
        self._by_name = {node.name: node for node in graph.nodes if node.group is None}
        self._shared: dict[str, tuple[Any, list[Shape]]] = {}
        self._groups: dict[str, dict[str, str]] = {}
        self._unclear: set[str] = set()  # values of which it is not known what they are
        self._refused: set[tuple[str, ...]] = set()  # paths of nodes that cannot be built

    def refuse(self, problems: Iterable[GraphProblem]) -> None:
        """Leave out the nodes of ``problems``, and take values of two writers for unknown."""
        for problem in problems:
            self._refused.add(problem.path)
            if problem.kind == "duplicate" and problem.name is not None:
                self._unclear.add(problem.name)
                self.ports.pop(problem.name, None)

    def add(self, node: Node) -> None:
        """Build ``node``, or note what is wrong with it."""
        try:
            if node.path in self._refused or any(name not in self.ports for name in node.reads):
                # What it reads is unknown or failed: that is reported there.
                self._check_settings(node)
                return
            built = self._build(node)
        except _ReportedError:
            return
        except (NodeError, CombinedNodeError, InputShapeError, SettingsError, GraphError) as error:
            for each in error.errors if isinstance(error, CombinedNodeError) else [error]:
                self._note_error(node, each)
        else:
            self.built.append(built)
            ports = built.out_ports
            self.ports |= {name: ports[name] for name in ports if name not in self._unclear}

    def _check_settings(self, node: Node) -> None:
        """Note what is wrong with ``node`` whatever it reads."""
        source = self._source(node)
        if isinstance(source.block, Graph):
            return
        block, settings = resolve_block(source.block, source.settings)
        if isinstance(block, type) and issubclass(block, PerceptionBlock):
            problems = check_settings(block, settings, block_label(block), partial=True)
            if problems:
                raise SettingsError(problems)

    def _note_error(self, node: Node, error: Exception) -> None:
        if isinstance(error, NodeError):
            self._note(node, error.key, error.message, error.of_key, error.kind)
        elif isinstance(error, InputShapeError):
            if node.each:
                error = _within_each(error, node.each)
            names = self._reads_in_order(node)
            message = f"block {node.title} {error.render(names)}"
            gives = [(names[i], f"{names[i]!r} gives {shape}") for i, shape in error.got.items()]
            self._note(node, "in", message, related=tuple(gives))
        elif isinstance(error, SettingsError):
            for wrong in error.problems:
                self._note(node, wrong.setting, wrong.message, wrong.misspelt)
        elif isinstance(error, GraphError):
            self.problems += [problem.within(node.name) for problem in error.problems]

    def _reads_in_order(self, node: Node) -> Sequence[str]:
        """What ``node`` reads, in the order of its block's inputs."""
        block, _ = resolve_block(self._source(node).block, {})
        return with_masks(block, *wires(node, block), self.ports, node.each)[0]

    def _note(
        self,
        node: Node,
        key: str | None,
        message: str,
        of_key: bool = False,
        kind: str = "",
        related: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Note a problem of ``node`` once; one of its block or settings, where these are written."""
        owner = node if key in _WIRING else self._source(node)
        if key not in (*_WIRING, "block", "init") and key not in owner.settings:
            key, of_key = None, False
        problem = GraphProblem(owner.path, key, message, of_key, kind=kind, related=related)
        if problem not in self._noted:
            self._noted.add(problem)
            self.problems.append(problem)

    def _build(self, node: Node) -> BuiltNode:
        source = self._source(node)
        if isinstance(source.block, Graph):
            return self._build_nested(node, source, source.block)
        block, settings = resolve_block(source.block, source.settings)
        reads, arguments = wires(node, block)
        reads, arguments = with_masks(block, reads, arguments, self.ports, node.each)
        in_ports = tuple(self.ports[name] for name in reads)
        inner, axes = strip_each(node, list(in_ports))
        settings = filled(block, settings, inner)
        site = NodeConstruction(
            self._path + node.path,
            block,
            settings,
            inner,
            arguments,
            self._construction,
            source.init,
        )
        module = self._module(source, inner, lambda: construct(site, source))
        outs, single = self._outputs(site, module)
        names = output_names(node, len(outs), block)
        ours = isinstance(module, PerceptionBlock)
        states: Mapping[str, Shape] = module.state_shapes if ours else {}
        _refuse_each(node, states, block)
        dropped = (None,) * (len(outs) - len(names))
        step = Step(
            module=self._register(source, module),
            inputs=reads,
            outputs=(*(None if name == "_" else name for name in names), *dropped),
            arguments=arguments,
            ranks=None if ours else tuple(len(port.shape) for port in inner),
            single=single,
            state=_state_names(node, states),
        )
        mask = kept_mask(node, module, reads, self.ports)
        outs = [_masked(port, mask if node.each or port is outs[0] else None) for port in outs]
        named = {name: port for name, port in zip(names, outs) if name != "_"}
        out_ports, shapes = _with_axes(named, axes), _state_shapes(step, states)
        built = BuiltNode(node, block_name(block), settings, in_ports, out_ports, step, shapes)
        self._construction.note(site.path, BuiltModule(built, module))
        return built

    def _outputs(self, site: NodeConstruction, module: nn.Module) -> tuple[list[Port], bool]:
        if isinstance(module, PerceptionBlock) or isinstance(site.block, nn.Module):
            return outputs_of(site, module)
        key = site.key, site.arguments
        return self._construction.measured(site.path, key, lambda: outputs_of(site, module))

    def _build_nested(self, node: Node, source: Node, block: Graph) -> BuiltNode:
        if source.settings:
            first = min(source.settings)
            raise NodeError(first, f"a nested graph takes no settings, got {first!r}", True)
        if source.init is not None:
            raise NodeError(
                "init", "a nested graph has no weights of its own; give 'init' to its nodes"
            )
        inputs = node.inputs
        wired = inputs if isinstance(inputs, Mapping) else {name: name for name in inputs}
        inner, axes = strip_each(node, [self.ports[name] for name in wired.values()])
        masks = {port.mask: port.mask for port in inner if port.mask is not None}
        wired = {**masks, **wired}  # what is masked brings its mask along
        inner = [*(self.ports[name] for name in masks), *inner]
        graph = nested_graph(block, dict(zip(wired, inner)), masks)
        out = nested_outputs(node, graph)
        net = self._module(
            source,
            inner,
            lambda: self._nest(graph, list(out.values()), self._path + node.path, source.copies),
        )
        _refuse_each(node, net.state_shapes, None)
        step = Step(
            module=self._register(source, net),
            inputs=tuple(wired[name] for name in net.in_keys),
            outputs=tuple(out),
            inner=(tuple(net.in_keys), tuple(out.values())),
            state=_state_names(node, net.state_shapes),
        )
        named = {name: net.out_ports[inner_name] for name, inner_name in out.items()}
        if source.copies is not None:
            _refuse_masked(named)
        if node.each:
            mask = kept_mask(node, net, tuple(wired.values()), self.ports)
            named = {name: _masked(port, mask) for name, port in named.items()}
        in_ports = tuple(self.ports[name] for name in step.inputs)
        label = "graph" if source.copies is None else "ensemble"
        settings = {} if source.copies is None else {"copies": source.copies}
        out_ports, shapes = _with_axes(named, axes), _state_shapes(step, net.state_shapes)
        built = BuiltNode(node, label, settings, in_ports, out_ports, step, shapes)
        self._construction.note(self._path + node.path, BuiltModule(built, net))
        return built

    def _source(self, node: Node) -> Node:
        """The node whose block is used: ``node`` itself, or the node that `same_as` names."""
        if node.same_as is None:
            return node
        if node.same_as not in self._by_name or self._by_name[node.same_as].same_as is not None:
            raise _ReportedError
        return self._by_name[node.same_as]

    def _module(self, source: Node, inner: Sequence[Port], make: Callable[[], M]) -> M:
        """The module of a node: a new one, or the module of the node that it shares with."""
        if source.group is not None:
            return make()
        shapes = [port.shape for port in inner]
        if source.name not in self._shared:
            self._shared[source.name] = (make(), shapes)
        module, built_with = self._shared[source.name]
        if built_with != shapes:
            expected, got = (" and ".join(map(format_shape, s)) for s in (built_with, shapes))
            message = f"{source.name!r} was built for {expected} and cannot take {got}"
            raise NodeError("same_as", message)
        return module

    def _register(self, node: Node, module: nn.Module) -> tuple[str, ...]:
        """Make ``module`` a child of the network, or of its group; returns its path."""
        if node.group is None:
            self._root._modules[node.name] = module
            return (node.name,)
        if node.group in self._by_name:
            message = f"{node.group!r} is taken by the network itself; choose another name"
            self._note(self._by_name[node.group], None, message)
            raise _ReportedError
        container = self._root._modules.setdefault(node.group, nn.Module())
        assert container is not None
        names = self._groups.setdefault(node.group, {})
        names[node.name] = module_name(node.name)
        container._modules[names[node.name]] = module
        return (node.group, names[node.name])


def _within_each(error: InputShapeError, each: int) -> InputShapeError:
    """The same with advice that holds where a block is applied to each element."""
    advice = error.advice.replace(" block before it", f" block with 'each: {each}' before it")
    if "()" in error.got.values():
        advice = "lower 'each', or leave it out"
    changed = InputShapeError(error.rule, {}, advice)
    changed.got = error.got
    return changed


def _masked(port: Port, mask: str | None) -> Port:
    return port if port.mask == mask else replace(port, mask=mask)


def _refuse_each(node: Node, states: Mapping[str, Shape], block: Block | None) -> None:
    """Raise NodeError where a block with memory, or a graph (None) with one inside, is to be repeated."""
    if states and node.each:
        label = "a graph" if block is None else block_label(block)
        raise NodeError("each", f"'each' cannot repeat {label}: it carries a state")


def _refuse_masked(outputs: Mapping[str, Port]) -> None:
    """The copies come first in what an ensemble gives, where a mask's elements would have to be."""
    for name, port in outputs.items():
        if port.mask is not None:
            message = (
                f"block 'ensemble' would drop the mask of {name!r}; pool or attend inside of it"
            )
            raise NodeError("out", f"{message} (masked_global_pooling, attention_pooling)")


def _state_names(node: Node, states: Mapping[str, Shape]) -> tuple[tuple[str, str], ...]:
    """(name in the module, name in the network) of each part of a node's state."""
    return tuple((name, f"{node.name}/{name}") for name in states)


def _state_shapes(step: Step, states: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: states[inner_name] for inner_name, name in step.state}


def _with_axes(ports: Mapping[str, Port], axes: Shape) -> dict[str, Port]:
    """A block's outputs with the ``axes`` that `each` took off its inputs."""
    return {name: replace(p, shape=axes + p.shape) if axes else p for name, p in ports.items()}
