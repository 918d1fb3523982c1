"""An ensemble is its copies, run as one call."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer
from composer.diagram.sketch import sketch
from composer.summary.table import summarize
from perception_blocks import Graph, GraphError, InferenceBlock
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.init import derive_seed
from tests.helpers.random_states import random_state
from tests.perception_blocks.lowering.test_lower import data_of, of_sample
from tests.whole.test_block_contract import SAMPLES

SPEC = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
    votes:
      block: ensemble
      copies: 3
      in: [observation, latent]
      out: [vote]
      graph:
        both: {block: concat, in: [observation, latent]}
        hidden: {block: dense, in: both, hidden_units: [16], norm: layer}
        vote: {block: linear_output, in: hidden, output_units: 2}
    mean: {block: flatten, in: vote}
  heads: {in: mean}
"""
SPACES = {"observation_space": spaces.Box(-1, 1, (4,)), "action_space": spaces.Discrete(2)}


def inner_graph(block="dense", **settings) -> Graph:
    graph = Graph({})
    settings = settings or ({"hidden_units": [16]} if block == "dense" else {})
    graph.add("hidden", block, "x", **settings)
    graph.add("out", "linear_output", "hidden", output_units=2)
    return graph


def network(**keywords) -> InferenceBlock:
    graph = Graph({"x": (4,)})
    graph.add("all", inner_graph(**keywords), {"x": "x"}, out=["out"], copies=5)
    return InferenceBlock(graph, ["out"])


@pytest.mark.parametrize("leading", [(), (1,), (5, 2), (0,)])
def test_outputs_have_an_axis_of_copies(leading):
    net = network()
    assert net.out_shapes == {"out": (5, 2)}
    x = torch.randn(*leading, 4)
    outputs = net({"x": x})["out"]
    ensemble = net.get_submodule("all")
    for index in range(5):
        alone = ensemble.copy_of(index)({"x": x})["out"]
        torch.testing.assert_close(outputs[..., index, :], alone, atol=1e-5, rtol=1e-5)
    assert ensemble.why_looped is None


def test_the_copies_differ_and_each_learns_by_itself():
    net = network()
    outputs = net({"x": torch.randn(7, 4)})["out"]
    assert not torch.allclose(outputs[:, 0], outputs[:, 1])
    outputs[:, 2].sum().backward()
    for name, parameter in net.named_parameters():
        used = parameter.grad.flatten(1).abs().sum(dim=1) > 0
        assert used.tolist() == [False, False, True, False, False], name


