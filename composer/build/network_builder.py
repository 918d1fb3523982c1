"""From a network's spec and the Ports it may see to a `Network`; every problem is noted at its place in the spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import nn

from composer.build.construction import BuiltNetwork, SeededConstruction
from composer.build.context import (
    BuildContext,
    BuildNotes,
    Outcome,
    Requirements,
    VisiblePorts,
    checked_rule,
    width_problem,
)
from composer.build.custom_class import custom_network
from composer.build.observation_groups import group_names, named_observations, with_groups_read
from composer.critic.values import scalar_shape, value_block
from composer.network.autoregressive import AutoregressiveNetwork, levels_of
from composer.network.network import GraphNetwork
from composer.spec.model_spec import HeadsSpec, NetworkSpec, NodeSpec
from composer.spec.places import ENSEMBLE, NodePath, place_of, place_of_value
from composer.spec.references import origins
from composer.template.expansion import expand
from composer.trust import PathError, import_trusted
from perception_blocks.base_block import is_built_in
from perception_blocks.graph.graph import (
    LEFT_OUT,
    BlockSource,
    Graph,
    GraphError,
    GraphProblem,
    Node,
)
from perception_blocks.graph.wiring import LeftOutError
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port
from perception_blocks.registry import BLOCKS, MissingExtraError
from perception_blocks.words import (
    MOST_CHARACTERS,
    did_you_mean,
    hint,
    listing,
    near_name,
    readable,
)

__all__ = ["build_network"]

SIZED_BLOCKS = ("linear_output", "dueling")  # as heads they need not be told their width
SIZES = {"output_units", "output_shape"}
VALUE_HEADS = ("quantile_value", "categorical_value")  # with a width, one value for each action
WIRING = ("in", "out", "each", "same_as")  # keys of a node that are about others as well
ENVIRONMENT = ("environment",)  # what gives the observations
ENDS = ("linear_output", "dueling", "value", *VALUE_HEADS)


def build_network(
    name: str,
    spec: NetworkSpec,
    visible: VisiblePorts,
    requirements: Requirements,
    context: BuildContext,
    notes: BuildNotes,
) -> BuiltNetwork | None:
    """The network called ``name``; None when problems were noted. ``notes`` gets what it reads and shares.

    An exception from a user's own class passes through, with a note that names the node and its line.
    """
    if spec.template is not None:
        expanded = expand(spec, visible.ports, context.problems, notes.origins, notes.effects)
        if expanded is None:
            return None
        spec = notes.expanded[spec.path] = expanded
        values = tuple(name for name in requirements.values if name in (spec.graph or {}))
        requirements = replace(requirements, values=values)  # what is not has been noted
    spec = with_groups_read(spec, visible.ports)
    if spec.graph is not None:
        notes.origins |= origins(spec.graph, requirements.values)
    notes.ports.setdefault(spec.path, {}).update(visible.ports)
    construction = _construction(name, spec, context, notes)
    if spec.target is not None:
        outcome = custom_network(spec, visible.ports, requirements, context, construction)
    else:
        outcome = _graph_network(spec, visible, requirements, context, construction, notes)
    network, given = outcome.network, outcome.ports
    notes.read |= set(outcome.read)
    notes.shared |= {name: given[name] for name in requirements.values if name in given}
    if network is None:
        return None
    notes.networks.setdefault(spec.path, []).append(network)
    if context.meta:
        network.has_weights = False
        construction.when_weights_exist(network.weights_exist)
    return network, construction


def _construction(
    name: str, spec: NetworkSpec, context: BuildContext, notes: BuildNotes
) -> SeededConstruction:
    """How the nodes of the network called ``name`` are constructed, which says where in the spec they stand."""

    def where(path: NodePath) -> str:
        position = context.source.position(place_of(spec, path))
        node = "/".join((name, *path))
        return f"{position}: {node}" if position else node

    return context.construction(
        name,
        context.seed,
        meta=context.meta,
        where=where,
        place=partial(place_of, spec),
        budget=context.budget,
        on_built=partial(notes.add_built, spec.path),
    )


# --- graphs -----------------------------------------------------------------------------------------------------------


def _graph_network(
    spec: NetworkSpec,
    visible: VisiblePorts,
    requirements: Requirements,
    context: BuildContext,
    construction: SeededConstruction,
    notes: BuildNotes,
) -> Outcome:
    before = len(context.problems)
    drawn = _drawn_actions(spec, visible, requirements, context)
    graph, outputs = _wired(spec, visible.ports, drawn, requirements, context)
    incomplete = len(context.problems) > before or requirements.values != spec.shares
    several = requirements.copies > 1
    try:
        first = construction.trial() if several else construction
        block = InferenceBlock(graph, outputs, construction=first)
    except GraphError as error:
        for problem in error.problems:
            if not (incomplete and problem.kind == "unused_node"):  # a lost head would have used it
                _note(problem, spec, visible, context, notes)
        return Outcome(ports=error.ports)
    _note_wrong_widths(block, spec, requirements, context)
    reads_actions = any(name in block.in_ports for name in drawn)
    if reads_actions:
        _note_too_late(block, graph.drawn, spec, requirements, context)
    if len(context.problems) > before:
        return Outcome(None, block.in_keys, block.out_ports)
    if reads_actions:
        network = AutoregressiveNetwork(block, graph.drawn)
        return Outcome(network, list(network.in_ports), block.out_ports)
    if several:
        graph, outputs = _copied(graph, visible.ports, outputs, requirements.copies)
        block = InferenceBlock(graph, outputs, construction=construction)
    return Outcome(GraphNetwork(block), block.in_keys, block.out_ports)


def _wired(
    spec: NetworkSpec,
    ports: Mapping[str, Port],
    drawn: Mapping[str, Port],
    requirements: Requirements,
    context: BuildContext,
) -> tuple[Graph, dict[str, str]]:
    """The graph with its heads, which reads ``ports`` and ``drawn`` actions; and the value that gives each output."""
    body, heads = _rules(spec, context)
    graph = _graph(spec.graph or {}, {**ports, **drawn}, context, body)
    graph.optional = set(graph.inputs)
    for node in requirements.added:
        if node in (spec.graph or {}):
            message = f"{node!r} is taken by the network itself; choose another name"
            context.problems.add((*spec.path, "graph", node), message)
    outputs = _add_heads(graph, spec, requirements, heads, context)
    graph.drawn = {v: f"action/{n}" for n, v in outputs.items() if f"action/{n}" in drawn}
    read = {name for node in graph.nodes for name in node.reads}
    for name in drawn.keys() - read - set(graph.drawn.values()):
        del graph.inputs[name]  # its head is missing, and nothing asks for it
    return graph, outputs | {name: name for name in requirements.values}


def _drawn_actions(
    spec: NetworkSpec, visible: VisiblePorts, requirements: Requirements, context: BuildContext
) -> dict[str, Port]:
    """The actions that the graph may read; an observation of such a name is noted where it is read."""
    taken = [name for name in requirements.drawn if name in visible.ports]
    for node in spec.written_nodes:
        for name in dict.fromkeys(name for name in node.reads if name in taken):
            message = (
                f"{name!r} is an observation, and the action that the head {name.removeprefix('action/')!r} draws; "
                "rename the observation, or name it under 'ignore'"
            )
            context.problems.add((*node.path, "in"), message)
    return {name: port for name, port in requirements.drawn.items() if name not in taken}


def _note_too_late(
    block: InferenceBlock,
    drawn: Mapping[str, str],
    spec: NetworkSpec,
    requirements: Requirements,
    context: BuildContext,
) -> None:
    """Memory and shared values that depend on an action which is drawn after they are needed."""
    levels = levels_of(block.nodes, drawn)
    for node in block.nodes:
        if node.state_shapes and any(levels.get(name) for name in node.step.inputs):
            message = (
                f"{node.node.title} has memory and depends on an action of the same step; let it read values that "
                "depend on none, and join the action to what it gives"
            )
            context.problems.add(place_of(spec, node.node.path), message)
    for name in requirements.values:
        if levels.get(name):
            index = spec.shares.index(name)
            message = (
                f"{name!r} depends on an action, which is drawn after the critic has valued the state; share a value "
                "that depends on none"
            )
            context.problems.add((*spec.path, "shares", index), message)


def _note_wrong_widths(
    block: InferenceBlock, spec: NetworkSpec, requirements: Requirements, context: BuildContext
) -> None:
    """Heads that give another number of values than is needed of them."""
    shapes = block.out_shapes  # a new dict at each look
    for head in [name for name in requirements.heads if name in shapes]:
        shape = shapes[head]
        values = value_block(block, head) if requirements.kind == "value" else None
        if values is not None:
            shape = scalar_shape(values, shape)
        message = width_problem(head, shape, requirements)
        if message:
            context.problems.add(place_of(spec, ("heads", head)), message)


def _copied(
    graph: Graph, ports: Mapping[str, Port], outputs: Mapping[str, str], copies: int
) -> tuple[Graph, dict[str, str]]:
    """A graph of one node: an ensemble of ``graph``; and what gives each of the ``outputs``.

    Its values are called otherwise where an observation has the name of an output.
    """
    graph.inputs = {}
    read = {name: name for node in graph.nodes for name in node.reads if name in ports}
    outer = Graph(ports, optional=ports)
    values: dict[str, str] = {}
    for name in outputs:
        values[name] = name
        while values[name] in ports or (values[name] != name and values[name] in outputs):
            values[name] += "_"
    out = {values[name]: value for name, value in outputs.items()}
    outer.add(ENSEMBLE, graph, read, out=out, copies=copies)
    return outer, values


def _graph(
    nodes: Mapping[str, NodeSpec], inputs: Mapping[str, Port], context: BuildContext, rule: object
) -> Graph:
    graph = Graph(inputs)
    for node in nodes.values():
        _add(graph, node, node.name, context, rule)
    return graph


def _add(
    graph: Graph,
    node: NodeSpec,
    name: str,
    context: BuildContext,
    rule: object,
    group: str | None = None,
    **extra: Any,
) -> None:
    """Add ``node`` to ``graph``."""
    init = node.init
    block: BlockSource
    if context.is_broken(node):
        block = LeftOutError()  # its structure is wrong, which has been noted
    elif node.graph is not None:
        if init is not None:
            rule = checked_rule(init, (*node.path, "init"), context)
        block = _graph(node.graph, {}, context, rule)
        init = None
    else:
        block = _block(node, context)
        # A network's `init` draws our blocks; a user's modules keep the weights of their constructor.
        if init is None and (isinstance(block, str) or is_built_in(block)):
            init = rule
    settings = {**extra, **node.settings}
    graph.add_node(
        Node(
            name,
            block,
            node.inputs,
            settings,
            out=node.out,
            each=node.each,
            same_as=None if context.is_broken(node) else node.same_as,
            init=init,
            group=group,
            copies=node.copies if isinstance(block, Graph) else None,
        )
    )


def _block(node: NodeSpec, context: BuildContext) -> BlockSource:
    """What the node names; for a class or block that cannot be had, the error that says why."""
    name = node.block
    if not isinstance(name, str):
        return cast(BlockSource, name)  # the reader has looked at it
    try:
        if "." in name:
            return import_trusted(name, context.allow, nn.Module)
        if name in BLOCKS and BLOCKS.extra_of(name):
            BLOCKS.get(name)
    except PathError as error:
        return ValueError(
            error.problems[0].message
        )  # whose text is one line, and keeps its near name
    except MissingExtraError as error:  # a library is not installed
        context.problems.add((*node.path, "block"), str(error), needs_extra=True)
        return error
    return name


def _rules(spec: NetworkSpec, context: BuildContext) -> tuple[object, object]:
    """The initialisers of the body and of the heads."""
    init = spec.init
    parts = ("body", "heads")
    if isinstance(init, Mapping) and init.keys() & set(parts):
        rules = {name: init.get(name) for name in parts}
        for name in init.keys() - set(parts):
            near = did_you_mean(name, parts) or "; there is 'body' and 'heads'"
            path = (*spec.path, "init", name)
            context.problems.add(path, f"{name!r} is not a part of a network" + near, key=True)
    else:
        rules = {"body": init, "heads": init}
    for name, rule in rules.items():
        path = (*spec.path, "init") if rule is init else (*spec.path, "init", name)
        rules[name] = checked_rule(rule, path, context)
    return rules["body"], rules["heads"]


def _add_heads(
    graph: Graph, spec: NetworkSpec, requirements: Requirements, rule: object, context: BuildContext
) -> dict[str, str]:
    """Add one head per action (or value); returns output name -> value."""
    heads = spec.heads or _default_heads(graph, spec, context)
    if heads is None:
        return {}
    for name in heads.actions:
        if name not in requirements.heads:
            message = f"{name!r} is no {requirements.kind}" + hint(name, requirements.heads)
            context.problems.add((*heads.path, name), message, key=True)
    outputs = {}
    for name, width in requirements.heads.items():
        node = heads.default or heads.actions.get(name)
        if node is None:
            message = f"there is no head for the {requirements.kind} {name!r}"
            context.problems.add(heads.path, message, key=True)
            continue
        if _is_value_itself(graph, node, requirements):
            outputs[name] = node.reads[0]
            continue
        of_actions = requirements.kind == "value" and width != (1,)
        sized = (*SIZED_BLOCKS, *VALUE_HEADS) if of_actions else SIZED_BLOCKS
        needs_width = node.block in sized and not node.settings.keys() & SIZES
        extra = {"output_units": width[0] if width else 1} if needs_width else {}
        _add(graph, node, name, context, rule, group="heads", **extra)
        outputs[name] = f"heads:{name}"
    return outputs


def _default_heads(graph: Graph, spec: NetworkSpec, context: BuildContext) -> HeadsSpec | None:
    """A critic's heads read the only value that nothing else reads."""
    sinks = graph.dag(None).sinks()
    path = (*spec.path, "graph")
    if len(sinks) != 1:
        names = listing(sinks)
        message = f"the graph ends in {len(sinks)} values ({names}); say which one the heads read: heads: {{in: ...}}"
        context.problems.add(path, message)
        return None
    node = NodeSpec((*path, sinks[0]), "", "linear_output", (sinks[0],))
    return HeadsSpec((*path, sinks[0]), default=node)


