"""An InferenceBlock computes what its graph says, for any leading axes, and survives copies."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from perception_blocks import DenseBlock, Graph, InferenceBlock, PerceptionBlock

LEADING = [(), (1,), (5, 2), (0,)]


class Split(nn.Module):
    """A module of a user's own, with two outputs; it sees exactly one batch axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        assert x.dim() == 2
        return x[:, : self.width] * self.scale, x[:, self.width :]


class Weighted(nn.Module):
    def forward(self, value, *, weight):
        return value * weight


def example_graph() -> Graph:
    graph = Graph({"screens": (4, 3, 8, 8), "inventory": (16,)})
    graph.add("pixels", "flatten_dense", "screens", each=1, hidden_units=[6])
    graph.add("flat", "flatten", "pixels")
    graph.add("split", Split, "inventory", out=["head", "tail"], width=4)
    graph.add("first", "dense", "head", hidden_units=[5])
    graph.add("second", None, "head", same_as="first")
    graph.add("weighted", Weighted, {"weight": "second", "value": "first"})
    graph.add("normed", nn.LayerNorm, "weighted", normalized_shape=5)
    graph.add("both", "concat", ["flat", "normed", "tail"])
    graph.add("logits", "linear_output", "both", output_units=3)
    return graph


def sample(net: InferenceBlock, leading: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.randn(*leading, *shape) for name, shape in net.in_shapes.items()}


@pytest.mark.parametrize("leading", LEADING)
def test_declared_shapes_are_the_real_shapes(leading):
    net = InferenceBlock(example_graph(), ["logits", "pixels"])
    outputs = net(sample(net, leading))
    assert {n: tuple(v.shape) for n, v in outputs.items()} == {
        name: (*leading, *shape) for name, shape in net.out_shapes.items()
    }
    assert net.out_shapes == {"logits": (3,), "pixels": (4, 6)}


def test_the_network_computes_what_the_blocks_compute_one_by_one():
    net = InferenceBlock(example_graph(), ["logits"])
    inputs = sample(net, (7,))
    modules = dict(net.named_children())
    pixels = torch.stack([modules["pixels"](inputs["screens"][:, i]) for i in range(4)], dim=1)
    head, tail = modules["split"](inputs["inventory"])
    first = modules["first"](head)
    normed = modules["normed"](first * first)
    both = torch.cat([pixels.flatten(1), normed, tail], dim=-1)
    torch.testing.assert_close(net(inputs)["logits"], modules["logits"](both))


@pytest.mark.parametrize("leading", LEADING)
def test_a_batch_is_its_rows_one_by_one(leading):
    net = InferenceBlock(example_graph(), ["logits"]).eval()
    inputs = sample(net, leading)
    flat = {n: v.reshape(-1, *net.in_shapes[n]) for n, v in inputs.items()}
    rows = [
        net({n: v[i] for n, v in flat.items()})["logits"] for i in range(len(flat["inventory"]))
    ]
    expected = torch.stack(rows) if rows else torch.empty(0, 3)
    torch.testing.assert_close(net(inputs)["logits"].reshape(-1, 3), expected)


def test_only_what_the_outputs_need_becomes_parameters():
    graph = example_graph()
    with pytest.raises(ValueError, match="nothing uses 'logits'"):
        InferenceBlock(graph, ["pixels"])
    net = InferenceBlock(graph, ["logits"])
    assert "first.linears.0.weight" in net.state_dict()
    assert not any(name.startswith("second") for name in net.state_dict())


def test_outputs_can_be_renamed_and_inputs_passed_through():
    graph = Graph({"x": (4,)})
    graph.add("a", "dense", "x", hidden_units=[2])
    net = InferenceBlock(graph, {"policy": "a", "raw": "x"})
    x = torch.randn(3, 4)
    outputs = net({"x": x})
    assert list(outputs) == net.out_keys == ["policy", "raw"]
    assert outputs["raw"] is x


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_computes_the_same_with_weights_of_its_own(clone):
    net = InferenceBlock(example_graph(), ["logits"])
    other = clone(net)
    inputs = sample(net, (3,))
    torch.testing.assert_close(other(inputs), net(inputs))
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert not torch.equal(other(inputs)["logits"], net(inputs)["logits"])


