import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from perception_blocks.settings import (
    Activation,
    Function,
    Initializer,
    NegativeInt,
    NonNegativeInt,
    OneOrMany,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
    SettingsError,
    Words,
    check_settings,
    describe,
    mismatch,
    settings_of,
)


class Tool:
    def __init__(
        self,
        in_shapes: Any,
        *,
        size: PositiveInt,
        rate: Probability = 0.5,
        mode: Literal["a", "b"] = "a",
    ) -> None: ...


class Open:
    def __init__(self, in_shapes: Any, *, size: int = 1, **rest: Any) -> None: ...


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (bool, "true or false"),
        (str, "text"),
        (Any, "a value"),
        (float | None, "a number or null"),
        (PositiveInt, "a positive integer"),
        (NegativeInt, "a negative integer"),
        (NonNegativeInt, "an integer of 0 or more"),
        (PositiveFloat, "a positive number"),
        (Probability, "a number between 0 and 1"),
        (Annotated[float, Range(low=2)], "a number of at least 2"),
        (Annotated[float, Range(low=2, exclusive=True)], "a number above 2"),
        (OneOrMany, "a positive integer or a list of positive integers"),
        (tuple[PositiveInt, PositiveInt], "a list of 2 positive integers"),
        (Sequence[str], "a list of texts"),
        (Sequence[Sequence[float]], "a list of lists of numbers"),
        (Mapping[str, Any], "a mapping"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (Literal["same"], "'same'"),
        (Activation, "the name of an activation"),
        (Initializer, "the name of an initialiser"),
        (Function, "the name of a function"),
        (Annotated[int, Words("a lucky number")], "a lucky number"),
    ],
)
def test_a_type_is_described_in_words(annotation, words):
    assert describe(annotation) == words


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, np.int64(3)),
        (float, 3),
        (float, np.float32(0.5)),
        (float | None, None),
        (OneOrMany, (3, 4)),
        (tuple[int, int], [1, 2]),
        (Sequence[Sequence[int]], [[1], (2, 3)]),
        (Mapping[str, int], {"a": 1}),
        (Activation, {"leaky_relu": {"negative_slope": 0.1}}),
        (Activation, "torch.nn.ReLU"),
        (Activation, torch.nn.ReLU),
        (Activation, torch.tanh),
        (Activation | None, None),
        (torch.dtype, torch.float32),
        ("Unresolved", object()),
    ],
)
def test_values_that_fit(annotation, value):
    assert mismatch(annotation, value) is None


@pytest.mark.parametrize(
    ("annotation", "value", "wrong"),
    [
        (int, True, "must be an integer, got true"),
        (int, 1.0, "must be an integer, got 1.0"),
        (float, float("nan"), "must be a number, got nan"),
        (float, "1e-3", "must be a number, got '1e-3'"),
        (bool, 1, "must be true or false, got 1"),
        (PositiveInt, 0, "must be a positive integer, got 0"),
        (PositiveFloat, 0, "must be a positive number, got 0"),
        (Sequence[int], "12", "must be a list of integers, got '12'"),
        (tuple[int, int], [1], "must be a list of 2 integers, got [1]"),
        (Literal["a"], None, "must be 'a', got null"),
        (Literal[1], True, "must be 1, got true"),
        (Sequence[int], ["x" * 200], "must be a list of integers, got ['xxx"),
        (Activation, 3, "must be the name of an activation, got 3"),
        (Activation, "rleu", "names the unknown activation 'rleu'; did you mean 'relu'?"),
        (Activation, {"relu": 3}, "must be {name: {setting: value}}, got {'relu': 3}"),
        (Initializer, "a.b", "names the unknown initialiser 'a.b'"),
        (Activation | None, "rleu", "names the unknown activation 'rleu'; did you mean 'relu'?"),
    ],
)
def test_values_that_do_not_fit(annotation, value, wrong):
    found = mismatch(annotation, value)
    assert found is not None
    assert found.startswith(wrong)
    assert len(found) < 200


def test_all_problems_are_found_at_once():
    problems = check_settings(Tool, {"rate": 2, "mode": "c", "modes": 1}, "block 'tool'")
    assert [problem.message for problem in problems] == [
        "'rate' must be a number between 0 and 1, got 2",
        "'mode' must be one of 'a', 'b', got 'c'",
        "'modes' is not a setting of block 'tool'; did you mean 'mode'?",
        "block 'tool' needs the setting 'size' (a positive integer)",
    ]
    assert [problem.setting for problem in problems] == ["rate", "mode", "modes", "size"]
    assert [problem.misspelt for problem in problems] == [False, False, True, False]
    assert str(SettingsError(problems)).count("; ") == 4


def test_a_class_that_is_no_block_is_told_why_it_gets_no_shapes():
    class Layer:
        def __init__(self, in_shapes, units: int = 3): ...

    (problem,) = check_settings(Layer, {}, "block 'Layer'", skip=0)
    assert problem.message == (
        "block 'Layer' needs the setting 'in_shapes'; only a class that is derived from PerceptionBlock gets the "
        "shapes of its inputs"
    )


def test_a_misspelt_setting_is_not_reported_as_missing_too():
    (problem,) = check_settings(Tool, {"sizes": 3}, "block 'tool'")
    assert problem.message == "'sizes' is not a setting of block 'tool'; did you mean 'size'?"


def test_without_a_near_name_all_settings_are_named():
    (problem,) = check_settings(Tool, {"size": 1, "zzz": 3}, "block 'tool'")
    assert problem.message.endswith("; it has 'size', 'rate', 'mode'")


def test_partial_forgives_what_is_missing():
    assert check_settings(Tool, {}, "block 'tool'", partial=True) == []


def test_what_takes_any_setting_gets_any():
    assert check_settings(Open, {"anything": object()}, "it") == []
    assert check_settings(Open, {"size": "x"}, "it")


def test_settings_know_their_defaults():
    settings, takes_any = settings_of(Tool)
    assert list(settings) == ["size", "rate", "mode"]
    assert settings["size"].required
    assert settings["rate"].default == 0.5
    assert not takes_any


def test_functions_have_settings_too():
    def scale(tensor: Any, generator: Any, *, gain: float = 1.0) -> None: ...

    assert list(settings_of(scale, 2)[0]) == ["gain"]
    message = re.escape("'gian' is not a setting of it; did you mean 'gain'?")
    (problem,) = check_settings(scale, {"gian": 1}, "it", skip=2)
    assert re.fullmatch(message, problem.message)


@pytest.mark.parametrize("annotation", [float, PositiveFloat, Probability])
@pytest.mark.parametrize("value", [2**63, 10**400, -(10**400)])
def test_whole_numbers_that_torch_has_no_bits_for_are_told(annotation, value):
    assert str(mismatch(annotation, value)).startswith("must be ")
