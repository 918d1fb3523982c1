import math
import re

import pytest
import torch

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.scale import NormalizeBlock, ScaleImageBlock
from perception_blocks.port import Port


@pytest.mark.parametrize(
    ("shape", "channels", "out_shape"),
    [
        ((64, 64, 3), None, (3, 64, 64)),
        ((3, 64, 64), None, (3, 64, 64)),
        ((4, 84, 84), None, (4, 84, 84)),
        ((None, None, 3), None, (3, None, None)),
        ((12, 84, 84), "first", (12, 84, 84)),
        ((3, 3, 3), "last", (3, 3, 3)),
        ((84, 84), None, (1, 84, 84)),
        ((128,), None, (128,)),
        ((), None, ()),
    ],
)
def test_channels_come_first(shape, channels, out_shape):
    block = ScaleImageBlock([shape], low=0, high=255, channels=channels)
    assert block.out_shapes == [out_shape]


def test_uint8_becomes_zero_to_one():
    block = ScaleImageBlock([(2, 5, 3)], low=0, high=255, channels="last")
    x = torch.randint(256, (7, 2, 5, 3), dtype=torch.uint8)
    expected = (x.double() / 255).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(block(x), expected)
    assert block(torch.full((2, 5, 3), 255, dtype=torch.uint8)).unique().tolist() == [1.0]


def test_floats_are_scaled_by_their_bounds():
    block = ScaleImageBlock([(3,)], low=(-1.0, 0.0, 2.0), high=(1.0, 4.0, 2.0))
    y = block(torch.tensor([0.0, 1.0, 2.0]))
    assert y.tolist() == [0.5, 0.25, 0.0]  # an element that cannot change becomes 0


def test_out_ports_say_what_was_done():
    block = ScaleImageBlock([(64, 64, 3)], low=0, high=255)
    port = Port((64, 64, 3), torch.uint8, low=0, high=255)
    assert block.out_ports([port]) == [Port((3, 64, 64), low=0.0, high=1.0, channels="first")]


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (
            (12, 84, 84),
            {"low": 0, "high": 255},
            "scale_image cannot tell which axis holds the channels, got (12, 84, 84); "
            "say channels: first or channels: last",
        ),
        (
            (3, 64, 3),
            {"low": 0, "high": 255},
            "scale_image cannot tell which axis holds the channels, got (3, 64, 3); "
            "say channels: first or channels: last",
        ),
        (
            (4, 3, 64, 64),
            {"low": 0, "high": 255},
            "scale_image takes one image at a time, got (4, 3, 64, 64); apply it to each image (each: 1)",
        ),
        ((4,), {}, "scale_image needs bounds, which its input does not have; give it low and high"),
        (
            (4,),
            {"low": float("-inf"), "high": 0},
            "scale_image needs bounds, but those of the space are infinite; give it low and high, "
            "or use a normalize block",
        ),
        ((4,), {"low": 1, "high": 0}, "scale_image needs low < high, got low 1 and high 0"),
        ((4,), {"low": [1, 2], "high": 3}, "a bound of shape (2,) does not fit (4,)"),
    ],
)
def test_what_cannot_be_scaled_is_refused_in_words(shape, settings, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        ScaleImageBlock([shape], **settings)


def test_integers_are_refused_in_words():
    with pytest.raises(InputShapeError) as caught:
        ScaleImageBlock.check_ports([Port((), torch.int64, 5)])
    assert str(caught.value) == (
        "scale_image takes numbers, not integers, got integers (); put a one_hot or embedding block in its place"
    )


def test_normalize_knows_the_statistics_of_all_it_saw():
    block = NormalizeBlock([(2,)], clip=None)
    x = torch.randn(6, 50, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([100.0, -5.0])
    for part in (x[:1], x[1:2, :7], x[1:2, 7:], x[2:].reshape(2, 2, 50, 2), x[:0]):
        block.update(part)
    rows = x.reshape(-1, 2)
    torch.testing.assert_close(block.mean, rows.mean(0))
    torch.testing.assert_close(block.var, rows.var(0, correction=0))
    y = block(x).reshape(-1, 2)
    torch.testing.assert_close(y.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_two_normalizers_merge_into_one_that_saw_both():
    whole, first, second = (NormalizeBlock([(3,)]) for _ in range(3))
    x, y = torch.randn(20, 3), torch.randn(5, 3) + 4
    whole.update(torch.cat([x, y]))
    first.update(x)
    second.update(y)
    first.merge(second)
    first.merge(NormalizeBlock([(3,)]))
    torch.testing.assert_close(first.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda b: b.update(torch.ones(2, 4)), "normalize counts values of (3,), got (2, 4)"),
        (lambda b: b.update(torch.ones(())), "normalize counts values of (3,), got ()"),
        (
            lambda b: b.update(torch.tensor([1.0, 2.0, math.nan])),
            "normalize cannot count NaN or infinite numbers",
        ),
        (
            lambda b: b.merge(NormalizeBlock([(4,)])),
            "this normalize block is for (3,), the other one for (4,)",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_and_changes_nothing(use, message):
    block = NormalizeBlock([(3,)])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        use(block)
    assert int(block.count) == 0
    assert torch.equal(block.mean, torch.zeros(3))


def test_statistics_hold_far_from_zero():
    block = NormalizeBlock([(1,)])
    x = torch.tensor([1e4, 1e4 + 1, 1e4 + 2]).reshape(3, 1)
    for _ in range(1000):
        block.update(x)
    assert block.var.item() == pytest.approx(2 / 3, rel=1e-3)


def test_forward_moves_nothing_and_clips():
    block = NormalizeBlock([(1,)], clip=2.0).train()
    assert block(torch.tensor([50.0])).tolist() == [2.0]
    assert block.count.item() == 0
    assert block.mean.item() == 0


def test_an_unbatched_value_counts_as_one():
    block = NormalizeBlock([(2,)])
    block.update(torch.ones(2))
    assert block.count.item() == 1


def test_reset_forgets():
    block = NormalizeBlock([(2,)])
    block.update(torch.randn(5, 2))
    block.reset()
    torch.testing.assert_close(block.state_dict(), NormalizeBlock([(2,)]).state_dict())


def test_a_half_precision_model_keeps_full_statistics():
    block = NormalizeBlock([(1,)])
    block.update(torch.tensor([[1000.3], [1001.3]]))
    mean = block.mean.clone()
    block.bfloat16()
    assert torch.equal(block.mean, mean)
    assert block(torch.tensor([1000.0], dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_normalize_needs_known_sizes():
    with pytest.raises(InputShapeError) as caught:
        NormalizeBlock([(None, 3)])
    assert str(caught.value) == "normalize needs to know the size of every axis, got (?, 3)"


def test_normalize_keeps_the_shape_and_unmarks_uint8():
    (port,) = NormalizeBlock([(8,)]).out_ports([Port((8,), torch.uint8)])
    assert port == Port((8,))
