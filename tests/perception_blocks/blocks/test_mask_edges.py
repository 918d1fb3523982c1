"""Masks go along the edges of a graph: who can use one gets it untold, and no one drops one in silence."""

import pytest
import torch
from torch import nn

from perception_blocks import Graph, GraphError, InferenceBlock, Port


def units_graph() -> Graph:
    """A set of up to any number of units, and its mask."""
    return Graph(
        {
            "units": Port((None, 4), mask="units:mask"),
            "units:mask": Port((None,), dtype=torch.bool),
            "other": Port((None, 4), mask="other:mask"),
            "other:mask": Port((None,), dtype=torch.bool),
            "self": Port((2, 4)),
        },
        optional=["units:mask", "other", "other:mask", "self"],
    )


def inputs() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    units = torch.randn(3, 3, 4).masked_fill(~mask[..., None], float("nan"))
    return {"units": units, "units:mask": mask}


def problem(graph: Graph, *outputs: str) -> str:
    with pytest.raises(GraphError) as caught:
        InferenceBlock(graph, list(outputs))
    return str(caught.value)


def test_pooling_takes_the_mask_untold():
    graph = units_graph()
    graph.add("mean", "masked_global_pooling", "units")
    net = InferenceBlock(graph, ["mean"])
    assert net.in_keys == ["units", "units:mask"]
    data = inputs()
    expected = torch.stack([data["units"][0, :2].mean(0), data["units"][1, 0], torch.zeros(4)])
    torch.testing.assert_close(net(data)["mean"], expected)


def test_a_mask_goes_on_through_blocks_that_work_on_each_element():
    graph = units_graph()
    graph.add("latent", "dense", "units", each=1, hidden_units=[8])
    graph.add("doubled", "add", ["latent", "latent"])
    graph.add("mean", "masked_global_pooling", "doubled")
    net = InferenceBlock(graph, ["mean", "latent"])
    assert net.out_ports["latent"].mask == "units:mask"
    assert net.out_ports["mean"].mask is None
    data = inputs()
    alone = net.get_submodule("latent")(data["units"][0, :2]) * 2
    torch.testing.assert_close(net(data)["mean"][0], alone.mean(0))


def test_what_looks_at_a_set_has_none_of_its_mask():
    graph = units_graph()
    graph.add("own", "slice", "self", dim=0, index=0)
    graph.add("seen", "cross_attention", ["own", "units"])
    graph.add("others", "cross_attention", ["self", "units"])
    graph.add("latent", "dense", "seen", hidden_units=4)
    net = InferenceBlock(graph, ["latent", "others"])
    assert net.out_ports["latent"].mask is None
    assert net.out_ports["others"].mask is None
    out = net({"self": torch.randn(3, 2, 4), **inputs()})
    assert all(value.isfinite().all() for value in out.values())


@pytest.mark.parametrize(
    ("block", "settings"),
    [("flatten_dense", {"hidden_units": [4]}), ("lstm_last_step", {"hidden_units": 4})],
)
def test_a_block_that_would_drop_a_mask_is_refused(block, settings):
    graph = Graph(
        {"units": Port((5, 4), mask="m"), "m": Port((5,), dtype=torch.bool)}, optional=["m"]
    )
    graph.add("latent", block, "units", **settings)
    assert problem(graph, "latent") == (
        f"node 'latent': block {block!r} would drop the mask of 'units'; pool or attend first, or instead "
        "(masked_global_pooling, attention_pooling), or apply it to each element: each: 1"
    )


def test_a_module_of_a_users_own_takes_a_mask_only_by_hand():
    class Sum(nn.Module):
        def forward(self, x, mask):
            return torch.where(mask[..., None], x, 0.0).sum(-2)

    graph = units_graph()
    graph.add("sum", Sum, "units")
    assert problem(graph, "sum") == (
        "node 'sum': block 'Sum': forward(x, mask) does not take one input: missing a required argument: 'mask'; "
        "'in' names its inputs, in order or as {argument: value}"
    )
    graph = units_graph()
    graph.add("sum", Sum, {"x": "units", "mask": "units:mask"})
    data = inputs()
    net = InferenceBlock(graph, ["sum"])
    torch.testing.assert_close(net(data)["sum"][1], data["units"][1, 0])


