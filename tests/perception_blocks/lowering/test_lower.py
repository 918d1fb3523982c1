"""lower(): the same numbers as the network, whatever is done to it afterwards."""

import copy
import itertools
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from perception_blocks import Graph, InferenceBlock
from perception_blocks.lowering.lowered import LoweredNetwork
from tests.helpers.random_states import random_state
from tests.whole.test_block_contract import LEADING, SAMPLES, values


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def of_sample(sample) -> InferenceBlock:
    """A network of one block."""
    graph = Graph({f"in{index}": port for index, port in enumerate(sample.ports)})
    count = len(sample.build().out_shapes)
    outs = {"out": [f"out{index}" for index in range(count)]} if count > 1 else {}
    graph.add("node", sample.block, list(graph.inputs), **outs, **sample.settings)
    return InferenceBlock(graph, [f"out{index}" for index in range(count)] if outs else ["node"])


def data_of(net, leading=(3,)):
    return {name: values(port, leading, torch.float32) for name, port in net.in_ports.items()}


def expect_equal(lowered, net, *arguments, **keywords):
    """Also where something random is drawn."""
    torch.manual_seed(1)
    got = lowered(*arguments, **keywords)
    torch.manual_seed(1)
    torch.testing.assert_close(got, net(*arguments, **keywords), atol=1e-6, rtol=1e-6)


every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


@every_sample
@pytest.mark.parametrize("training", [False, True])
def test_every_block_computes_the_same_lowered(sample, training):
    net = of_sample(sample).train(training)
    twin = copy.deepcopy(net)  # running statistics move with every call in train mode
    lowered = net.lower()
    for leading in LEADING:
        expect_equal(lowered, twin, data_of(net, leading))
    torch.testing.assert_close(net.state_dict(), twin.state_dict())


@every_sample
def test_every_memory_computes_the_same_lowered(sample):
    net = of_sample(sample).eval()
    lowered = net.lower()
    for leading, with_resets in itertools.product([(), (5,), (5, 2)], [False, True]):
        state = random_state(net.state_shapes, *leading)
        resets = torch.rand(leading) < 0.5 if with_resets else None
        expect_equal(lowered, net, data_of(net, leading), state, resets)
        resets = torch.rand(*leading, 4) < 0.5 if with_resets else None
        expect_equal(lowered, net, data_of(net, (*leading, 4)), state, resets, unroll=True)


@every_sample
def test_the_same_gradients_flow(sample):
    net = of_sample(sample).eval()
    inputs = data_of(net)
    gradients = []
    for run in (net, net.lower()):
        net.zero_grad()
        loss = sum(value.square().sum() for value in run(inputs).values())
        if loss.requires_grad:
            loss.backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-6)


class Users(nn.Module):
    """Nothing is known of it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(x).sin()


def inner_graph():
    graph = Graph({})
    graph.add("inside", "dense", "x", hidden_units=[6], activation="tanh")
    graph.add("kept", "gru", "inside", hidden_units=6)
    return graph


def mixed() -> InferenceBlock:
    """Of everything that is written out, and of what is not."""
    graph = Graph({"image": (2, 8, 8), "x": (4,), "more/x": (4,)})
    graph.add("seen", "strided_conv_dense", "image", hidden_channels=[3], hidden_units=[5])
    graph.add("first", "dense", "x", hidden_units=[5, 6], norm="layer", dropout=0.2)
    graph.add("again", None, "more/x", same_as="first")
    graph.add("normed", nn.BatchNorm1d, "first", num_features=6)
    graph.add("wired", nn.Linear, {"input": "normed"}, in_features=6, out_features=6)
    graph.add("users", Users, "wired")
    graph.add("nested", inner_graph(), {"x": "users"}, out=["kept"])
    graph.add("votes", inner_graph(), {"x": "users"}, out={"votes": "kept"}, copies=2)
    graph.add("flat", "flatten", "votes")
    graph.add("all", "concat", ["seen", "kept", "flat", "again"])
    graph.add("memory", "lstm", "all", hidden_units=7, num_layers=2)
    graph.add("out", "linear_output", "memory", output_shape=[2, 3])
    return InferenceBlock(graph, ["out", "kept"])


class Plus(nn.Module):
    """As an adapter is put around a layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.more = nn.Linear(5, 6)

    def forward(self, x):
        return self.base(x) + self.more(x)


