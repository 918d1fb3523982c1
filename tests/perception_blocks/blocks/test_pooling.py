import pytest
import torch

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.masks import as_bool, masked_softmax
from perception_blocks.blocks.pooling import (
    GlobalAveragePoolingBlock,
    MaskedGlobalPoolingBlock,
    VggConvGapBlock,
)
from perception_blocks.port import Port

POOLINGS = ["mean", "sum", "max"]


def plain(pooling, elements):
    """The pooling of a list of vectors, one after the other."""
    if not elements:
        return torch.zeros(3)
    total = elements[0].clone()
    for element in elements[1:]:
        total = torch.maximum(total, element) if pooling == "max" else total + element
    return total / len(elements) if pooling == "mean" else total


@pytest.mark.parametrize("pooling", POOLINGS)
def test_only_valid_elements_are_pooled(pooling):
    block = MaskedGlobalPoolingBlock([(6, 3), (6,)], pooling=pooling)
    x, mask = torch.randn(5, 6, 3), torch.rand(5, 6) < 0.5
    mask[0] = False
    for i in range(5):
        expected = plain(pooling, [x[i, n] for n in range(6) if mask[i, n]])
        torch.testing.assert_close(block(x, mask)[i], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_a_mask_everything_counts(pooling):
    block = MaskedGlobalPoolingBlock([(6, 3)], pooling=pooling)
    x = torch.randn(6, 3)
    torch.testing.assert_close(block(x), plain(pooling, list(x)))


def test_silent_defect_4_mean_without_mask_is_no_sum():
    block = MaskedGlobalPoolingBlock([(4, 2)], pooling="mean")
    assert block(torch.ones(5, 4, 2)).tolist() == [[1.0, 1.0]] * 5


@pytest.mark.parametrize("pooling", POOLINGS)
def test_silent_defect_4_a_fully_masked_set_is_zero_with_finite_gradients(pooling):
    block = MaskedGlobalPoolingBlock([(4, 2), (4,)], pooling=pooling)
    x = torch.randn(3, 4, 2, requires_grad=True)
    y = block(x, torch.zeros(3, 4))
    y.sum().backward()
    assert torch.equal(y, torch.zeros(3, 2))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(3, 4, 2))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("leading", [(), (5,)])
def test_an_empty_set_is_zero(pooling, leading):
    block = MaskedGlobalPoolingBlock([(None, 3), (None,)], pooling=pooling)
    x, mask = torch.zeros(*leading, 0, 3), torch.zeros(*leading, 0)
    assert torch.equal(block(x, mask), torch.zeros(*leading, 3))
    assert torch.equal(block(x), torch.zeros(*leading, 3))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf])
