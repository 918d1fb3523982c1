"""Hidden values: what the inner layers of a block give after their activations."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from perception_blocks import BLOCKS, DenseBlock, LstmBlock, PerceptionBlock
from perception_blocks.hidden import HiddenRecorder, bounds_of
from perception_blocks.trial_copy import trial_copy

PLANE = (3, 16, 16)
LAYERS = [
    ("dense", [(3,)], {"hidden_units": [8, 4, 2]}, {"linears.0": 8, "linears.1": 4}),
    ("dense", [(3,)], {"hidden_units": 8}, {}),
    (
        "dense",
        [(3,)],
        {"hidden_units": [8, 4], "activation": {"leaky_relu": {"negative_slope": 0.2}}, "norm": "layer"},
        {"linears.0": 8},
    ),
    ("flatten_dense", [(3, 2)], {"hidden_units": [8, 4]}, {"dense.linears.0": 8}),
    ("noisy_dense", [(3,)], {"hidden_units": [8, 4]}, {"linears.0": 8}),
    ("linear_output", [(3,)], {"output_units": 4}, {}),
    ("residual_dense", [(3,)], {"hidden_units": 8, "num_blocks": 1}, {"pairs.0.wide": 32}),
    (
        "residual_dense",
        [(3,)],
        {"hidden_units": 8, "num_blocks": 1, "form": "bronet"},
        {"stem": 8, "pairs.0.wide": 8},
    ),
    ("strided_conv", [PLANE], {"hidden_channels": [8, 4]}, {"convs.0": (8, 14, 14)}),
    (
        "strided_conv_dense",
        [PLANE],
        {"hidden_channels": [8], "hidden_units": [6, 5]},
        {"conv.convs.0": (8, 14, 14), "flatten_dense.dense.linears.0": 6},
    ),
    (
        "vgg_conv",
        [PLANE],
        {"hidden_channels": [4]},
        {"convs.0": (4, 16, 16), "convs.1": (4, 16, 16)},
    ),
    ("res_conv", [PLANE], {"hidden_channels": [4]}, {"units.0.convs.0.conv": (4, 16, 16)}),
    (
        "impala_cnn",
        [PLANE],
        {"hidden_channels": [4], "num_blocks": 1},
        {"stages.0.conv": (4, 8, 8), "stages.0.convs.0": (4, 8, 8)},
    ),
    ("transformer_encoder", [(5, 8)], {"num_layers": 1}, {"layers.0.up": (5, 32)}),
    ("self_attention_seq", [(5, 8)], {}, {}),
    (
        "deep_set",
        [(5, 8)],
        {"hidden_units": [4, 3]},
        {"element.linears.0": (5, 4), "element.linears.1": (5, 3), "whole.linears.0": 4},
    ),
    (
        "graph_network",
        [(3, 8), (1, 2)],
        {"edges": [[0, 1]], "hidden_units": [4, 4], "edge_units": [6, 6]},
        {"layers.0.node": (3, 4), "layers.0.edge": (1, 6), "layers.1.edge": (1, 6)},
    ),
    ("dueling", [(8,)], {"output_units": 2, "hidden_units": 5}, {"advantage.0.linears.0": 5, "value.0.linears.0": 5}),
    ("lstm", [(7, 8)], {"hidden_units": 4, "num_layers": 2}, {"layers.0": (7, 4)}),
    ("gru", [(7, 8)], {"hidden_units": 4}, {}),
    ("min_gru", [(8,)], {"hidden_units": 4, "num_layers": 2}, {"layers.0": (1, 4)}),
    (
        "gtrxl",
        [(8,)],
        {"hidden_units": 8, "num_layers": 1},
        {"layers.0.attention": (1, 8), "layers.0.wide": (1, 32), "layers.0.narrow": (1, 8)},
    ),
    ("concat", [(3,), (2,)], {}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "settings", "layers"), LAYERS)
def test_a_block_names_its_inner_layers_and_their_values(name, shapes, settings, layers):
    block = BLOCKS.get(name)(shapes, **settings)
    inputs = [torch.randn(2, *shape) for shape in shapes]
    hidden = block.hidden_values(inputs)
    expected = {k: (2, *(v if isinstance(v, tuple) else (v,))) for k, v in layers.items()}
    assert {layer: tuple(value.shape) for layer, value in hidden.items()} == expected


def test_hidden_values_are_those_that_forward_computes():
    block = DenseBlock([(3,)], hidden_units=[8, 4, 2], activation="tanh")
    x = torch.randn(5, 3)
    hidden = block.hidden_values([x])
    first = torch.tanh(block.linears[0](x))
    assert torch.equal(hidden["linears.0"], first)
    assert torch.equal(hidden["linears.1"], torch.tanh(block.linears[1](first)))


def test_hidden_values_of_a_sequence_with_memory():
    block = LstmBlock([(3,)], hidden_units=4, num_layers=2)
    x, resets = torch.randn(6, 3), torch.tensor([1, 0, 0, 1, 0, 0]).bool()
    hidden = block.hidden_values([x, block.initial_state(), None, True])
    state, rows = block.initial_state(), []
    for step in x:
        _, state = block.step(step, state)
        rows.append(state["h"][0])
    torch.testing.assert_close(hidden["layers.0"], torch.stack(rows))
    assert block.hidden_values([x, block.initial_state(), resets, True])["layers.0"].shape == (3, 4)


def test_the_block_itself_stays_as_it_is():
    block = DenseBlock([(3,)], hidden_units=[8, 4], dropout=0.5).train()
    before = {name: dict(vars(m)) for name, m in block.named_modules()}
    functions = list(block.activations)
    block.hidden_values([torch.randn(5, 3)])
    assert all(vars(m) == before[name] for name, m in block.named_modules())
    assert block.activations == functions
    assert block.training
    assert all(p.grad is None and p.requires_grad for p in block.parameters())


class Users(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv1d(2, 6, 3), nn.Linear(6, 5), nn.Linear(5, 4)
        self.swish = nn.SiLU()

    def forward(self, x):
        x = functional.relu(self.conv(x)).mean(-1)
        x = self.first(x).tanh()
        return self.swish(self.second(x)) + 1


def test_functions_of_torch_in_a_users_class_are_seen():
    module = trial_copy(Users(), lambda tensor: tensor)
    recorder = HiddenRecorder(module)
    module(torch.randn(3, 2, 9))
    seen = [(h.layer, tuple(h.value.shape), h.axis, h.bounds) for h in recorder.take()]
    assert seen == [
        ("conv", (3, 6, 7), -2, None),
        ("first", (3, 5), -1, (-1.0, 1.0)),
        ("second", (3, 4), -1, None),
    ]
    assert recorder.take() == []


def test_an_error_in_a_users_class_leaves_nothing_behind():
    module = Users()
    recorder = HiddenRecorder(module)
    with pytest.raises(RuntimeError):
        module(torch.randn(3, 5, 9))
    torch.tanh(torch.zeros(2))
    assert recorder.take() == []


def test_a_module_of_torch_tells_of_the_activations_in_it():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sigmoid(), nn.Linear(4, 2))
    recorder = HiddenRecorder(module.eval())
    module(torch.randn(5, 3))
    (hidden,) = recorder.take()
    assert (hidden.layer, hidden.bounds) == ("0", (0.0, 1.0))


@pytest.mark.parametrize(
    ("activation", "bounds"),
    [
        (torch.tanh, (-1.0, 1.0)),
        (functional.sigmoid, (0.0, 1.0)),
        (nn.Hardtanh(-2.0, 2.0), (-2.0, 2.0)),
        (nn.ReLU6(), None),
        (nn.Tanh(), (-1.0, 1.0)),
        (functional.gelu, None),
        (lambda x: x, None),
    ],
)
def test_bounds_of_activations(activation, bounds):
    assert bounds_of(activation) == bounds


def test_a_block_of_elsewhere_may_say_its_hidden_values_itself():
    class Own(PerceptionBlock):
        def forward(self, x_F):
            return x_F * 2

        def hidden_values(self, inputs):
            return {"squares": inputs[0] ** 2}

    assert Own([(3,)]).hidden_values([torch.ones(2, 3)])["squares"].tolist() == [[1.0] * 3] * 2
