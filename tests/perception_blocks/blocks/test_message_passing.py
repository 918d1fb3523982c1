import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from perception_blocks import Graph, InferenceBlock, MessagePassingBlock, Port
from perception_blocks.blocks.message_passing import (
    AGGREGATIONS,
    CONVOLUTIONS,
    NEED_FEATURES,
    ROOTS,
)
from perception_blocks.blocks.message_passing import convolutions as library
from perception_blocks.graph.graph import GraphError

NODES, EDGES, FEATURES = 5, 7, 4
BATCH = (3, 2)
NEEDED: dict[str, Any] = {  # settings without which a convolution cannot be built
    "APPNP": {"K": 2, "alpha": 0.1},
    "EGConv": {"num_heads": 2},
    "GENConv": {"norm": "layer"},
    "GMMConv": {"kernel_size": 3},
    "GatedGraphConv": {"num_layers": 2},
    "PDNConv": {"hidden_channels": 3},
    "SSGConv": {"alpha": 0.1},
}
TAKES = {
    name: next(
        (
            argument
            for argument in ("edge_weight", "edge_attr")
            if argument in inspect.signature(getattr(library, name).forward).parameters
        ),
        None,
    )
    for name in CONVOLUTIONS
}
CASES = [(name, False) for name in CONVOLUTIONS if name not in NEED_FEATURES]
CASES += [(name, True) for name in CONVOLUTIONS if TAKES[name]]
every_case = pytest.mark.parametrize(("name", "with_edges"), CASES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def width(name):
    return 1 if TAKES[name] == "edge_weight" else 2


def built(name, with_edges=False, units=(4, 4), **changes) -> Any:
    """The block for sizes that may vary, its parameters all drawn at random, biases too."""
    shapes = [(None, FEATURES), (None, 2), *([(None, width(name))] if with_edges else [])]
    given = {"settings": NEEDED.get(name), "hidden_units": units, **changes}
    block = MessagePassingBlock(shapes, conv=name, **given)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return block.eval()


def batch(name, with_edges, leading=BATCH, nodes=NODES, edges=EDGES):
    """Nodes, edges - some of them loops, some twice - and features or positive weights of edges."""
    links = torch.randint(nodes, (*leading, edges, 2))
    links[..., -1, :] = links[..., 0, :]
    links[..., 1, 1] = links[..., 1, 0]
    data = [torch.randn(*leading, nodes, FEATURES), links]
    return [*data, torch.rand(*leading, edges, width(name)) + 0.5] if with_edges else data


def alone(block, name, x, links, edges=None):
    """The library's own layers on one graph, one after the other."""
    given = {}
    if edges is not None:
        given = {TAKES[name]: edges[:, 0] if TAKES[name] == "edge_weight" else edges}
    for conv in block.convs:
        assert type(conv) is getattr(library, name)
        x = conv(x, links.T, **given).relu()
    return x


def close(one, other, **tolerance):
    torch.testing.assert_close(one, other, **{"atol": 1e-5, "rtol": 1e-5, **tolerance})


@every_case
def test_a_batch_is_the_librarys_layer_on_each_graph_by_itself(name, with_edges):
    block, data = built(name, with_edges), batch(name, with_edges)
    together = block(*data)
    assert together.shape == (*BATCH, NODES, 4)
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(2)):
        close(together[i, j], alone(block, name, *(part[i, j] for part in data)))


@every_case
def test_what_is_masked_has_no_influence_whatever_stands_there(name, with_edges):
    block, data = built(name, with_edges), batch(name, with_edges)
    node_mask = torch.tensor([1, 0, 1, 1, 0]).bool()
    edge_mask = torch.rand(*BATCH, EDGES) < 0.6
    edge_mask[0, 0] = False
    data[0][..., ~node_mask, :] = 1e6
    data[1][~edge_mask] = 10**6
    if with_edges:
        data[2][~edge_mask] = -1e6
    masks = {"node_mask": node_mask.expand(*BATCH, NODES), "edge_mask": edge_mask}
    together = block(*data, **masks)
    assert torch.equal(together[..., ~node_mask, :], torch.zeros(*BATCH, 2, 4))
    renumbered = node_mask.cumsum(0) - 1
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(2)):
        x, links, *rest = (part[i, j] for part in data)
        links, rest = links[edge_mask[i, j]], [part[edge_mask[i, j]] for part in rest]
        there = node_mask[links].all(-1)
        small = alone(
            block, name, x[node_mask], renumbered[links[there]], *(e[there] for e in rest)
        )
        close(together[i, j][node_mask], small)