def test_masked_values_never_reach_the_result(pooling, rubbish):
    block = MaskedGlobalPoolingBlock([(4, 2), (4,)], pooling=pooling)
    x, mask = torch.randn(4, 2), torch.tensor([1, 0, 1, 1])
    expected = block(x, mask)
    x[1] = rubbish
    torch.testing.assert_close(block(x, mask), expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_several_dims_are_pooled_at_once(pooling):
    block = MaskedGlobalPoolingBlock([(2, 4, 3), (2, 4)], pooling=pooling, dims=[-3, -2])
    x, mask = torch.randn(5, 2, 4, 3), torch.rand(5, 2, 4) < 0.5
    flat = MaskedGlobalPoolingBlock([(8, 3), (8,)], pooling=pooling)
    expected = flat(x.flatten(1, 2), mask.flatten(1))
    torch.testing.assert_close(block(x, mask), expected)


def test_a_mask_may_have_more_axes_than_are_pooled():
    block = MaskedGlobalPoolingBlock([(2, 4, 3), (2, 4)])
    x, mask = torch.randn(5, 2, 4, 3), torch.rand(5, 2, 4) < 0.5
    each = MaskedGlobalPoolingBlock([(4, 3), (4,)])
    torch.testing.assert_close(block(x, mask), each(x, mask))
    full = MaskedGlobalPoolingBlock([(2, 4, 3), (2, 4, 3)])
    whole = mask.unsqueeze(-1).expand(5, 2, 4, 3)
    torch.testing.assert_close(full(x, whole), each(x, mask))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_a_mask_may_be_of_any_kind(dtype):
    mask = torch.tensor([True, False, True])
    assert torch.equal(as_bool(mask.to(dtype)), mask)
    ports = [Port((3, 2)), Port((3,), dtype)]
    MaskedGlobalPoolingBlock.check_ports(ports)


def test_the_softmax_of_what_is_not_masked():
    scores = torch.randn(5, 4, requires_grad=True)
    mask = torch.rand(5, 4) < 0.5
    mask[0], mask[1] = False, True
    weights = masked_softmax(scores, mask)
    for i in range(1, 5):
        torch.testing.assert_close(weights[i][mask[i]], scores[i][mask[i]].softmax(-1))
    assert torch.equal(weights[~mask], torch.zeros(int((~mask).sum())))
    weights.square().sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("space", [(5,), (5, 6), (5, 6, 2)])
def test_global_average_pooling_is_the_mean_of_each_channel(space):
    x = torch.randn(4, 3, *space)
    block = GlobalAveragePoolingBlock([(3, *space)])
    torch.testing.assert_close(block(x), x.flatten(2).mean(-1))


def test_vgg_conv_gap_is_its_two_parts():
    block = VggConvGapBlock([(3, 9, 8)], hidden_channels=[4, 5])
    x = torch.randn(6, 3, 9, 8)
    torch.testing.assert_close(block(x), block.conv(x).mean((-2, -1)))


@pytest.mark.parametrize(
    ("block", "shapes", "settings", "message"),
    [
        (
            MaskedGlobalPoolingBlock,
            [(4, 3), (3,)],
            {},
            "masked_global_pooling needs a mask of shape (4,) or (4, 3), got (3,)",
        ),
        (
            MaskedGlobalPoolingBlock,
            [(2, 4, 3), (2,)],
            {},
            "masked_global_pooling needs a mask of shape (2, 4) or (2, 4, 3), got (2,)",
        ),
        (
            MaskedGlobalPoolingBlock,
            [(4,)],
            {},
            "masked_global_pooling over dim -2 needs 2 axes or more, got (4,); change 'dims'",
        ),
        (
            MaskedGlobalPoolingBlock,
            [(4, 3), (4,), (4,)],
            {},
            "masked_global_pooling takes a value and optionally its mask, got (4, 3), (4,) and (4,)",
        ),
        (
            MaskedGlobalPoolingBlock,
            [],
            {},
            "masked_global_pooling takes a value and optionally its mask",
        ),
        (
            GlobalAveragePoolingBlock,
            [(3,)],
            {},
            "global_average_pooling takes (channels, height, width), got (3,); a vector goes into a dense block",
        ),
        (
            VggConvGapBlock,
            [(3, 3, 8)],
            {"hidden_channels": [4, 4]},
            "stage 2 of vgg_conv halves its image, but reads only (1, 4), got (3, 3, 8); "
            "use fewer stages or a larger image",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(block, shapes, settings, message):
    with pytest.raises(InputShapeError) as caught:
        block(shapes, **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": []}, "'dims' needs at least one axis, and each once, got []"),
        ({"dims": [-1, -1]}, "'dims' needs at least one axis, and each once, got [-1, -1]"),
        ({"dims": 0}, "'dims' must be a negative integer or a list of negative integers, got 0"),
        (
            {"pooling": "avg"},
            "'pooling' must be one of 'mean', 'sum', 'max', got 'avg'; did you mean 'mean'?",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        MaskedGlobalPoolingBlock([(4, 3)], **settings)
    assert str(caught.value) == message


def test_integers_are_refused_as_values_but_not_as_masks():
    integers = Port((4, 3), torch.int64, 5)
    with pytest.raises(InputShapeError) as caught:
        MaskedGlobalPoolingBlock.check_ports([integers, Port((4,), torch.int64, 2)])
    assert str(caught.value) == (
        "masked_global_pooling takes numbers, not integers, got integers (4, 3); "
        "put a one_hot or embedding block before it"
    )
