"""Nested values as tensors, as arrays, stacked and apart again."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from composer.spaces import (
    map_nested,
    stack_nested,
    to_numpy_nested,
    to_tensors_nested,
    unstack_nested,
)

SPACE = Dict(
    arm=Dict(angle=Box(-1, 1, (3,)), gear=Discrete(4)), eyes=Tuple([Box(0, 1, (2, 2))] * 2)
)


def samples(count):
    return [SPACE.sample() for _ in range(count)]


def same(ours, theirs):
    map_nested(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs
    )


@pytest.mark.parametrize("as_tensors", [False, True])
def test_what_is_stacked_comes_apart_again(as_tensors):
    values = samples(5)
    if as_tensors:
        values = [to_tensors_nested(value) for value in values]
    stacked = stack_nested(values)
    assert isinstance(stacked["arm"]["gear"], torch.Tensor if as_tensors else np.ndarray)
    assert stacked["eyes"][1].shape == (5, 2, 2)
    for ours, theirs in zip(unstack_nested(stacked), values, strict=True):
        same(ours, theirs)


def test_tensors_and_arrays_hold_the_same_numbers():
    (value,) = samples(1)
    tensors = to_tensors_nested(value, dtype=torch.float64)
    assert tensors["arm"]["angle"].dtype == torch.float64
    assert tensors["arm"]["gear"].dtype == torch.int64
    same(to_numpy_nested(tensors), value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stack_nested([]), "stack_nested takes one value or more, got none"),
        (lambda: stack_nested([{"a": {"b": 1}}, {"a": {"c": 1}}]), "value 1 has another structure than the first one at 'a'"),
        (lambda: stack_nested([(1, 2), (1,)]), "value 1 has another structure than the first one at the top"),
        (lambda: stack_nested([{"a": 1}, {"a": [1]}]), "value 1 has another structure than the first one at 'a'"),
        (lambda: unstack_nested({"a": np.ones(2), "b": np.ones(3)}), "all leaves need a first axis of one length, got 2, 3"),
        (lambda: unstack_nested({"a": 1.0}), "all leaves need a first axis of one length, got 'none'"),
        (lambda: unstack_nested({}), "all leaves need a first axis of one length, got no leaf"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_other_shapes_are_not_stacked(make):
    with pytest.raises(ValueError, match=r"shape|size"):
        stack_nested([{"a": make(2)}, {"a": make(3)}])