def test_the_source_holds_no_text_of_the_graph():
    net = InferenceBlock(example_graph(), ["logits"])
    for name in [*net.in_keys, *net.out_keys, *(node.node.name for node in net.nodes)]:
        assert name not in net.source()
    assert net.source().startswith("def run(modules, inputs):\n    v")


def test_names_of_any_text_are_only_ever_keys():
    key = "x\"]; raise SystemExit #'\n"
    graph = Graph({key: (4,)})
    graph.add("a", "dense", key, hidden_units=[2])
    assert InferenceBlock(graph, {"\n": "a"})({key: torch.randn(4)})["\n"].shape == (2,)


@pytest.mark.parametrize("name", ["train", "forward", "keys", "type", "float", "step", "nodes"])
def test_a_node_may_be_named_like_a_method(name):
    graph = Graph({"x": (4,)})
    graph.add(name, "dense", "x", hidden_units=[2])
    net = InferenceBlock(graph, [name])
    assert net({"x": torch.randn(3, 4)})[name].shape == (3, 2)
    assert isinstance(net.get_submodule(name), DenseBlock)
    assert set(net.state_dict()) == {f"{name}.linears.0.weight", f"{name}.linears.0.bias"}
    assert not net.eval().training


def test_hooks_fire_and_replaced_modules_are_used():
    net = InferenceBlock(example_graph(), ["logits"])
    seen = []
    net.get_submodule("first").register_forward_hook(lambda *_: seen.append(1))
    inputs = sample(net, (2,))
    net(inputs)
    assert len(seen) == 2  # 'first', and 'second' which is the same module
    net.logits = nn.Linear(net.get_submodule("logits").linear.in_features, 3, bias=False)
    nn.init.zeros_(net.logits.weight)
    assert net(inputs)["logits"].abs().sum() == 0


def test_a_ready_module_is_used_as_it_is():
    layer = nn.Linear(4, 2)
    graph = Graph({"x": (4,)})
    graph.add("a", layer, "x")
    net = InferenceBlock(graph, ["a"])
    assert net.get_submodule("a") is layer
    graph.add("b", layer, "x", bias=False)
    with pytest.raises(ValueError, match="a ready module takes no settings"):
        InferenceBlock(graph, ["a", "b"])


def test_a_function_is_a_block():
    graph = Graph({"x": (4,), "y": (4,)})
    graph.add("a", torch.maximum, ["x", "y"])
    graph.add("b", lambda x: x.sum(-1, keepdim=True), "a")
    net = InferenceBlock(graph, ["b"])
    assert net.out_shapes == {"b": (1,)}
    inputs = sample(net, (3,))
    torch.testing.assert_close(
        net(inputs)["b"], torch.maximum(*inputs.values()).sum(-1, keepdim=True)
    )


def test_building_and_measuring_move_no_random_state():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand(len(x), 1)

    graph = Graph({"x": (4,)})
    graph.add("a", Noise, "x")
    before = torch.get_rng_state()
    InferenceBlock(graph, ["a"])
    assert torch.equal(before, torch.get_rng_state())


# --- nested graphs ------------------------------------------------------------------------------


def nested_graph() -> Graph:
    inner = Graph({})
    inner.add("hidden", "dense", "x", hidden_units=[8])
    inner.add("memory", "gru", "hidden", hidden_units=5)
    graph = Graph({"left": (4,), "right": (4,)})
    graph.add("a", inner, {"x": "left"})
    graph.add("b", inner, {"x": "right"}, out={"b_hidden": "hidden", "b_memory": "memory"})
    graph.add("both", "concat", ["a", "b_hidden", "b_memory"])
    return graph


def test_nested_graphs_have_modules_and_states_by_path():
    net = InferenceBlock(nested_graph(), ["both"])
    assert net.out_shapes == {"both": (18,)}
    assert net.state_shapes == {"a/memory/h": (1, 5), "b/memory/h": (1, 5)}
    assert "a.hidden.linears.0.weight" in net.state_dict()
    inputs = sample(net, (3,))
    outputs, state = net.step(inputs, net.initial_state(3))
    torch.testing.assert_close(net(inputs), outputs)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "a/memory/h": (3, 1, 5),
        "b/memory/h": (3, 1, 5),
    }