@every_case
def test_gradients_are_finite_where_all_is_masked_and_zero_for_what_is(name, with_edges):
    block, data = built(name, with_edges), batch(name, with_edges)
    floats = [part.requires_grad_() for part in data if part.is_floating_point()]
    nothing = {"node_mask": torch.zeros(*BATCH, NODES), "edge_mask": torch.zeros(*BATCH, EDGES)}
    nothing["node_mask"][0, 0, 0] = 1
    block(*data, **nothing).square().sum().backward()
    for tensor in [*floats, *block.parameters()]:
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()
    assert data[0].grad is not None
    assert not data[0].grad[1:].any()


@every_case
def test_edges_and_nodes_may_be_any_number_none_included(name, with_edges):
    block = built(name, with_edges)
    for leading, nodes, edges in [((), 3, 4), ((2,), 9, 2), ((0,), 5, 7), ((2, 0), 1, 2)]:
        data = batch(name, with_edges, leading, nodes, edges)
        assert block(*data).shape == (*leading, nodes, 4)
    x, links, *rest = batch(name, with_edges, (2,))
    y = block(x, links[:, :0], *(part[:, :0] for part in rest))
    masked = block(x, links, *rest, edge_mask=torch.zeros(2, EDGES))
    close(y, masked)


@every_case
def test_all_weights_are_drawn_from_the_generator_alone(name, with_edges):
    block = built(name, with_edges)
    with torch.device("meta"):
        other = built(name, with_edges)
    other = other.to_empty(device="cpu")
    before = torch.get_rng_state()
    for one in (block, other):
        for tensor in one.state_dict().values():
            tensor.fill_(torch.nan)
        one.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())
    for (key, first), second in zip(block.state_dict().items(), other.state_dict().values()):
        assert torch.isfinite(first).all(), key
        assert torch.equal(first, second), key
    data = batch(name, with_edges)
    close(block(*data), other(*data))


def test_layers_start_with_different_weights_as_their_library_draws_them():
    block = built("GATConv", units=[64, 64], settings={"heads": 2})
    block.reset_parameters(torch.Generator().manual_seed(0))
    first, second = block.convs
    assert not torch.equal(first.att_src, second.att_src)
    assert torch.equal(first.bias, torch.zeros(64))
    bound = (6 / (64 + FEATURES)) ** 0.5  # Glorot and Bengio
    assert 0.9 * bound < first.lin.weight.abs().max() <= bound


def test_an_init_rule_is_for_the_matrices():
    graph = Graph({"nodes": (NODES, FEATURES), "links": Port((EDGES, 2), torch.int64)})
    settings: Any = {"conv": "GCNConv", "hidden_units": 4, "init": "orthogonal"}
    graph.add("latent", "message_passing", ["nodes", "links"], **settings)
    weight = InferenceBlock(graph, outputs=["latent"]).latent.convs[0].lin.weight
    close(weight @ weight.T, torch.eye(4))


@pytest.mark.parametrize("name", ["SAGEConv", "GCNConv"])
def test_an_edge_carries_from_its_source_to_its_target(name):
    block = built(name, units=[4])
    x, links = torch.randn(NODES, FEATURES), torch.tensor([[2, 1]])
    before = block(x, links)
    x[2] += 1
    assert (block(x, links) != before).any(-1).tolist() == [False, True, True, False, False]


