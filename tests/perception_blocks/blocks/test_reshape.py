import re

import pytest
import torch

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.reshape import (
    ChannelsFirstBlock,
    DetachBlock,
    FlattenBlock,
    MultiIndexSliceBlock,
    PermuteBlock,
    RepeatToMatchBlock,
    SliceBlock,
)
from perception_blocks.port import Port


@pytest.mark.parametrize(
    ("shape", "num_dims", "out_shape"),
    [
        ((2, 3, 4), None, (24,)),
        ((2, 3, 4), 2, (2, 12)),
        ((2, 3, 4), 1, (2, 3, 4)),
        ((), None, (1,)),
        ((2, None, 4), 2, (2, None)),
        ((None, 3, 4), 2, (None, 12)),
    ],
)
def test_flatten_joins_axes_from_the_right(shape, num_dims, out_shape):
    assert FlattenBlock([shape], num_dims=num_dims).out_shapes == [out_shape]


def test_leading_axes_stay():
    x = torch.randn(5, 6, 2, 3, 4)
    assert torch.equal(FlattenBlock([(2, 3, 4)])(x), x.reshape(5, 6, 24))


def test_more_axes_than_there_are_is_refused_in_words():
    with pytest.raises(InputShapeError) as caught:
        FlattenBlock([(3, 4)], num_dims=3)
    assert str(caught.value) == (
        "flatten with num_dims=3 needs 3 axes or more, got (3, 4); lower num_dims or leave it out"
    )


def test_kind_and_bounds_are_passed_on():
    block = FlattenBlock([(2, 2)])
    counts = Port((2, 2), torch.int64, (2, 3, 4, 5))
    assert block.out_ports([counts]) == [Port((4,), torch.int64, (2, 3, 4, 5))]
    bounded = Port((2, 2), torch.uint8, low=((0, 0), (0, 1)), high=255)
    (port,) = block.out_ports([bounded])
    assert (port.dtype, port.low, port.high) == (torch.uint8, (0.0, 0.0, 0.0, 1.0), 255)


@pytest.mark.parametrize("dim", [0, -2])
@pytest.mark.parametrize("index", [1, -4])
def test_slice_picks_one_entry_of_a_feature_axis(dim, index):
    x = torch.randn(2, 3, 5, 4)
    block = SliceBlock([(5, 4)], dim=dim, index=index)
    assert block.out_shapes == [(4,)]
    assert torch.equal(block(x), x[:, :, 1])


@pytest.mark.parametrize("dim", [1, -1])
def test_multi_index_slice_keeps_the_given_order(dim):
    x = torch.randn(5, 2, 4)
    block = MultiIndexSliceBlock([(2, 4)], dim=dim, indices=[3, 0, -1])
    assert block.out_shapes == [(2, 3)]
    assert torch.equal(block(x), x[..., [3, 0, 3]])


def test_repeat_to_match_follows_the_second_input():
    x, other = torch.randn(5, 1, 4), torch.randn(5, 6, 3)
    block = RepeatToMatchBlock([(1, 4), (6, 3)], dim=0)
    assert torch.equal(block(x, other), x.repeat(1, 6, 1))
    varying = RepeatToMatchBlock([(1, 4), (None,)], dim=0)
    assert varying.out_shapes == [(None, 4)]
    assert varying(x, torch.randn(5, 9)).shape == (5, 9, 4)


def test_what_is_picked_keeps_its_kind_and_bounds():
    counts = Port((2, 3), torch.int64, (1, 2, 3, 4, 5, 6))
    assert SliceBlock([(2, 3)], dim=0, index=1).out_ports([counts]) == [
        Port((3,), torch.int64, (4, 5, 6))
    ]
    assert SliceBlock([(2,)], dim=0, index=1).out_ports([Port((2,), torch.int64, (3, 7))]) == [
        Port((), torch.int64, 7)
    ]
    bounded = Port((2, 3), torch.uint8, low=0, high=((1, 2, 3), (4, 5, 6)))
    (port,) = MultiIndexSliceBlock([(2, 3)], dim=-1, indices=[2, 0]).out_ports([bounded])
    assert port == Port((2, 2), torch.uint8, low=0, high=((3.0, 1.0), (6.0, 4.0)))