def test_same_as_shares_a_nested_graph_but_not_its_state():
    inner = Graph({})
    inner.add("memory", "gru", "x", hidden_units=5)
    graph = Graph({"left": (4,), "right": (4,)})
    graph.add("a", inner, {"x": "left"})
    graph.add("b", None, {"x": "right"}, same_as="a")
    net = InferenceBlock(graph, ["a", "b"])
    assert list(net.state_shapes) == ["a/memory/h", "b/memory/h"]
    x = torch.randn(2, 4)
    outputs, _ = net.step({"left": x, "right": x}, net.initial_state(2))
    torch.testing.assert_close(outputs["a"], outputs["b"])
    assert len(list(net.parameters())) == 4


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (3,), (0,), (2, 3)])
@pytest.mark.parametrize("with_resets", [False, True])
def test_step_by_step_is_unroll_gradients_included(leading, with_resets):
    torch.manual_seed(0)
    net = InferenceBlock(nested_graph(), ["both"]).eval()
    steps = 6
    inputs = sample(net, (*leading, steps))
    resets = torch.rand(*leading, steps) < 0.3 if with_resets else None
    start = {n: torch.randn_like(s) for n, s in net.initial_state(leading).items()}

    together, last = net.unroll(inputs, start, resets)
    together["both"].square().sum().backward()
    expected = {n: p.grad.clone() for n, p in net.named_parameters()}
    net.zero_grad()

    state, outputs = start, []
    for t in range(steps):
        inputs_t = {n: v.select(len(leading), t) for n, v in inputs.items()}
        out, state = net.step(inputs_t, state, None if resets is None else resets[..., t])
        outputs.append(out["both"])
    one_by_one = torch.stack(outputs, dim=len(leading))
    one_by_one.square().sum().backward()
    torch.testing.assert_close(one_by_one, together["both"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dict(state), dict(last), atol=1e-5, rtol=1e-5)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)


def test_a_reset_forgets_what_came_before():
    net = InferenceBlock(nested_graph(), ["both"])
    inputs = sample(net, (2,))
    dirty = {n: torch.randn_like(s) for n, s in net.initial_state(2).items()}
    fresh, _ = net.step(inputs, net.initial_state(2))
    after, _ = net.step(inputs, dirty, torch.tensor([True, False]))
    torch.testing.assert_close(after["both"][0], fresh["both"][0])
    assert not torch.allclose(after["both"][1], fresh["both"][1])


# --- random graphs ------------------------------------------------------------------------------


class Mix(PerceptionBlock):
    """A block whose shapes are measured: adds up its inputs, each mapped to the same width."""

    def __init__(self, in_shapes, *, width: int = 3):
        super().__init__(in_shapes)
        self.maps = nn.ModuleList(nn.Linear(shape[-1], width) for shape in in_shapes)

    def forward(self, *xs):
        return sum(layer(x) for layer, x in zip(self.maps, xs))


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_random_dag_computes_what_its_nodes_compute_in_any_order(data):
    count = data.draw(st.integers(1, 12))
    names = data.draw(st.permutations([f"n{i}" for i in range(count)]))
    graph = Graph({"x": (2,), "y": (5,)}, optional=["x", "y"])
    wires = {}
    for i, name in enumerate(names):
        known = ["x", "y", *names[:i]]
        wires[name] = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
    for name in data.draw(st.permutations(names)):  # declared in any order
        graph.add(name, Mix, wires[name], width=data.draw(st.integers(1, 4)))
    net = InferenceBlock(graph, graph.dag(None).sinks())
    inputs = {"x": torch.randn(3, 2), "y": torch.randn(3, 5)}
    values = dict(inputs)
    for name in names:
        values[name] = net.get_submodule(name)(*(values[read] for read in wires[name]))
    for name, output in net(inputs).items():
        torch.testing.assert_close(output, values[name])
        assert net.out_shapes[name] == tuple(values[name].shape[1:])