def test_edges_that_are_not_directed_carry_both_ways():
    block = built("GATv2Conv", True, directed=False)
    one_way = built("GATv2Conv", True)
    one_way.load_state_dict(block.state_dict())
    x, links, edges = batch("GATv2Conv", True)
    both = torch.cat([links, links.flip(-1)], dim=-2), torch.cat([edges, edges], dim=-2)
    close(block(x, links, edges), one_way(x, *both))
    mask = torch.rand(*BATCH, EDGES) < 0.5
    masked = one_way(x, *both, edge_mask=torch.cat([mask, mask], dim=-1))
    close(block(x, links, edges, edge_mask=mask), masked)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if TAKES[name]])
def test_silent_defect_6_features_and_weights_of_edges_count(name):
    block, (x, links, edges) = built(name, True), batch(name, True)
    edges = edges[..., torch.randperm(EDGES), :]
    assert not torch.allclose(block(x, links, edges), block(x, links, edges.flip(-2)))


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_every_aggregation_leaves_out_what_is_masked(aggr):
    block = built("SAGEConv", settings={"aggr": aggr})
    x, links = batch("SAGEConv", False)
    x = x.abs()
    mask = torch.arange(EDGES) < 4
    y = block(x, links, edge_mask=mask.expand(*BATCH, EDGES))
    close(y, block(x, links[..., mask, :]))
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(2)):
        close(y[i, j], alone(block, "SAGEConv", x[i, j], links[i, j][mask]))


@pytest.mark.parametrize(
    ("settings", "channels"), [({"heads": 2}, 3), ({"heads": 2, "concat": False}, 6), ({}, 6)]
)
def test_heads_that_are_put_side_by_side_share_the_units(settings, channels):
    block = built("GATv2Conv", units=[6], settings=settings)
    assert block.convs[0].out_channels == channels
    assert block(*batch("GATv2Conv", False)).shape[-1] == 6


def test_an_activation_of_the_convolution_itself_goes_by_name():
    block = built("ResGatedGraphConv", settings={"act": "tanh"})
    assert block.convs[0].act is torch.tanh


def test_activations_follow_each_layer():
    block = built("GCNConv", activation="tanh", last_activation="identity")
    x, links = batch("GCNConv", False, ())
    first, second = block.convs
    close(block(x, links), second(first(x, links.T).tanh(), links.T))


def space_graph(edges=True):
    """Ports as composer makes them of a Graph space."""
    masked = {"mask": "edges:mask"}
    ports = {
        "nodes": Port((None, 3), mask="nodes:mask"),
        "nodes:mask": Port((None,), torch.bool),
        "links": Port((None, 2), torch.int64, **masked),
        "edges:mask": Port((None,), torch.bool),
    }
    return Graph({**ports, "edges": Port((None, 2), **masked)} if edges else ports)


