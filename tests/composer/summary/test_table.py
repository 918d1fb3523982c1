"""Summaries: every parameter once, FLOPs as the closed forms say, and a table that never changes by itself."""

import gymnasium
import pytest
import torch
from torch import nn

import composer
from composer.summary.table import summarize
from perception_blocks import Graph, InferenceBlock
from tests.helpers.example_models import (
    EXAMPLES,
    chain,
    complex_model,
    custom,
    expect_golden,
    mlp,
    nested,
)
from tests.helpers.paths import CONFIGS

WORDS = """
version: 1
policy:
  graph:
    word: {block: one_hot, in: observation}
    flat: {block: flatten, in: word}
  heads: {in: flat}
"""


def single(block, shape, **settings) -> InferenceBlock:
    graph = Graph({"x": shape})
    graph.add("node", block, "x", **settings)
    return InferenceBlock(graph, ["node"])


def flops_of_node(block, shape, **settings):
    return summarize(single(block, shape, **settings)).row("node").flops


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_table_is_the_same_bytes(name):
    text = str(summarize(EXAMPLES[name]()))
    assert text == str(summarize(EXAMPLES[name]()))
    expect_golden(f"{name}.txt", text)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_table_fits_a_width_and_loses_no_node(name, width):
    summary = summarize(EXAMPLES[name]())
    lines = summary.text(width).splitlines()
    assert max(map(len, lines)) <= width
    nodes = [line for line in lines[1 : lines.index("")] if not line.startswith(" " * 6)]
    assert len(nodes) >= len([row for row in summary.rows if row.depth < 3])
    assert summary.text(10_000) == str(summary)


