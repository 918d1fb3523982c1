"""A graph whose edges are known when it is built: nodes and edges learn from each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor, nn

from perception_blocks.activations import make_activations
from perception_blocks.base_block import PerceptionBlock
from perception_blocks.blocks.dense import unit_list
from perception_blocks.blocks.masks import shapes_of
from perception_blocks.init import linear_layer
from perception_blocks.port import InputShapeError, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, NonNegativeInt, OneOrMany, Words

__all__ = ["GraphNetworkBlock"]

Aggregation: TypeAlias = Literal["none", "mean", "sum", "max"]
Edges: TypeAlias = Annotated[
    Sequence[tuple[NonNegativeInt, NonNegativeInt]],
    Words("a list of [source, target], nodes counted from 0"),
]
Pairs: TypeAlias = list[tuple[int, int]]  # (receiver, sender)


@BLOCKS.register("graph_network")
class GraphNetworkBlock(PerceptionBlock):
    """Nodes and edges exchange messages (Battaglia et al., 2018): ``(N, F)``, ``(E, G)`` -> ``(N, h)``, ``(E, g)``.

    ``edges`` lists them as [source, target], nodes counted from 0; features of edges may be left out. In each layer a
    node reads its neighbours and its edges, and an edge reads its nodes and the edges that touch it, each
    with a separate aggregation. ``directed`` lets edges carry only from source to target: a node then reads
    incoming edges and their sources, an edge from its source and from the edges that end there. ``edge_units`` are the
    same as ``hidden_units``, one per layer, unless given. ``norm`` "layer" normalises the features of each node and
    edge before the activation.

    >>> GraphNetworkBlock([(3, 8), (2, 4)], edges=[[0, 1], [1, 2]], hidden_units=16, edge_units=6).out_shapes
    [(3, 16), (2, 6)]
    """

    node_to_node: Tensor  # (2, pairs) each
    edge_to_node: Tensor
    node_to_edge: Tensor
    edge_to_edge: Tensor

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        edges: Edges,
        hidden_units: OneOrMany,
        edge_units: OneOrMany | None = None,
        activation: Activation = "relu",
        last_activation: Activation | None = None,
        directed: bool = False,
        node_to_node: Aggregation = "mean",
        edge_to_node: Aggregation = "mean",
        node_to_edge: Aggregation = "mean",
        edge_to_edge: Aggregation = "mean",
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        edges = [(source, target) for source, target in edges]
        nodes, node_size, edge_size = network_shape(in_shapes, len(edges))
        check_edges(edges, nodes, directed)
        units = unit_list(hidden_units, "graph_network")
        edge_widths = units if edge_units is None else unit_list(edge_units, "graph_network")
        if len(edge_widths) != len(units):
            raise ValueError(
                f"graph_network has {len(units)} hidden_units and {len(edge_widths)} edge_units; "
                "give as many, one for each layer"
            )
        out_shapes = [(nodes, units[-1]), (len(edges), edge_widths[-1])]
        super().__init__(in_shapes, out_shapes=out_shapes)
        to_node, to_edge = (node_to_node, edge_to_node), (node_to_edge, edge_to_edge)
        self.links = all_links(edges, directed)
        for name, pairs in self.links.items():
            indices = torch.zeros(2, len(pairs), dtype=torch.int64)
            self.register_buffer(name, indices, persistent=False)
        self.fill_constants()
        sizes = itertools.pairwise(zip([node_size, *units], [edge_size, *edge_widths]))
        last = activation if last_activation is None else last_activation
        activations = [activation] * (len(units) - 1) + [last]
        self.layers = nn.ModuleList(
            GraphNetworkLayer(before, after, to_node, to_edge, name, norm == "layer")
            for (before, after), name in zip(sizes, activations)
        )
        self.num_edges = len(edges)

    def fill_constants(self) -> None:
        for name, pairs in self.links.items():
            indices = torch.tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2)
            getattr(self, name).copy_(indices.T)

    def forward(self, nodes: Tensor, edges: Tensor | None = None) -> tuple[Tensor, Tensor]:
        to_nodes = (self.node_to_node, self.edge_to_node)
        to_edges = (self.node_to_edge, self.edge_to_edge)
        if edges is None:  # no features: they learn from their nodes alone
            edges = nodes.new_zeros((*nodes.shape[:-2], self.num_edges, 0))
        values = (nodes, edges)
        for layer in self.layers:
            values = layer(*values, to_nodes, to_edges)
        return values


class GraphNetworkLayer(nn.Module):
    """New features of nodes and edges, from their own and from aggregated messages; sizes are (node, edge)."""

    def __init__(
        self,
        before: tuple[int, int],
        after: tuple[int, int],
        to_node: Sequence[str],
        to_edge: Sequence[str],
        activation: Activation,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.to_node, self.to_edge = to_node, to_edge
        node_reads = before[0] + _heard(before, to_node)
        edge_reads = before[1] + _heard(before, to_edge)
        self.node = linear_layer(node_reads, after[0])
        self.edge = linear_layer(edge_reads, after[1])
        self.norms = nn.ModuleList(map(nn.LayerNorm, after)) if norm else None
        self.activations = make_activations(activation, 2)

    def forward(
        self, nodes: Tensor, edges: Tensor, to_nodes: Sequence[Tensor], to_edges: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        sources = (nodes, edges)
        for_nodes = [nodes, *_aggregated(sources, to_nodes, self.to_node, nodes.shape[-2])]
        for_edges = [edges, *_aggregated(sources, to_edges, self.to_edge, edges.shape[-2])]
        nodes = self.activations[0](self._normed(0, self.node(torch.cat(for_nodes, dim=-1))))
        edges = self.activations[1](self._normed(1, self.edge(torch.cat(for_edges, dim=-1))))
        return nodes, edges

    def _normed(self, index: int, x: Tensor) -> Tensor:
        return x if self.norms is None else self.norms[index](x)


def aggregate(x: Tensor, links: Tensor, receivers: int, how: str) -> Tensor:
    """``x`` (..., senders, F) aggregated for each receiver: (..., receivers, F), zeros without a sender.

    ``links`` (2, pairs) holds the numbers of receivers, then of senders.
    """
    messages = x.index_select(-2, links[1])
    index = links[0].unsqueeze(-1).expand_as(messages)
    silence = messages.new_zeros((*messages.shape[:-2], receivers, messages.shape[-1]))
    reduce = {"mean": "mean", "sum": "sum", "max": "amax"}[how]
    return silence.scatter_reduce(-2, index, messages, reduce, include_self=False)


def all_links(edges: Pairs, directed: bool) -> dict[str, Pairs]:
    """(receiver, sender) pairs for each of the four directions, no pair twice."""
    ends = [(source,) if directed else (source, target) for source, target in edges]
    heads = [(target,) if directed else (source, target) for source, target in edges]
    ending: dict[int, list[int]] = {}  # the edges that can be heard at a node
    for edge, nodes in enumerate(heads):
        for node in dict.fromkeys(nodes):
            ending.setdefault(node, []).append(edge)
    numbered = list(enumerate(edges))
    pairs = {
        "node_to_node": [(target, source) for source, target in edges]
        + [(source, target) for source, target in edges if not directed],
        "edge_to_node": [(node, edge) for edge, _ in numbered for node in heads[edge]],
        "node_to_edge": [(edge, node) for edge, _ in numbered for node in ends[edge]],
        "edge_to_edge": [
            (edge, other)
            for edge, _ in numbered
            for node in ends[edge]
            for other in ending.get(node, ())
            if other != edge
        ],
    }
    return {name: list(dict.fromkeys(links)) for name, links in pairs.items()}


def check_edges(edges: Pairs, nodes: int, directed: bool) -> None:
    """Raise ValueError where an edge names a node that is not there, or is given twice."""
    problems = []
    seen = set()
    for source, target in edges:
        if max(source, target) >= nodes:
            problems.append(f"[{source}, {target}] names a node beyond the last, {nodes - 1}")
        key = (source, target) if directed else (min(source, target), max(source, target))
        if key in seen:
            advice = "" if directed else ", and counts both ways unless 'directed' is true"
            problems.append(f"[{source}, {target}] is given twice{advice}")
        seen.add(key)
    if problems:
        raise ValueError(f"'edges' of graph_network: {'; '.join(problems)}")


def network_shape(in_shapes: Shapes, edges: int) -> tuple[int, int, int]:
    """The number of nodes, and the features of a node and of an edge (0 where edges have none)."""
    takes = "nodes (N, features) and, if there are any, features of the edges"
    shapes = shapes_of(in_shapes, "graph_network", 1, 2, takes)
    for index, shape in enumerate(shapes):
        if len(shape) != 2 or None in shape:
            what = ["nodes (N, features)", "edges (E, features)"][index]
            raise InputShapeError(f"graph_network takes {what} of known size", {index: shape})
    if not edges:
        raise ValueError("graph_network needs at least one edge, got edges=[]")
    if len(shapes) == 2 and shapes[1][0] != edges:
        rule = f"graph_network has {edges} 'edges' and needs features for as many"
        raise InputShapeError(rule, {1: shapes[1]})
    (nodes, node_size), edge_size = shapes[0], shapes[1][1] if len(shapes) == 2 else 0
    assert nodes is not None
    assert node_size is not None
    assert edge_size is not None
    return nodes, node_size, edge_size


def _heard(sizes: tuple[int, int], how: Sequence[str]) -> int:
    """The number of features, of ``sizes``, that are aggregated."""
    return sum(size for size, kind in zip(sizes, how) if kind != "none")


def _aggregated(
    sources: Sequence[Tensor], links: Sequence[Tensor], how: Sequence[str], receivers: int
) -> list[Tensor]:
    heard = [part for part in zip(sources, links, how) if part[2] != "none"]
    return [aggregate(x, pairs, receivers, kind) for x, pairs, kind in heard]
