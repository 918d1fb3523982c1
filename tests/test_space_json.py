"""Spaces survive a checkpoint, and differences are told by key."""

import json
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from composer.space_json import space_from_json, space_to_json, spaces_differ

BOOL: Any = np.bool_
TINY = np.nextafter(np.float32(0.1), np.float32(1))


class Mission(spaces.Space):
    def contains(self, x):
        return True

    def __repr__(self):
        return "Mission()"


SPACES = [
    spaces.Box(-1, TINY, (2, 3)),
    spaces.Box(0, 255, (64, 64, 3), np.uint8),
    spaces.Box(-np.inf, np.inf, (2,), np.float64),
    spaces.Box(np.array([-1, -np.inf], np.float32), np.array([np.inf, TINY], np.float32)),
    spaces.Box(-np.inf, 5, (2,), np.int64),
    spaces.Box(-(2**63), 2**63 - 2, (2,), np.int64),
    spaces.Box(0, 1, (), BOOL),
    spaces.Discrete(3, start=-1, dtype=np.int32),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [2, 3]])),
    spaces.MultiDiscrete([2, 3], dtype=np.uint8),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 2]),
    spaces.Text(5, min_length=2, charset="zyx"),
    spaces.Sequence(spaces.Box(0, 1, (2,)), stack=True),
    spaces.Graph(spaces.Box(0, 1, (2,)), None),
    spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
    spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1, (1,))]),
    spaces.Tuple([spaces.Discrete(2), spaces.Tuple([])]),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Dict({"x": spaces.MultiBinary(2)}))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_comes_back_from_json(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = space_from_json(json.loads(text))
    assert again == space
    assert space_to_json(again) == space_to_json(space)
    assert spaces_differ(space, again) == []


@pytest.mark.parametrize("space", [s for s in SPACES if isinstance(s, spaces.Box)], ids=str)
def test_bounds_come_back_bit_for_bit(space):
    again: Any = space_from_json(space_to_json(space))
    assert np.array_equal(again.low, space.low)
    assert np.array_equal(again.high, space.high)
    assert np.array_equal(again.bounded_below, space.bounded_below)
    assert np.array_equal(again.bounded_above, space.bounded_above)


def test_the_order_of_keys_is_kept():
    again: Any = space_from_json(space_to_json(SPACES[-1]))
    assert list(again) == ["z", "a"]


def test_equal_bounds_are_one_number():
    data = space_to_json(spaces.Box(0, 255, (64, 64, 3), np.uint8))
    assert data == {"type": "Box", "shape": [64, 64, 3], "dtype": "uint8", "low": 0, "high": 255}


def test_a_space_of_an_unknown_class_survives_as_what_it_says_of_itself():
    again = space_from_json(space_to_json(Mission()))
    assert repr(again) == "Mission()"
    assert again == Mission()
    assert again.contains("anything")
    assert spaces_differ(again, Mission()) == []
    assert spaces_differ(again, spaces.Text(3), "mission") == [
        "'mission': is Text, expected Opaque"
    ]


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match=r"^unknown type of space 'Bax'; known are Box, Discrete,"):
        space_from_json({"type": "Bax"})


def test_differences_are_told_by_key():
    expected = spaces.Dict(
        {
            "a": spaces.Box(0, 1, (2,)),
            "b": spaces.Discrete(4),
            "c": spaces.Box(0, 1, (3,)),
            "d": spaces.MultiBinary(2),
            "e": spaces.Discrete(2),
        }
    )
    actual = spaces.Dict(
        {
            "a": spaces.Box(0, 2, (2,)),
            "b": spaces.Discrete(5, start=1),
            "c": spaces.Box(0, 2, (4,)),
            "d": spaces.Discrete(2),
            "f": spaces.Discrete(2),
        }
    )
    assert spaces_differ(expected, actual) == [
        "'e' is missing",
        "'f' is not expected",
        "'a': high is 2.0, expected 1.0",
        "'b': n is 5, expected 4",
        "'b': start is 1, expected 0",
        "'c': shape is (4,), expected (3,)",
        "'d': is Discrete, expected MultiBinary",
    ]


@pytest.mark.parametrize(
    ("expected", "actual", "differences"),
    [
        (
            spaces.Sequence(spaces.Box(0, 1, (2,))),
            spaces.Sequence(spaces.Box(0, 1, (3,)), stack=True),
            [
                "'units': 'elements': shape is (3,), expected (2,)",
                "'units': stack is True, expected False",
            ],
        ),
        (
            spaces.Sequence(spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)})),
            spaces.Sequence(spaces.Dict({"a": spaces.Discrete(3), "c": spaces.Discrete(2)})),
            [
                "'units': 'elements/b' is missing",
                "'units': 'elements/c' is not expected",
                "'units': 'elements/a': n is 3, expected 2",
            ],
        ),
        (
            spaces.Graph(spaces.Box(0, 0.1, (2,)), spaces.Discrete(2)),
            spaces.Graph(spaces.Box(0, TINY, (2,)), None),
            ["'units': 'edges' is missing"],
        ),
        (
            spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
            spaces.OneOf([spaces.Discrete(2), spaces.MultiBinary(3)]),
            ["'units': '1': is MultiBinary, expected Discrete"],
        ),
        (
            spaces.Text(3, charset="abc"),
            spaces.Text(3, charset="cba"),
            ["'units': charset is cba, expected abc"],  # its order says which id a character has
        ),
    ],
)
def test_differences_within_spaces_of_varying_size(expected, actual, differences):
    assert spaces_differ(expected, actual, "units") == differences
    assert spaces_differ(expected, expected) == []


def test_bounds_that_are_close_do_not_differ():
    assert spaces_differ(spaces.Box(0, 0.1, (2,)), spaces.Box(0, TINY, (2,))) == []
