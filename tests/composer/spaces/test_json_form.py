"""Spaces survive a checkpoint, and differences are told by key."""

import contextlib
import copy
import json
import re
import tracemalloc
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space, spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import composer
from composer.cli.commands import main
from composer.spaces.json_form import (
    space_from_json,
    space_to_json,
    spaces_differ,
    spaces_from_json,
)

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


def test_differences_of_actors_have_the_actor_in_front():
    mine = {"a": spaces.Dict({"x": spaces.Discrete(2)}), ("b", 1): spaces.Discrete(3)}
    assert spaces_differ(mine, dict(reversed(mine.items())), "observation") == []
    other = {"a": spaces.Dict({"x": spaces.Discrete(4)}), "c": spaces.Discrete(3)}
    assert spaces_differ(mine, other, "observation") == [
        "'b/1/observation' is missing",
        "'c/observation' is not expected",
        "'a/x': n is 4, expected 2",
    ]


def test_bounds_that_are_close_do_not_differ():
    assert spaces_differ(spaces.Box(0, 0.1, (2,)), spaces.Box(0, TINY, (2,))) == []


# --- spaces that a stranger wrote ---

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.lists(st.integers(-2, 2), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(10**30), st.just([10**5, 10**5]), st.just([[1], [1, 2]]), st.just("U1000000000"),
)  # fmt: skip


@st.composite
def mutations(draw):
    """The JSON of a space with one value in it replaced, taken out, or put around all of it."""
    data = copy.deepcopy(space_to_json(draw(st.sampled_from(SPACES))))
    places = list(_places(data))
    holder, key = draw(st.sampled_from(places))
    if draw(st.booleans()):
        holder[key] = draw(JUNK)
    else:
        del holder[key]
    return data


def _places(data):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield data, key
        if isinstance(value, dict | list):
            yield from _places(value)


@pytest.mark.filterwarnings("ignore")  # gymnasium's own
@settings(max_examples=300, deadline=None)
@given(mutations())
def test_json_that_is_no_space_is_a_value_error(data):
    with contextlib.suppress(ValueError):
        assert isinstance(space_from_json(data), Space)


