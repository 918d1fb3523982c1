"""From a network's spec and the Ports it may see to a `Network`; every problem is noted at its place in the spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from composer.construction import NodePath, SeededConstruction
from composer.errors import Path, Problems
from composer.model_spec import HeadsSpec, NetworkSpec, NodeSpec
from composer.network import CustomNetwork, GraphNetwork, Network
from composer.source import Source
from composer.template import expand
from composer.trust import PathError, import_trusted
from perception_blocks.graph import Graph, GraphError, GraphProblem, Node
from perception_blocks.inference import InferenceBlock
from perception_blocks.init import initializer
from perception_blocks.measure import PROBE_BATCH, feature_shape, measure
from perception_blocks.port import Port, Shape, format_shape
from perception_blocks.registry import did_you_mean, near_name
from perception_blocks.settings import check_settings

__all__ = ["Context", "Demand", "build_network", "place_of"]


# Names that policy and critic give to children of their own: beside a user's, and beside the nodes of a graph.
ADDED = ("distributions", "normalizers")


@dataclass
class Context:
    """What building needs beside a network's own spec."""

    source: Source
    problems: Problems
    allow: tuple[str, ...]
    seed: int
    meta: bool
    read: set[str] = field(default_factory=set)  # observations that some network reads
    hidden: dict[str, str] = field(default_factory=dict)  # values out of reach, and in words why
    shared: dict[str, Port] = field(default_factory=dict)  # what the policy hands to the critic


@dataclass(frozen=True)
class Demand:
    """What a network must give: for each head its width, and in words what asks for it; and other values by name."""

    heads: Mapping[str, tuple[int, ...]]
    reasons: Mapping[str, str]
    values: tuple[str, ...] = ()
    kind: str = "action"  # what a head is for, in messages
    injected: Mapping[str, Any] = field(
        default_factory=dict
    )  # constructor arguments of a custom class


def build_network(
    name: str, spec: NetworkSpec, ports: Mapping[str, Port], demand: Demand, context: Context
) -> tuple[Network, SeededConstruction] | None:
    """The network called ``name``; None when problems were noted.

    An exception from a user's own class passes through, with a note that names the node and its line.
    """

    if spec.template is not None:
        expanded = expand(spec, ports, context.problems)
        if expanded is None:
            return None
        spec = expanded

    def where(path: NodePath) -> str:
        place = place_of(spec, path)
        position = context.source.position(place)
        node = "/".join((name, *path))
        return f"{position}: {node}" if position else node

    construction = SeededConstruction(name, context.seed, meta=context.meta, where=where)
    if spec.target is not None:
        network = _custom_network(spec, ports, demand, context, construction)
    else:
        network = _graph_network(spec, ports, demand, context, construction)
    return None if network is None else (network, construction)


def _share(ports: Mapping[str, Port], demand: Demand, context: Context) -> None:
    """Remember the values that the critic is to read, also where the policy itself failed."""
    context.shared |= {name: ports[name] for name in demand.values if name in ports}


# --- graphs -----------------------------------------------------------------------------------------------------------


def _graph_network(
    spec: NetworkSpec,
    ports: Mapping[str, Port],
    demand: Demand,
    context: Context,
    construction: SeededConstruction,
) -> Network | None:
    before = len(context.problems)
    body, heads = _rules(spec, context)
    graph = _graph(spec.graph or {}, ports, context, body)
    graph.optional = set(ports)
    for node in spec.graph or {}:
        if node in ADDED:
            message = f"{node!r} is taken by the network itself; choose another name"
            context.problems.add((*spec.path, "graph", node), message)
    outputs = _add_heads(graph, spec, demand, heads, context)
    incomplete = len(context.problems) > before or demand.values != spec.shares
    outputs |= {name: name for name in demand.values}
    try:
        block = InferenceBlock(graph, outputs, construction=construction)
    except GraphError as error:
        for problem in error.problems:
            if not (incomplete and problem.kind == "unused_node"):  # a lost head would have used it
                _note(problem, spec, context)
        _share(error.ports, demand, context)
        return None
    context.read |= set(block.in_keys)
    _share(block.out_ports, demand, context)
    for head, width in demand.heads.items():
        if head in block.out_shapes and block.out_shapes[head] != width:
            message = _width_message(head, block.out_shapes[head], width, demand)
            context.problems.add(place_of(spec, ("heads", head)), message)
    return None if len(context.problems) > before else GraphNetwork(block)


