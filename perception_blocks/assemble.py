"""From a Graph to built nodes: blocks are found, given their shapes in order, and constructed.

Everything that can be wrong with a node is found here, for all nodes in one go.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from perception_blocks.block import InputShapeError, PerceptionBlock, block_label
from perception_blocks.custom import FunctionalBlock
from perception_blocks.graph import Graph, GraphError, GraphProblem, Node
from perception_blocks.init import Rule, draw_parameters, initializer
from perception_blocks.lowering import Step
from perception_blocks.measure import measure_lengths, output_shapes
from perception_blocks.port import Port, Shape, format_shape
from perception_blocks.registry import BLOCKS, did_you_mean
from perception_blocks.settings import SettingsError, check_settings

__all__ = ["BuiltNode", "Construction", "assemble", "resolve_block"]

# What each setting named in `from_ports` is called on the Port.
PORT_SETTINGS = {"num_embeddings": "cardinality"}


class Construction:
    """How modules come to be. The default constructs them as torch does; composer has one that draws from a seed."""

    def build(
        self, path: tuple[str, ...], factory: Callable[[], nn.Module], *, resettable: bool
    ) -> nn.Module:
        """The module of the node at ``path``; ``resettable`` ones can draw their weights later by themselves."""
        return factory()

    def draw(self, path: tuple[str, ...], module: nn.Module, rule: Rule) -> None:
        """Draw the weights of a module that is not ours, because its node has an ``init``."""
        draw_parameters(module, int(torch.randint(2**62, ())), rule)

    def where(self, path: tuple[str, ...]) -> str:
        """How notes on a user's own exceptions name the node."""
        return f"node {'/'.join(path)!r}"


# Makes the network of a nested graph from its outputs and its path.
Nest = Callable[[Graph, list[str], tuple[str, ...]], Any]


@dataclass(frozen=True)
class BuiltNode:
    """A node and what is known of it now; its module is found at ``step.module`` below the network."""

    node: Node
    label: str  # the block's registered name, class name or function name
    settings: Mapping[str, Any]  # as given, with what the Ports filled in
    in_ports: tuple[Port, ...]
    out_ports: Mapping[str, Port]
    step: Step
    state_shapes: Mapping[str, Shape]  # by name in the network: "node/h"


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
    problems = graph.problems(outputs)
    dag = graph.dag(outputs)
    if any(
        "cycle" in p.message or p.key == "out" or "used by two nodes" in p.message for p in problems
    ):
        raise GraphError(problems)
    assembly = _Assembly(graph, root, construction, nest, path)
    nodes = {node.value_name if node.group else node.name: node for node in graph.nodes}
    for step in dag.order():
        assembly.add(nodes[step.name])
    if problems or assembly.problems:
        raise GraphError([*problems, *assembly.problems], assembly.ports)
    return assembly.built


class _NodeError(Exception):
    """A problem of the node that is being built; gathered, never shown."""

    def __init__(self, key: str | None, message: str, of_key: bool = False) -> None:
        super().__init__(message)
        self.key, self.message, self.of_key = key, message, of_key