@pytest.mark.parametrize("with_edges", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_graph_hands_on_the_masks_of_its_observations(with_edges, by_name):
    graph = space_graph(with_edges)
    names = {"nodes": "nodes", "edge_links": "links"} | ({"edges": "edges"} if with_edges else {})
    settings: Any = {"conv": "GATv2Conv", "hidden_units": 4}
    graph.add("hidden", "message_passing", names if by_name else list(names.values()), **settings)
    graph.add("latent", "masked_global_pooling", "hidden")
    net: Any = InferenceBlock(graph, outputs=["latent"]).eval()
    x, links, edges = torch.randn(2, 5, 3), torch.randint(3, (2, 7, 2)), torch.randn(2, 7, 2)
    node_mask, edge_mask = torch.arange(5).expand(2, 5) < 3, torch.arange(7).expand(2, 7) < 4
    given = {"nodes": x, "links": links, "nodes:mask": node_mask, "edges:mask": edge_mask}
    y = net(given | ({"edges": edges} if with_edges else {}))["latent"]
    small = net.hidden(x[:, :3], links[:, :4], *([edges[:, :4]] if with_edges else []))
    close(y, small.mean(-2))


def test_masks_alone_may_follow_by_position():
    block = MessagePassingBlock([(5, 4), (7, 2), (5,), (7,)], conv="GCNConv", hidden_units=4)
    x, links = batch("GCNConv", False)
    node_mask, edge_mask = torch.rand(*BATCH, 5) < 0.5, torch.rand(*BATCH, 7) < 0.5
    named = block(x, links, node_mask=node_mask, edge_mask=edge_mask)
    assert torch.equal(block(x, links, node_mask, edge_mask), named)


def test_all_other_convolutions_of_the_library_are_refused():
    for name in set(library.__all__) - set(CONVOLUTIONS):
        with pytest.raises(ValueError, match=f"unknown convolution '{name}'"):
            built(name)


THREE = [(5, 3), (7, 2)]
CONV: Any = {"conv": "GCNConv", "hidden_units": 4}


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        (THREE, {"conv": "GCNCov"}, "unknown convolution 'GCNCov'; did you mean 'GCNConv'?"),
        (
            THREE,
            {"conv": "GATConv", "settings": {"head": 2, "dropout": "a"}},
            "'head' is not a setting of convolution 'GATConv'; did you mean 'heads'?; "
            "'dropout' of convolution 'GATConv' must be a number, got 'a'",
        ),
        (
            THREE,
            {"settings": {"in_channels": 3, "cached": True}},
            "'in_channels' of convolution 'GCNConv' cannot be set: it follows from the inputs and 'hidden_units'; "
            "'cached' of convolution 'GCNConv' cannot be set: the graphs differ from call to call",
        ),
        (
            THREE,
            {"settings": {"aggr": "lstm"}},
            "'aggr' of convolution 'GCNConv' must be one of 'add', 'sum', 'mean', 'min', 'max', 'mul', 'softmax', "
            "'powermean', 'std', 'var', got 'lstm'",
        ),
        (
            THREE,
            {"conv": "APPNP", "hidden_units": 3},
            "convolution 'APPNP' needs the setting 'K'; convolution 'APPNP' needs the setting 'alpha'",
        ),
        (
            THREE,
            {"conv": "LGConv"},
            "convolution 'LGConv' keeps the 3 features of a node, got 4 in 'hidden_units'",
        ),
        (
            THREE,
            {"conv": "GatedGraphConv", "settings": {"num_layers": 1}, "hidden_units": 2},
            "convolution 'GatedGraphConv' cannot make the 3 features of a node fewer, got 2 in 'hidden_units'",
        ),
        (
            THREE,
            {"conv": "GATConv", "settings": {"heads": 3}},
            "convolution 'GATConv' shares its units among its heads, got 4 in 'hidden_units' and 3 'heads'",
        ),
        (
            THREE,
            {"conv": "GENConv"},
            "convolution 'GENConv' with settings={} normalises over the nodes of all graphs of a batch and their "
            "padding; choose another norm, such as 'layer'",
        ),
        (
            THREE,
            {"settings": {"flow": "upwards"}},
            "convolution 'GCNConv' cannot be built with settings={'flow': 'upwards'}: Expected 'flow' to be either "
            "'source_to_target' or 'target_to_source' (got 'upwards')",
        ),
        (
            THREE,
            {"conv": "GINEConv"},
            "convolution 'GINEConv' needs features of the edges (edges, features) as third input",
        ),
        (
            [*THREE, (7, 2)],
            {"conv": "SAGEConv"},
            "convolution 'SAGEConv' takes no features of edges, got (7, 2); leave them out, or choose one that takes "
            "them, such as 'GATv2Conv' or 'GINEConv'",
        ),
        (
            [*THREE, (7, 2)],
            {},
            "convolution 'GCNConv' takes one weight for each edge (edges, 1), got (7, 2); choose one that takes "
            "features, such as 'GATv2Conv' or 'GINEConv'",
        ),
        (
            [(5, 3)],
            {},
            "message_passing takes nodes (N, features), edges (E, 2) and optionally features of the edges and masks, "
            "got (5, 3)",
        ),
        ([(5,), (7, 2)], {}, "message_passing takes nodes (N, features) first, got (5,)"),
        (
            [(5, None), (7, 2)],
            {},
            "message_passing needs to know how many features a node has, got (5, ?)",
        ),
        (
            [(5, 3), (2, 7)],
            {},
            "message_passing takes an edge list (edges, 2) of node numbers second, got (2, 7)",
        ),
        (
            [*THREE, (6, 1)],
            {},
            "message_passing takes features of edges (edges, features), one row for each edge, got (7, 2) and (6, 1)",
        ),
        ([*THREE, (6,)], {}, "message_passing needs a mask of shape (5,) or (7,), got (6,)"),
        ([*THREE, (7, 1), (5,), (5,)], {}, "message_passing needs a mask of shape (7,), got (5,)"),
        (
            [*THREE, (5,), (7,), (7, 1)],
            {},
            "message_passing takes features of edges (edges, features) before the masks, got (5,)",
        ),
    ],
)
def test_what_it_cannot_take_is_said_when_it_is_built(shapes, changes, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        MessagePassingBlock(shapes, **{**CONV, **changes})


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        (
            [Port((5, 3)), Port((7, 2))],
            "gets (7, 2) from 'b'; message_passing takes an edge list of integers second.",
        ),
        (
            [Port((5, 3)), Port((7, 2), torch.int64), Port((7,))],
            "gets (7,) from 'c'; message_passing takes weights of edges as (edges, 1), and masks of truth values. "
            "Put a flatten block with 'each: 1' before it.",
        ),
        (
            [Port((5, 3), torch.int64), Port((7, 2), torch.int64)],
            "gets integers (5, 3) from 'a'; message_passing takes numbers as features. Put an embedding block before it.",
        ),
    ],
)
def test_inputs_of_the_wrong_kind_are_refused_by_name(ports, message):
    graph = Graph(dict(zip("abc", ports)))
    graph.add("latent", "message_passing", list("abc")[: len(ports)], **CONV)
    with pytest.raises(GraphError) as caught:
        InferenceBlock(graph, outputs=["latent"])
    assert str(caught.value) == f"node 'latent': block 'latent' {message}"