class Scaled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class OtherLinear(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


def step_of_an_optimizer(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sum(p.square().sum() for p in net.parameters()).backward()
    optimizer.step()


def load(assign):
    def change(net):
        net.load_state_dict(copy.deepcopy(other_weights(net)), assign=assign)

    return change


def other_weights(net):
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }


def put(**attributes):
    def change(net):
        for name, value in attributes.items():
            setattr(linear(net), name, value(linear(net)))

    return change


def linear(net) -> nn.Linear:
    return net.get_submodule("first").linears[1]


def layers(net) -> nn.ModuleList:
    return net.get_submodule("first").linears


def swap(place, make):
    def change(net):
        holder, name = place(net)
        holder._modules[name] = make(holder._modules[name])

    return change


def remove_bias(net):
    linear(net).bias = None


def compiled(net):
    linear(net).compile(backend="eager")


def register_globally(net):
    nn.modules.module.register_module_forward_hook(lambda m, i, o: None)


CHANGES = {
    "load": load(assign=False),
    "load by assignment": load(assign=True),
    "optimizer": step_of_an_optimizer,
    "double": lambda net: net.double().float(),
    "eval": lambda net: net.eval(),
    "train one": lambda net: net.eval() and net.get_submodule("first").train(),
    "new parameter": put(weight=lambda layer: nn.Parameter(torch.rand(6, 5))),
    "no bias": remove_bias,
    "a tensor for a parameter": lambda net: (
        delattr(linear(net), "weight"),
        setattr(linear(net), "weight", torch.rand(6, 5)),
    ),
    "forward of its own": put(forward=lambda layer: lambda x: x.new_ones(*x.shape[:-1], 6)),
    "forward of a block": lambda net: setattr(
        net.get_submodule("first"), "forward", lambda x: x.new_ones(*x.shape[:-1], 6)
    ),
    "another class": lambda net: setattr(linear(net), "__class__", OtherLinear),
    "hook": lambda net: linear(net).register_forward_hook(lambda m, i, o: o + 1),
    "pre hook": lambda net: linear(net).register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
    "hook of a block": lambda net: net.get_submodule("first").register_forward_hook(
        lambda m, i, o: o + 1
    ),
    "hook of a memory": lambda net: net.get_submodule("memory").register_forward_hook(
        lambda m, i, o: (o[0] + 1, o[1]) if isinstance(o, tuple) else o + 1
    ),
    "hook of a layer of a memory": lambda net: net.get_submodule(
        "memory.layers.0"
    ).register_forward_hook(lambda m, i, o: (o[0] + 1, o[1])),
    "hook of a nested network": lambda net: net.get_submodule("nested").register_forward_hook(
        lambda m, i, o: o
    ),
    "hook of the network": lambda net: net.register_forward_pre_hook(
        lambda m, i: ({**i[0], "x": i[0]["x"] + 1}, *i[1:])
    ),
    "a layer inside of a nested network": swap(
        lambda net: (net.get_submodule("nested.inside.linears"), "0"),
        lambda layer: nn.Linear(6, 6),
    ),
    "adapter": lambda net: layers(net).__setitem__(1, Plus(linear(net))),
    "adapter in the registry": swap(lambda net: (layers(net), "1"), Plus),
    "another block": swap(lambda net: (net, "first"), lambda block: nn.Linear(4, 6)),
    "another list": swap(
        lambda net: (net.get_submodule("first"), "linears"),
        lambda old: nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 6)]),
    ),
    "parametrized": lambda net: parametrize.register_parametrization(
        linear(net), "weight", Scaled()
    ),
    "weight norm": lambda net: parametrizations.weight_norm(linear(net)),
    "eps of a norm": lambda net: setattr(net.get_submodule("first").norms[0], "eps", 10.0),
    "geometry of a convolution": lambda net: vars(net.get_submodule("seen").conv.convs[0]).update(
        padding=(1, 1), dilation=(2, 2)
    ),
    "pruned": lambda net: prune.l1_unstructured(linear(net), "weight", amount=0.5),
    "compiled": compiled,
}