class _Reported(Exception):
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
        self.graph, self.root, self.construction, self.nest, self.path = (
            graph,
            root,
            construction,
            nest,
            path,
        )
        self.ports: dict[str, Port] = dict(graph.inputs)
        self.problems: list[GraphProblem] = []
        self.built: list[BuiltNode] = []
        self._by_name = {node.name: node for node in graph.nodes if node.group is None}
        self._shared: dict[str, tuple[nn.Module, list[Shape]]] = {}
        self._groups: dict[str, dict[str, str]] = {}

    def add(self, node: Node) -> None:
        if any(name not in self.ports for name in node.reads):
            return  # it reads what is unknown or failed: that is reported there
        path = (node.name,) if node.group is None else (node.group, node.name)
        try:
            built = self._build(node, path)
        except _Reported:
            return
        except _NodeError as error:
            self.problems.append(GraphProblem(path, error.key, error.message, error.of_key))
        except InputShapeError as error:
            self.problems.append(GraphProblem(path, "in", self._render(node, error)))
        except SettingsError as error:
            found = [GraphProblem(path, p.setting, p.message, p.misspelt) for p in error.problems]
            self.problems += [
                replace(p, key=None) if p.key not in node.settings else p for p in found
            ]
        except GraphError as error:
            self.problems += [problem.within(node.name) for problem in error.problems]
        else:
            self.built.append(built)
            self.ports |= built.out_ports

    def _render(self, node: Node, error: InputShapeError) -> str:
        return f"block {node.name!r} {error.render(node.reads)}"

    def _build(self, node: Node, path: tuple[str, ...]) -> BuiltNode:
        source = self._source(node)
        if isinstance(source.block, Graph):
            return self._build_nested(node, source, path)
        block, settings = resolve_block(source.block), source.settings
        if not isinstance(block, (type, nn.Module)):
            block, settings = FunctionalBlock, {"function": block, **settings}
        reads, arguments = _wires(node, block)
        inner, axes = _strip_each(node, [self.ports[name] for name in reads])
        settings = _filled(block, settings, inner)
        module = self._module(
            node, source, path, lambda: self._construct(source, path, block, settings, inner), inner
        )
        outs, single = self._outputs(module, inner, arguments, path)
        names = _output_names(node, len(outs), _label(block))
        ours = isinstance(module, PerceptionBlock)
        own_state: Mapping[str, Shape] = module.state_shapes if ours else {}
        if own_state and node.each:
            raise _NodeError("each", f"'each' cannot repeat {_label(block)}: it carries a state")
        step = Step(
            module=self._register(source, module),
            inputs=reads,
            outputs=tuple(None if name == "_" else name for name in names)
            + (None,) * (len(outs) - len(names)),
            arguments=arguments,
            ranks=None if ours else tuple(len(port.shape) for port in inner),
            single=single,
            state=tuple((own, f"{node.name}/{own}") for own in own_state),
        )
        ports = {
            name: replace(port, shape=axes + port.shape)
            for name, port in zip(names, outs)
            if name != "_"
        }
        state = {name: own_state[own] for own, name in step.state}
        in_ports = tuple(self.ports[name] for name in reads)
        return BuiltNode(node, _name(block), settings, in_ports, ports, step, state)

    def _source(self, node: Node) -> Node:
        """The node whose block is used: its own, or that of the node named by `same_as`."""
        if node.same_as is None:
            return node
        if node.same_as not in self._by_name or self._by_name[node.same_as].same_as is not None:
            raise _Reported
        return self._by_name[node.same_as]

    def _outputs(
        self,
        module: nn.Module,
        inner: list[Port],
        arguments: tuple[str, ...] | None,
        path: tuple[str, ...],
    ) -> tuple[list[Port], bool]:
        """Ports of the outputs, and whether the module returns a bare tensor."""
        if isinstance(module, PerceptionBlock):
            outs = module.out_ports(inner)
            return outs, len(outs) == 1
        return self._measure(module, inner, arguments, path)

    def _module(
        self,
        node: Node,
        source: Node,
        path: tuple[str, ...],
        construct: Callable[[], Any],
        inner: list[Port],
    ) -> Any:
        """The module of the node: a new one, or that of the node it shares with."""
        shapes = [port.shape for port in inner]
        if source.group is not None:
            return construct()
        if source.name not in self._shared:
            self._shared[source.name] = (construct(), shapes)
        module, built_with = self._shared[source.name]
        if built_with != shapes:
            expected, got = (" and ".join(map(format_shape, s)) for s in (built_with, shapes))
            raise _NodeError(
                "same_as", f"{source.name!r} was built for {expected} and cannot take {got}"
            )
        return module

    def _construct(
        self,
        node: Node,
        path: tuple[str, ...],
        block: Any,
        settings: Mapping[str, Any],
        inner: list[Port],
    ) -> nn.Module:
        rule = _rule(node)
        if isinstance(block, nn.Module):
            if settings:
                raise _NodeError(
                    min(settings), f"a ready module takes no settings, got {min(settings)!r}", True
                )
            module = block
        elif issubclass(block, PerceptionBlock):
            module = self._construct_ours(path, block, settings, inner)
        else:
            module = self._construct_theirs(path, block, settings)
        if rule is not None:
            if isinstance(module, PerceptionBlock):
                module.initializer = rule
                if not any(p.is_meta for p in module.parameters()):
                    module.reset_parameters()
            else:
                self.construction.draw(self.path + path, module, rule)
        return module

    def _construct_ours(
        self,
        path: tuple[str, ...],
        block: type[PerceptionBlock],
        settings: Mapping[str, Any],
        inner: list[Port],
    ) -> nn.Module:
        label = block_label(block)
        problems = check_settings(block, settings, label)
        if problems:
            raise SettingsError(problems)
        block.check_ports(inner)
        built_in = block.__module__.partition(".")[0] == __name__.partition(".")[0]
        try:
            module = self.construction.build(
                self.path + path,
                lambda: block([port.shape for port in inner], **settings),
                resettable=built_in or "reset_parameters" in vars(block),
            )
            module.out_shapes  # noqa: B018 - measured now, so that a failure names this node
        except (InputShapeError, SettingsError):
            raise
        except ValueError as error:
            raise _NodeError(None, str(error)) from error
        except Exception as error:
            error.add_note(f"in {self.construction.where(self.path + path)} ({label})")
            raise
        return module

    def _construct_theirs(
        self, path: tuple[str, ...], cls: type[nn.Module], settings: Mapping[str, Any]
    ) -> nn.Module:
        problems = check_settings(cls, settings, f"{_label(cls)}", skip=0)
        wrong = [p for p in problems if p.misspelt or p.setting not in settings]
        if wrong:
            raise SettingsError(wrong)
        try:
            return self.construction.build(
                self.path + path, lambda: cls(**settings), resettable=False
            )
        except Exception as error:
            raise self._blame(error, cls, path, None) from error

    def _measure(
        self,
        module: nn.Module,
        inner: list[Port],
        names: tuple[str, ...] | None,
        path: tuple[str, ...],
    ) -> tuple[list[Port], bool]:
        def call(*tensors: Any) -> Any:
            return (
                module(*tensors)
                if names is None
                else module(**dict(zip(names, tensors, strict=True)))
            )

        try:
            results = measure_lengths(module, inner, call)
        except Exception as error:
            raise self._blame(error, type(module), path, "in", inner) from error
        try:
            shapes, single = output_shapes(results, _label(type(module)))
            return [Port(shape) for shape in shapes], single
        except ValueError as error:
            raise _NodeError("in", str(error)) from error

    def _blame(
        self,
        error: Exception,
        cls: type,
        path: tuple[str, ...],
        key: str | None,
        ports: Sequence[Port] = (),
    ) -> Exception:
        """torch's own classes were given wrong settings or shapes; a user's own class has a bug to be seen whole."""
        if cls.__module__.startswith("torch."):
            shapes = " and ".join(format_shape(port.shape) for port in ports)
            what = f"cannot take {shapes}" if key else "cannot be built"
            return _NodeError(
                key,
                f"{_label(cls)} {what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            )
        error.add_note(f"in {self.construction.where(self.path + path)} ({_label(cls)})")
        return error

    def _register(self, node: Node, module: nn.Module) -> tuple[str, ...]:
        if node.group is None:
            self.root._modules[node.name] = module
            return (node.name,)
        if node.group in self._by_name:
            raise _NodeError(
                None, f"a node is named {node.group!r}, like the group of {node.name!r}; rename it"
            )
        container = self.root._modules.setdefault(node.group, nn.Module())
        names = self._groups.setdefault(node.group, {})
        if node.name not in names:
            names[node.name] = _module_name(node.name, set(names.values()))
        assert container is not None
        container._modules[names[node.name]] = module
        return (node.group, names[node.name])

    def _build_nested(self, node: Node, source: Node, path: tuple[str, ...]) -> BuiltNode:
        if source.settings:
            raise _NodeError(
                min(source.settings),
                f"a nested graph takes no settings, got {min(source.settings)!r}",
                True,
            )
        wires = (
            node.inputs
            if isinstance(node.inputs, Mapping)
            else {name: name for name in node.inputs}
        )
        ports, axes = _strip_each(node, [self.ports[name] for name in wires.values()])
        graph = _nested_graph(source.block, dict(zip(wires, ports)))
        out = _nested_outputs(node, graph)
        net = self._module(
            node,
            source,
            path,
            lambda: self.nest(graph, list(out.values()), self.path + path),
            ports,
        )
        if net.state_shapes and node.each:
            raise _NodeError("each", "'each' cannot repeat a graph that carries a state")
        state = tuple((own, f"{node.name}/{own}") for own in net.state_shapes)
        step = Step(
            module=self._register(source, net),
            inputs=tuple(wires[name] for name in net.in_keys),
            outputs=tuple(out),
            inner=(tuple(net.in_keys), tuple(out.values())),
            state=state,
        )
        outs = {name: net.out_ports[own] for name, own in out.items()}
        out_ports = {name: replace(port, shape=axes + port.shape) for name, port in outs.items()}
        state_shapes = {name: net.state_shapes[own] for own, name in state}
        in_ports = tuple(self.ports[name] for name in step.inputs)
        return BuiltNode(node, "graph", {}, in_ports, out_ports, step, state_shapes)


def resolve_block(block: Any) -> Any:
    """The class (or ready module) that a node names; functions become functional blocks.

    Raises _NodeError for an unknown name; dotted text stands for ``torch.nn`` classes only.
    """
    if isinstance(block, str):
        if block in BLOCKS:
            return BLOCKS.get(block)
        if re.fullmatch(r"torch\.nn(\.modules)?(\.\w+)*\.\w+", block):
            module, _, name = block.rpartition(".")
            found = getattr(_import(module), name, None)
            if isinstance(found, type) and issubclass(found, nn.Module):
                return found
            near = did_you_mean(name, (n for n, v in vars(torch.nn).items() if isinstance(v, type)))
            raise _NodeError("block", f"{module!r} has no module class {name!r}{near}")
        if "." in block:
            raise _NodeError(
                "block", f"{block!r} is no registered block; from Python, give the class itself"
            )
        raise _NodeError("block", f"unknown block {block!r}{did_you_mean(block, BLOCKS)}")
    is_module_class = isinstance(block, type) and issubclass(block, nn.Module)
    is_function = callable(block) and not isinstance(block, type)
    if is_module_class or is_function:  # a ready module is callable too
        return block
    raise _NodeError(
        "block", f"a block is a name, an nn.Module class, a module or a function, got {block!r}"
    )


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _wires(node: Node, block: Any) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The values that the block reads in the order of its forward, and keyword names where positions do not do."""
    if not isinstance(node.inputs, Mapping):
        return node.inputs, None
    parameters = inspect.signature(block.forward).parameters
    known = [name for name in parameters if name != "self"]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in node.inputs:
        if name not in known and not takes_any:
            free = [other for other in known if other not in node.inputs]
            near = did_you_mean(name, free) or f"; it takes {', '.join(map(repr, known))}"
            raise _NodeError("in", f"{name!r} is not an argument of {_label(block)}{near}")
    ordered = sorted(
        node.inputs, key=lambda name: known.index(name) if name in known else len(known)
    )
    kinds = {parameters[name].kind for name in ordered if name in parameters}
    positional = ordered == known[: len(ordered)] and inspect.Parameter.KEYWORD_ONLY not in kinds
    return tuple(node.inputs[name] for name in ordered), None if positional else tuple(ordered)


def _strip_each(node: Node, ports: list[Port]) -> tuple[list[Port], Shape]:
    """Ports without their first `each` axes, which all inputs must share, and those axes."""
    if not node.each:
        return ports, ()
    for name, port in zip(node.reads, ports):
        if len(port.shape) < node.each:
            shape = format_shape(port.shape)
            raise _NodeError(
                "each", f"'each: {node.each}' needs as many axes; {name!r} has the shape {shape}"
            )
    axes = {port.shape[: node.each] for port in ports}
    if len(axes) > 1:
        sizes = " and ".join(format_shape(a) for a in sorted(axes, key=str))
        raise _NodeError(
            "each", f"'each: {node.each}' needs inputs with the same first axes, got {sizes}"
        )
    return [
        replace(port, shape=port.shape[node.each :]) for port in ports
    ], axes.pop() if axes else ()


def _filled(block: Any, given: Mapping[str, Any], ports: Sequence[Port]) -> dict[str, Any]:
    """The settings, and those of `from_ports` that the user left out and the first input's Port knows."""
    settings = dict(given)
    for name in getattr(block, "from_ports", ()):
        value = getattr(ports[0], PORT_SETTINGS.get(name, name), None) if ports else None
        if name not in settings and value is not None:
            settings[name] = value
    return settings


def _output_names(node: Node, count: int, label: str) -> tuple[str, ...]:
    if node.out is None:
        return (node.value_name,)
    if isinstance(node.out, Mapping):
        raise _NodeError("out", "'out' is a list of names; only a nested graph takes a mapping")
    if len(node.out) != count:
        raise _NodeError("out", f"'out' names {len(node.out)} outputs, but {label} has {count}")
    return node.out


def _nested_graph(graph: Graph, ports: Mapping[str, Port]) -> Graph:
    """The nested graph with the Ports that really come in."""
    declared = graph.inputs
    for name, port in ports.items():
        if declared and name not in declared:
            raise _NodeError(
                "in", f"the nested graph has no input {name!r}{did_you_mean(name, declared)}"
            )
        if declared and declared[name].shape != port.shape:
            expected, got = format_shape(declared[name].shape), format_shape(port.shape)
            raise _NodeError(
                "in", f"the nested graph declares {name!r} as {expected}, but gets {got}"
            )
    for name in declared:
        if name not in ports:
            raise _NodeError("in", f"the nested graph's input {name!r} is not given")
    inner = Graph(ports)
    inner.nodes = graph.nodes
    return inner


def _nested_outputs(node: Node, graph: Graph) -> dict[str, str]:
    """Outer name -> inner name of a nested graph's outputs."""
    if isinstance(node.out, Mapping):
        return dict(node.out)
    if node.out is not None:
        return {name: name for name in node.out}
    sinks = graph.dag(None).sinks()
    if len(sinks) != 1:
        names = ", ".join(map(repr, sinks))
        raise _NodeError(
            "out", f"the nested graph ends in {len(sinks)} values ({names}); say which with 'out'"
        )
    return {node.name: sinks[0]}


def _rule(node: Node) -> Rule | None:
    try:
        return initializer(node.init)
    except SettingsError as error:
        raise _NodeError("init", str(error)) from error
    except ValueError as error:
        raise _NodeError("init", str(error)) from error


def _label(block: Any) -> str:
    return f"block {_name(block)!r}"


def _name(block: Any) -> str:
    """A block's registered name, else the dotted path of a torch class, else its class name."""
    cls = block if isinstance(block, type) else type(block)
    path = f"torch.nn.{cls.__name__}" if cls.__module__.startswith("torch.nn.") else cls.__name__
    return BLOCKS.name_of(cls) or path


def _module_name(key: str, taken: set[str]) -> str:
    """A key of any text as a module's name: letters, digits and '_', not yet taken."""
    name = re.sub(r"\W", "_", key) or "_"
    while name in taken:
        name += "_"
    return name
