import math
import re
from typing import Any

import pytest
import torch

from perception_blocks.blocks.heads import (
    ActionMaskingBlock,
    CategoricalValueBlock,
    DuelingBlock,
    QuantileValueBlock,
    ValueBlock,
    symexp,
    symlog,
)
from perception_blocks.port import InputShapeError, Port


@pytest.mark.parametrize("hidden_units", [None, [8]])
def test_dueling_advantages_count_from_their_mean(hidden_units):
    block: Any = DuelingBlock([(3,)], output_units=4, hidden_units=hidden_units)
    x = torch.randn(5, 3)
    for row in range(5):
        advantage = block.advantage(x[row])
        expected = block.value(x[row]) + advantage - sum(advantage) / 4
        torch.testing.assert_close(block(x)[row], expected)
    torch.testing.assert_close(block(x).mean(-1, keepdim=True), block.value(x))


def test_dueling_advantages_may_count_from_the_best():
    block: Any = DuelingBlock([(3,)], output_units=4, baseline="max")
    x = torch.randn(5, 3)
    torch.testing.assert_close(block(x).amax(-1, keepdim=True), block.value(x))


def test_a_value_is_its_own_scalar():
    block = ValueBlock([(3,)], init_bias=2.5)
    x = torch.randn(5, 2, 3)
    assert torch.equal(block.to_scalar(block(x)), block(x))
    torch.testing.assert_close(block(torch.zeros(3)), torch.tensor([2.5]))


@pytest.mark.parametrize("units", [None, 4])
def test_the_scalar_of_quantiles_is_their_mean(units):
    block = QuantileValueBlock([(3,)], num_quantiles=5, output_units=units)
    quantiles = block(torch.randn(6, 2, 3))
    expected = torch.stack([quantiles[..., i] for i in range(5)]).sum(0) / 5
    expected = expected.unsqueeze(-1) if units is None else expected
    torch.testing.assert_close(block.to_scalar(quantiles), expected)
    assert block.to_scalar(quantiles).shape == (6, 2, units or 1)


def test_the_mean_of_exact_quantiles_is_the_expected_value():
    """Quantiles of a uniform distribution at the block's fractions."""
    block = QuantileValueBlock([(3,)], num_quantiles=8)
    quantiles = torch.tensor(block.fractions) * 6 - 2
    torch.testing.assert_close(block.to_scalar(quantiles), torch.tensor([1.0]))


@pytest.mark.parametrize("units", [None, 4])
def test_the_scalar_of_a_categorical_value_is_the_mean_of_its_bins(units):
    block = CategoricalValueBlock([(3,)], num_bins=5, low=-1, high=3, output_units=units)
    logits = block(torch.randn(6, 2, 3))
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = torch.stack([weights[..., i] * (i - 1.0) for i in range(5)]).sum(0)
    expected = expected.unsqueeze(-1) if units is None else expected
    torch.testing.assert_close(block.to_scalar(logits), expected)
    assert block.to_scalar(logits).shape == (6, 2, units or 1)


@pytest.mark.parametrize("spacing", ["linear", "symlog", "symexp"])
def test_two_hot_and_back_is_the_value(spacing):
    block = CategoricalValueBlock([(3,)], num_bins=41, low=-8, high=8, spacing=spacing)
    most = 8.0 if spacing == "linear" else math.expm1(8)
    values = torch.tensor([0.0, 0.3, -0.3, 1.0, -5.55, most, -most])
    target = block.two_hot(values)
    torch.testing.assert_close(target.sum(-1), torch.ones(7))
    assert (target > 0).sum(-1).max() <= 2
    back = block.to_scalar(target.log()).squeeze(-1)
    torch.testing.assert_close(back, values, atol=1e-4, rtol=1e-4)


