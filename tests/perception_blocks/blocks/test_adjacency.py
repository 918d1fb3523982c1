import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.adjacency import GraphAttentionBlock, GraphConvBlock
from perception_blocks.blocks.graph_network import GraphNetworkBlock

NODES = 5
EDGES = [(0, 1), (1, 2), (2, 0), (3, 2)]  # node 4 has none


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(block, shapes, **settings) -> Any:
    """The block with all its parameters drawn at random, biases too."""
    made = block(shapes, **settings)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name != "self_weight":
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return made.eval()


def graph(batch=3, weighted=True):
    """Features and an asymmetric adjacency; the last sample has no edges."""
    adjacency = torch.rand(batch, NODES, NODES) * (torch.rand(batch, NODES, NODES) < 0.5)
    adjacency[-1] = 0
    return torch.randn(batch, NODES, 3), adjacency if weighted else (adjacency > 0).float()


@torch.no_grad()
def plain_convolution(block, x, adjacency, self_weight=1.0):
    """One graph, node by node: the paper's formula with D the row sums."""
    a = adjacency + self_weight * torch.eye(NODES)
    degree = [float(row.sum()) for row in a]
    for linear in block.linears:
        rows = []
        for i in range(NODES):
            heard = torch.zeros_like(x[0])
            for j in range(NODES):
                heard = heard + a[i, j] / math.sqrt(degree[i] * degree[j]) * x[j]
            rows.append(linear(heard).relu())
        x = torch.stack(rows)
    return x


@pytest.mark.parametrize("self_weight", [1.0, 2.5])
@pytest.mark.parametrize("learned", [False, True])
def test_graph_conv_is_the_papers_formula_for_asymmetric_input_too(self_weight, learned):
    settings: Any = {"self_weight": self_weight, "learn_self_weight": learned}
    block = built(GraphConvBlock, [(NODES, 3), (NODES, NODES)], hidden_units=[6, 4], **settings)
    x, adjacency = graph()
    for b in range(3):
        expected = plain_convolution(block, x[b], adjacency[b], self_weight)
        torch.testing.assert_close(block(x, adjacency)[b], expected, atol=1e-5, rtol=1e-5)


def test_silent_defect_6_edge_weights_count():
    block = built(GraphConvBlock, [(NODES, 3), (NODES, NODES)], hidden_units=4)
    x, adjacency = graph()
    adjacency[-1] = torch.rand(NODES, NODES)
    assert not torch.allclose(block(x, adjacency)[-1], block(x, (adjacency > 0).float())[-1])


def test_only_those_hear_that_have_a_row():
    """A[i, j] is the edge from j to i: a change of node j changes node i, not the other way round."""
    block = built(GraphConvBlock, [(NODES, 3), (NODES, NODES)], hidden_units=4)
    x, adjacency = torch.randn(NODES, 3), torch.zeros(NODES, NODES)
    adjacency[1, 2] = 1.0
    before = block(x, adjacency)
    x[2] += 1.0
    changed = (block(x, adjacency) != before).any(-1)
    assert changed.tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("block", [GraphConvBlock, GraphAttentionBlock])
def test_nodes_that_do_not_exist_change_nothing_and_are_zero(block):
    shapes = [(None, 3), (None, None), (None,)]
    made = built(block, shapes, hidden_units=[6, 4])
    x, adjacency = graph()
    mask = torch.tensor([1, 1, 0, 1, 0])
    keep = mask.bool()
    y = made(x, adjacency, mask.expand(3, NODES))
    small = made(x[:, keep], adjacency[:, keep][:, :, keep], torch.ones(3, 3))
    torch.testing.assert_close(y[:, keep], small, atol=1e-5, rtol=1e-5)
    assert torch.equal(y[:, ~keep], torch.zeros(3, 2, 4))
    assert torch.equal(made(x, adjacency, torch.zeros(3, NODES)), torch.zeros(3, NODES, 4))


