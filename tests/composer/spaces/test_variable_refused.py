"""Spaces of varying size that cannot be read, and values that do not fit into them, are refused in words."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import GraphInstance

from composer.spaces.tree import SpaceError, flatten_space
from tests.composer.spaces.test_variable import BOX, MIXED, UNIT, Mission, Riddle


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (
            spaces.Dict({"mission": Mission()}),
            {},
            "observation 'mission' is a Mission space, a text of unknown characters and length; declare them with "
            "texts: {mission: {max_length: 64}} or leave it out with ignore: [mission]",
        ),
        (
            spaces.Dict({"s": spaces.Sequence(spaces.Sequence(BOX))}),
            {},
            "observation 's' is a Sequence space, whose elements would vary in number and in size, "
            "which is not supported; leave it out with ignore: [s]",
        ),
        (
            spaces.Dict({"s": spaces.Sequence(spaces.Dict({"name": spaces.Text(3), "x": BOX}))}),
            {},
            "observation 's/name' is a Text space within 's', whose elements would vary in number and in size, "
            "which is not supported; leave it out with ignore: [s/name]",
        ),
        (
            spaces.Dict({"s": spaces.Sequence(Riddle())}),
            {},
            "observation 's' is a Riddle space, which is not supported (Box, Discrete, MultiDiscrete, MultiBinary, "
            "Sequence, Graph, Text, OneOf, Dict and Tuple are); leave it out with ignore: [s]",
        ),
        (
            spaces.Dict({"s": spaces.Sequence(BOX), "s:mask": spaces.MultiBinary(3)}),
            {},
            "two parts of the observation space get the flat key 's:mask': ['s'] and ['s:mask']; rename one of them",
        ),
        (
            spaces.Sequence(spaces.Dict({"a": spaces.Dict({"b": BOX}), "a/b": BOX})),
            {},
            "two parts of the observation space get the flat key 'observation/a/b': ['a']['b'] and ['a/b']; "
            "rename one of them",
        ),
        (
            spaces.Dict({"g": spaces.Graph(BOX, BOX)}),
            {"ignore": ["g/edge"]},
            "ignore names 'g/edge', which is not in the observation space; did you mean 'g/edges'?",
        ),
        (
            MIXED,
            {"texts": {"mision": {"max_length": 3}, "x": {"max_length": 3}, "t/0": {}}},
            "max_length in texts of 't/0' must be a number above 0, got None\n"
            "texts names 'mision', which is not in the observation space\n"
            "texts names 'x', which is a Box space and no text",
        ),
        (
            MIXED,
            {"texts": {"t/0": {"max_len": 3}}},
            "texts of 't/0' takes max_length and charset, not 'max_len'; did you mean 'max_length'?",
        ),
        (
            MIXED,
            {"texts": {"t/0": {"max_length": 3, "charset": 7}}},
            "charset in texts of 't/0' must be characters, got 7",
        ),
    ],
)
def test_a_space_that_cannot_be_read_is_refused_in_words(space, arguments, message):
    with pytest.raises(SpaceError) as error:
        flatten_space(space, "observation", **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (spaces.Sequence(BOX), "Sequence"),
        (spaces.Graph(BOX, None), "Graph"),
        (spaces.Text(3), "Text"),
        (spaces.OneOf([BOX]), "OneOf"),
    ],
)
def test_an_action_of_varying_size_is_refused(space, name):
    with pytest.raises(SpaceError) as error:
        flatten_space(space, "action")
    assert str(error.value) == (
        f"action 'action' is a {name} space, which is not supported "
        "(Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple are)"
    )


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (
            spaces.Sequence(BOX),
            3,
            "'k' must be a value of Sequence(Box(-1.0, 1.0, (2,), float32), stack=False) or a batch of them, got 3",
        ),
        (
            spaces.Sequence(BOX),
            (np.zeros(2), np.zeros(3)),
            "'k' has an array of shape (3,) in it, expected the shape (2,)",
        ),
        (spaces.Sequence(BOX), (np.zeros(2), "no"), "'k' has 'no' in it, expected the shape (2,)"),
        (
            spaces.Sequence(BOX, stack=True),
            (np.zeros((2, 2)), np.zeros((2, 3))),
            "'k' must be a value of Sequence(Box(-1.0, 1.0, (2,), float32), stack=True) or a batch of them, "
            "got an array of shape (2, 3)",
        ),
        (
            spaces.Sequence(BOX),
            ((), ((), ())),
            "the parts of the batch 'k' differ in their leading axes",
        ),
        (
            spaces.Sequence(UNIT),
            ({"pos": [0, 1]},),
            "'k/kind' is missing; got the keys 'pos'",
        ),
        (
            spaces.Sequence(UNIT, stack=True),
            {"kind": np.array([5, 6]), "pos": np.zeros((3, 2))},
            "the parts of 'k' must have equally many elements: 'k/kind' has 2, 'k/pos' has 3",
        ),
        (
            spaces.Text(3, charset="ab"),
            "abé",
            "'k' has the character 'é', which is not in its charset: 'abé'; declare a charset with it in texts",
        ),
        (
            spaces.Text(3, charset="ab"),
            ("ab", "abab"),
            "'k' is a text of 4 characters, its max_length is 3: 'abab'; declare more in texts",
        ),
        (spaces.Text(3), ("ab", 3), "'k' must be a value of Text(1, 3, charset=0123456789ABC"),
        (
            spaces.Graph(BOX, BOX),
            GraphInstance(np.zeros((2, 2)), np.zeros((1, 2)), np.array([[0, 2]])),
            "'k/edge_links' names node 2, but the graph has 2 nodes, counted from 0",
        ),
        (
            spaces.Graph(BOX, BOX),
            GraphInstance(np.zeros((2, 2)), np.zeros((1, 2)), np.array([[0, 1], [1, 0]])),
            "'k/edge_links' must have the shape (1, 2), two nodes for each edge; got (2, 2)",
        ),
        (
            spaces.Graph(BOX, BOX),
            GraphInstance(np.zeros((2, 2)), np.zeros((1, 2)), None),
            "'k/edge_links' must have the shape (1, 2), two nodes for each edge; got none",
        ),
        (
            spaces.Graph(BOX, None),
            GraphInstance(np.zeros((2, 2)), None, np.array([[0, 1]])),
            "'k' has edge_links, but its space has no edge_space; declare one",
        ),
        (
            spaces.Graph(BOX, None),
            GraphInstance(np.zeros((2, 3)), None, None),
            "'k/nodes' has an array of shape (2, 3) in it, expected the shape (?, 2)",
        ),
        (
            spaces.OneOf([BOX, spaces.Discrete(2)]),
            (2, 1),
            "'k' must be a value of OneOf(Box(-1.0, 1.0, (2,), float32), Discrete(2)) or a batch of them, got a tuple of 2",
        ),
        (
            spaces.Sequence(spaces.OneOf([BOX, spaces.Discrete(2)])),
            ((1, 1), (2, 1)),
            "'k' must be (index, value) with an index below 2 and a value of that alternative, got a tuple of 2",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_words(space, value, message):
    tree = flatten_space(spaces.Dict({"k": space}), "observation")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        tree.to_tensors({"k": value}, dtype=torch.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"s/kind": torch.zeros(2, 4), "s/pos": torch.zeros(2, 4, 2), "s:mask": torch.ones(2, 3)},
            "'s/kind' has shape (2, 4), its mask 's:mask' has (2, 3), expected (2, 4)",
        ),
        (
            {"s/kind": torch.zeros(2, 4), "s/pos": torch.zeros(2, 4, 2)},
            "observation 's:mask' is missing; got the keys 's/kind', 's/pos'",
        ),
        (
            {"s/kind": torch.zeros(3), "s/pos": torch.zeros(3, 3), "s:mask": torch.ones(3)},
            "observation 's/pos' has shape (3, 3), expected (..., ?, 2)",
        ),
        ({"s/kid": 0}, "'s/kid' is not in the observation space; did you mean 's/kind'?"),
        ({}, "observation 's' is missing; got an empty dict"),
    ],
)  # fmt: skip
def test_padded_tensors_that_do_not_fit_are_refused_in_words(value, message):
    tree = flatten_space(spaces.Dict({"s": spaces.Sequence(UNIT)}), "observation")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tree.to_tensors(value, dtype=torch.float32)
