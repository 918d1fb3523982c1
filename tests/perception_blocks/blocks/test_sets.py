from typing import Any

import pytest
import torch
from torch.nn import functional

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.sets import AttentionPoolingBlock, DeepSetBlock, PointNetBlock

BLOCKS: Any = [
    (DeepSetBlock, {"hidden_units": [5, 4], "pooling": "mean"}),
    (DeepSetBlock, {"hidden_units": 4, "norm": "layer", "last_activation": "tanh"}),
    (AttentionPoolingBlock, {"hidden_units": 4, "num_heads": 2}),
    (AttentionPoolingBlock, {"num_seeds": 3}),
    (PointNetBlock, {"hidden_units": [5, 4], "feature_transform": True, "input_transform": True}),
    (PointNetBlock, {"hidden_units": 4, "pooling": "mean", "norm": "rms"}),
]
every_block = pytest.mark.parametrize(("block", "settings"), BLOCKS)


def random_block(block, settings, shapes=((None, 3), (None,))) -> Any:
    torch.manual_seed(0)
    made = block(list(shapes), **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return made.eval()


@every_block
def test_the_order_of_the_elements_makes_no_difference(block, settings):
    made = random_block(block, settings)
    x, mask = torch.randn(5, 6, 3), torch.rand(5, 6) < 0.5
    order = torch.randperm(6)
    torch.testing.assert_close(
        made(x[:, order], mask[:, order]), made(x, mask), atol=1e-5, rtol=1e-4
    )


@every_block
def test_a_masked_set_is_the_set_without_the_masked(block, settings):
    made = random_block(block, settings)
    x, mask = torch.randn(5, 6, 3), torch.rand(5, 6) < 0.5
    mask[:, 2] = True
    y = made(x, mask)
    for i in range(5):
        torch.testing.assert_close(y[i], made(x[i, mask[i]]), atol=1e-5, rtol=1e-5)


@every_block
@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_silent_defect_4_a_fully_masked_set_is_zero_with_finite_gradients(block, settings, leading):
    made = random_block(block, settings)
    x = torch.randn(*leading, 4, 3, requires_grad=True)
    y = made(x, torch.zeros(*leading, 4))
    assert torch.equal(y, torch.zeros_like(y))
    y.square().sum().backward()
    for tensor in (x, *made.parameters()):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()


@every_block
def test_an_empty_set_is_zero(block, settings):
    made = random_block(block, settings)
    y = made(torch.zeros(2, 0, 3), torch.zeros(2, 0))
    assert torch.equal(y, torch.zeros_like(y))


def test_deep_set_is_layers_pooling_layers():
    block = random_block(DeepSetBlock, {"hidden_units": [5, 4], "element_units": 7}, [(6, 3), (6,)])
    x, mask = torch.randn(2, 6, 3), torch.rand(2, 6) < 0.7
    for i in range(2):
        elements = [block.element(x[i, n]) for n in range(6) if mask[i, n]]
        expected = block.whole(torch.stack(elements).sum(0))
        torch.testing.assert_close(block(x, mask)[i], expected)


def test_attention_pooling_is_the_attention_of_its_seeds():
    block = random_block(
        AttentionPoolingBlock, {"num_seeds": 2, "num_heads": 3, "return_weights": True}
    )
    x = torch.randn(5, 6, 3)
    y, weights = block(x)
    expected, expected_weights = block.attention(block.seeds.expand(5, 2, 3), x, x, weighted=True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert weights.shape == (5, 3, 2, 6)


def test_one_seed_gives_a_vector():
    block = AttentionPoolingBlock([(6, 4), (6,)], num_heads=2, return_weights=True)
    assert block.out_shapes == [(4,), (2, 6)]


def test_point_net_transforms_are_the_identity_at_first_and_after_every_draw():
    settings: Any = {"hidden_units": [5, 4]}
    block = PointNetBlock([(6, 3)], input_transform=True, feature_transform=True, **settings)
    without = PointNetBlock([(6, 3)], **settings)
    x = torch.randn(2, 6, 3)
    for _ in range(2):
        without.load_state_dict(block.state_dict(), strict=False)
        torch.testing.assert_close(block(x), without(x))
        block.reset_parameters(torch.Generator().manual_seed(0))


def test_a_point_transform_is_a_matrix_found_from_the_valid_points():
    block = random_block(PointNetBlock, {"hidden_units": 4, "input_transform": True})
    x, mask = torch.randn(6, 3), torch.tensor([1, 1, 0, 1, 0, 1])
    transform = block.input_transform
    found = torch.stack([transform.element(x[n]) for n in range(6) if mask[n]]).amax(0)
    matrix = torch.eye(3) + transform.matrix(found).reshape(3, 3)
    moved = torch.stack([block.first(x[n] @ matrix) for n in range(6) if mask[n]])
    torch.testing.assert_close(block(x, mask), moved.amax(0))


@pytest.mark.parametrize(
    ("block", "shapes", "settings", "message"),
    [
        (
            DeepSetBlock,
            [(3,)],
            {"hidden_units": 4},
            "deep_set takes a set (elements, features), got (3,)",
        ),
        (
            DeepSetBlock,
            [(6, 3), (3,)],
            {"hidden_units": 4},
            "deep_set needs a mask of shape (6,), got (3,)",
        ),
        (
            DeepSetBlock,
            [(6, 3)],
            {"hidden_units": []},
            "deep_set needs at least one layer, got hidden_units=[]",
        ),
        (
            DeepSetBlock,
            [(6, 3)],
            {"hidden_units": 4, "norm": "batch"},
            "'norm' must be one of 'none', 'layer', 'rms', got 'batch'",
        ),
        (
            PointNetBlock,
            [(6, None)],
            {},
            "point_net needs to know how many features an element has, got (6, ?)",
        ),
        (
            PointNetBlock,
            [(6, 3), (6,), (6,)],
            {},
            "point_net takes a set and optionally its mask, got (6, 3), (6,) and (6,)",
        ),
        (
            AttentionPoolingBlock,
            [(6, 3)],
            {"num_heads": 2},
            "attention_pooling cannot split 3 features into 2 equal heads; "
            "change 'num_heads', or 'hidden_units' where it has them",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(block, shapes, settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        block(shapes, **settings)
    assert str(caught.value) == message
    if "got (" in message:
        assert isinstance(caught.value, InputShapeError)


def test_point_net_returns_the_features_of_each_point_too():
    block: Any = PointNetBlock([(5, 3), (5,)], hidden_units=[4, 6], return_points=True)
    x, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])
    pooled, points = block(x, mask)
    expected = block.rest(block.first(x)) * mask.unsqueeze(-1)
    torch.testing.assert_close(points, expected)
    torch.testing.assert_close(pooled, expected.amax(-2))  # after a ReLU zeros are the least


def test_batch_norm_of_point_net_counts_all_points():
    block: Any = PointNetBlock([(5, 3)], hidden_units=4, norm="batch")
    x = torch.randn(6, 2, 5, 3)
    y = block.first.linears[0](x).reshape(-1, 4)
    y = functional.batch_norm(y, None, None, training=True).relu()
    torch.testing.assert_close(block(x), y.reshape(6, 2, 5, 4).amax(-2))