def test_what_a_narrow_table_leaves_out():
    summary = summarize(EXAMPLES["complex"]())
    expect_golden("complex_80.txt", summary.text(80))
    colored = summary.text(80, color=True)
    assert "\x1b[2m      carries h (1, 64), c (1, 64)\x1b[0m" in colored
    assert colored.replace("\x1b[1m", "").replace("\x1b[2m", "").replace(
        "\x1b[0m", ""
    ) == summary.text(80)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_parameter_counts_once(name):
    net = EXAMPLES[name]()
    summary = summarize(net)
    expected = sum(parameter.numel() for parameter in net.parameters())
    assert summary.parameters == expected == sum(row.parameters for row in summary.rows)
    assert sum(row.share for row in summary.rows) == pytest.approx(1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_summary_moves_no_random_state_and_changes_nothing(name):
    net = EXAMPLES[name]()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    summarize(net)
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_dense_flops():
    assert flops_of_node("dense", (4,), hidden_units=[64, 32]) == 2 * (4 * 64 + 64 * 32)


def test_convolution_flops():
    settings = {"in_channels": 3, "out_channels": 8, "kernel_size": 3}
    assert flops_of_node(nn.Conv2d, (3, 10, 12), **settings) == 2 * 8 * 3 * 3 * 3 * (8 * 10)


@pytest.mark.parametrize(("block", "gates"), [("lstm", 4), ("gru", 3)])
def test_one_step_of_a_recurrent_block(block, gates):
    assert flops_of_node(block, (16,), hidden_units=32) == 2 * gates * 32 * (16 + 32)


@pytest.mark.parametrize(("block", "gates"), [("lstm", 4), ("gru", 3)])
def test_a_window_costs_its_length(block, gates):
    layers = (16 + 32) + (32 + 32)
    expected = 10 * 2 * gates * 32 * layers
    assert flops_of_node(block, (10, 16), hidden_units=32, num_layers=2) == expected


@pytest.mark.parametrize(("cls", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_torchs_own_recurrent_modules(cls, gates):
    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cls(16, 32, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0]

    assert flops_of_node(Outputs, (10, 16)) == 10 * 2 * gates * 32 * (16 + 32)


def test_each_element_costs_its_own_flops():
    graph = Graph({"x": (5, 16)})
    graph.add("node", "dense", "x", each=1, hidden_units=[8])
    assert summarize(InferenceBlock(graph, ["node"])).row("node").flops == 5 * 2 * 16 * 8


def test_a_nested_graph_repeated_costs_its_nodes_often():
    inner = Graph({})
    inner.add("first", "dense", "x", hidden_units=[8])
    graph = Graph({"x": (5, 16)})
    graph.add("node", inner, {"x": "x"}, each=1)
    assert summarize(InferenceBlock(graph, ["node"])).row("node", "first").flops == 5 * 2 * 16 * 8


def test_flops_over_a_varying_length_are_not_known():
    summary = summarize(single(nn.Linear, (None, 4), in_features=4, out_features=8))
    assert summary.flops is None
    assert "FLOPs       not known for every row" in str(summary)


def test_a_module_used_twice_counts_its_parameters_once_and_its_flops_twice():
    summary = summarize(nested())
    a, b = summary.row("a"), summary.row("b")
    assert (a.parameters, b.parameters) == (16 * 8 + 8, 0)
    assert a.flops == b.flops == 2 * 16 * 8
    assert b.notes == "same module as 'a'"


def test_memory_says_what_it_carries():
    assert summarize(single("lstm", (16,), hidden_units=8)).row("node").memory == (
        "carries h (1, 8), c (1, 8)"
    )
    assert summarize(single("gru", (5, 16), hidden_units=8)).row("node").memory == (
        "reads its window, carries nothing"
    )


def test_a_gradient_that_stops_is_told():
    assert summarize(single("detach", (16,))).row("node").notes == "no gradient flows back"


def test_a_class_is_listed_child_by_child():
    summary = summarize(custom())
    assert summary.row("critic").parameters == 3
    assert summary.row("critic", "body").flops == 2 * 4 * 16
    assert summary.row("policy", "body", "latent").flops == 2 * 4 * 32
    assert summary.row("policy", "head").parameters == 66
    assert summary.flops == 2 * (4 * 32 + 32 * 2) + 2 * (4 * 16 + 16)


def test_parts_of_a_model_can_be_summarized_alone():
    model = mlp()
    assert model.critic is not None
    parts = summarize(model.policy).parameters, summarize(model.critic).parameters
    assert sum(parts) == summarize(model).parameters


def test_any_module_is_listed():
    summary = summarize(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    assert [row.parameters for row in summary.rows] == [0, 40, 18]
    assert summary.flops is None


def test_who_shares_and_who_sees():
    summary = summarize(complex_model())
    assert summary.remarks == (
        "the critic reads of the policy: 'latent_screen'",
        "the policy may see: 'screen', 'inventory'",
        "the critic may see: 'inventory', 'secret'",
    )
    assert [head.meaning for head in summary.heads] == [
        "categorical, masked by 'legal'",
        "bernoulli",
        "shared with the critic",
        "",
    ]
    assert summarize(mlp()).remarks == ()


def test_rows_know_their_line():
    assert summarize(mlp()).row("policy", "latent").position == "<spec>:5:13"
    assert summarize(chain(2)).row("layer_0").position is None


def test_a_row_that_is_not_there():
    with pytest.raises(KeyError, match="layer_7"):
        summarize(chain(2)).row("layer_7")


def drawn(model, folder) -> str:
    return composer.draw(model, folder / "model.dot").read_text()


def test_the_wrappers_of_a_policy_are_told(tmp_path):
    model = composer.compose(CONFIGS / "wrapped_recurrent.yaml")
    summary = summarize(model)
    assert summary.wrappers == ("hidden_state", "eps_greedy_sample")
    assert "the policy acts in the wrappers hidden_state, eps_greedy_sample" in summary.remarks
    told = "14,339 parameters, 27,904 FLOPs; policy wrapped in hidden_state, eps_greedy_sample"
    assert told in drawn(model, tmp_path)


@pytest.mark.parametrize(("counts", "said"), [([8, 8, 8], "below 8 (3,)"), ([8, 3], "(2,)")])
def test_a_picture_tells_how_many_values_integers_have(counts, said, tmp_path):
    model = composer.compose(
        WORDS,
        observation_space=gymnasium.spaces.MultiDiscrete(counts),
        action_space=gymnasium.spaces.Discrete(2),
    )
    assert f"integers {said}" in drawn(model, tmp_path)


FROZEN = """
version: 1
environment: FrozenLake-v1
policy:
  graph:
    latent: {block: decoder, in: observation, width: 8, num_layers: 1, num_heads: 2, max_length: 4, SETTINGS}
  heads: {in: latent}
critic: {kind: state_action, template: {}}
"""


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ("lora: {rank: 2}", lambda name: "policy.latent." in name and ".lora_" not in name),
        ("freeze: [layers.0]", lambda name: ".layers.0." in name),
        ("freeze: []", lambda name: False),
    ],
)
def test_how_much_is_trained_is_said_where_it_is_not_all(settings, frozen):
    """A target is never trained, and is not counted."""
    model = composer.compose(FROZEN.replace("SETTINGS", settings), device="meta")
    parts = {n: p.numel() for n, p in model.named_parameters() if ".target." not in n}
    trained = sum(size for name, size in parts.items() if not frozen(name))
    summary = summarize(model)
    assert summary.parameters == sum(parts.values())
    said = f"{trained:,} of {summary.parameters:,} parameters are trained, the others are frozen"
    assert [r for r in summary.remarks if "frozen" in r] == (
        [] if trained == summary.parameters else [said]
    )