def test_inputs_of_an_elementwise_block_must_share_their_mask():
    graph = units_graph()
    graph.add("both", "add", ["units", "other"])
    graph.add("mean", "masked_global_pooling", "both")
    assert (
        "the inputs are masked by 'units:mask' and 'other:mask'; they must share one mask"
        in problem(graph, "mean")
    )


def test_joining_elements_drops_the_mask_and_is_refused_joining_features_is_not():
    graph = units_graph()
    graph.add("both", "concat", ["units", "units"], dim=-2)
    graph.add("mean", "masked_global_pooling", "both")
    assert "block 'concat' would drop the mask of 'units'" in problem(graph, "mean")
    graph = units_graph()
    graph.add("both", "concat", ["units", "units"])
    graph.add("mean", "masked_global_pooling", "both")
    assert InferenceBlock(graph, ["mean"]).out_shapes == {"mean": (8,)}


def test_sets_of_a_set_are_pooled_one_by_one_with_their_own_masks():
    graph = Graph(
        {
            "squads": Port((2, None, 4), mask="squads:mask"),
            "squads:mask": Port((2, None), dtype=torch.bool),
        },
        optional=["squads:mask"],
    )
    graph.add("units", "dense", "squads", each=2, hidden_units=5)
    graph.add("means", "masked_global_pooling", "units", each=1)
    net = InferenceBlock(graph, ["means"])
    assert net.out_ports["means"] == Port((2, 5))
    mask = torch.tensor([[True, False, False], [True, True, False]])
    squads = torch.randn(2, 3, 4).masked_fill(~mask[..., None], 1e30)
    dense = net.get_submodule("units")
    expected = [dense(squads[0, :1]).mean(0), dense(squads[1, :2]).mean(0)]
    means = net({"squads": squads, "squads:mask": mask})["means"]
    torch.testing.assert_close(means, torch.stack(expected))


def test_a_nested_graph_gets_the_mask_with_what_it_masks():
    inner = Graph({})
    inner.add("latent", "dense", "x", each=1, hidden_units=[8])
    inner.add("mean", "masked_global_pooling", "latent")
    graph = units_graph()
    graph.add("pooled", inner, {"x": "units"}, out={"pooled": "mean"})
    net = InferenceBlock(graph, ["pooled"])
    data = inputs()
    assert net(data)["pooled"].isfinite().all()
    assert net(data)["pooled"][2].abs().sum() == 0


def test_a_graph_applied_to_each_element_keeps_the_mask():
    inner = Graph({})
    inner.add("latent", "dense", "x", hidden_units=[8])
    graph = units_graph()
    graph.add("each_latent", inner, {"x": "units"}, out={"latents": "latent"}, each=1)
    graph.add("mean", "masked_global_pooling", "latents")
    net = InferenceBlock(graph, ["mean", "latents"])
    assert net.out_ports["latents"].mask == "units:mask"
    data = inputs()
    alone = net.get_submodule("each_latent")({"x": data["units"][0, :2]})["latent"]
    torch.testing.assert_close(net(data)["mean"][0], alone.mean(0))


def test_an_ensemble_pools_inside_or_is_refused():
    inner = Graph({})
    inner.add("latent", "dense", "x", each=1, hidden_units=[8])
    inner.add("mean", "masked_global_pooling", "latent")
    graph = units_graph()
    graph.add("all", inner, {"x": "units"}, out=["mean"], copies=3)
    net = InferenceBlock(graph, ["mean"])
    assert net(inputs())["mean"].isfinite().all()
    graph = units_graph()
    graph.add("all", inner, {"x": "units"}, out=["latent", "mean"], copies=3)
    assert problem(graph, "latent", "mean") == (
        "node 'all': block 'ensemble' would drop the mask of 'latent'; "
        "pool or attend inside of it (masked_global_pooling, attention_pooling)"
    )


