from typing import Any

import pytest
import torch
from torch.nn import functional

from perception_blocks.blocks.residual_conv import ImpalaCnnBlock, ResConvBlock


def test_impala_cnn_is_the_published_network():
    block: Any = ImpalaCnnBlock([(4, 84, 84)])
    assert block.out_shapes == [(32, 11, 11)]
    convs = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [16] * 5 + [32] * 10
    conv = {(n, m): 9 * n * m + m for n in (4, 16, 32) for m in (16, 32)}
    expected = conv[4, 16] + 4 * conv[16, 16] + conv[16, 32] + 9 * conv[32, 32]
    assert sum(p.numel() for p in block.parameters()) == expected


def test_impala_cnn_is_convolutions_pools_and_shortcuts():
    block: Any = ImpalaCnnBlock([(3, 9, 10)], hidden_channels=[4, 5])
    x = torch.randn(6, 3, 9, 10)
    y = x
    for stage in block.stages:
        y = functional.conv2d(y, stage.conv.weight, stage.conv.bias, padding=1)
        y = functional.max_pool2d(y, 3, stride=2, padding=1)
        for first, second in (stage.convs[:2], stage.convs[2:]):
            inner = functional.conv2d(y.relu(), first.weight, first.bias, padding=1).relu()
            y = y + functional.conv2d(inner, second.weight, second.bias, padding=1)
    torch.testing.assert_close(block(x), y.relu())


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_res_conv_is_convolutions_and_a_shortcut(kernel, stride, norm):
    block: Any = ResConvBlock(
        [(3, 7, 8)], hidden_channels=[4], hidden_kernels=kernel, strides=stride, norm=norm
    )
    (unit,) = block.units
    pad = [(kernel - 1) // 2, kernel // 2] * 2
    x = torch.randn(6, 3, 7, 8)

    def conv(y, layer, step):
        return functional.conv2d(functional.pad(y, pad), layer.weight, layer.bias, stride=step)

    def normed(y):
        return functional.group_norm(y, 1) if norm == "layer" else y

    y = normed(conv(x, unit.convs[0].conv, stride)).relu()
    y = normed(conv(y, unit.convs[1].conv, 1))
    shortcut = functional.conv2d(x, unit.shortcut.weight, unit.shortcut.bias, stride=stride)
    torch.testing.assert_close(block(x), (y + shortcut).relu(), atol=1e-5, rtol=1e-5)


def test_a_unit_that_changes_nothing_has_a_plain_shortcut():
    block: Any = ResConvBlock([(4, 5)], hidden_channels=[4])
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    x = torch.randn(3, 4, 5)
    assert block.units[0].shortcut is None
    assert torch.equal(block(x), x.relu())


def test_varying_sizes_are_passed_on():
    assert ImpalaCnnBlock([(3, None, 20)]).out_shapes == [(32, None, 3)]
    assert ResConvBlock([(3, None)], hidden_channels=[4], strides=2).out_shapes == [(4, None)]


@pytest.mark.parametrize(
    ("block", "shape", "settings", "message"),
    [
        (
            ImpalaCnnBlock,
            (3,),
            {},
            "impala_cnn takes (channels, height, width), got (3,); a vector goes into a dense block",
        ),
        (
            ImpalaCnnBlock,
            (3, 8, 8),
            {"hidden_channels": []},
            "impala_cnn needs at least one stage, got hidden_channels=[]",
        ),
        (
            ResConvBlock,
            (None, 8, 8),
            {"hidden_channels": [4]},
            "res_conv needs to know how many channels it reads, got (?, 8, 8)",
        ),
        (
            ResConvBlock,
            (3, 8, 8),
            {"hidden_channels": [4], "strides": [1, 2]},
            "res_conv: 'strides' has 2 entries for 1 hidden_channels",
        ),
        (
            ResConvBlock,
            (3, 8, 8),
            {"hidden_channels": [4], "norm": "rms"},
            "'norm' must be one of 'none', 'layer', 'batch', got 'rms'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(block, shape, settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        block([shape], **settings)
    assert str(caught.value) == message
