from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from perception_blocks import Graph, InferenceBlock
from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.conv import (
    NatureCnnBlock,
    NatureCnnDenseBlock,
    StridedConvBlock,
    StridedConvDenseBlock,
    VggConvBlock,
)
from perception_blocks.port import Port


def test_strided_conv_is_convolutions_with_activations():
    block: Any = StridedConvBlock(
        [(3, 20, 22)], hidden_channels=[4, 5], hidden_kernels=[4, [3, 2]], strides=[2, 1]
    )
    x = torch.randn(6, 3, 20, 22)
    first, second = block.convs
    expected = functional.conv2d(x, first.weight, first.bias, stride=2).relu()
    expected = functional.conv2d(expected, second.weight, second.bias).relu()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("sides", [[[1, 2], [0, 3]], [[1, 1], 2]])
def test_every_layer_can_be_padded_unevenly(mode, sides):
    block: Any = StridedConvBlock(
        [(2, 6, 7)],
        hidden_channels=[3, 3],
        padding=[sides, sides],
        padding_mode=mode,
        activation="identity",
    )
    x = torch.randn(4, 2, 6, 7)
    (top, bottom), right = sides[0], sides[1]
    across = [right, right] if isinstance(right, int) else right
    torch_mode = "constant" if mode == "zeros" else mode
    expected = x
    for conv in block.convs:
        padded = functional.pad(expected, [*across, top, bottom], mode=torch_mode)
        expected = functional.conv2d(padded, conv.weight, conv.bias)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_shortens_by_the_stride_alone(kernel, stride, dilation):
    block = StridedConvBlock(
        [(2, 13)],
        hidden_channels=[3],
        hidden_kernels=kernel,
        strides=stride,
        dilations=dilation,
        padding="same",
    )
    assert block.out_shapes == [(3, -(-13 // stride))]
    assert block(torch.randn(2, 13)).shape == block.out_shapes[0]


def test_one_dimensional_conv_and_dense_keep_the_batch():
    block = StridedConvDenseBlock([(2, 9)], hidden_channels=[3], hidden_units=4)
    x = torch.randn(5, 2, 9)
    assert block(x).shape == (5, 4)
    torch.testing.assert_close(block(x)[2], block(x[2]))


def test_vgg_pools_after_two_convolutions():
    block = VggConvBlock([(3, 9, 8)], hidden_channels=[4])
    x = torch.randn(5, 3, 9, 8)
    expected = functional.max_pool2d(block.convs[1](block.convs[0](x).relu()).relu(), 2)
    torch.testing.assert_close(block(x), expected)


def test_nature_cnn_is_the_published_network():
    block: Any = NatureCnnDenseBlock([(4, 84, 84)])
    layers = [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in block.conv.convs]
    assert layers == [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    linear = block.flatten_dense.dense.linears[0]
    assert isinstance(linear, nn.Linear)
    assert (linear.in_features, linear.out_features) == (3136, 512)


def test_varying_sizes_are_passed_on():
    block = StridedConvBlock([(3, None, 20)], hidden_channels=[4])
    assert block.out_shapes == [(4, None, 18)]


@pytest.mark.parametrize(
    ("block", "shape", "settings", "message"),
    [
        (
            StridedConvBlock,
            (4,),
            {"hidden_channels": [4]},
            "strided_conv takes (channels, height, width), got (4,); a vector goes into a dense block",
        ),
        (
            StridedConvBlock,
            (None, 8, 8),
            {"hidden_channels": [4]},
            "strided_conv needs to know how many channels it reads, got (?, 8, 8)",
        ),
        (
            StridedConvBlock,
            (0, 8, 8),
            {"hidden_channels": [4]},
            "strided_conv needs at least one channel, got (0, 8, 8)",
        ),
        (
            StridedConvBlock,
            (3, 6, 6),
            {"hidden_channels": [4, 4], "hidden_kernels": 4},
            "layer 2 of strided_conv has a kernel that spans (4, 4), but reads only (3, 3), got (3, 6, 6); "
            "use smaller kernels or strides, fewer layers, or padding",
        ),
        (
            StridedConvBlock,
            (3, 2, 2),
            {"hidden_channels": [4], "padding": 2, "padding_mode": "reflect"},
            "layer 1 of strided_conv pads by (2, 2) in mode 'reflect', but reads only (2, 2), got (3, 2, 2); "
            "use less padding, or padding_mode 'zeros'",
        ),
        (
            VggConvBlock,
            (3, 7, 7),
            {"hidden_channels": [3, 3, 3]},
            "stage 3 of vgg_conv halves its image, but reads only (1, 1), got (3, 7, 7); "
            "use fewer stages or a larger image",
        ),
        (
            NatureCnnBlock,
            (3, 35, 36),
            {},
            "layer 3 of nature_cnn has a kernel that spans (3, 3), but reads only (2, 3), got (3, 35, 36); "
            "use a larger image, or strided_conv",
        ),
        (
            NatureCnnBlock,
            (3, 35),
            {},
            "nature_cnn takes (channels, height, width), got (3, 35)",
        ),
        (
            StridedConvDenseBlock,
            (3, None, 8),
            {"hidden_channels": [3], "hidden_units": 4},
            "strided_conv_dense needs to know the size of every axis, got (3, ?, 8)",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused_in_words(block, shape, settings, message):
    with pytest.raises(InputShapeError) as caught:
        block([shape], **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_channels": [4], "hidden_kernels": [3, 3], "strides": [[1, 2, 3]]},
            "strided_conv: 'hidden_kernels' has 2 entries for 1 hidden_channels; "
            "'strides' has 3 numbers in [1, 2, 3] for 2 axes",
        ),
        ({"hidden_channels": []}, "strided_conv needs at least one layer, got hidden_channels=[]"),
        (
            {"hidden_channels": [4], "padding": "sme"},
            "'padding' must be an integer of 0 or more, 'same', or a list with one of them "
            "(or one list, of one per axis) per layer, got 'sme'",
        ),
        (
            {"hidden_channels": [4], "padding": [[[1, 2, 3], 0]]},
            "'padding' of an axis is a number or [before, after], got [1, 2, 3]",
        ),
        (
            {"hidden_channels": 4, "hidden_kernels": [0]},
            "'hidden_channels' must be a list of positive integers, got 4; 'hidden_kernels' must be a positive "
            "integer, or a list with one per layer (or one list per layer, of one per axis), got [0]",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        StridedConvBlock([(3, 8, 8)], **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("port", "message"),
    [
        (
            Port((3, 64, 64), torch.uint8),
            "nature_cnn_dense takes scaled numbers, got uint8 (3, 64, 64); put a scale_image block after each uint8 observation that it is made of",
        ),
        (
            Port((64, 64, 3), channels="last"),
            "nature_cnn_dense takes channels first, and the space has them last, got (64, 64, 3); "
            "put a scale_image block before it",
        ),
    ],
)
def test_raw_images_are_refused_in_words(port, message):
    with pytest.raises(InputShapeError) as caught:
        NatureCnnDenseBlock.check_ports([port])
    assert str(caught.value) == message


def test_numpy_numbers_are_numbers():
    two: Any = np.int64(2)
    block = StridedConvDenseBlock(
        [(2, 9)], hidden_channels=[two], hidden_kernels=two, padding=two, hidden_units=two
    )
    assert block(torch.zeros(2, 9)).shape == (2,)


@pytest.mark.parametrize("leading", [(), (5,), (5, 2), (0,)])
@pytest.mark.parametrize("shape", [(9, 2), (9, 8, 2), (9, 8, 7, 2)])
def test_channels_last_are_read_as_channels_first_would_be(shape, leading):
    settings = {"hidden_channels": [4, 5], "hidden_kernels": [3, 2], "padding": [1, "same"]}
    first = StridedConvBlock([(shape[-1], *shape[:-1])], **settings)
    last = StridedConvBlock([shape], channels="last", **settings)
    assert last.out_shapes == first.out_shapes
    last.load_state_dict(first.state_dict())
    x = torch.randn(*leading, *shape)
    torch.testing.assert_close(last(x), first(x.movedim(-1, -len(shape))))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (4, 67),
            "layer 1 of strided_conv has a kernel that spans (5,), but reads only (4,), "
            "got (4, 67); use smaller kernels or strides, fewer layers, or padding",
        ),
        (
            (9,),
            "strided_conv takes (height, width, channels), got (9,); a vector goes into a dense block",
        ),
        ((9, None), "strided_conv needs to know how many channels it reads, got (9, ?)"),
    ],
)
def test_what_does_not_fit_is_shown_as_it_comes_also_with_channels_last(shape, message):
    with pytest.raises(InputShapeError) as caught:
        StridedConvBlock([shape], hidden_channels=[8], hidden_kernels=5, channels="last")
    assert str(caught.value) == message


def test_a_convolution_takes_the_axis_of_the_channels_from_its_input():
    graph = Graph({"image": Port((9, 8, 2), channels="last")})
    graph.add("features", "strided_conv", "image", hidden_channels=[4])
    net = InferenceBlock(graph, outputs=["features"])
    assert net.out_ports["features"].shape == (4, 7, 6)


@pytest.mark.parametrize("leading", [(5,), (5, 4), ()])
def test_batch_norm_is_torchs_over_all_leading_axes(leading):
    block: Any = StridedConvBlock([(4, 6)], hidden_channels=[4], norm="batch")
    x = torch.randn(*leading, 4, 6)
    conv, norm = nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)
    conv.load_state_dict(block.convs[0].state_dict())
    expected = norm(conv(x.reshape(-1, 4, 6))).relu()
    torch.testing.assert_close(block(x), expected.reshape(*leading, 4, 4))
    torch.testing.assert_close(block.norms[0].running_var, norm.running_var)
    block.eval()
    norm.eval()
    expected = norm(conv(x.reshape(-1, 4, 6))).relu()
    torch.testing.assert_close(block(x), expected.reshape(*leading, 4, 4))


@pytest.mark.parametrize("leading", [(0,), (1,), ()])
def test_batch_norm_of_fewer_than_two_values_takes_the_running_statistics(leading):
    block: Any = StridedConvBlock([(4, 3, 3)], hidden_channels=[5], norm="batch")
    x = torch.randn(*leading, 4, 3, 3)
    assert torch.equal(block.train()(x), block.eval()(x))
    assert block.norms[0].num_batches_tracked == 0


def test_vgg_conv_has_a_batch_norm_after_each_convolution():
    block: Any = VggConvBlock([(3, 8, 8)], hidden_channels=[4], norm="batch")
    x = torch.randn(6, 3, 8, 8)
    y = x
    for conv in block.convs:
        y = functional.batch_norm(conv(y), None, None, training=True).relu()
    torch.testing.assert_close(block(x), torch.max_pool2d(y, 2))
