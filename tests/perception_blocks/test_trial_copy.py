"""Nothing that looks at a user's module leaves a trace on it: not one tensor, flag, hook or attribute changes."""

import functools
import random
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import composer
from composer.diagram.dot import to_dot
from composer.diagram.sketch import sketch
from composer.summary.table import summarize
from perception_blocks import Graph, InferenceBlock
from perception_blocks.blocks.custom import FunctionalBlock
from perception_blocks.measure import measure
from perception_blocks.port import Port

WIDTH = 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up.weight = self.down.weight
        self.register_buffer("shift", torch.randn(WIDTH))
        self.register_buffer("shift_again", self.shift, persistent=False)

    def forward(self, x):
        return self.up(self.down(x)) + self.shift + self.shift_again


class Restless(nn.Module):
    """It changes itself whenever it runs, in every way there is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("total", torch.zeros(WIDTH), persistent=False)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.plain = torch.ones(WIDTH)
        self.calls, self.seen, self.last = 0, [], None

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.total = self.total + x.sum(0)
        self.plain.add_(1)
        self.seen.append(x)
        self.last = x
        self.train(not self.training)
        return x * self.scale + self.plain


class Listed(nn.Module):
    """Its layers are registered, and run by way of a list, a method, a closure and a partial."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.order = [self.first, {"norm": (self.norm,)}]
        self.by_method = self.first.forward
        self.by_closure = lambda x: self.norm(x)
        self.by_partial = functools.partial(torch.nn.functional.linear, weight=self.first.weight)

    def forward(self, x):
        x = self.order[1]["norm"][0](self.order[0](x))
        return self.by_closure(self.by_method(x)) + self.by_partial(x)