def test_nodes_without_any_weight_have_finite_gradients():
    block = built(
        GraphConvBlock, [(NODES, 3), (NODES, NODES)], hidden_units=4, learn_self_weight=True
    )
    with torch.no_grad():
        block.self_weight.zero_()
    x = torch.randn(NODES, 3, requires_grad=True)
    adjacency = torch.zeros(NODES, NODES, requires_grad=True)
    y = block(x, adjacency)
    torch.testing.assert_close(y, block.linears[0].bias.relu().expand(NODES, 4))
    y.sum().backward()
    for tensor in (x, adjacency, *block.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("learned", [False, True])
def test_silent_defect_18_everything_is_drawn_without_any_user_action(learned):
    settings: Any = {"hidden_units": 64, "self_weight": 2.0, "learn_self_weight": learned}
    shapes: Any = [(NODES, 30), (NODES, NODES)]
    block: Any = GraphConvBlock(shapes, **settings)
    weight = block.linears[0].weight
    assert 0.08 < float(weight.detach().std()) < 0.13  # uniform within 1 / sqrt(30)
    with torch.device("meta"):
        empty: Any = GraphConvBlock(shapes, **settings)
    empty.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(0))
    block.reset_parameters(torch.Generator().manual_seed(0))
    x, adjacency = torch.randn(NODES, 30), torch.rand(NODES, NODES)
    torch.testing.assert_close(empty(x, adjacency), block(x, adjacency))
    assert block.self_weight.tolist() == [2.0]


@torch.no_grad()
def plain_attention(layer, x, legal):
    """One graph and one layer, pair by pair."""
    heads = layer.num_heads
    values = layer.linear(x).reshape(NODES, heads, -1)
    y, weights = torch.zeros(NODES, heads, values.shape[-1]), torch.zeros(heads, NODES, NODES)
    for i in range(NODES):
        for h in range(heads):
            neighbours = [j for j in range(NODES) if legal[i, j]]
            scores = [
                functional.leaky_relu(
                    layer.target[h] @ values[i, h] + layer.source[h] @ values[j, h], 0.2
                ).exp()
                for j in neighbours
            ]
            for j, score in zip(neighbours, scores):
                weights[h, i, j] = score / sum(scores)
                y[i, h] += weights[h, i, j] * values[j, h]
    y = (y.mean(1) if layer.average else y.flatten(1)) + layer.bias
    return y * legal.any(-1, keepdim=True), weights


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("self_loops", [False, True])
def test_graph_attention_looks_at_neighbours_only(average, self_loops):
    block = built(
        GraphAttentionBlock,
        [(NODES, 3), (NODES, NODES)],
        hidden_units=[6, 4],
        num_heads=2,
        average_heads=average,
        self_loops=self_loops,
        return_weights=True,
    )
    x, adjacency = graph()
    y, weights = block(x, adjacency)
    for b in range(3):
        legal = (adjacency[b] != 0) | (torch.eye(NODES, dtype=torch.bool) & self_loops)
        first, _ = plain_attention(block.layers[0], x[b], legal)
        expected, expected_weights = plain_attention(block.layers[1], functional.elu(first), legal)
        torch.testing.assert_close(y[b], functional.elu(expected), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weights[b], expected_weights, atol=1e-5, rtol=1e-5)


