import re
from typing import Any

import pytest
import torch
from torch import nn

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.dense import (
    DenseBlock,
    FeatureBatchNorm,
    FlattenDenseBlock,
    LinearOutputBlock,
)
from perception_blocks.port import Port


def test_dense_is_linear_layers_with_activations():
    block = DenseBlock([(3,)], hidden_units=[8, 4], activation="tanh")
    x = torch.randn(5, 3)
    expected = block.linears[1](block.linears[0](x).tanh()).tanh()
    torch.testing.assert_close(block(x), expected)


def test_last_activation_replaces_only_the_last():
    block = DenseBlock([(3,)], hidden_units=[8, 4], last_activation="identity")
    x = torch.randn(5, 3)
    torch.testing.assert_close(block(x), block.linears[1](block.linears[0](x).relu()))


@pytest.mark.parametrize(("norm", "layer"), [("layer", nn.LayerNorm), ("rms", nn.RMSNorm)])
def test_a_norm_stands_before_the_activation(norm, layer):
    block = DenseBlock([(3,)], hidden_units=4, norm=norm)
    x = torch.randn(5, 3)
    torch.testing.assert_close(block(x), layer(4)(block.linears[0](x)).relu())


def test_parameters_are_named_by_layer():
    block = DenseBlock([(3,)], hidden_units=[8, 4], norm="layer", bias=False)
    assert list(block.state_dict()) == [
        "linears.0.weight",
        "linears.1.weight",
        "norms.0.weight",
        "norms.0.bias",
        "norms.1.weight",
        "norms.1.bias",
    ]


def test_dropout_acts_in_training_only():
    block = DenseBlock([(3,)], hidden_units=200, dropout=0.5, activation="identity")
    x = torch.randn(1, 3)
    plain = block.linears[0](x)
    torch.testing.assert_close(block.eval()(x), plain)
    dropped = block.train()(x)
    assert 50 < int((dropped == 0).sum()) < 150
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


def test_batch_norm_counts_all_leading_axes():
    ours, theirs = FeatureBatchNorm(4), nn.BatchNorm1d(4)
    x = torch.randn(5, 4, 4)  # a shape that torch's own would normalise over the wrong axis
    torch.testing.assert_close(ours(x), theirs(x.reshape(20, 4)).reshape(5, 4, 4))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("leading", [(), (0,), (1,), (0, 3)])
def test_batch_norm_without_two_vectors_uses_and_keeps_its_statistics(leading):
    norm: Any = FeatureBatchNorm(4).train()
    norm(torch.randn(10, 4))
    mean = norm.running_mean.clone()
    y = norm(torch.randn(*leading, 4))
    assert torch.isfinite(y).all()
    assert torch.equal(norm.running_mean, mean)


def test_flatten_dense_flattens_only_its_own_axes():
    block = FlattenDenseBlock([(2, 3)], hidden_units=4)
    x = torch.randn(5, 7, 2, 3)
    torch.testing.assert_close(block(x), block.dense(x.reshape(5, 7, 6)))


def test_a_replaced_layer_is_the_one_that_runs():
    block = DenseBlock([(3,)], hidden_units=4, activation="identity")
    block.linears[0] = nn.Identity()
    assert torch.equal(block(torch.ones(3)), torch.ones(3))


def test_hooks_of_layers_fire():
    block = DenseBlock([(3,)], hidden_units=4)
    seen = []
    block.linears[0].register_forward_hook(lambda *args: seen.append(1))
    block(torch.ones(3))
    assert seen == [1]


def test_output_shape_is_filled_row_by_row():
    block = LinearOutputBlock([(3,)], output_shape=[2, 4])
    x = torch.randn(5, 3)
    torch.testing.assert_close(block(x), block.linear(x).reshape(5, 2, 4))