def _graph(
    nodes: Mapping[str, NodeSpec], inputs: Mapping[str, Port], context: Context, rule: Any
) -> Graph:
    graph = Graph(inputs)
    for node in nodes.values():
        _add(graph, node, node.name, context, rule)
    return graph


def _add(
    graph: Graph,
    node: NodeSpec,
    name: str,
    context: Context,
    rule: Any,
    group: str | None = None,
    **extra: Any,
) -> None:
    """Add ``node`` to ``graph``."""
    if node.graph is not None:
        block: Any = _graph(node.graph, {}, context, rule)
    else:
        block = _block(node, context)
    init = node.init if node.init is not None else rule if _follows_rule(block) else None
    settings = {**extra, **node.settings}
    graph.add_node(
        Node(
            name,
            block,
            node.inputs,
            settings,
            node.out,
            node.each,
            node.same_as,
            init,
            group,
            node.copies,
        )
    )


def _block(node: NodeSpec, context: Context) -> Any:
    """What the node names; for a path that leads to no class, the error that says why."""
    if not isinstance(node.block, str) or "." not in node.block:
        return node.block
    try:
        return import_trusted(node.block, context.allow, nn.Module)
    except PathError as error:
        return error


def _follows_rule(block: Any) -> bool:
    """A network's `init` draws our blocks; a user's modules keep the weights of their constructor."""
    cls = block if isinstance(block, type) else type(block)
    return isinstance(block, str) or cls.__module__.startswith("perception_blocks.")


def _rules(spec: NetworkSpec, context: Context) -> tuple[Any, Any]:
    """The initialisers of the body and of the heads."""
    init = spec.init
    parts = ("body", "heads")
    if isinstance(init, Mapping) and init.keys() & set(parts):
        rules = {name: init.get(name) for name in parts}
        for name in init.keys() - set(parts):
            near = did_you_mean(name, parts) or "; there is 'body' and 'heads'"
            path = (*spec.path, "init", name)
            context.problems.add(path, f"{name!r} is not a part of a network{near}", key=True)
    else:
        rules = {"body": init, "heads": init}
    for name, rule in rules.items():
        try:
            initializer(rule)
        except ValueError as error:
            path = (*spec.path, "init", name) if rule is not init else (*spec.path, "init")
            context.problems.add(path, str(error))
            rules[name] = None
    return rules["body"], rules["heads"]


def _add_heads(
    graph: Graph, spec: NetworkSpec, demand: Demand, rule: Any, context: Context
) -> dict[str, str]:
    """Add one head per action (or value); returns output name -> value."""
    heads = spec.heads or _default_heads(graph, spec, context)
    if heads is None:
        return {}
    for name in heads.actions:
        if name not in demand.heads:
            near = (
                did_you_mean(name, demand.heads)
                or f"; there is {', '.join(map(repr, demand.heads))}"
            )
            context.problems.add(
                (*heads.path, name), f"{name!r} is no {demand.kind}{near}", key=True
            )
    outputs = {}
    for name, width in demand.heads.items():
        node = heads.default or heads.actions.get(name)
        if node is None:
            context.problems.add(
                heads.path, f"there is no head for the {demand.kind} {name!r}", key=True
            )
            continue
        if _is_value_itself(graph, node, demand):
            outputs[name] = node.reads[0]
            continue
        sizes = (
            {}
            if node.settings.keys() & {"output_units", "output_shape"} or node.graph
            else {"output_units": width[0]}
        )
        extra = sizes if node.block == "linear_output" else {}
        _add(graph, node, name, context, rule, group="heads", **extra)
        outputs[name] = f"heads:{name}"
    return outputs