def test_a_node_without_neighbours_has_finite_gradients():
    block = built(
        GraphAttentionBlock, [(NODES, 3), (NODES, NODES)], hidden_units=4, self_loops=False
    )
    x = torch.randn(NODES, 3, requires_grad=True)
    y = block(x, torch.zeros(NODES, NODES))
    assert torch.equal(y, torch.zeros(NODES, 4))
    y.sum().backward()
    for tensor in (x, *block.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def pooled(how, values, size):
    if not values:
        return torch.zeros(size)
    stacked = torch.stack(values)
    return {"mean": stacked.mean, "sum": stacked.sum, "max": stacked.amax}[how](0)


@torch.no_grad()
def plain_network(block, nodes, edges, how, directed):
    """One graph, one layer, receiver by receiver."""
    layer, sizes = block.layers[0], (nodes.shape[-1], edges.shape[-1])
    new_nodes, new_edges = [], []
    for i in range(NODES):
        near = [nodes[s] for s, t in EDGES if t == i]
        mine = [edges[e] for e, (_, t) in enumerate(EDGES) if t == i]
        if not directed:
            near += [nodes[t] for s, t in EDGES if s == i]
            mine += [edges[e] for e, (s, _) in enumerate(EDGES) if s == i]
        heard = [pooled(how[0], near, sizes[0]), pooled(how[1], mine, sizes[1])]
        new_nodes.append(layer.node(torch.cat([nodes[i], *heard])).relu())
    for e, (source, target) in enumerate(EDGES):
        ends = [source] if directed else [source, target]
        others = [
            edges[o]
            for o, (s, t) in enumerate(EDGES)
            if o != e and (t in ends or (not directed and s in ends))
        ]
        heard = [pooled(how[2], [nodes[i] for i in ends], sizes[0])]
        heard.append(pooled(how[3], others, sizes[1]))
        new_edges.append(layer.edge(torch.cat([edges[e], *heard])).relu())
    return torch.stack(new_nodes), torch.stack(new_edges)


@pytest.mark.parametrize("how", [("mean", "sum", "max", "mean"), ("max", "mean", "sum", "max")])
@pytest.mark.parametrize("directed", [False, True])
def test_graph_network_aggregates_in_all_four_directions(how, directed):
    block = built(
        GraphNetworkBlock,
        [(NODES, 3), (len(EDGES), 2)],
        edges=EDGES,
        hidden_units=6,
        edge_units=4,
        directed=directed,
        **dict(zip(["node_to_node", "edge_to_node", "node_to_edge", "edge_to_edge"], how)),
    )
    nodes, edges = torch.randn(2, NODES, 3), torch.randn(2, len(EDGES), 2)
    got = block(nodes, edges)
    for b in range(2):
        expected = plain_network(block, nodes[b], edges[b], how, directed)
        torch.testing.assert_close((got[0][b], got[1][b]), expected, atol=1e-5, rtol=1e-5)


def test_a_direction_that_is_off_is_not_heard():
    off: Any = {"node_to_node": "none", "edge_to_node": "none"}
    block = built(GraphNetworkBlock, [(NODES, 3), (4, 2)], edges=EDGES, hidden_units=[6, 6], **off)
    nodes, edges = torch.randn(NODES, 3), torch.randn(4, 2)
    before, _ = block(nodes, edges)
    nodes[1:] += 1.0
    after, _ = block(nodes, edges + 1.0)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_edges_without_features_learn_from_their_nodes():
    block = built(GraphNetworkBlock, [(NODES, 3)], edges=EDGES, hidden_units=[6, 4])
    nodes = torch.randn(2, NODES, 3)
    with_none = built(GraphNetworkBlock, [(NODES, 3), (4, 0)], edges=EDGES, hidden_units=[6, 4])
    with_none.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(nodes), with_none(nodes, torch.zeros(2, 4, 0)))
    assert block.out_shapes == [(5, 4), (4, 4)]


def test_links_come_back_from_the_meta_device_and_stay_out_of_checkpoints():
    with torch.device("meta"):
        block = GraphNetworkBlock([(NODES, 3)], edges=EDGES, hidden_units=4)
    assert all(name.startswith("layers.") for name in block.state_dict())
    block.to_empty(device="cpu")
    assert block.node_to_edge.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 2, 2, 0, 3, 2]]