@pytest.mark.parametrize("name", CHANGES)
def test_lowered_code_is_never_stale(name):
    net = mixed()
    lowered = net.lower()
    inputs = data_of(net)
    state = {n: torch.randn(3, *shape) for n, shape in net.state_shapes.items()}
    lowered(inputs)
    lowered(inputs, state)
    lowered(data_of(net, (3, 2)), state, unroll=True)
    CHANGES[name](net)
    start = copy.deepcopy(net.state_dict())  # running statistics move
    for arguments in ((inputs,), (inputs, state), (data_of(net, (3, 2)), state, None, True)):
        results = []
        for run in (lowered, net):
            net.load_state_dict(start)
            torch.manual_seed(1)
            with torch.no_grad():
                results.append(run(*arguments))
        torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("cls", [nn.Linear, nn.Conv2d, nn.LayerNorm], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("lowered_before", [True, False])
def test_a_forward_that_a_class_of_torch_is_given_is_run(cls, lowered_before, monkeypatch):
    net, forward = mixed().eval(), cls.forward
    inputs, lowered = data_of(net), net.lower()
    with torch.no_grad():
        before = lowered(inputs)["out"]
        monkeypatch.setattr(cls, "forward", lambda self, *args: 2 * forward(self, *args))
        after = (lowered if lowered_before else net.lower())(inputs)["out"]
        torch.testing.assert_close(after, net(inputs)["out"])
        assert not torch.allclose(after, before)
        monkeypatch.undo()
        torch.testing.assert_close(lowered(inputs)["out"], before)


def test_a_hook_sees_every_call_and_is_gone_when_removed():
    net = mixed().eval()
    lowered = net.lower()
    seen = []
    for module, calls in ((linear(net), 2), (net.get_submodule("first"), 2), (net, 1)):
        handle = module.register_forward_hook(lambda *_: seen.append(1))
        lowered(data_of(net))
        assert len(seen) == calls
        handle.remove()
        lowered(data_of(net))
        assert len(seen) == calls
        seen.clear()


def test_global_hooks_see_every_module():
    net = mixed().eval()
    lowered = net.lower()
    expected, seen = [], []
    for run, log in ((net, expected), (lowered, seen)):
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, *_, log=log: log.append(module)
        )
        run(data_of(net))
        handle.remove()
    assert seen == expected
    lowered(data_of(net))
    assert seen == expected


def test_backward_hooks_are_called():
    net = mixed().eval()
    lowered = net.lower()
    lowered(data_of(net))
    seen = []
    linear(net).register_full_backward_hook(lambda *_: seen.append(1))
    lowered(data_of(net))["out"].sum().backward()
    assert seen == [1, 1]  # the block is used twice


def test_what_is_not_known_is_called_and_named():
    assert mixed().lower().called == ["normed", "users"]


def test_the_code_holds_only_what_is_numbered():
    graph = Graph({"weight of; import os": (4,)})
    graph.add("evil", "dense", "weight of; import os", hidden_units=3)
    source = InferenceBlock(graph, {"__import__('os')": "evil"}).lower().source()
    words = set(re.findall(r"[A-Za-z_]\w*", source))
    known = {"def", "run", "inputs", "state", "resets", "if", "or", "return", "any", "map", "len"}
    known |= {"not", "type", "and", "else", "dim"}
    assert {word for word in words - known if not re.fullmatch(r"[kv]\d+", word)} == set()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_copy_has_weights_of_its_own(copied):
    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=3)
    lowered = InferenceBlock(graph, ["y"]).lower()
    x = {"x": torch.randn(2, 4)}
    before = lowered(x)
    twin = copied(lowered)
    torch.testing.assert_close(twin(x), before)
    with torch.no_grad():
        for parameter in twin.network.parameters():
            parameter.zero_()
    assert not twin(x)["y"].any()
    torch.testing.assert_close(lowered(x), before)