def test_init_scale_and_bias_survive_every_draw():
    block = LinearOutputBlock([(50,)], output_units=2, init_scale=0.01, init_bias=[1.0, -1.0])
    for _ in range(2):
        assert block.linear.bias.tolist() == [1.0, -1.0]
        assert 0 < block.linear.weight.abs().max() <= 0.01 / 50**0.5
        block.reset_parameters(torch.Generator().manual_seed(0))


def test_a_bias_may_be_a_probability():
    block = LinearOutputBlock([(3,)], output_units=2, init_bias={"probability": [0.1, 0.5]})
    torch.testing.assert_close(block.linear.bias.sigmoid(), torch.tensor([0.1, 0.5]))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(3, 64, 64)],
            "dense takes one vector (features,), got (3, 64, 64); put a flatten block before it",
        ),
        ([()], "dense takes one vector (features,), got (); put a flatten block before it"),
        ([(None,)], "dense needs to know how many features it reads, got (?,)"),
        ([(3,), (4,)], "dense takes one input, got (3,) and (4,); put a concat block before it"),
        ([], "dense takes one input; name its input"),
    ],
)
def test_dense_refuses_shapes_in_words(shapes, message):
    with pytest.raises(InputShapeError) as caught:
        DenseBlock(shapes, hidden_units=4)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "block 'dense' needs the setting 'hidden_units' (a positive integer or a list of positive integers)",
        ),
        ({"hidden_units": []}, "dense needs at least one layer, got hidden_units=[]"),
        (
            {"hidden_units": [0]},
            "'hidden_units' must be a positive integer or a list of positive integers, got [0]",
        ),
        (
            {"hidden_units": 4, "activatoin": "relu"},
            "'activatoin' is not a setting of block 'dense'; did you mean 'activation'?",
        ),
        (
            {"hidden_unit": 4},
            "'hidden_unit' is not a setting of block 'dense'; did you mean 'hidden_units'?",
        ),
        (
            {"hidden_units": 4, "activation": "rleu"},
            "'activation' names the unknown activation 'rleu'; did you mean 'relu'?",
        ),
        (
            {"hidden_units": 4, "norm": "group"},
            "'norm' must be one of 'none', 'layer', 'rms', 'batch', got 'group'",
        ),
        (
            {"hidden_units": 4, "dropout": 1.5, "bias": 1},
            "'dropout' must be a number between 0 and 1, got 1.5; 'bias' must be true or false, got 1",
        ),
    ],
)
def test_dense_refuses_settings_in_words(settings, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        DenseBlock([(3,)], **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "linear_output needs exactly one of output_units and output_shape"),
        (
            {"output_units": 2, "output_shape": [2]},
            "linear_output needs exactly one of output_units and output_shape",
        ),
        ({"output_units": 2, "init_bias": [1.0]}, "'init_bias' has 1 numbers for 2 outputs"),
        (
            {"output_units": 2, "init_bias": {"probability": 1.0}},
            "'init_bias' needs probabilities between 0 and 1, got 1.0",
        ),
        (
            {"output_units": 2, "init_bias": {"prob": 0.5}},
            "'init_bias' as a mapping is {probability: p}, got {'prob': 0.5}",
        ),
        (
            {"output_units": 2, "init_bias": 1.0, "bias": False},
            "linear_output has no bias that init_bias could set; drop bias: false",
        ),
    ],
)
def test_linear_output_refuses_settings_in_words(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearOutputBlock([(3,)], **settings)


@pytest.mark.parametrize(
    ("port", "message"),
    [
        (
            Port((), torch.int64, 5),
            "dense takes numbers, not integers, got integers (); put a one_hot or embedding block before it",
        ),
        (
            Port((128,), torch.uint8),
            "dense takes scaled numbers, got uint8 (128,); put a scale_image block after each uint8 observation that it is made of",
        ),
    ],
)
def test_dense_refuses_kinds_of_input_in_words(port, message):
    with pytest.raises(InputShapeError) as caught:
        DenseBlock.check_ports([port])
    assert str(caught.value) == message