def test_a_loop_is_one_neighbour():
    block = GraphNetworkBlock([(2, 3)], edges=[(0, 0), (0, 1)], hidden_units=4)
    assert block.node_to_node.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert block.edge_to_edge.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("block", "shapes", "settings", "message"),
    [
        (
            GraphConvBlock,
            [(5, 3), (5, 4)],
            {"hidden_units": 4},
            "graph_conv needs one row and one column of adjacency for each node, got (5, 3) and (5, 4)",
        ),
        (
            GraphConvBlock,
            [(5, 3)],
            {"hidden_units": 4},
            "graph_conv takes nodes (N, features), their adjacency (N, N) and optionally a mask, got (5, 3)",
        ),
        (
            GraphConvBlock,
            [(5,), (5, 5)],
            {"hidden_units": 4},
            "graph_conv takes nodes (N, features), got (5,)",
        ),
        (
            GraphConvBlock,
            [(5, None), (5, 5)],
            {"hidden_units": 4},
            "graph_conv needs to know how many features a node has, got (5, ?)",
        ),
        (
            GraphConvBlock,
            [(5, 3), (5, 5), (4,)],
            {"hidden_units": 4},
            "graph_conv needs a mask of shape (5,), got (4,)",
        ),
        (
            GraphConvBlock,
            [(5, 3), (5, 5)],
            {"hidden_units": 4, "self_weight": 0},
            "'self_weight' must be a positive number, got 0",
        ),
        (
            GraphAttentionBlock,
            [(5, 3), (5, 5)],
            {"hidden_units": [4, 5], "num_heads": 2},
            "graph_attention cannot split 5 features into 2 equal heads; "
            "change 'num_heads', or 'hidden_units' where it has them",
        ),
        (
            GraphNetworkBlock,
            [(5, 3), (3, 2)],
            {"hidden_units": 4, "edges": EDGES},
            "graph_network has 4 'edges' and needs features for as many, got (3, 2)",
        ),
        (
            GraphNetworkBlock,
            [(None, 3)],
            {"hidden_units": 4, "edges": EDGES},
            "graph_network takes nodes (N, features) of known size, got (?, 3)",
        ),
        (
            GraphNetworkBlock,
            [(3, 3)],
            {"hidden_units": 4, "edges": [[0, 3], [1, 0], [0, 1]]},
            "'edges' of graph_network: [0, 3] names a node beyond the last, 2; "
            "[0, 1] is given twice, and counts both ways unless 'directed' is true",
        ),
        (
            GraphNetworkBlock,
            [(3, 3)],
            {"hidden_units": 4, "edges": []},
            "graph_network needs at least one edge, got edges=[]",
        ),
        (
            GraphNetworkBlock,
            [(3, 3)],
            {"hidden_units": 4, "edges": [[0, 1]], "edge_units": [4, 4]},
            "graph_network has 1 hidden_units and 2 edge_units; give as many, one for each layer",
        ),
        (
            GraphNetworkBlock,
            [(3, 3)],
            {"hidden_units": 4, "edges": [[0, 1, 2]]},
            "'edges' must be a list of [source, target], nodes counted from 0, got [[0, 1, 2]]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(block, shapes, settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        block(shapes, **settings)
    assert str(caught.value) == message
    if "got (" in message:
        assert isinstance(caught.value, InputShapeError)


def test_a_normalised_adjacency_is_taken_as_it_is():
    block: Any = GraphConvBlock(
        [(4, 3), (4, 4)], hidden_units=[5, 2], bias=[False, True], normalize=False
    )
    x, weights = torch.randn(6, 4, 3), torch.rand(6, 4, 4).softmax(-1)
    first, second = block.linears
    assert first.bias is None
    expected = ((weights @ x) @ first.weight.T).relu()
    expected = ((weights @ expected) @ second.weight.T + second.bias).relu()
    torch.testing.assert_close(block(x, weights), expected)


def test_graph_attention_without_bias_and_with_another_slope():
    settings = {"hidden_units": 2, "activation": "identity", "bias": False, "negative_slope": 0.5}
    block: Any = GraphAttentionBlock([(4, 3), (4, 4)], **settings)
    x, (layer,) = torch.randn(4, 3), block.layers
    assert layer.bias is None
    h = x @ layer.linear.weight.T
    scores = (h @ layer.target[0])[:, None] + (h @ layer.source[0])[None]
    weights = torch.where(scores > 0, scores, 0.5 * scores).softmax(-1)
    torch.testing.assert_close(block(x, torch.ones(4, 4)), weights @ h)


def test_layer_norm_of_a_graph_network_comes_before_the_activation():
    plain: Any = GraphNetworkBlock(
        [(3, 4), (2, 5)], edges=[[0, 1], [1, 2]], hidden_units=6, activation="identity"
    )
    normed: Any = GraphNetworkBlock(
        [(3, 4), (2, 5)], edges=[[0, 1], [1, 2]], hidden_units=6, norm="layer"
    )
    normed.load_state_dict(plain.state_dict(), strict=False)
    inputs = torch.randn(7, 3, 4), torch.randn(7, 2, 5)
    for got, before in zip(normed(*inputs), plain(*inputs)):
        torch.testing.assert_close(got, functional.layer_norm(before, (6,)).relu())
