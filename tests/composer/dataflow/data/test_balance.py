"""How items are dealt over parts: exact for every least number of items, and quick."""

import itertools
import re
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from composer.dataflow import Sample, SampleError, balanced

LENGTHS_OF_TEXTS = st.one_of(st.integers(0, 30), st.sampled_from([0, 1, 2**40]))


def least_by_trying_all(sizes, k, min_size):
    """The ways to deal ``sizes``, and the smallest largest sum of all of them."""
    cuts = itertools.combinations(range(1, len(sizes)), k - 1)
    ways = [list(itertools.pairwise((0, *cut, len(sizes)))) for cut in cuts]
    ways = [way for way in ways if all(stop - start >= min_size for start, stop in way)]
    return ways, min(max(sum(sizes[a:b]) for a, b in way) for way in ways)


@given(st.lists(LENGTHS_OF_TEXTS, min_size=1, max_size=11), st.integers(1, 6), st.integers(1, 5))
def test_the_largest_part_is_as_small_as_can_be(sizes, k, min_size):
    assume(k * min_size <= len(sizes))
    ways, best = least_by_trying_all(sizes, k, min_size)
    bounds = balanced(sizes, k, min_size)
    assert bounds in ways
    assert max(sum(sizes[a:b]) for a, b in bounds) == best


def test_a_large_size_that_a_greedy_way_would_run_into():
    """The three in the middle cannot begin a stretch together, so one has to end between them."""
    assert balanced([1, 1, 1, 9, 9, 9, 1, 1, 1], 3, 3) == [(0, 3), (3, 6), (6, 9)]
    assert balanced([1, 9, 9, 1, 1, 1], 2, 2) == [(0, 2), (2, 6)]
    assert balanced([0, 0, 0, 0], 2, 2) == [(0, 2), (2, 4)]


@pytest.mark.parametrize("sizes", [np.array([3, 1, 2]), torch.tensor([3, 1, 2]), (3, 1, 2)])
def test_sizes_may_be_an_array(sizes):
    assert balanced(sizes, 2) == [(0, 1), (1, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1), "0 items cannot be split into 1 parts of at least 1"),
        (([1, 2], 3), "2 items cannot be split into 3 parts of at least 1"),
        (([1, 2, 3], 2, 2), "3 items cannot be split into 2 parts of at least 2"),
        (([1, 2], 0), "2 items cannot be split into 0 parts of at least 1"),
        (([1, 2], -1), "2 items cannot be split into -1 parts of at least 1"),
        (([1, 2], 1, 0), "2 items cannot be split into 1 parts of at least 0"),
        (([1, 2], 1.0), "2 items cannot be split into 1.0 parts of at least 1"),
        (([1, 2], True), "2 items cannot be split into True parts of at least 1"),
        (([1, -2], 1), "a size is a whole number of at least 0; number 1 is -2"),
        (([float("nan"), 1], 1), "a size is a whole number of at least 0; number 0 is nan"),
        (([1, float("inf")], 1), "a size is a whole number of at least 0; number 1 is inf"),
        (([1, 2.0], 1), "a size is a whole number of at least 0; number 1 is 2.0"),
        (([1, "2"], 1), "a size is a whole number of at least 0; number 1 is '2'"),
        (([1, None], 1), "a size is a whole number of at least 0; number 1 is None"),
        (([2**62, 1], 1), "the largest size is 4611686018427387904, too much to add up"),
        (([2**70, 1], 1), "the largest size is 1180591620717411303424, too much to add up"),
        (([[1], [2]], 1), "a size is a whole number of at least 0; number 0 is [1]"),
        (([True, False], 1), "a size is a whole number of at least 0; number 0 is True"),
    ],
)
def test_what_cannot_be_dealt_is_refused_in_words(arguments, message):
    with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
        balanced(*arguments)


def test_packed_micro_batches_are_at_least_95_percent_full():
    """Of what as many micro-batches as large as the largest would compute."""
    drawn = np.random.default_rng(0).lognormal(5.5, 0.8, 1024)
    sizes = np.clip(drawn, 16, 4096).astype(int).tolist()
    ids = torch.zeros(sum(sizes), dtype=torch.int64)
    parts = Sample.from_default(range(1024), sizes, {"ids": ids}).split(32)
    tokens = [len(part.values("ids")) for part in parts]
    assert sum(tokens) / (len(tokens) * max(tokens)) >= 0.95


@pytest.mark.parametrize(("k", "min_size"), [(64, 1), (1000, 64), (1000, 100)])
def test_many_lengths_are_dealt_in_little_time(k, min_size):
    """The dynamic programme of O(k n^2) would take hours; the limit is loose, as tests share a machine."""
    sizes = np.random.default_rng(0).integers(1, 2048, 100_000).tolist()
    start = time.process_time()
    balanced(sizes, k, min_size)
    assert time.process_time() - start < 5