def test_what_is_repeated_keeps_its_kind_and_bounds():
    counts = Port((1, 2), torch.int64, (3, 7))
    assert RepeatToMatchBlock([(1, 2), (3,)], dim=0).out_ports([counts, Port((3,))]) == [
        Port((3, 2), torch.int64, (3, 7, 3, 7, 3, 7))
    ]
    varying = RepeatToMatchBlock([(1, 2), (None,)], dim=0)
    (port,) = varying.out_ports([Port((1, 2), low=-1.0, high=((1.0, 2.0),)), Port((None,))])
    assert port == Port((None, 2), low=-1.0)


@pytest.mark.parametrize(
    ("block", "keeps"),
    [
        (FlattenBlock([(5, 2, 3)], num_dims=2), True),
        (FlattenBlock([(5, 2, 3)]), False),
        (SliceBlock([(5, 4)], dim=1, index=0), True),
        (SliceBlock([(5, 4)], dim=0, index=0), False),
        (MultiIndexSliceBlock([(5, 4)], dim=-1, indices=[0]), True),
        (MultiIndexSliceBlock([(5, 4)], dim=-2, indices=[0]), False),
        (RepeatToMatchBlock([(5, 1), (2, 3)], dim=1), True),
        (RepeatToMatchBlock([(1, 4), (2, 3)], dim=0), False),
    ],
)
def test_a_mask_stays_where_the_first_axis_does(block, keeps):
    assert block.keeps_mask == keeps


def test_a_slice_of_integers_is_made_of_integers():
    x = torch.arange(6).reshape(2, 3)
    assert torch.equal(MultiIndexSliceBlock([(3,)], dim=0, indices=[2])(x), x[:, 2:])


