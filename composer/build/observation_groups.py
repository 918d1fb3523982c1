"""Groups of observations: a name before a ``/`` stands for all observations whose keys begin with it.

``policy`` names ``policy/joint_pos`` and ``policy/joint_vel`` of a nested Dict or Tuple, wherever a spec names
observations. An observation, or a value of the graph, of that very name comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from composer.spec.model_spec import HeadsSpec, NetworkSpec, NodeSpec
from composer.spec.references import written_values
from perception_blocks.port import Port

__all__ = ["group_names", "named_observations", "with_groups_read"]


def group_names(keys: Iterable[str]) -> list[str]:
    """The names of all groups, in the order of their first observations.

    >>> group_names(["policy/arm/angle", "policy/camera", "wind"])
    ['policy', 'policy/arm']
    """
    names: dict[str, None] = {}
    for key in keys:
        parts = key.split("/")
        names |= dict.fromkeys("/".join(parts[:end]) for end in range(1, len(parts)))
    return list(names)


def named_observations(name: str, ports: Mapping[str, Port]) -> tuple[str, ...]:
    """The observations that ``name`` stands for, in the order of the space; none where it names nothing.

    Of a group these are all but the masks, which go where their values go.

    >>> ports = {"policy/speed": Port((1,)), "policy/units": Port((None, 2), mask="policy/units:mask")}
    >>> named_observations("policy", ports | {"policy/units:mask": Port((None,))})
    ('policy/speed', 'policy/units')
    """
    if name in ports:
        return (name,)
    masks = {port.mask for port in ports.values()}
    return tuple(key for key in ports if key.startswith(f"{name}/") and key not in masks)


def with_groups_read(spec: NetworkSpec, ports: Mapping[str, Port]) -> NetworkSpec:
    """``spec``, whose nodes and heads read the observations of a group in place of the group."""
    if not spec.graph and not spec.heads:
        return spec
    graph = _expanded(spec.graph or {}, ports)
    values = written_values(graph)
    heads = spec.heads
    if heads is not None:
        default = heads.default and _reading(heads.default, ports, values)
        actions = {name: _reading(node, ports, values) for name, node in heads.actions.items()}
        heads = HeadsSpec(heads.path, default, actions)
    return replace(spec, graph=spec.graph and graph, heads=heads)


def _expanded(nodes: dict[str, NodeSpec], ports: Mapping[str, Port]) -> dict[str, NodeSpec]:
    values = written_values(nodes)
    return {name: _reading(node, ports, values) for name, node in nodes.items()}


def _reading(node: NodeSpec, ports: Mapping[str, Port], values: Collection[str]) -> NodeSpec:
    inputs = node.inputs
    if isinstance(inputs, tuple):
        read = [key for name in inputs for key in _named(name, ports, values)]
        return node if tuple(read) == inputs else replace(node, inputs=tuple(read))
    if node.graph is None:  # by argument: each takes a single value
        return node
    inner = {
        name if key == outer else f"{name}{key.removeprefix(outer)}": key
        for name, outer in inputs.items()
        for key in _named(outer, ports, values)
    }
    inside = {name: ports.get(outer, Port(())) for name, outer in inner.items()}
    return replace(node, inputs=inner, graph=_expanded(node.graph, inside))


def _named(name: str, ports: Mapping[str, Port], values: Collection[str]) -> tuple[str, ...]:
    """What a node reads by ``name``; an unknown name stays, to be reported where it is read."""
    return (name,) if name in values else named_observations(name, ports) or (name,)