def _default_heads(graph: Graph, spec: NetworkSpec, context: Context) -> HeadsSpec | None:
    """A critic's heads read the only value that nothing else reads."""
    sinks = graph.dag(None).sinks()
    path = (*spec.path, "graph")
    if len(sinks) != 1:
        names = ", ".join(map(repr, sinks))
        message = f"the graph ends in {len(sinks)} values ({names}); say which one the heads read: heads: {{in: ...}}"
        context.problems.add(path, message)
        return None
    node = NodeSpec((*path, sinks[0]), "", "linear_output", (sinks[0],))
    return HeadsSpec((*path, sinks[0]), default=node)


def _is_value_itself(graph: Graph, head: NodeSpec, demand: Demand) -> bool:
    """A critic whose graph already ends in a linear output gets no second one on top."""
    if (
        demand.kind != "value"
        or head.settings
        or head.block != "linear_output"
        or len(head.reads) != 1
    ):
        return False
    writer = next((node for node in graph.nodes if head.reads[0] in node.writes), None)
    return writer is not None and writer.block == "linear_output"


def _note(problem: GraphProblem, spec: NetworkSpec, context: Context) -> None:
    path = place_of(spec, problem.path)
    if problem.key is not None:
        path = (*path, problem.key)
    message = problem.message
    if problem.kind == "unknown" and problem.name in context.hidden:
        reader = "/".join(problem.path)
        message = f"{reader!r} reads {problem.name!r}, which {context.hidden[problem.name]}"
    shared_head = spec.heads and spec.heads.default and problem.path[:1] == ("heads",)
    if shared_head and any(known.path == path for known in context.problems):
        return  # the one head that is written makes all of them: said once
    context.problems.add(path, message, key=problem.of_key)


def place_of(spec: NetworkSpec, path: NodePath) -> Path:
    """Where a node is written in the spec."""
    if spec.template is not None and path[:1] != ("heads",):
        node = (spec.graph or {}).get(path[0]) if path else None
        return spec.template.path if node is None else node.path
    if not path:
        return spec.path if spec.graph is None else (*spec.path, "graph")
    if path[0] == "heads" and len(path) > 1 and "heads" not in (spec.graph or {}):
        if spec.heads is None:
            return (*spec.path, "graph")
        return (*spec.heads.path, path[1]) if spec.heads.actions else spec.heads.path
    place: Path = spec.path
    for name in path:
        place = (*place, "graph", name)
    return place


# --- a user's own class -----------------------------------------------------------------------------------------------


def _custom_network(
    spec: NetworkSpec,
    ports: Mapping[str, Port],
    demand: Demand,
    context: Context,
    construction: SeededConstruction,
) -> Network | None:
    cls = _target_class(spec, context)
    if cls is None:
        return None
    before = len(context.problems)
    _check_arguments(cls, spec, demand, context)
    try:
        rule = initializer(spec.init)
    except ValueError as error:
        context.problems.add((*spec.path, "init"), str(error))
        rule = None
    if len(context.problems) > before:
        return None
    shapes = {name: port.shape for name, port in ports.items()}
    injected = {"obs_shapes": shapes, **demand.injected}
    label = f"{cls.__module__}.{cls.__qualname__}"
    try:
        module = construction.build((), lambda: cls(**injected, **spec.arguments), resettable=False)
        if rule is not None:
            construction.draw((), module, rule)
        result = _probe(module, ports)
    except Exception as error:
        if _note_wrong_types(cls, spec, context):
            return None
        error.add_note(f"in {construction.where(())} ({label})")
        raise
    outs = _wrong_result(result, label, demand)
    taken = [repr(name) for name in ADDED if name in module._modules]
    if taken:
        outs = f"{label} has a child {', '.join(taken)}, which the network itself needs; rename it"
    if isinstance(outs, str):
        context.problems.add((*spec.path, "_target_"), outs)
        return None
    context.read |= set(ports)
    _share(outs, demand, context)
    return CustomNetwork(module, dict(ports), outs)


def _target_class(spec: NetworkSpec, context: Context) -> type[nn.Module] | None:
    target, path = spec.target, (*spec.path, "_target_")
    if isinstance(target, str):
        try:
            return import_trusted(target, context.allow, nn.Module)
        except PathError as error:
            context.problems.add(path, error.problems[0].message)
            return None
    if isinstance(target, type) and issubclass(target, nn.Module):
        return target
    context.problems.add(
        path, f"'_target_' is an nn.Module class or its dotted path, got {target!r}"
    )
    return None