@pytest.mark.parametrize(
    ("block", "shapes", "settings", "message"),
    [
        (
            SliceBlock,
            [(4,)],
            {"dim": 1, "index": 0},
            "slice with dim=1 needs 2 feature axes or more, got (4,)",
        ),
        (
            SliceBlock,
            [()],
            {"dim": -1, "index": 0},
            "slice with dim=-1 needs one feature axis or more, got ()",
        ),
        (
            SliceBlock,
            [(5, 4)],
            {"dim": 0, "index": 5},
            "slice with index 5 needs more than 5 entries in axis -2, got (5, 4); take index between -5 and 4",
        ),
        (
            SliceBlock,
            [(None, 4)],
            {"dim": 0, "index": 0},
            "slice needs to know the size of the axis it picks from, got (?, 4)",
        ),
        (
            MultiIndexSliceBlock,
            [(2, 4)],
            {"dim": 0, "indices": [0, -3, 7]},
            "multi_index_slice with indices -3, 7 needs more than 2 entries in axis -2, got (2, 4); "
            "take indices between -2 and 1",
        ),
        (
            MultiIndexSliceBlock,
            [(2,)],
            {"dim": 0, "indices": []},
            "multi_index_slice needs one index or more, got indices=[]",
        ),
        (
            RepeatToMatchBlock,
            [(2, 4), (5, 4)],
            {"dim": 0},
            "repeat_to_match repeats an axis of size 1, which axis 0 of its first input is not, got (2, 4)",
        ),
        (
            RepeatToMatchBlock,
            [(1,)],
            {"dim": 0},
            "repeat_to_match takes two inputs, the one to repeat and the one to match, got (1,)",
        ),
        (
            RepeatToMatchBlock,
            [(2, 1), (3,)],
            {"dim": 1},
            "repeat_to_match with dim=1 needs 2 feature axes or more, got (3,)",
        ),
    ],
)
def test_what_cannot_be_picked_is_refused_in_words(block, shapes, settings, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        block(shapes, **settings)


@pytest.mark.parametrize("leading", [(), (5,), (5, 2), (0,)])
@pytest.mark.parametrize("axes", [[2, 0, 1], [-1, 0, -2], [0, 1, 2]])
def test_permute_orders_the_feature_axes(leading, axes):
    x = torch.randn(*leading, 2, 3, 4)
    block, count = PermuteBlock([(2, 3, 4)], axes=axes), len(leading)
    order = [*range(count), *(count + axis % 3 for axis in axes)]
    assert torch.equal(block(x), x.permute(order))
    assert block.keeps_mask is (axes[0] == 0)


@pytest.mark.parametrize("shape", [(4, 67), (8, 9, 3), (2, 8, 9, 3)])
def test_channels_first_moves_the_last_axis_and_scales_nothing(shape):
    x = torch.randint(256, (5, *shape), dtype=torch.uint8)
    assert torch.equal(ChannelsFirstBlock([shape])(x), x.movedim(-1, 1))


def test_moved_axes_keep_their_kind_and_bounds():
    counts = Port((2, 3), torch.int64, (1, 2, 3, 4, 5, 6))
    (turned,) = PermuteBlock([(2, 3)], axes=[1, 0]).out_ports([counts])
    assert turned == Port((3, 2), torch.int64, (1, 4, 2, 5, 3, 6))
    varying = Port((None, 3), torch.int64, (1, 2, 3, 4, 5, 6))
    (turned,) = PermuteBlock([(None, 3)], axes=[1, 0]).out_ports([varying])
    assert turned == Port((3, None), torch.int64, (1, 4, 2, 5, 3, 6))
    bounds = Port((1, 2, 3), torch.uint8, low=(((0, 1, 2), (3, 4, 5)),), high=255, channels="last")
    (moved,) = ChannelsFirstBlock([(1, 2, 3)]).out_ports([bounds])
    low = (((0.0, 3.0),), ((1.0, 4.0),), ((2.0, 5.0),))
    assert moved == Port((3, 1, 2), torch.uint8, low=low, high=255, channels="first")
    (kept,) = DetachBlock([(1, 2, 3)]).out_ports([bounds])
    assert kept == bounds


def test_detach_stops_the_gradient_and_nothing_else():
    x = torch.randn(5, 3, requires_grad=True)
    y = DetachBlock([(3,)])(x)
    assert torch.equal(y, x)
    assert not y.requires_grad


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        (
            (4, 67),
            [0, 0],
            "permute with axes=[0, 0] must name each feature axis once: axis 0 is named twice, "
            "axis 1 is missing, got (4, 67); order the axes 0, 1",
        ),
        (
            (4, 67),
            [1],
            "permute with axes=[1] must name each feature axis once: axis 0 is missing, "
            "got (4, 67); order the axes 0, 1",
        ),
        (
            (4, 67),
            [0, 2, 1],
            "permute with axes=[0, 2, 1] must name each feature axis once: there is no axis 2, "
            "got (4, 67); order the axes 0, 1",
        ),
        (
            (4, 67),
            [0, -2, 1],
            "permute with axes=[0, -2, 1] must name each feature axis once: axis 0 is named twice, "
            "got (4, 67); order the axes 0, 1",
        ),
        (
            (),
            [0],
            "permute with axes=[0] must name each feature axis once: there is no axis 0, got (); "
            "leave permute out",
        ),
    ],
)
def test_permute_names_the_mistake(shape, axes, message):
    with pytest.raises(InputShapeError) as caught:
        PermuteBlock([shape], axes=axes)
    assert str(caught.value) == message


def test_channels_that_cannot_be_moved_are_refused_in_words():
    with pytest.raises(InputShapeError) as caught:
        ChannelsFirstBlock([(3,)])
    assert str(caught.value) == (
        "channels_first takes axes and then channels, such as (height, width, channels), got (3,); "
        "leave it out"
    )
    with pytest.raises(InputShapeError) as caught:
        ChannelsFirstBlock.check_ports([Port((3, 8, 8), channels="first")])
    assert str(caught.value) == (
        "channels_first moves the channels, and the input has them first already, got (3, 8, 8); "
        "leave it out"
    )
