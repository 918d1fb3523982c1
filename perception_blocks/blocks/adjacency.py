"""Nodes that learn from their neighbours, given by an adjacency matrix or by a fixed list of edges.

An adjacency matrix A has a row for each node that receives: A[i, j] belongs to the edge from j to i.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import make_activations
from perception_blocks.base_block import PerceptionBlock
from perception_blocks.blocks.attention import head_width
from perception_blocks.blocks.dense import unit_list
from perception_blocks.blocks.masks import (
    MaskedBlock,
    as_bool,
    blank,
    check_mask,
    masked_softmax,
    same_shape,
    shapes_of,
)
from perception_blocks.init import linear_layer
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import (
    Activation,
    Coefficient,
    OneOrMany,
    PositiveFloat,
    PositiveInt,
    Probability,
)

__all__ = ["AdjacencyBlock", "GraphAttentionBlock", "GraphConvBlock"]


@BLOCKS.register("adjacency")
class AdjacencyBlock(PerceptionBlock):
    """The adjacency matrix of an edge list: nodes ``(N, F)``, pairs of node numbers ``(E, 2)`` -> ``(N, N)``.

    Element ``[i, j]`` counts the edges from node j to node i; ``directed: false`` counts each edge both ways. A third
    input is a mask ``(E,)``, true for edges that exist. Of the nodes only their number matters.

    >>> AdjacencyBlock([(5, 3), (None, 2)]).out_shapes
    [(5, 5)]
    """

    takes = "any"
    mask_of = {"mask": 1}
    mask_free = (0,)  # padding nodes have no edges

    def __init__(self, in_shapes: Shapes, *, directed: bool = True) -> None:
        shapes = shapes_of(in_shapes, "adjacency", 2, 3, "nodes, edges and optionally a mask")
        if len(shapes[0]) != 2:
            raise InputShapeError("adjacency takes nodes (nodes, features) first", {0: shapes[0]})
        if len(shapes[1]) != 2 or shapes[1][1] != 2:
            rule = "adjacency takes an edge list (edges, 2) of node numbers second"
            raise InputShapeError(rule, {1: shapes[1]})
        check_mask("adjacency", shapes, 2, [shapes[1][:1]])
        nodes = shapes[0][0]
        super().__init__(in_shapes, out_shapes=[(nodes, nodes)])
        self.directed = directed

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor | None = None) -> Tensor:
        count = nodes.shape[-2]
        edges = blank(edges.long(), mask)
        flat = edges[..., 1] * count + edges[..., 0]
        exists = nodes.new_ones(flat.shape) if mask is None else as_bool(mask).to(nodes.dtype)
        matrix = nodes.new_zeros((*flat.shape[:-1], count * count)).scatter_add(-1, flat, exists)
        matrix = matrix.unflatten(-1, (count, count))
        return matrix if self.directed else matrix + matrix.transpose(-2, -1)


@BLOCKS.register("graph_conv")
class GraphConvBlock(MaskedBlock):
    """Graph convolutions (GCN, Kipf and Welling, 2016): ``(N, F)``, adjacency ``(N, N)`` -> ``(N, hidden_units[-1])``.

    Each layer gives a node the sum over itself, with ``self_weight``, and its neighbours, with the adjacency's weights
    divided by the square roots of both nodes' row sums. Weights are 0 or more, and a node whose sum is not above 0
    receives nothing; ``learn_self_weight`` makes the weight of the node itself a parameter. With ``normalize: false``
    an adjacency that is normalised already, and has weights for the nodes themselves, is taken as it is. ``bias`` may
    be a list, one per layer. A third input is a mask ``(N,)``, true for nodes that exist; the others give zeros.

    >>> GraphConvBlock([(5, 3), (5, 5)], hidden_units=[8, 4]).out_shapes
    [(5, 4)]
    """

    keeps_mask = True
    self_weight: Tensor

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: OneOrMany,
        activation: Activation = "relu",
        last_activation: Activation | None = None,
        bias: bool | Sequence[bool] = True,
        self_weight: PositiveFloat = 1.0,
        learn_self_weight: bool = False,
        normalize: bool = True,
    ) -> None:
        nodes, features = graph_shape(in_shapes, "graph_conv")
        units = unit_list(hidden_units, "graph_conv")
        biases = list(bias) if isinstance(bias, Sequence) else [bias] * len(units)
        if len(biases) != len(units):
            raise ValueError(
                f"graph_conv has {len(units)} hidden_units and {len(biases)} values of 'bias'; "
                "give as many, one for each layer, or one for all"
            )
        if not normalize and (learn_self_weight or self_weight != 1.0):
            raise ValueError(
                "graph_conv adds no self weight to an adjacency that it does not normalise; "
                "leave out 'normalize', or 'self_weight' and 'learn_self_weight'"
            )
        super().__init__(in_shapes, out_shapes=[(nodes, units[-1])])
        sizes = itertools.pairwise([features, *units])
        self.linears = nn.ModuleList(
            linear_layer(n, m, bias=some) for (n, m), some in zip(sizes, biases)
        )
        self.activations = make_activations(activation, len(units), last_activation)
        self.first_self_weight, self.normalize = self_weight, normalize
        weight = torch.full((1,), float(self_weight))
        if learn_self_weight:
            self.self_weight = nn.Parameter(weight)
        else:
            self.register_buffer("self_weight", weight, persistent=False)

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.fill_(self.first_self_weight)

    def fill_constants(self) -> None:
        if "self_weight" in self._buffers:
            self.self_weight.fill_(self.first_self_weight)

    def forward(self, x: Tensor, adjacency: Tensor, mask: Tensor | None = None) -> Tensor:
        weights = adjacency.to(x.dtype)
        missing = None if mask is None else ~as_bool(mask).unsqueeze(-1)
        if missing is not None:
            weights = weights.masked_fill(missing | missing.transpose(-2, -1), 0.0)
        x = blank(x, mask)
        weights = self._normalised(weights) if self.normalize else weights
        for linear, activation in zip(self.linears, self.activations):
            x = activation(linear(weights @ x))
        return x if missing is None else x.masked_fill(missing, 0.0)

    def _normalised(self, weights: Tensor) -> Tensor:
        """D^-1/2 (A + self_weight I) D^-1/2 with the row sums D; a node with a sum of 0 receives nothing."""
        weights = weights + torch.diag_embed(self.self_weight.expand(weights.shape[-1]))
        sums = weights.sum(dim=-1)
        some = sums > 0
        factors = torch.where(some, torch.where(some, sums, 1.0).rsqrt(), 0.0)
        return factors.unsqueeze(-1) * weights * factors.unsqueeze(-2)


@BLOCKS.register("graph_attention")
class GraphAttentionBlock(MaskedBlock):
    """Nodes attend to neighbours (GAT, Velickovic et al., 2018): ``(N, F)``, ``(N, N)`` -> ``(N, hidden_units[-1])``.

    Node i attends to node j where the second input is not 0 at [i, j]; its values do not matter, so that a normalised
    adjacency will do, and ``self_loops`` lets each node attend to itself. Heads share each layer's units; with
    ``average_heads`` each has all units of the last layer, and they are averaged. A third input is a mask ``(N,)``,
    true for nodes that exist; the others give zeros. ``return_weights`` adds the last layer's ``(num_heads, N, N)``.

    >>> GraphAttentionBlock([(5, 3), (5, 5)], hidden_units=[8, 4], num_heads=2).out_shapes
    [(5, 4)]
    """

    keeps_mask = True

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: OneOrMany,
        num_heads: PositiveInt = 1,
        activation: Activation = "elu",
        last_activation: Activation | None = None,
        dropout: Probability = 0.0,
        self_loops: bool = True,
        average_heads: bool = False,
        return_weights: bool = False,
        bias: bool = True,
        negative_slope: Coefficient = 0.2,
    ) -> None:
        name = "graph_attention"
        nodes, features = graph_shape(in_shapes, name)
        units = unit_list(hidden_units, name)
        for width in units[:-1] if average_heads else units:
            head_width(name, width, None, num_heads)
        weights = [(num_heads, nodes, nodes)] if return_weights else []
        super().__init__(in_shapes, out_shapes=[(nodes, units[-1]), *weights])
        averaged = [False] * (len(units) - 1) + [average_heads]
        self.layers = nn.ModuleList(
            GraphAttentionLayer(n, m, num_heads, average, dropout, bias, negative_slope)
            for n, m, average in zip([features, *units], units, averaged)
        )
        self.activations = make_activations(activation, len(units), last_activation)
        self.self_loops, self.return_weights = self_loops, return_weights

    def forward(
        self, x: Tensor, adjacency: Tensor, mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        legal = as_bool(adjacency)
        if self.self_loops:
            legal = legal | torch.eye(legal.shape[-1], dtype=torch.bool, device=legal.device)
        missing = None if mask is None else ~as_bool(mask).unsqueeze(-1)
        if missing is not None:
            legal = legal & ~missing & ~missing.transpose(-2, -1)
        x, weights = blank(x, mask), None
        for layer, activation in zip(self.layers, self.activations):
            x, weights = layer(x, legal)
            x = activation(x)
        if missing is not None:
            x = x.masked_fill(missing, 0.0)
        return (x, weights) if self.return_weights else x


class GraphAttentionLayer(nn.Module):
    """One layer over nodes (..., N, F), where ``legal`` (..., N, N) says which node attends to which."""

    def __init__(
        self,
        features: int,
        units: int,
        num_heads: int,
        average: bool,
        dropout: float,
        bias: bool = True,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        size = units if average else units // num_heads
        self.linear = linear_layer(features, num_heads * size, bias=False)
        self.source, self.target = (nn.Parameter(torch.empty(num_heads, size)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(units)) if bias else None
        self.negative_slope = negative_slope
        for vector in (self.source, self.target):
            nn.init.xavier_uniform_(vector)
        self.num_heads, self.average, self.dropout = num_heads, average, dropout

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if name == "bias":
            tensor.zero_()
        else:
            nn.init.xavier_uniform_(tensor, generator=generator)

    def forward(self, x: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
        """New features (..., N, units), zeros where no node is legal, and the weights (..., heads, N, N)."""
        values = self.linear(x).unflatten(-1, (self.num_heads, -1))  # (..., N, heads, size)
        source = (values * self.source).sum(-1).transpose(-2, -1)  # (..., heads, N)
        target = (values * self.target).sum(-1).transpose(-2, -1)
        scores = target.unsqueeze(-1) + source.unsqueeze(-2)
        scores = functional.leaky_relu(scores, self.negative_slope)
        weights = masked_softmax(scores, legal.unsqueeze(-3))
        used = functional.dropout(weights, self.dropout, self.training)
        attended = (used @ values.transpose(-3, -2)).transpose(-3, -2)  # (..., N, heads, size)
        y = attended.mean(-2) if self.average else attended.flatten(-2)
        y = y if self.bias is None else y + self.bias
        return y.masked_fill(~legal.any(dim=-1, keepdim=True), 0.0), weights


def graph_shape(in_shapes: Shapes, name: str) -> tuple[int | None, int]:
    """How many nodes and features of each; the second input is the adjacency, the third may be a mask of nodes."""
    takes = "nodes (N, features), their adjacency (N, N) and optionally a mask"
    shapes = shapes_of(in_shapes, name, 2, 3, takes)
    if len(shapes[0]) != 2:
        raise InputShapeError(f"{name} takes nodes (N, features)", {0: shapes[0]})
    nodes, features = shapes[0]
    if features is None:
        raise InputShapeError(f"{name} needs to know how many features a node has", {0: shapes[0]})
    square: Shape = (nodes, nodes)
    if not same_shape(shapes[1], square):
        got = {0: shapes[0], 1: shapes[1]}
        raise InputShapeError(
            f"{name} needs one row and one column of adjacency for each node", got
        )
    check_mask(name, shapes, 2, [(nodes,)])
    return nodes, features