def test_weights_of_edges_get_their_axis_from_a_flatten_block():
    graph = Graph({"a": (5, 3), "b": Port((7, 2), torch.int64), "c": (7,)})
    graph.add("weights", "flatten", "c", each=1)
    graph.add("latent", "message_passing", ["a", "b", "weights"], **CONV)
    net = InferenceBlock(graph, outputs=["latent"])
    assert net.out_shapes == {"latent": (5, 4)}


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )


def test_the_library_is_imported_when_the_block_is_asked_for():
    code = """
import sys
import perception_blocks
from perception_blocks import BLOCKS, InferenceBlock
assert "message_passing" in BLOCKS and "torch_geometric" not in sys.modules
BLOCKS.get("message_passing")
assert "torch_geometric" in sys.modules
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_without_the_library_the_extra_is_named():
    code = """
import sys
class Hidden:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch_geometric":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from perception_blocks import BLOCKS
assert "message_passing" in BLOCKS
try:
    BLOCKS.get("message_passing")
except ImportError as error:
    print(error)
"""
    message = (
        "block 'message_passing' needs 'torch_geometric'; install it with: "
        'pip install "perception-composer[graph]"'
    )
    assert run(code).stdout.strip() == message


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if TAKES[name] == "edge_weight"])
def test_weights_below_zero_are_finite_or_refused(name):
    """The root of a negative sum of weights would be NaN without a word."""
    block = built(name, with_edges=True)
    x, links = torch.randn(NODES, FEATURES), torch.randint(NODES, (EDGES, 2))
    weights = torch.full((EDGES, 1), -3.0)
    mask = torch.zeros(EDGES, dtype=torch.bool)
    if name not in ROOTS:
        assert block(x, links, weights).isfinite().all()
    else:
        message = (
            f"message_passing got a weight of -3, but {name!r} divides by the root of the sum of a node's weights, "
            "which must be 0 or more; 'GraphConv' and 'LEConv' take any"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            block(x, links, weights)
    masked = MessagePassingBlock(
        [(NODES, FEATURES), (EDGES, 2), (EDGES, 1), (NODES,), (EDGES,)],
        conv=name,
        hidden_units=4,
        settings=NEEDED.get(name),
    )
    assert masked(x, links, weights, torch.ones(NODES, dtype=torch.bool), mask).isfinite().all()