def test_the_state_dict_is_split_by_copy_and_loads_again():
    net, other = network(), network()
    names = list(net.state_dict())
    assert "all.0.hidden.linears.0.weight" in names
    assert "all.4.out.linear.bias" in names
    assert len(names) == 5 * 4
    other.load_state_dict(net.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(other({"x": x}), net({"x": x}))
    alone = InferenceBlock(_with_shape(inner_graph()), ["out"])
    state = net.state_dict()
    alone.load_state_dict(
        {n[len("all.1.") :]: v for n, v in state.items() if n.startswith("all.1.")}
    )
    torch.testing.assert_close(alone({"x": x})["out"], net({"x": x})["out"][:, 1])


def _with_shape(graph: Graph) -> Graph:
    shaped = Graph({"x": (4,)})
    shaped.nodes = graph.nodes
    return shaped


def test_a_state_dict_that_does_not_fit_is_refused_by_name():
    net = network()
    state = dict(net.state_dict())
    state["all.9.out.linear.bias"] = state.pop("all.0.out.linear.bias")
    state["all.1.out.linear.bias"] = torch.zeros(3)
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    for part in ("all.0.out.linear.bias", "all.9.out.linear.bias", "size mismatch for all.1.out"):
        assert part in str(caught.value)


def test_copy_i_is_a_single_network_composed_with_its_derived_seed():
    model = composer.compose(SPEC, seed=4, **SPACES)
    ensemble = model.policy.get_submodule("votes")
    single = {
        "version": 1,
        "policy": {
            "graph": {
                "both": {"block": "concat", "in": ["observation", "observation"]},
                "hidden": {"block": "dense", "in": "both", "hidden_units": [16], "norm": "layer"},
                "vote": {"block": "linear_output", "in": "hidden", "output_units": 2},
            },
            "heads": {"in": "vote"},
        },
    }
    for index in range(3):
        seed = derive_seed(4, "policy", "votes", index)
        alone = composer.compose(
            single,
            seed=seed,
            observation_space=spaces.Box(-1, 1, (6,)),
            action_space=spaces.Discrete(2),
        )
        expected = alone.policy.get_submodule("hidden").linears[0].weight
        torch.testing.assert_close(
            ensemble.copy_of(index).get_submodule("hidden").linears[0].weight,
            expected,
            rtol=0,
            atol=0,
        )


def test_an_ensemble_in_a_spec_is_saved_materialised_and_moved(tmp_path):
    model = composer.compose(SPEC, seed=1, **SPACES)
    model.save(tmp_path / "m.safetensors")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for other in (
        composer.load(tmp_path / "m.safetensors"),
        composer.compose(SPEC, seed=1, device="meta", **SPACES).materialize(),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        torch.testing.assert_close(other.policy(x), model.policy(x))
    assert model.to(torch.float64).policy(x)["action"].dtype == torch.float64


def test_copies_carry_their_own_state():
    net = network(block="gru", hidden_units=6)
    assert net.state_shapes == {"all/hidden/h": (5, 1, 6)}
    inputs = {"x": torch.randn(3, 4, 4)}
    together, last = net.unroll(inputs, net.initial_state(3))
    state = net.initial_state(3)
    for t in range(4):
        outputs, state = net.step({"x": inputs["x"][:, t]}, state)
        torch.testing.assert_close(outputs["out"], together["out"][:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dict(last), dict(state), atol=1e-5, rtol=1e-5)
    alone = net.get_submodule("all").copy_of(3)
    expected, _ = alone.unroll(inputs, alone.initial_state(3))
    torch.testing.assert_close(together["out"][..., 3, :], expected["out"], atol=1e-5, rtol=1e-5)


class Stubborn(nn.Module):
    """Looks at its data, which a batched call cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = self.linear(x)
        return y if bool(y.sum() > 0) or True else -y


def test_what_cannot_be_batched_runs_one_by_one_and_says_why():
    graph = Graph({"x": (4,)})
    inner = Graph({})
    inner.add("hidden", Stubborn, "x")
    graph.add("all", inner, {"x": "x"}, out=["hidden"], copies=3)
    net = InferenceBlock(graph, ["hidden"])
    ensemble = net.get_submodule("all")
    assert ensemble.why_looped
    x = torch.randn(5, 4)
    outputs = net({"x": x})["hidden"]
    assert outputs.shape == (5, 3, 4)
    torch.testing.assert_close(outputs[:, 1], ensemble.copy_of(1)({"x": x})["hidden"])
    assert "all.2.hidden.linear.weight" in net.state_dict()


@pytest.mark.parametrize("copies", [0, -1])
def test_at_least_one_copy(copies):
    with pytest.raises(ValueError, match=f"'copies' of node 'all' is at least 1, got {copies}"):
        Graph({"x": (4,)}).add("all", inner_graph(), {"x": "x"}, out=["out"], copies=copies)


@pytest.mark.parametrize("copies", [1.5, "3", True])
def test_copies_are_a_whole_number(copies):
    message = f"'copies' of node 'all' is a number of networks, got {copies!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Graph({"x": (4,)}).add("all", inner_graph(), {"x": "x"}, out=["out"], copies=copies)


def test_only_a_graph_has_copies():
    with pytest.raises(
        ValueError, match="'copies' of node 'all' needs a nested graph as its block"
    ):
        Graph({"x": (4,)}).add("all", "dense", "x", hidden_units=[3], copies=2)


def test_building_an_ensemble_moves_no_random_state_of_a_composer():
    before = torch.get_rng_state()
    composer.compose(SPEC, seed=1, **SPACES)
    assert torch.equal(before, torch.get_rng_state())


def test_a_summary_counts_every_copy_and_shows_what_is_in_them():
    summary = summarize(composer.compose(SPEC, seed=1, **SPACES))
    ensemble, hidden = summary.row("policy", "votes"), summary.row("policy", "votes", "hidden")
    assert (ensemble.block, ensemble.settings) == ("ensemble", {"copies": 3})
    assert ensemble.out_shapes == ((3, 2),)
    assert (hidden.out_shapes, hidden.position) == (((16,),), "<spec>:13:17")
    assert hidden.parameters == 3 * (12 * 16 + 16 + 2 * 16)
    assert hidden.flops == 3 * 2 * 12 * 16
    assert summary.parameters == 40 + 3 * (240 + 34) + 14
    assert summary.remarks == ()


def test_a_summary_says_why_copies_run_one_by_one():
    graph = Graph({"x": (4,)})
    inner = Graph({})
    inner.add("hidden", Stubborn, "x")
    graph.add("all", inner, {"x": "x"}, out=["hidden"], copies=3)
    summary = summarize(InferenceBlock(graph, ["hidden"]))
    assert summary.remarks == (
        "the copies of 'all' run one by one: block 'Stubborn' at 'hidden' has no stacked form",
    )
    assert summary.parameters == 3 * 20


def test_a_diagram_shows_one_of_the_copies_and_how_many_there_are():
    picture = sketch(composer.compose(SPEC, seed=1, **SPACES))
    (name,) = [name for name, frame in picture.frames.items() if frame.title == "votes"]
    assert picture.frames[name].remark == "3 copies"
    assert [picture.boxes[box].title for box in picture.inside(name)] == ["both", "hidden", "vote"]


def test_the_init_of_a_nested_graph_is_that_of_its_nodes():
    text = SPEC.replace("      copies: 3\n", "      copies: 3\n      init: zeros\n")
    policy = composer.compose(text, seed=1, **SPACES).policy
    vote = policy.get_submodule("votes").copy_of(2).get_submodule("vote")
    assert not vote.linear.weight.any()
    assert policy.get_submodule("latent").linears[0].weight.any()


def test_from_python_a_nested_graph_has_no_init():
    graph = Graph({"x": (4,)})
    graph.add("all", inner_graph(), {"x": "x"}, out=["out"], init="zeros")
    message = "a nested graph has no weights of its own; give 'init' to its nodes"
    with pytest.raises(GraphError, match=re.escape(f"node 'all': {message}")):
        InferenceBlock(graph, ["out"])


def agents(block="dense", copies=3, **settings) -> tuple[EnsembleBlock, list[InferenceBlock]]:
    """An ensemble in which each copy reads its own inputs, and the same networks one by one."""
    networks = [
        InferenceBlock(_with_shape(inner_graph(block, **settings)), ["out"]) for _ in range(copies)
    ]
    alone = copy.deepcopy(networks)
    return EnsembleBlock(networks, own_inputs=True), alone


SETTINGS = {"dense": {"hidden_units": [16]}, "gru": {"hidden_units": 6}, Stubborn: {}}


@pytest.mark.parametrize("block", ["dense", "gru", Stubborn])
@pytest.mark.parametrize("leading", [(), (1,), (5, 2), (0,)])
@pytest.mark.parametrize("rows", [None, [2, 0], [1]])
def test_with_own_inputs_each_copy_reads_its_own(block, leading, rows):
    ensemble, alone = agents(block, **SETTINGS[block])
    assert ensemble.out_ports["out"].shape == (2,)
    chosen = range(3) if rows is None else rows
    x = torch.randn(len(chosen), *leading, 4)
    outputs = ensemble({"x": x}, rows=rows)["out"]
    for place, row in enumerate(chosen):
        expected = alone[row]({"x": x[place]})["out"]
        torch.testing.assert_close(outputs[place], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [None, [2, 0]])
@pytest.mark.parametrize("unroll", [False, True])
def test_with_own_inputs_each_copy_has_its_own_state_and_resets(rows, unroll):
    ensemble, alone = agents("gru", hidden_units=6)
    assert ensemble.state_shapes == {"hidden/h": (1, 6)}
    chosen = range(3) if rows is None else rows
    time = (4,) if unroll else ()
    inputs = {"x": torch.randn(len(chosen), 5, *time, 4)}
    state = {"hidden/h": torch.randn(len(chosen), 5, 1, 6)}
    resets = torch.rand(len(chosen), 5, *time) < 0.5
    outputs, after = ensemble(inputs, state, resets, unroll, rows=rows)
    for place, row in enumerate(chosen):
        own = {name: value[place] for name, value in state.items()}
        expected = alone[row]({"x": inputs["x"][place]}, own, resets[place], unroll)
        got = ({"out": outputs["out"][place]}, {n: value[place] for n, value in after.items()})
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_chosen_copies_alone():
    ensemble, _ = agents()
    ensemble({"x": torch.randn(2, 7, 4)}, rows=[2, 0])["out"].sum().backward()
    for name, parameter in ensemble.named_parameters():
        used = parameter.grad.flatten(1).abs().sum(dim=1) > 0
        assert used.tolist() == [True, False, True], name


def test_only_copies_with_inputs_of_their_own_run_alone():
    ensemble = network().get_submodule("all")
    with pytest.raises(ValueError, match="'rows' needs an ensemble with own_inputs=True"):
        ensemble({"x": torch.randn(4)}, rows=[0])


def test_the_weights_of_the_networks_are_held_once():
    networks = [InferenceBlock(_with_shape(inner_graph()), ["out"]) for _ in range(3)]
    ensemble = EnsembleBlock(networks)
    stacks = {tensor.untyped_storage().data_ptr() for tensor in ensemble.parameters()}
    for net in networks:
        assert {tensor.untyped_storage().data_ptr() for tensor in net.parameters()} == stacks


every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def of_copies(sample, own_inputs, copies=3):
    networks = [of_sample(sample).eval() for _ in range(copies)]
    alone = copy.deepcopy(networks)
    return EnsembleBlock(networks, own_inputs=own_inputs).eval(), alone


def expect_copies(ensemble, alone, results, expected):
    """``results`` of an ensemble (one dict, or several) are those of each network ``alone``."""
    for got, wanted in zip(results, zip(*expected)):
        for name, value in got.items():
            dims = ensemble._out_dims if name in ensemble._out_dims else ensemble._state_dims
            parts = value.unbind(dims[name])
            for part, own in zip(parts, wanted, strict=True):
                torch.testing.assert_close(part, own[name], atol=1e-5, rtol=1e-5)


@every_sample
def test_an_ensemble_of_every_block_is_its_copies(sample):
    ensemble, alone = of_copies(sample, own_inputs=False)
    for leading in [(), (5, 2), (0,)]:
        inputs = data_of(alone[0], leading)
        expected = [(net(inputs),) for net in alone]
        expect_copies(ensemble, alone, (ensemble(inputs),), expected)


@every_sample
def test_so_it_is_with_inputs_states_and_resets_of_their_own(sample):
    ensemble, alone = of_copies(sample, own_inputs=True)
    for unroll in (False, True):
        check_own_inputs(ensemble, alone, unroll)


def check_own_inputs(ensemble, alone, unroll):
    leading = (3, 5, 4) if unroll else (3, 5)
    inputs = data_of(alone[0], leading)
    state = random_state(ensemble.state_shapes, 3, 5)
    resets = torch.rand(leading) < 0.4
    expected = [
        net(
            {n: x[place] for n, x in inputs.items()},
            {n: s[place] for n, s in state.items()},
            resets[place],
            unroll,
        )
        for place, net in enumerate(alone)
    ]
    expect_copies(ensemble, alone, ensemble(inputs, state, resets, unroll), expected)


def gradient_of(ensemble, name) -> torch.Tensor:
    gradient = dict(ensemble.named_parameters())[name.replace(".", "/")].grad
    assert gradient is not None
    return gradient


@every_sample
def test_gradients_of_an_ensemble_are_those_of_its_copies(sample):
    ensemble, alone = of_copies(sample, own_inputs=False)
    inputs = data_of(alone[0], (5,))
    loss = sum(value.square().sum() for value in ensemble(inputs).values())
    if not loss.requires_grad:
        return
    loss.backward()
    for index, net in enumerate(alone):
        sum(value.square().sum() for value in net(inputs).values()).backward()
        for name, parameter in net.named_parameters():
            if ensemble.why_looped is None:
                got = gradient_of(ensemble, name)[index]
            else:
                got = ensemble.get_submodule(str(index)).get_parameter(name).grad
            torch.testing.assert_close(got, parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_many_rows_run_in_pieces(norm):
    ensemble, alone = agents(copies=16, hidden_units=[64], norm=norm)
    x = {"x": torch.randn(16, 500, 4, requires_grad=True)}
    outputs = ensemble(x)["out"]
    outputs.square().sum().backward()
    expected = torch.stack([net({"x": own})["out"] for net, own in zip(alone, x["x"])])
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    got = ensemble.view_of(3).get_submodule("hidden").linears[0].weight
    assert got.shape == (64, 4)
    torch.testing.assert_close(
        gradient_of(ensemble, "hidden.linears.0.weight")[3],
        alone[3].get_submodule("hidden").linears[0].weight.grad,
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("rows", [None, [2, 0]])
@pytest.mark.parametrize("size", [50, 4000])  # the latter run copy by copy
def test_running_statistics_are_those_of_each_copy(rows, size):
    ensemble, alone = agents("dense", hidden_units=[6], norm="batch")
    ensemble.train()
    x = torch.randn(3 if rows is None else 2, size, 4) + 3
    ensemble({"x": x}, rows=rows)
    for place, row in enumerate(range(3) if rows is None else rows):
        alone[row].train()({"x": x[place]})
    for row in range(3):
        torch.testing.assert_close(
            ensemble.copy_of(row).state_dict(), alone[row].state_dict(), atol=1e-5, rtol=1e-5
        )


def test_dropout_is_drawn_for_each_copy():
    net = network(hidden_units=[64], dropout=0.5).train()
    ensemble = net.get_submodule("all")
    with torch.no_grad():
        for stack in ensemble.parameters():
            stack.copy_(stack[:1].expand_as(stack))
    outputs = net({"x": torch.ones(4)})["out"]
    assert len(outputs[:, 0].unique()) == 5
    assert len(net.eval()({"x": torch.ones(4)})["out"][:, 0].unique()) == 1


@pytest.mark.parametrize("block", ["dense", "gru", "strided_conv_dense"])
def test_an_ensemble_is_compiled_and_exported_whole(block):
    shape = (2, 6, 6) if block == "strided_conv_dense" else (4,)
    settings = {"hidden_channels": [3]} if block == "strided_conv_dense" else {}
    graph = Graph({"x": shape})
    inner = Graph({})
    inner.add("hidden", block, "x", hidden_units=6, **settings)
    graph.add("all", inner, {"x": "x"}, out=["hidden"], copies=3)
    net = InferenceBlock(graph, ["hidden"]).eval()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    inputs = {"x": torch.randn(4, *shape)}
    exported = torch.export.export(net, (inputs,), dynamic_shapes=({"x": batch},)).module()
    for rows in (3, 7):
        inputs = {"x": torch.randn(rows, *shape)}
        for run in (compiled, exported):
            torch.testing.assert_close(run(inputs), net(inputs), atol=1e-5, rtol=1e-5)
