import re

import pytest
import torch

from composer.language import ActionBins, OpenVlaBins
from composer.language.action_bins import StatisticsError

STATISTICS = {"q01": [-2.0, 0.0, -1.0], "q99": [2.0, 1.0, 3.0], "mask": [True, False, True]}


def test_tokens_become_values_and_the_same_tokens_again():
    bins = ActionBins(STATISTICS, 256, 32_000)
    tokens = torch.arange(32_000 - 256, 32_000).unsqueeze(-1).expand(-1, 3)
    assert torch.equal(bins.tokens(bins.values(tokens)), tokens)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1e-9), (-3.0, -2.999), (1e-30, 2e-30), (-1e37, 1e37)]
)
def test_tokens_of_narrow_and_wide_statistics_are_the_same_again(low, high):
    bins = ActionBins({"q01": [low], "q99": [high]}, 256, 300)
    tokens = torch.arange(44, 300).unsqueeze(-1)
    assert torch.equal(bins.tokens(bins.values(tokens)), tokens)


def test_the_ends_are_half_a_bin_within_the_statistics_and_the_mask_leaves_numbers_as_they_are():
    bins = ActionBins(STATISTICS, 4, 10)
    assert bins.values(torch.tensor([[6, 6, 6], [9, 9, 9]])).tolist() == [
        [-1.5, -0.75, -0.5], [1.5, 0.75, 2.5]
    ]  # fmt: skip


def test_an_action_becomes_the_nearest_bin_and_one_outside_the_last():
    bins = ActionBins(STATISTICS, 4, 10)
    actions = torch.tensor([[-9.0, 0.1, 1.1], [9.0, 9.0, -9.0]])
    assert bins.tokens(actions).tolist() == [[6, 8, 8], [9, 9, 6]]


def test_values_of_half_precision_models_are_exact():
    bins = ActionBins(STATISTICS, 256, 300)
    assert bins.values(torch.tensor([299, 299, 299])).dtype == torch.float32
    assert bins.tokens(bins.values(torch.tensor([299, 280, 77])).bfloat16()).shape == (3,)


def test_the_bins_of_openvla_are_those_of_its_tokenizer():
    """Its own formula: ``vocab_size - token`` counts from the lowest value, and the last of 256 edges has no centre."""
    bins = OpenVlaBins({"q01": [-1.0], "q99": [1.0]}, 256, 32_000)
    tokens = torch.arange(31_744, 32_000)
    edges = torch.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    expected = centres[(32_000 - tokens - 1).clamp(0, 254)]
    torch.testing.assert_close(bins.values(tokens.unsqueeze(-1)).squeeze(-1), expected)
    assert torch.equal(bins.tokens(bins.values(tokens[1:, None]))[:, 0], tokens[1:])


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({}, "the statistics lack 'q01' and 'q99'; they have nothing"),
        ({"q01": [0.0], "mean": [0.0]}, "the statistics lack 'q99'; they have 'q01', 'mean'"),
        ({"q01": [0.0], "q99": [1.0, 2.0]}, "'q01', 'q99' and 'mask' must have one length, got 1, 2 and 1 numbers"),
        ({"q01": "ab", "q99": [1.0]}, "the statistics' 'q01' must be a list of numbers"),
        ({"q01": [float("nan")], "q99": [1.0]}, "the statistics' 'q01' must be a list of numbers"),
        ({"q01": [1.0], "q99": [1.0]}, "'q01' must be below 'q99', got 1.0 and 1.0 at 0"),
        ({"q01": [1e6], "q99": [1e6 + 0.1]}, "'q01' must be below 'q99' so that float32 can tell 4 bins apart, got 1000000.0 and 1000000.1 at 0"),
        ({"q01": [-3e38], "q99": [3e38]}, "'q01' must be below 'q99' so that float32 can tell 4 bins apart, got -3e+38 and 3e+38 at 0"),
        ({"q01": [0.0], "q99": [1e308]}, "the statistics' 'q99' must be a list of numbers"),
        ({"q01": [0], "q99": [10**400]}, "the statistics' 'q99' must be a list of numbers"),
        ({"q01": [0.0], "q99": [1.0], "mask": [1]}, "the statistics' 'mask' must be a list of true and false"),
    ],
)  # fmt: skip
def test_statistics_that_cannot_be_used(statistics, message):
    with pytest.raises(StatisticsError, match=f"^{re.escape(message)}$"):
        ActionBins(statistics, 4, 10)


def test_more_bins_than_tokens():
    with pytest.raises(StatisticsError, match="between 2 and the vocabulary's 4, got 5"):
        ActionBins(STATISTICS, 5, 4)
    message = "^the number of bins is 10000000, more than float32 can tell apart between -1 and 1$"
    with pytest.raises(StatisticsError, match=message):
        ActionBins(STATISTICS, 10**7, 10**8)


def test_an_action_that_is_not_a_number_has_no_token():
    with pytest.raises(
        ValueError, match=r"^an action has NaN in it, which is nearest to no token$"
    ):
        ActionBins(STATISTICS, 4, 10).tokens(torch.tensor([0.0, torch.nan, 0.0]))