def test_a_network_of_a_users_own_class_is_called():
    class Louder(InferenceBlock):
        def forward(self, *arguments, **keywords):
            return {name: 2 * v for name, v in super().forward(*arguments, **keywords).items()}

    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=3)
    net = Louder(graph, ["y"])
    lowered = net.lower()
    assert isinstance(lowered, LoweredNetwork)
    torch.testing.assert_close(lowered({"x": torch.ones(4)}), net({"x": torch.ones(4)}))
    assert lowered.called == [""]


def test_a_network_without_memory_steps_and_unrolls():
    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=3)
    net = InferenceBlock(graph, ["y"])
    lowered, x = net.lower(), {"x": torch.randn(2, 5, 4)}
    torch.testing.assert_close(lowered.step(x, {}), net.step(x, {}))
    torch.testing.assert_close(lowered.unroll(x, {}), net.unroll(x, {}))
    assert lowered.initial_state(2) == {}


def test_torch_func_finds_the_weights_that_it_puts_in():
    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=3)
    net = InferenceBlock(graph, ["y"])
    lowered, x = net.lower(), {"x": torch.randn(2, 4)}
    zeros = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return lowered(x)

    swapped = {f"net.{name}": value for name, value in zeros.items()}
    assert not torch.func.functional_call(Both(), swapped, (x,))["y"].any()


class Doubled(torch.Tensor):
    """As sharded and quantised weights: the class says what an operation is, and which there are."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function is not torch.relu_
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        return 2 * result.as_subclass(cls) if function is nn.functional.linear else result


def test_a_layer_whose_weight_has_a_class_of_its_own_is_called():
    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=3, activation="relu")
    net = InferenceBlock(graph, ["y"])
    lowered = net.lower()
    x = {"x": torch.randn(2, 4)}
    before = lowered(x)["y"]
    layer = net.get_submodule("y").linears[0]
    plain = layer.weight
    layer._parameters["weight"] = plain.detach().as_subclass(Doubled)
    torch.testing.assert_close(lowered(x)["y"].as_subclass(torch.Tensor), 2 * before)
    assert lowered.called == ["y.linears.0"]
    layer._parameters["weight"] = plain
    torch.testing.assert_close(lowered(x)["y"], before)


def test_a_network_with_such_a_parameter_of_its_own_is_called():
    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=3)
    net = InferenceBlock(graph, ["y"])
    net._parameters["own"] = torch.ones(1).as_subclass(Doubled)
    lowered, x = net.lower(), {"x": torch.randn(2, 4)}
    torch.testing.assert_close(lowered(x), net(x))
    assert lowered.called == [""]


def test_a_lowered_network_compiles_as_the_network_does():
    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=3)
    net = InferenceBlock(graph, ["y"])
    lowered = net.lower()
    compiled = torch.compile(lambda x: lowered(x), fullgraph=True, backend="eager")
    for rows in (2, 5):
        x = {"x": torch.randn(rows, 4)}
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_vector_is_what_a_batch_of_it_is(dtype, bias):
    graph = Graph({"x": (37,)})
    graph.add("y", nn.Linear, "x", in_features=37, out_features=21, bias=bias)
    net = InferenceBlock(graph, ["y"]).to(dtype)
    lowered, x = net.lower(), {"x": torch.randn(37, dtype=dtype)}
    with torch.no_grad():
        assert torch.equal(lowered(x)["y"], net(x)["y"])
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(lowered(x), net(x))
        together = torch.vmap(lambda row: lowered({"x": row})["y"])(x["x"].expand(3, 37))
        torch.testing.assert_close(together, net({"x": x["x"].expand(3, 37)})["y"])
    assert lowered(x)["y"].requires_grad
