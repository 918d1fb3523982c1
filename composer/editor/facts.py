"""What is known of a spec's nodes, from what was built of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from composer.build.context import BuildNotes
from composer.editor.checked import NodeFacts, NodesByPath, ValuesByPath
from composer.errors import Path
from composer.network.network import CustomNetwork
from composer.spec.model_spec import NetworkSpec, NodeSpec
from composer.spec.places import NodePath
from composer.summary.rows import class_name, flops_of_class, flops_of_node
from perception_blocks.graph.built import BuiltModule
from perception_blocks.port import Port, Shape

__all__ = ["facts_of", "known_values", "with_outputs", "with_shapes"]


def facts_of(networks: Mapping[Path, NetworkSpec], notes: BuildNotes) -> NodesByPath:
    """The facts of all nodes of ``networks`` by their paths in the spec; what was not built has no outputs."""
    facts = {
        place: tuple(_built_facts(path, built) for path, built in by_path.items())
        for place, by_path in notes.built.items()
        if place[:-1] not in networks or place[-1] != "graph"  # a critic's head that is not written
    }
    for path, built in notes.networks.items():
        custom = tuple(
            _class_facts(network) for network in built if isinstance(network, CustomNetwork)
        )
        if custom:
            facts[(*path, "_target_")] = custom
    for network in networks.values():
        for node, within in _nodes_of(network):
            if node.path not in facts:
                facts[node.path] = (_unbuilt_facts(node, notes.ports.get(within, {})),)
    return facts


def known_values(networks: Mapping[Path, NetworkSpec], notes: BuildNotes) -> ValuesByPath:
    """The values in each network and nested graph, with their shapes; None: it is not known."""
    values: dict[Path, dict[str, Shape | None]] = {
        path: {name: port.shape for name, port in ports.items()}
        for path, ports in notes.ports.items()
    }
    for path, network in networks.items():
        values.setdefault(path, {})
        heads = {id(node) for node in _heads_of(network)}
        for node, within in _nodes_of(network):
            if id(node) not in heads:
                known = values.setdefault(within, {})
                for name in node.writes:
                    known.setdefault(name, None)
            if node.graph is not None and isinstance(node.inputs, dict):
                inner = values.setdefault(node.path, {})
                for name, outer in node.inputs.items():
                    shape = values.get(within, {}).get(outer)
                    known_shape = None if shape is None else shape[node.each :]
                    if inner.get(name) is None:
                        inner[name] = known_shape
    return values


def with_outputs(nodes: NodesByPath, others: NodesByPath) -> NodesByPath:
    """``nodes``, and ``others`` where they are not there or have no outputs."""
    missing = {
        path: facts
        for path, facts in others.items()
        if facts[0].outputs and not (path in nodes and nodes[path][0].outputs)
    }
    return {**nodes, **missing}


def with_shapes(values: ValuesByPath, others: ValuesByPath) -> ValuesByPath:
    """``values``, with the names and shapes of ``others`` that are not known in them."""
    known = {path: dict(shapes) for path, shapes in values.items()}
    for path, shapes in others.items():
        of_network = known.setdefault(path, {})
        for name, shape in shapes.items():
            if of_network.get(name) is None:
                of_network[name] = shape
    return known


def _heads_of(network: NetworkSpec) -> list[NodeSpec]:
    heads = network.heads
    if heads is None:
        return []
    return [*([] if heads.default is None else [heads.default]), *heads.actions.values()]


def _nodes_of(network: NetworkSpec) -> Iterator[tuple[NodeSpec, Path]]:
    """Each node, outer ones first, with the path of the network or nested graph that it is in."""

    def walk(nodes: Mapping[str, NodeSpec], within: Path) -> Iterator[tuple[NodeSpec, Path]]:
        for node in nodes.values():
            yield node, within
            yield from walk(node.graph or {}, node.path)

    yield from walk(network.graph or {}, network.path)
    for head in _heads_of(network):
        yield head, network.path


def _built_facts(path: NodePath, built: BuiltModule) -> NodeFacts:
    node, module = built
    group = node.node.group
    return NodeFacts(
        node.label,
        {name: port.shape for name, port in zip(node.step.inputs, node.in_ports, strict=True)},
        {_without(group, name): port.shape for name, port in node.out_ports.items()},
        sum(parameter.numel() for parameter in module.parameters()),
        path,
        _count=lambda: flops_of_node(node, module),
    )


def _without(group: str | None, name: str) -> str:
    """The value of a head is named by the action alone."""
    return name if group is None else name.removeprefix(f"{group}:")


def _class_facts(network: CustomNetwork) -> NodeFacts:
    return NodeFacts(
        class_name(network.module),
        {name: port.shape for name, port in network.in_ports.items()},
        {name: port.shape for name, port in network.out_ports.items()},
        sum(parameter.numel() for parameter in network.module.parameters()),
        _count=lambda: flops_of_class(network),
    )


def _unbuilt_facts(node: NodeSpec, ports: Mapping[str, Port]) -> NodeFacts:
    block = (
        node.block if isinstance(node.block, str) else node.same_as and f"same as {node.same_as}"
    )
    known = {name: ports[name].shape if name in ports else None for name in node.reads}
    return NodeFacts(block or "", known, {})