def test_values_outside_the_bins_go_to_the_outermost():
    block = CategoricalValueBlock([(3,)], num_bins=3, low=-1, high=1)
    assert block.two_hot(torch.tensor([-7.0, 7.0])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_symlog_bins_cover_values_of_all_sizes():
    block = CategoricalValueBlock([(3,)], num_bins=255, low=-20, high=20, spacing="symlog")
    values = torch.tensor([1e-3, -1.0, 1e3, -1e6])
    back = block.to_scalar(block.two_hot(values).log()).squeeze(-1)
    torch.testing.assert_close(back, values, atol=1e-5, rtol=1e-3)


def symexp_block(units=None):
    """The read-out of DreamerV3's final version."""
    settings = {"num_bins": 255, "low": -20, "high": 20, "spacing": "symexp"}
    return CategoricalValueBlock([(3,)], output_units=units, **settings)


@pytest.mark.parametrize("units", [None, 4])
def test_symexp_bins_are_averaged_as_values(units):
    """By hand in float64: the sum of probabilities times exponentially spaced values."""
    block = symexp_block(units)
    logits = torch.randn(6, *(() if units is None else (units,)), 255, dtype=torch.float64)
    steps = [-20 + 40 * i / 254 for i in range(255)]
    bins = torch.tensor([math.copysign(math.expm1(abs(s)), s) for s in steps], dtype=torch.float64)
    expected = (logits.softmax(-1) * bins).sum(-1, keepdim=units is None)
    torch.testing.assert_close(block.to_scalar(logits), expected, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_logits_over_symexp_bins_are_exactly_zero(dtype):
    """In a plain float32 sum, parts of 1e8 would leave a rounding error far from 0."""
    assert symexp_block().to_scalar(torch.zeros(5, 255, dtype=dtype)).tolist() == [[0.0]] * 5


@pytest.mark.parametrize("value", [0.0, 1e-3, -0.07, 1.0, -5.55, 1e3, -1e6, 4.8e8, -math.inf, 1e12])
def test_a_symexp_target_lies_between_the_two_values_beside_it(value):
    block = symexp_block()
    target = block.two_hot(torch.tensor(value, dtype=torch.float64))
    bins = block.bins(target)
    assert (target > 0).sum() <= 2
    kept = min(max(value, bins[0].item()), bins[-1].item())
    assert (target * bins).sum().item() == pytest.approx(kept, rel=1e-9, abs=1e-9)


def test_means_over_symlogs_and_over_values_differ():
    """Half the mass at 0 and half at e^4 - 1: the mean value is half of it, the mean symlog stands for e^2 - 1."""
    logits = torch.tensor([-100.0, -100.0, 0.0, -100.0, 0.0])
    blocks = {
        spacing: CategoricalValueBlock([(3,)], num_bins=5, low=-4, high=4, spacing=spacing)
        for spacing in ("symlog", "symexp")
    }
    got = {spacing: block.to_scalar(logits).item() for spacing, block in blocks.items()}
    assert got == {
        "symlog": pytest.approx(math.expm1(2)),
        "symexp": pytest.approx(math.expm1(4) / 2),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_bins_are_as_precise_as_a_float_at_least(dtype):
    block = CategoricalValueBlock([(3,)], num_bins=51, low=-10, high=10).to(dtype)
    logits = torch.zeros(51, dtype=dtype)
    logits[37] = 200.0
    scalar = block.to_scalar(logits)
    assert scalar.dtype == dtype
    torch.testing.assert_close(scalar, torch.tensor([4.8], dtype=dtype))


def test_the_projection_is_the_loop_of_c51():
    """Algorithm 1 of the paper, with rewards, a discount and terminal states."""
    block = CategoricalValueBlock([(3,)], num_bins=11, low=-2, high=3)
    atoms = torch.linspace(-2, 3, 11, dtype=torch.float64)
    probabilities = torch.rand(6, 11, dtype=torch.float64).softmax(-1)
    reward, going_on = torch.randn(6, dtype=torch.float64), torch.tensor([1, 1, 0, 1, 0, 1])
    values = reward.unsqueeze(-1) + 0.9 * going_on.unsqueeze(-1) * atoms
    expected = torch.zeros(6, 11, dtype=torch.float64)
    for row in range(6):
        for atom in range(11):
            place = (min(max(values[row, atom].item(), -2.0), 3.0) + 2) / 0.5
            below, above = math.floor(place), math.ceil(place)
            if below == above:
                expected[row, below] += probabilities[row, atom]
                continue
            expected[row, below] += probabilities[row, atom] * (above - place)
            expected[row, above] += probabilities[row, atom] * (place - below)
    projected = block.project(values, probabilities)
    torch.testing.assert_close(projected, expected)
    torch.testing.assert_close(projected.sum(-1), torch.ones(6, dtype=torch.float64))


def test_a_projection_onto_the_same_bins_changes_nothing():
    block = CategoricalValueBlock([(3,)], num_bins=11, low=-2, high=3)
    probabilities = torch.rand(4, 11).softmax(-1)
    projected = block.project(block.bins(probabilities).expand(4, 11), probabilities)
    torch.testing.assert_close(projected, probabilities, atol=1e-6, rtol=1e-5)


def test_symexp_undoes_symlog():
    x = torch.tensor([-1e4, -1.0, -1e-6, 0.0, 1e-6, 1.0, 1e4], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x)
    assert symlog(torch.tensor(math.e - 1)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_illegal_actions_are_never_sampled_and_legal_ones_keep_their_odds(dtype):
    block = ActionMaskingBlock([(4,), (4,)])
    logits = torch.randn(5, 4)
    mask = torch.tensor([[1, 0, 1, 1]] * 5).to(dtype)
    masked = block(logits, mask)
    assert torch.equal(masked[:, [0, 2, 3]], logits[:, [0, 2, 3]])
    probabilities = masked.softmax(-1)
    assert (probabilities[:, 1] == 0).all()
    torch.testing.assert_close(probabilities[:, [0, 2, 3]], logits[:, [0, 2, 3]].softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_without_a_legal_action_is_uniform_without_nan(dtype):
    logits = torch.randn(2, 4, dtype=dtype, requires_grad=True)
    masked = ActionMaskingBlock([(4,), (4,)])(logits, torch.zeros(2, 4, dtype=torch.bool))
    torch.testing.assert_close(masked.softmax(-1), torch.full_like(masked, 0.25))
    masked.log_softmax(-1).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_one_mask_serves_logits_of_more_axes():
    """A batch as large as the logits' first axis would hide the mistake."""
    block = ActionMaskingBlock([(3, 4), (4,)])
    logits, mask = torch.randn(3, 3, 4), torch.rand(3, 4) < 0.5
    masked = block(logits, mask)
    for i in range(3):
        for j in range(3):
            assert torch.equal(masked[i, j][mask[i]], logits[i, j][mask[i]])
            assert (masked[i, j][~mask[i]] < -1e30).all()


def test_in_debug_mode_a_row_without_a_legal_action_is_an_error():
    block = ActionMaskingBlock([(2,), (2,)], debug=True)
    mask = torch.ones(3, 2, 2)
    mask[1, 0] = 0
    message = "action_masking got a mask without a legal action at index (1, 0); each row needs a true element"
    with pytest.raises(ValueError, match=re.escape(message)):
        block(torch.randn(3, 2, 2), mask)
    with pytest.raises(ValueError, match="without a legal action; each row"):
        block(torch.randn(2), torch.zeros(2))


def test_masks_are_of_any_kind_and_logits_are_numbers():
    mask = Port((4,), torch.int64, 2)
    ActionMaskingBlock.check_ports([Port((4,)), mask])
    with pytest.raises(InputShapeError) as caught:
        ActionMaskingBlock.check_ports([mask, mask])
    assert str(caught.value) == (
        "action_masking takes numbers, not integers, got integers (4,); "
        "put a one_hot or embedding block before it"
    )


@pytest.mark.parametrize(
    ("block", "shapes", "settings", "message"),
    [
        (
            DuelingBlock,
            [(3, 4)],
            {"output_units": 2},
            "dueling takes one vector (features,), got (3, 4); put a flatten block before it",
        ),
        (
            ValueBlock,
            [(3, 4)],
            {},
            "value takes one vector (features,), got (3, 4); put a flatten block before it",
        ),
        (
            QuantileValueBlock,
            [()],
            {},
            "quantile_value takes one vector (features,), got (); put a flatten block before it",
        ),
        (
            CategoricalValueBlock,
            [(3,)],
            {"low": 2.0, "high": 2},
            "'low' is 2.0, not below 'high' 2",
        ),
        (
            CategoricalValueBlock,
            [(3,)],
            {"low": -300, "high": 300, "spacing": "symlog"},
            "'low' is -300 and 'high' 300; with spacing 'symlog' they are symlogs, of 88 at most",
        ),
        (
            CategoricalValueBlock,
            [(3,)],
            {"low": -89, "high": 0, "spacing": "symexp"},
            "'low' is -89 and 'high' 0; with spacing 'symexp' they are symlogs, of 88 at most",
        ),
        (
            CategoricalValueBlock,
            [(3,)],
            {"num_bins": 1},
            "'num_bins' must be an integer of at least 2, got 1",
        ),
        (ActionMaskingBlock, [(3,)], {}, "action_masking takes logits and a mask, got (3,)"),
        (
            ActionMaskingBlock,
            [(3,), (4,)],
            {},
            "action_masking needs a mask of shape (3,), got (4,)",
        ),
        (
            ActionMaskingBlock,
            [(2, 3), (2,)],
            {},
            "action_masking needs a mask of shape (2, 3) or (3,), got (2,)",
        ),
        (
            ActionMaskingBlock,
            [(), ()],
            {},
            "action_masking takes logits of one axis or more, got ()",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(block, shapes, settings, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        block(shapes, **settings)