class Holder:
    """An object that is no module and holds one."""

    def __init__(self, module):
        self.module = module


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout())
        self.holder = Holder(self.layer)

    def forward(self, x):
        return self.holder.module(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return self.cell(x[:, None])[0][:, 0]


class OnTheHost(nn.Module):
    """It runs on real numbers only."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        random.random()
        np.random.rand()
        return self.norm(x) * (1 + int(x.sum().item() > 1e9)) + torch.rand_like(x)


def hooked():
    layer = nn.Linear(WIDTH, WIDTH)
    seen = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(module.weight))
    layer.register_forward_hook(lambda module, inputs, output: output + layer.bias)
    return layer


def patched():
    layer = nn.Linear(WIDTH, WIDTH)
    layer.forward = types.MethodType(lambda self, x: x @ self.weight.t(), layer)
    return layer


LAYERS = [
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout()),
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    lambda: FunctionalBlock([(WIDTH,)], function=nn.Linear(WIDTH, WIDTH)),
    Tied,
    Restless,
    Listed,
    Held,
    Recurrent,
    OnTheHost,
    hooked,
    patched,
]


class Tree(nn.Module):
    """Layers, some of them under several names, some frozen, some in another mode than the others."""

    def __init__(self, layers, frozen=(), evaluated=()):
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.again = nn.ModuleDict({"first": layers[0], "body": self.body})
        self.last = layers[-1]
        for layer in frozen:
            layers[layer % len(layers)].requires_grad_(False)
        for layer in evaluated:
            layers[layer % len(layers)].eval()

    def forward(self, x):
        return self.again["first"](self.body(x)) + self.last(x)


@st.composite
def trees(draw, kinds=LAYERS):
    torch.manual_seed(draw(st.integers(0, 3)))
    pool = [draw(st.sampled_from(kinds))() for _ in range(draw(st.integers(1, 4)))]
    order = draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=6))
    some = st.lists(st.integers(0, 5), max_size=2)
    return Tree([pool[index] for index in order], draw(some), draw(some))


def trace_of(module):
    """All that must be the same: every object by identity, and the numbers in every tensor."""
    modules = dict(module.named_modules(remove_duplicate=False))
    held = {
        (path, name): value
        for path, inner in modules.items()
        for name, value in vars(inner).items()
    }
    tensors = {}
    for path, inner in modules.items():
        for registry in ("_parameters", "_buffers"):
            for name, tensor in getattr(inner, registry).items():
                tensors[path, name] = (tensor, tensor.requires_grad, tensor.grad)
    inside = {
        place: list(value.items() if isinstance(value, dict) else value)
        for place, value in held.items()
        if isinstance(value, dict | list | set)
    }
    numbers = [tensor.detach().clone() for tensor, *_ in tensors.values()]
    plain = [v.detach().clone() for v in held.values() if isinstance(v, torch.Tensor)]
    return modules, held, tensors, inside, numbers + plain


def assert_same(before, after):
    for was, now in zip(before[:3], after[:3], strict=True):
        assert was.keys() == now.keys()
        for place in was:
            for one, other in zip(_parts(was[place]), _parts(now[place]), strict=True):
                assert one is other, place
    for place, contents in before[3].items():
        flat, flat_now = _flat(contents), _flat(after[3][place])
        assert [id(item) for item in flat] == [id(item) for item in flat_now], place
    for was, now in zip(before[4], after[4], strict=True):
        assert torch.equal(was, now)


def _parts(value):
    return value if isinstance(value, tuple) else (value,)


def _flat(contents):
    return [part for item in contents for part in _parts(item)]


class Untouched:
    """Within it, neither ``module`` nor a random state changes."""

    def __init__(self, module):
        self.module = module

    def __enter__(self):
        self.before, self.states = trace_of(self.module), _states()

    def __exit__(self, kind, *_):
        assert_same(self.before, trace_of(self.module))
        assert _states() == self.states


def _states():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


@settings(max_examples=60)
@given(trees())
def test_measuring_leaves_no_trace(tree):
    with Untouched(tree):
        assert measure(tree, [Port((WIDTH,))]).shape == (11, WIDTH)


class TwoNames(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.body = nn.Linear(4, 2)
        self.net = nn.Sequential(self.body, nn.Tanh())

    def forward(self, observations):
        return {"action": self.net(observations["observation"])}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_interrupts_measuring_leaves_no_trace_either(error):
    def interrupt(*_):
        raise error

    tree = Tree([Restless(), Tied()])
    tree.last.register_forward_hook(interrupt)
    with Untouched(tree), pytest.raises(error):
        measure(tree, [Port((WIDTH,))])


def test_weights_of_a_layer_with_two_names_survive_a_summary(tmp_path):
    model = composer.compose(
        {"version": 1, "policy": {"_target_": TwoNames}}, env="CartPole-v1", seed=0
    )
    trained = [tensor.clone() for tensor in model.policy.parameters()]
    model.summary()
    model.save(tmp_path / "policy.safetensors")
    loaded = composer.load(tmp_path / "policy.safetensors", allow=[__name__])
    for was, now in zip(trained, loaded.policy.parameters(), strict=True):
        assert torch.equal(was, now)


def test_copies_of_a_network_in_which_a_block_has_two_names_hold_no_weights_after_a_call():
    graph = Graph({"x": (WIDTH,)})
    graph.add("a", nn.Tanh, "x")
    graph.add("b", "dense", "a", hidden_units=[WIDTH])
    graph.add("c", None, "b", same_as="b")
    outer = Graph({"x": (WIDTH,)})
    outer.add("copies", graph, {"x": "x"}, out=["c"], copies=2)
    net = InferenceBlock(outer, ["c"])
    torch.func.grad(lambda x: net({"x": x})["c"].sum())(torch.zeros(3, WIDTH))
    assert all(tensor.is_meta for tensor in net.copies._networks.stacked.parameters())


@settings(max_examples=20)
@given(trees())
def test_ready_modules_stay_what_they_are(tree):
    graph = Graph({"x": (WIDTH,)})
    with Untouched(tree):
        graph.add("a", tree, "x")
        graph.add("b", "functional", "a", function=tree)
        graph.add("c", tree, "b")
        net = InferenceBlock(graph, ["c"])
        str(summarize(net))
        to_dot(sketch(net))
    assert net._modules["a"] is tree
    assert net._modules["b"].function is tree


def spec_around(tree, critic=True):
    """A policy of a user's class around ``tree``, and a critic with a layer that has two names."""

    class Network(nn.Module):
        def __init__(self, obs_shapes, action_logits_shapes):
            super().__init__()
            self.tree = tree
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, observations):
            return {"action": self.head(self.tree(observations["observation"]))}

    layer = {"block": "torch.nn.Linear", "in_features": 4, "out_features": 4, "in": "observation"}
    graph = {"a": layer, "b": {"in": "a", "same_as": "a"}, "v": {"block": "value", "in": "b"}}
    spec = {"version": 1, "policy": {"_target_": Network}}
    return spec | ({"critic": {"graph": graph}} if critic else {})


@settings(max_examples=20)
@given(trees())
def test_composing_showing_and_lowering_leave_no_trace(tree):
    with Untouched(tree):
        model = composer.compose(spec_around(tree), env="CartPole-v1", seed=0)
    assert model.policy._modules["tree"] is tree
    with Untouched(tree), Untouched(model.critic):
        composer.compose(spec_around(tree), env="CartPole-v1", seed=0, device="meta")
        model.summary()
        to_dot(sketch(model))
        model.lower()


# What torch can trace, and what has no tensor of its own outside of parameters and buffers.
PLAIN = [kind for kind in LAYERS if kind not in (Restless, OnTheHost, hooked, patched)]


@pytest.mark.full
@settings(max_examples=10)
@given(trees(PLAIN))
def test_exporting_and_compiling_leave_no_trace(tmp_path_factory, tree):
    model = composer.compose(spec_around(tree), env="CartPole-v1", seed=0)
    with Untouched(tree):
        model.export(tmp_path_factory.mktemp("export") / "policy.pt2")
    model.policy.eval()
    with Untouched(tree), torch.no_grad():
        torch.compile(model.policy, backend="eager")({"observation": torch.zeros(3, 4)})
