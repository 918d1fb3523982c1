"""The path in a spec of a network's node."""

from __future__ import annotations

from composer.errors import Path
from composer.spec.model_spec import NetworkSpec

__all__ = ["place_of", "ENSEMBLE"]

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
