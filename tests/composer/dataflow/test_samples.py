"""Packed samples: their checks, their parts, and how items are dealt over parts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composer.dataflow.samples import Sample, SampleError, balanced


def a_sample():
    return Sample.from_default(
        ["a", "b"],
        [2, 3],
        {"ids": torch.tensor([1, 2, 3, 3, 3]), "logp": torch.arange(3.0), "rewards": torch.ones(2)},
        {"text": ["x", "y"]},
    )


def test_a_nested_view_reduces_each_sequence():
    assert (a_sample()["ids"] == 3).float().mean(-1).tolist() == [0.0, 1.0]


def test_gathering_the_items_gives_the_sample():
    sample = a_sample()
    again = Sample.gather(sample.unpack())
    assert again.ids == sample.ids
    assert again.seqlens == sample.seqlens
    assert all(torch.equal(again.values(key), sample.values(key)) for key in sample.keys)
    assert again.metadata == sample.metadata


def test_padding():
    ids, mask = a_sample().padded("ids", value=9)
    assert ids.tolist() == [[1, 2, 9], [3, 3, 3]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_a_value_without_a_rule_of_length_names_the_way_out():
    with pytest.raises(SampleError, match="did you mean 'rewards'") as error:
        Sample.from_default(["a"], [2], {"reward": torch.ones(1)})
    assert "LENGTHS.register('reward', per_token)" in str(error.value)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 5))
def test_the_largest_part_is_as_small_as_can_be(sizes, k):
    if k > len(sizes):
        with pytest.raises(SampleError):
            balanced(sizes, k)
        return
    cuts = itertools.combinations(range(1, len(sizes)), k - 1)
    ways = [list(itertools.pairwise((0, *cut, len(sizes)))) for cut in cuts]
    best = min(max(sum(sizes[a:b]) for a, b in way) for way in ways)
    bounds = balanced(sizes, k)
    assert max(sum(sizes[a:b]) for a, b in bounds) == best
    assert bounds in ways
