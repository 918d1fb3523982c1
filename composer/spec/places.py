"""The paths in a spec of a network's nodes and values."""

from __future__ import annotations

from composer.errors import Path
from composer.spec.model_spec import NetworkSpec, NodeSpec

__all__ = ["ENSEMBLE", "place_of", "place_of_value"]

NodePath = tuple[str, ...]

ENSEMBLE = "ensemble"  # the name of the copies of a whole network


def place_of(spec: NetworkSpec, path: NodePath) -> Path:
    """The path in the spec of the node at ``path`` in the network of ``spec``."""
    if path[:1] == (ENSEMBLE,) and ENSEMBLE not in (spec.graph or {}):
        path = path[1:]  # copies of the whole network
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


def place_of_value(spec: NetworkSpec, graph: NodePath, name: str) -> Path | None:
    """The path in the spec of the node that writes the value ``name``, as the nested graph at ``graph`` calls it.

    ``graph`` is () for the network's own. None for what comes from outside of the network.
    """
    levels: list[NetworkSpec | NodeSpec] = [spec]
    for each in graph:
        node = (levels[-1].graph or {}).get(each)
        if node is None or node.graph is None:
            break
        levels.append(node)
    for owner in reversed(levels):
        if name in owner.writers:
            return owner.writers[name]
        if isinstance(owner, NodeSpec) and isinstance(owner.inputs, dict):
            name = owner.inputs.get(name, name)
    return None