BIT = {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
BOX = {"type": "Box", "dtype": "float32", "low": 0.0, "high": 1.0}


def nested(kind, levels):
    data = BIT
    for _ in range(levels):
        inner = {"Tuple": [data], "Dict": [["a", data]], "OneOf": [data]}
        data = {"type": kind, "space": data, "stack": False, "spaces": inner.get(kind)}
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**BOX, "shape": [10**9]}, "with Box of the shape (1,000,000,000,) one value has 1,000,000,000 numbers, but the limit of numbers is 33,554,432; make it smaller in a wrapper of the environment, or if it is meant, allow it: limits={'numbers': 1000000000} or --limit numbers=1000000000"),
        ({**BOX, "shape": [10**30]}, "with Box of the shape (a number of 100 bits,) one value has a number of 100 bits numbers, but"),
        ({"type": "Tuple", "spaces": [{**BOX, "shape": [2**24]}] * 3}, "with Box of the shape (16,777,216,) one value has 50,331,648 numbers, but"),
        ({**BOX, "shape": [-1]}, "Box has the shape (-1,); sizes are 0 or more"),
        ({**BOX, "shape": [1] * 33}, "Box has 33 axes, more than 32, which is not read; reshape it in a wrapper of the environment"),
        ({"type": "MultiBinary", "n": [1] * 10**5}, "MultiBinary has 100,000 axes, more than 32"),
        ({**BIT, "n": 10**30}, "Discrete has a number of 100 bits values, but the limit of choices is 2,147,483,648; hash them to fewer in a wrapper of the environment"),
        ({**BIT, "start": 2**63 - 1}, "Discrete starts at 9,223,372,036,854,775,807, which int64 does not hold"),
        ({"type": "MultiBinary", "n": [10**5, 10**5]}, "with MultiBinary of the shape (100,000, 100,000) one value has 10,000,000,000 numbers, but"),
        ({"type": "Text", "min_length": 0, "max_length": 10**12, "charset": "a"}, "with Text of the shape (1,000,000,000,000,) one value"),
        ({"type": "Tuple", "spaces": [BIT] * 10_001}, "the space has more parts, but the limit of parts is 10,000; if it is meant, allow it: limits={'parts': 20000} or --limit parts=20000"),
        *((nested(kind, 3_000), "spaces are nested more than 100 deep, which is not read") for kind in ("Tuple", "Dict", "OneOf", "Sequence")),
        ({"type": "Box"}, "the Box {'type': 'Box'} cannot be read: 'shape' is missing"),
        (None, "unknown type of space None; known are Box,"),
        ({"type": "Actors", "keys": ["a"], "spaces": [BIT], "which": [7]}, "the Actors {"),
        ({"type": "Actors", "keys": list(range(10_001)), "spaces": [BIT], "which": [0] * 10_001}, "there are 10,001 actors, but the limit of actors is 10,000; for a step with any number of agents, use the one actor (step, None), or if it is meant, allow it: limits={'actors': 10001} or --limit actors=10001"),
        ({"type": "Actors", "keys": ["a"], "spaces": [{**BOX, "shape": [2**24]}] * 3, "which": [0]}, "with Box of the shape (16,777,216,) one value"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_spaces_that_are_too_large_are_refused_before_they_are_made(data, message):
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        spaces_from_json(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**29  # two of the three Boxes of 64 MiB are made


def test_nesting_up_to_the_limit_is_read():
    assert space_to_json(space_from_json(nested("Tuple", 99))) is not None


def deep(levels):
    space = spaces.Discrete(2)
    for _ in range(levels):
        space = spaces.Tuple([space])
    return space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (deep(3_000), "spaces are nested more than 100 deep"),
        (spaces.Discrete(10**12), "Discrete has 1,000,000,000,000 values"),
        (spaces.Discrete(2, start=2**63 - 2), None),
        (spaces.Discrete(3, start=2**63 - 2), "Discrete starts at 9,223,372,036,854,775,806"),
        (spaces.MultiDiscrete([2, 10**12]), "MultiDiscrete has 1,000,000,000,000 values"),
        (spaces.MultiBinary(10**9), "with MultiBinary of the shape (1,000,000,000,) one value has"),
        (spaces.Text(10**12), "with Text of the shape (1,000,000,000,000,) one value has"),
        (spaces.Dict({str(i): spaces.Discrete(2) for i in range(10_001)}), "the space has more parts, but the limit of parts is 10,000"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_spaces_of_an_environment_that_are_too_large_are_refused(space, message):
    wanted: Any = {"observation_space": spaces.Dict(a=space), "action_space": spaces.Discrete(2)}
    spec = {"version": 1, "policy": {"template": {}}}
    if message is None:
        composer.compose(spec, **wanted)
        return
    message = f"the observation space is too large: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        composer.compose(spec, **wanted)
    wanted = {"observation_space": {"a": space}, "action_space": {"a": spaces.Discrete(2)}}
    message = message.replace("space is", "space of 'a' is")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        composer.compose(spec, **wanted)


def test_an_environment_by_id_whose_spaces_are_too_large_is_told_at_its_place(capsys, tmp_path):
    class Huge(gymnasium.Env):
        observation_space = spaces.Discrete(2**40)
        action_space = spaces.Discrete(2)

    gymnasium.register("Huge-v1", entry_point=Huge)
    path = tmp_path / "agent.yaml"
    path.write_text("version: 1\nenvironment: Huge-v1\npolicy: {template: {}}\n")
    message = (
        "the environment 'Huge-v1' cannot be used: the observation space is too large: "
        "Discrete has 1,099,511,627,776 values, but the limit of choices is 2,147,483,648; "
    )
    try:
        for given, place in (([], f"{path}:2:14: "), (["--env", "Huge-v1"], "")):
            assert main(["check", str(path), *given]) == 1
            assert capsys.readouterr().err.startswith(place + message)
    finally:
        del gymnasium.registry["Huge-v1"]


def test_an_environment_whose_spaces_gymnasium_refuses_is_told():
    def make():
        return spaces.Discrete(10**30)

    gymnasium.register("Huge-v0", entry_point=make)
    message = (
        "the environment 'Huge-v0' cannot be made: its own code raised OverflowError: "
        "Python int too large to convert to C long"
    )
    try:
        with pytest.raises(composer.SpecError, match=re.escape(message)):
            composer.compose({"version": 1, "policy": {"template": {}}}, env="Huge-v0")
    finally:
        del gymnasium.registry["Huge-v0"]


NEEDS_MORE = """make() missing 1 required positional argument: 'size'
Register it under an id of your own: gymnasium.register(id, entry_point, kwargs={...})"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, f"TypeError: {NEEDS_MORE}"),
        (TypeError("no number"), "TypeError: no number"),
        (ValueError("no such map"), "ValueError: no such map"),
        (RuntimeError("no display"), "RuntimeError: no display"),
    ],
)
def test_an_environment_whose_own_code_fails_is_told_in_a_line(error, said, capsys, tmp_path):
    def make(size):
        raise error

    kwargs = {} if error is None else {"size": 3}
    gymnasium.register("Failing-v0", entry_point=make, kwargs=kwargs)
    path = tmp_path / "agent.yaml"
    path.write_text("version: 1\nenvironment: Failing-v0\npolicy: {template: {}}\n")
    text = f"the environment 'Failing-v0' cannot be made: its own code raised {said}"
    text = text.replace("make()", f"{make.__qualname__}()").replace("\n", "\n  ")
    try:
        for given, place in (([], f"{path}:2:14: "), (["--env", "Failing-v0"], "")):
            assert main(["check", str(path), *given]) == 1
            assert capsys.readouterr().err == f"{place}{text}\n"
    finally:
        del gymnasium.registry["Failing-v0"]


def test_an_environment_of_too_many_actors_is_refused():
    """What the message advises is done: a step whose agents are not counted."""
    space, move = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    spec = {"version": 1, "policy": {"template": {}}}
    agents = range(10_001)
    with pytest.raises(
        ValueError,
        match=r"^there are 10,001 actors, but the limit of actors is 10,000; for a step",
    ):
        composer.compose(
            spec,
            observation_space=dict.fromkeys(agents, space),
            action_space=dict.fromkeys(agents, move),
        )
    step = ("walk", None)
    model = composer.compose(spec, observation_space={step: space}, action_space={step: move})
    observations = {("walk", agent): space.sample() for agent in agents}
    assert len(model.policy.act(observations)) == 10_001