def _check_arguments(
    cls: type[nn.Module], spec: NetworkSpec, demand: Demand, context: Context
) -> None:
    injected = {"obs_shapes": {}, **demand.injected}
    label = f"class {cls.__qualname__!r}"
    problems = check_settings(cls, {**injected, **spec.arguments}, label, skip=0)
    refused = [p.setting for p in problems if p.misspelt and p.setting in injected]
    if refused:
        names = " and ".join(map(repr, refused))
        message = f"{label} must take {names} in its constructor: the composer hands them over"
        context.problems.add((*spec.path, "_target_"), message)
    for problem in problems:
        if problem.setting in refused:
            continue
        if problem.misspelt:
            context.problems.add((*spec.path, problem.setting), problem.message, key=True)
        elif problem.setting not in spec.arguments and problem.setting not in injected:
            context.problems.add((*spec.path, "_target_"), problem.message)


def _note_wrong_types(cls: type[nn.Module], spec: NetworkSpec, context: Context) -> bool:
    """Whether an argument is not what its annotation says: then an exception is no surprise."""
    problems = check_settings(cls, spec.arguments, "", partial=True, skip=0)
    for problem in problems:
        context.problems.add((*spec.path, problem.setting), problem.message)
    return bool(problems)


def _probe(module: nn.Module, ports: Mapping[str, Port]) -> Any:
    """What forward returns for a batch of data that is not there; with memory, its outputs alone."""
    state_shapes = getattr(module, "state_shapes", None) or {}

    def call(*tensors: Tensor) -> Any:
        inputs = dict(zip(ports, tensors, strict=True))
        if not state_shapes:
            return module(inputs)
        zeros = {
            n: tensors[0].new_zeros((PROBE_BATCH, *s), dtype=torch.get_default_dtype())
            for n, s in state_shapes.items()
        }
        result = module(inputs, zeros, None)
        if not isinstance(result, tuple) or len(result) != 2:
            return result
        outputs, after = result
        _check_states(after, state_shapes)
        return outputs

    return measure(module, list(ports.values()), call)


def _check_states(after: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> None:
    for name, shape in shapes.items():
        got = tuple(after[name].shape[1:])
        if got != tuple(shape):
            shown = f"declares {format_shape(shape)}, but forward returns {format_shape(got)}"
            raise ValueError(f"the state {name!r} {shown}")


def _wrong_result(result: Any, label: str, demand: Demand) -> str | dict[str, Port]:
    """What is wrong with the outputs of a custom class, or their Ports."""
    wanted = [*demand.heads, *demand.values]
    names = ", ".join(map(repr, wanted))
    if not isinstance(result, Mapping):
        return (
            f"{label} returned a {type(result).__name__}; forward must return a dict with {names}"
        )
    lines = []
    for name in wanted:
        if name not in result:
            lines.append(
                f"{label} returned no {name!r}{did_you_mean(name, [k for k in result if k not in wanted])}"
            )
    meant = {near_name(name, result) for name in wanted if name not in result}
    for name in result:
        if name not in wanted and name not in meant:
            lines.append(
                f"{label} returned {name!r}, which is neither asked for nor shared; it must return {names}"
            )
    ports: dict[str, Port] = {}
    for name in wanted:
        if name in result:
            try:
                ports[name] = Port(feature_shape(result[name], f"output {name!r} of {label}"))
            except ValueError as error:
                lines.append(str(error))
                continue
            width = demand.heads.get(name)
            if width is not None and ports[name].shape != width:
                lines.append(_width_message(name, ports[name].shape, width, demand))
    return "\n".join(lines) if lines else ports


def _width_message(head: str, got: Shape, width: tuple[int, ...], demand: Demand) -> str:
    reason = demand.reasons.get(head, f"a {demand.kind}")
    return f"the head {head!r} has the shape {format_shape(got)}, but {reason} needs {format_shape(width)}"
