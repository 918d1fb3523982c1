"""Blocks wired by name."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Graph", "GraphError", "GraphProblem", "Node"]

if TYPE_CHECKING:
    from perception_blocks.graph.graph import Graph, GraphError, GraphProblem, Node
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"graph": "Graph GraphError GraphProblem Node"},
    )