def _is_value_itself(graph: Graph, head: NodeSpec, requirements: Requirements) -> bool:
    """A critic whose graph already ends in a linear output or a value block gets no second one on top."""
    if (
        requirements.kind != "value"
        or len(requirements.heads) > 1
        or head.settings
        or head.block != "linear_output"
        or len(head.reads) != 1
    ):
        return False
    writer = next((node for node in graph.nodes if head.reads[0] in node.writes), None)
    return writer is not None and writer.block in ENDS


def _note(
    problem: GraphProblem,
    spec: NetworkSpec,
    visible: VisiblePorts,
    context: BuildContext,
    notes: BuildNotes,
) -> None:
    if problem.kind == LEFT_OUT:
        return
    path = place_of(spec, problem.path)
    if problem.key is not None:
        path = (*path, problem.key)
    message = problem.message
    if problem.kind == "unknown":
        message = _unknown(message, "/".join(problem.path), problem.name or "", visible)
    shared_head = spec.heads and spec.heads.default and problem.path[:1] == ("heads",)
    if shared_head and any(known.path == path for known in context.problems):
        return  # the one head that is written makes all of them: said once
    if not problem.kind and problem.key not in WIRING:
        notes.faults.add((path, readable(message, MOST_CHARACTERS)))
    related = [
        (place_of_value(spec, problem.path[:-1], name) or ENVIRONMENT, text)
        for name, text in problem.related
    ]
    context.problems.add(path, message, key=problem.of_key, related=related)


def _unknown(message: str, reader: str, name: str, visible: VisiblePorts) -> str:
    """``message`` on a ``name`` that is no value, or a better one where it is hidden or near a group."""
    hidden = visible.hidden
    of_group = (why for key, why in hidden.items() if key.startswith(f"{name}/"))
    why = hidden.get(name) or next(of_group, None)
    if why is not None:
        return f"{reader!r} reads {name!r}, which {why}"
    groups = group_names(visible.ports)
    if name in groups:
        keys = listing(named_observations(name, visible.ports))
        return f"{reader!r} reads the group {name!r} as one argument, which takes one value: name one of {keys}"
    near = near_name(name, [*groups, *visible.ports])
    if near not in groups:
        return message
    neither = "which is neither an input nor a node's output"
    return f"{reader!r} reads {name!r}, {neither}" + did_you_mean(name, [near])