@pytest.mark.parametrize(
    ("block", "settings"),
    [
        ("transformer_encoder", {"num_heads": 2}),
        ("self_attention_seq", {}),
        ("deep_set", {"hidden_units": 4}),
    ],
)
def test_attention_sees_only_what_is_there(block, settings):
    graph = units_graph()
    graph.add("attended", block, "units", **settings)
    net = InferenceBlock(graph, ["attended"]).eval()
    data = inputs()
    data["units"] = data["units"].nan_to_num(7.0)
    other = {**data, "units": data["units"].clone()}
    other["units"][1, 1:] = -3.0  # padding
    first, second = net(data)["attended"], net(other)["attended"]
    torch.testing.assert_close(first[1, :1], second[1, :1])
    assert first[2].abs().sum() == 0
    alone = {"units": data["units"][:1, :2], "units:mask": data["units:mask"][:1, :2]}
    expected = net(alone)["attended"]
    torch.testing.assert_close(first[:1, :2] if first.dim() == 3 else first[:1], expected)
    kept = None if block == "deep_set" else "units:mask"
    assert net.out_ports["attended"].mask == kept


def test_cross_attention_masks_the_context_and_keeps_the_querys_own_mask():
    graph = units_graph()
    graph.add("attended", "cross_attention", {"query": "other", "context": "units"})
    graph.add("mean", "masked_global_pooling", "attended")
    net = InferenceBlock(graph, ["mean"]).eval()
    assert set(net.in_keys) == {"units", "units:mask", "other", "other:mask"}
    data = inputs()
    data["units"] = data["units"].nan_to_num(7.0)
    data |= {"other": torch.randn(3, 2, 4), "other:mask": torch.tensor([[True, False]] * 3)}
    other = {**data, "units": data["units"].clone(), "other": data["other"].clone()}
    other["units"][0, 2] = other["other"][:, 1] = 9.0
    torch.testing.assert_close(net(data), net(other))


def test_a_graph_of_any_size_by_its_edge_list():
    graph = Graph(
        {
            "nodes": Port((None, 3), mask="nodes:mask"),
            "nodes:mask": Port((None,), dtype=torch.bool),
            "links": Port((None, 2), dtype=torch.int64, mask="edges:mask"),
            "edges:mask": Port((None,), dtype=torch.bool),
        },
        optional=["nodes:mask", "edges:mask"],
    )
    graph.add("matrix", "adjacency", ["nodes", "links"], directed=False)
    graph.add("learned", "graph_conv", ["nodes", "matrix"], hidden_units=[5])
    graph.add("whole", "masked_global_pooling", "learned")
    net = InferenceBlock(graph, ["whole", "matrix"])
    data = {
        "nodes": torch.randn(2, 4, 3),
        "nodes:mask": torch.tensor([[True] * 4, [True, True, False, False]]),
        "links": torch.tensor([[[0, 1], [2, 3]], [[1, 0], [0, 0]]]),
        "edges:mask": torch.tensor([[True, True], [True, False]]),
    }
    outputs = net(data)
    assert outputs["matrix"][1].nonzero().tolist() == [[0, 1], [1, 0]]
    alone = {n: v[1:, : 1 if n in ("links", "edges:mask") else 2] for n, v in data.items()}
    torch.testing.assert_close(outputs["whole"][1:], net(alone)["whole"])


def test_a_mask_of_a_whole_value_is_no_mask_of_elements():
    """An alternative of a OneOf is zeros where another one is chosen, and any block may read it."""
    graph = Graph(
        {
            "point": Port((4,), mask="point:mask"),
            "points": Port((3, 4), mask="point:mask"),
            "point:mask": Port((), dtype=torch.bool),
        },
        optional=["point:mask"],
    )
    graph.add("latent", "dense", "point", hidden_units=[4])
    graph.add("pooled", "deep_set", "points", hidden_units=[4])
    graph.add("both", "concat", ["latent", "pooled"])
    net = InferenceBlock(graph, ["both"])
    assert net.in_keys == ["point", "points"]
    assert net.out_ports["both"].mask is None


def test_a_mask_that_the_graph_does_not_have_is_named():
    graph = Graph({"units": Port((None, 4), mask="units:mask")})
    graph.add("pooled", "deep_set", "units", hidden_units=[4])
    assert problem(graph, "pooled") == (
        "node 'pooled': 'units' is masked by 'units:mask', which is not among the inputs; add it"
    )


def test_a_mask_needs_no_reader_that_names_it():
    graph = Graph({"units": Port((5, 4), mask="m"), "m": Port((5,), dtype=torch.bool)})
    graph.add("mean", "masked_global_pooling", "units")
    assert InferenceBlock(graph, ["mean"]).in_keys == ["units", "m"]
