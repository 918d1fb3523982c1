"""Spaces as Ports, values inwards and outwards, and what is refused."""

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from composer.spaces.tree import (
    SpaceError,
    flatten_space,
    from_space_value,
    to_environment,
    to_space_value,
)
from perception_blocks.port import Port

BOOL: Any = np.bool_  # gymnasium takes it, its annotations do not
NESTED = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (64, 64, 3), np.uint8),
        "robot": spaces.Dict(
            {"arm": spaces.Box(-1, 1, (2,)), "pair": spaces.Tuple([spaces.Discrete(3, start=-1)])}
        ),
    }
)


def leaf_of(space):
    return flatten_space(space, "action").leaves["action"]


@pytest.mark.parametrize(
    ("space", "port"),
    [
        (spaces.Discrete(4, start=7), Port((), torch.int64, cardinality=4)),
        (
            spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
            Port((2, 2), torch.int64, cardinality=(2, 3, 4, 5)),
        ),
        (spaces.MultiBinary(3), Port((3,), low=0.0, high=1.0)),
        (spaces.MultiBinary([2, 2]), Port((2, 2), low=0.0, high=1.0)),
        (spaces.Box(-1, 1, ()), Port((), low=-1.0, high=1.0)),
        (spaces.Box(-np.inf, np.inf, (2,)), Port((2,))),
        (spaces.Box(0, np.inf, (2,)), Port((2,), low=0.0)),
        (
            spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 2], np.float32)),
            Port((2,), low=(-1.0, -np.inf), high=(1.0, 2.0)),
        ),
        (spaces.Box(-np.inf, 5, (2,), np.int64), Port((2,), high=5.0)),
        (spaces.Box(0, 1, (2,), BOOL), Port((2,), low=0.0, high=1.0)),
        (spaces.Box(-3, 3, (2,), np.float64), Port((2,), low=-3.0, high=3.0)),
    ],
    ids=str,
)
def test_a_space_becomes_a_port(space, port):
    assert flatten_space(space, "observation").ports == {"observation": port}


def test_a_bound_at_the_end_of_the_dtype_is_no_bound():
    largest = np.finfo(np.float32).max
    assert leaf_of(spaces.Box(-largest, largest, (2,))).port == Port((2,))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((3, 64, 64), "first"),
        ((64, 64, 3), "last"),
        ((84, 84, 1), "last"),
        ((4, 84, 84), "first"),
        ((3, 64, 3), None),
        ((64, 64, 2), None),
        ((64, 64), None),
    ],
)
def test_the_channels_of_an_image_are_known_only_where_unambiguous(shape, channels):
    port = leaf_of(spaces.Box(0, 255, shape, np.uint8)).port
    assert (port.dtype, port.channels) == (torch.uint8, channels)


def test_nested_spaces_have_flat_keys_and_keep_their_path():
    tree = flatten_space(NESTED, "observation")
    assert {key: port.source for key, port in tree.ports.items()} == {
        "camera": ("camera",),
        "robot/arm": ("robot", "arm"),
        "robot/pair/0": ("robot", "pair", 0),
    }
    assert list(flatten_space(spaces.Tuple([spaces.Discrete(2)]), "action").ports) == ["0"]


def test_colliding_flat_keys_are_refused():
    space = spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)}), "a/b": spaces.Discrete(3)})
    with pytest.raises(SpaceError) as error:
        flatten_space(space, "observation")
    assert str(error.value) == (
        "two parts of the observation space get the flat key 'a/b': ['a']['b'] and ['a/b']; "
        "rename one of them"
    )


def test_keys_that_no_file_can_hold_are_refused():
    with pytest.raises(SpaceError) as error:
        flatten_space(spaces.Dict({"half\ud800": spaces.Discrete(2)}), "observation")
    assert str(error.value) == (
        "'half\\ud800' in the observation space holds half of a surrogate pair, which no file can hold; rename it"
    )


class Custom(spaces.Space):
    def contains(self, x):
        return True


def test_every_unsupported_part_is_named_with_the_way_out():
    space = spaces.Dict({"mission": Custom(), "rest": spaces.Tuple([Custom(), spaces.Discrete(2)])})
    with pytest.raises(SpaceError) as error:
        flatten_space(space, "observation", ignore=["misson"])
    assert str(error.value) == (
        "ignore names 'misson', which is not in the observation space; did you mean 'mission'?\n"
        "observation 'mission' is a Custom space, which is not supported (Box, Discrete, MultiDiscrete, "
        "MultiBinary, Sequence, Graph, Text, OneOf, Dict and Tuple are); leave it out with ignore: [mission]\n"
        "observation 'rest/0' is a Custom space, which is not supported (Box, Discrete, MultiDiscrete, "
        "MultiBinary, Sequence, Graph, Text, OneOf, Dict and Tuple are); leave it out with ignore: [rest/0]"
    )
    assert [index for index, _ in error.value.problems] == [0, None, None]


@pytest.mark.parametrize("kind", [spaces.Text(3), Custom(), spaces.Discrete(2), NESTED])
def test_an_ignored_part_may_be_of_any_kind(kind):
    space = spaces.Dict({"a": kind, "b": spaces.Discrete(2)})
    assert list(flatten_space(space, "observation", ignore=["a"]).ports) == ["b"]


def test_values_become_tensors_under_flat_keys():
    tree = flatten_space(NESTED, "observation")
    value = {
        "camera": np.full((64, 64, 3), 200, np.uint8),
        "robot": {"arm": [0.5, 1], "pair": (np.int64(1),)},
    }
    tensors = tree.to_tensors(value, dtype=torch.float32)
    assert tensors["camera"].dtype == torch.float32
    assert tensors["camera"].max() == 200  # unscaled
    assert tensors["robot/arm"].tolist() == [0.5, 1.0]
    assert tensors["robot/pair/0"].equal(torch.tensor(2))
    assert tree.leading(tensors) == ()
    flat = {"camera": value["camera"], "robot/arm": [0.5, 1], "robot/pair/0": 1}
    again = tree.to_tensors(flat, dtype=torch.float32)
    assert all(again[key].equal(tensors[key]) for key in tensors)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float64, np.bool_])
@pytest.mark.parametrize("leading", [(), (0,), (5, 2)])
def test_any_dtype_and_leading_axes(dtype, leading):
    tree = flatten_space(spaces.Box(0, 1, (3,), dtype), "observation")
    tensors = tree.to_tensors(np.ones((*leading, 3), dtype), dtype=torch.bfloat16)
    assert tensors["observation"].equal(torch.ones(*leading, 3, dtype=torch.bfloat16))
    assert tree.leading(tensors) == leading


def test_arrays_are_copied_even_read_only_or_reversed_ones():
    tree = flatten_space(spaces.Box(0, 1, (3,)), "observation")
    array = np.arange(3, dtype=np.float32)
    tensor = tree.to_tensors(array, dtype=torch.float32)["observation"]
    array[:] = 9
    assert tensor.tolist() == [0, 1, 2]
    array.flags.writeable = False
    assert tree.to_tensors(array[::-1], dtype=torch.float32)["observation"].tolist() == [9, 9, 9]


def test_tensors_stay_on_their_graph():
    tree = flatten_space(spaces.Box(0, 1, (3,)), "observation")
    x = torch.ones(2, 3, requires_grad=True)
    tree.to_tensors(x, dtype=torch.float64)["observation"].sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("compiler", ["compile", "export"])
def test_the_tensor_path_can_be_traced(compiler):
    space = spaces.Dict(
        {
            "a": spaces.Box(0, 1, (3,)),
            "b": spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3], start=[1, 2])]),
        }
    )  # fmt: skip
    tree = flatten_space(space, "observation")

    class Reads(torch.nn.Module):
        def forward(self, a, b, c):
            tensors = tree.to_tensors({"a": a, "b": (b, c)}, dtype=torch.float32)
            assert tree.leading(tensors) == a.shape[:-1]
            return tensors["a"], tensors["b/0"], tensors["b/1"]

    args = (torch.rand(5, 3), torch.ones(5, dtype=torch.int64), torch.tensor([[2, 3]] * 5))
    expected = Reads()(*args)
    if compiler == "compile":
        results = torch.compile(Reads(), fullgraph=True, backend="eager")(*args)
    else:
        results = torch.export.export(Reads(), args).module()(*args)
    assert all(a.equal(b) for a, b in zip(expected, results))
    assert expected[2].tolist() == [[1, 1]] * 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"camera": np.zeros((64, 64, 3))},
            "observation 'robot/arm' is missing; got the keys 'camera'",
        ),
        (
            {"camera": np.zeros((64, 64, 3)), "robot": {"arm": [0, 0], "pair": ()}},
            "observation 'robot/pair/0' is missing; got a tuple of 0",
        ),
        (
            {"camera": np.zeros((64, 64, 3)), "robot": {"arm": [0, 0], "pair": torch.zeros(1)}},
            "observation 'robot/pair/0' is missing; got a value of type Tensor",
        ),
        (np.zeros(4), "observation 'camera' is missing; got a value of type ndarray"),
        (
            {"camera": np.zeros((3, 64, 64))},
            "observation 'camera' has shape (3, 64, 64), expected (..., 64, 64, 3)",
        ),
        (
            {"camera": "no"},
            "'camera' must be numbers, got a str; its space is Box(0, 255, (64, 64, 3), uint8)",
        ),
        (
            {"camera": (0, {})},
            "'camera' must be numbers, got a tuple; its space is Box(0, 255, (64, 64, 3), uint8); write observation, "
            "info = env.reset() and give the observation",
        ),
        (
            {"camera": None},
            "'camera' must be numbers, got None; its space is Box(0, 255, (64, 64, 3), uint8)",
        ),
        (
            ({"camera": 0}, {}),
            "observation 'camera' is missing; got a tuple of 2; write observation, info = env.reset() and give the "
            "observation",
        ),
        (
            ({"camera": 0}, 1.0, False, False, {}),
            "observation 'camera' is missing; got a tuple of 5"
            "; write observation, reward, terminated, truncated, info = env.step(action) and give the observation",
        ),
        (
            {"camera": np.array(["a"])},
            "'camera' must be numbers, got a ndarray of dtype <U1; its space is Box(0, 255, (64, 64, 3), uint8)",
        ),
        (
            {"camera": [[1], [1, 2]]},
            "'camera' must be numbers, got a list; its space is Box(0, 255, (64, 64, 3), uint8)",
        ),
        (
            {"camara": 0},
            "'camara' is not in the observation space; did you mean 'camera'?",
        ),
        (
            {"wheels": 0},
            "'wheels' is not in the observation space; "
            "it has 'camera', 'robot/arm', 'robot/pair/0'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_does_not_fit_is_refused_in_words(value, message):
    tree = flatten_space(NESTED, "observation")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tree.to_tensors(value, dtype=torch.float32)


def test_ignored_keys_may_be_there_or_not():
    tree = flatten_space(NESTED, "observation", ignore=["camera", "robot/pair"])
    for value in (
        {"robot": {"arm": [0, 1]}},
        {"camera": None, "robot": {"arm": [0, 1], "pair": 3}},
    ):
        assert list(tree.to_tensors(value, dtype=torch.float32)) == ["robot/arm"]


def test_only_some_keys_can_be_asked_for():
    tree = flatten_space(NESTED, "observation")
    tensors = tree.to_tensors({"robot": {"arm": [0, 1]}}, dtype=torch.float32, keys=["robot/arm"])
    assert list(tensors) == ["robot/arm"]


def test_leading_axes_must_be_the_same():
    space = spaces.Dict({"a": spaces.Box(0, 1, (3,)), "b": spaces.Discrete(2)})
    tree = flatten_space(space, "observation")
    message = "the observations differ in their leading (batch) axes: 'a' (5,), 'b' (5, 2)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tree.leading({"a": torch.zeros(5, 3), "b": torch.zeros(5, 2)})


BOXES = [
    spaces.Box(-0.1, 0.3, (2,)),
    spaces.Box(np.array([-0.1, -7.3], np.float32), np.array([0.7, 1e-3], np.float32)),
    spaces.Box(-0.1, 0.3, (2,), np.float64),
    spaces.Box(-0.1, 0.3, (2,), np.float16),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Box(-5, 5, (2,), np.int8),
    spaces.Box(-(2**63), 2**63 - 2, (2,), np.int64),
    spaces.Box(np.array([0, 3], np.uint64), np.array([2**63 + 5, 2**62 + 1], np.uint64)),
    spaces.Box(0, 1, (2,), BOOL),
    spaces.Box(-np.inf, np.inf, (2,), np.int32),
    spaces.Box(-1, 1, ()),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("space", BOXES, ids=str)
def test_a_box_value_is_clipped_into_its_space(space, dtype):
    leaf = leaf_of(space)
    tree = flatten_space(space, "action")
    for value in (-1e30, -7.29999, -0.1, 0.0, 0.3, 0.7, 1e30):
        tensor = torch.full(space.shape, value, dtype=dtype)
        assert space.contains(to_environment(tree, {"action": tensor}, as_numpy=True))
        assert to_space_value(leaf, tensor).shape == space.shape


def test_integers_are_rounded_to_the_nearest():
    leaf = leaf_of(spaces.Box(0, 9, (4,), np.int32))
    assert to_space_value(leaf, torch.tensor([0.4, 0.6, 8.7, 9.4])).tolist() == [0, 1, 9, 9]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_discrete_values_count_from_their_start(dtype):
    space = spaces.Dict(
        {
            "d": spaces.Discrete(3, start=5, dtype=dtype),
            "m": spaces.MultiDiscrete([2, 3], start=[1, 2], dtype=dtype),
            "b": spaces.MultiBinary(2),
        }
    )
    tree = flatten_space(space, "action")
    flat = {"d": torch.tensor(2), "m": torch.tensor([1, 2]), "b": torch.tensor([0.0, 1.0])}
    action = to_environment(tree, flat, as_numpy=True)
    assert space.contains(action)
    assert (action["d"], type(action["d"]), action["m"].tolist()) == (7, dtype, [2, 4])
    assert tree.to_tensors(action, dtype=torch.float32)["m"].tolist() == [1, 2]
    for key, leaf in tree.leaves.items():
        assert from_space_value(leaf, action[key]).equal(flat[key])


def test_batched_actions_are_arrays_with_leading_axes():
    tree = flatten_space(NESTED["robot"], "action")
    flat = {"arm": torch.ones(5, 2), "pair/0": torch.zeros(5)}
    arrays = to_environment(tree, flat, as_numpy=True)
    assert arrays["arm"].shape == (5, 2)
    assert arrays["pair"][0].tolist() == [-1] * 5
    tensors = to_environment(tree, flat, as_numpy=False)
    assert isinstance(tensors["pair"][0], torch.Tensor)


def test_no_random_state_moves_and_a_tree_copies():
    space = copy.deepcopy(NESTED)
    space.seed(3)
    camera = space["camera"]
    before = copy.deepcopy(camera.np_random.bit_generator.state)
    tree = pickle.loads(pickle.dumps(copy.deepcopy(flatten_space(space, "observation"))))
    assert camera.np_random.bit_generator.state == before
    assert tree.ports == flatten_space(space, "observation").ports


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Discrete(5), 5, "'gear' is 5, outside of Discrete(5)"),
        (
            spaces.Discrete(5),
            np.array([0, 4, -1]),
            "'gear' is -1 at index (2,), outside of Discrete(5)",
        ),
        (
            spaces.Discrete(3, start=2),
            [1],
            "'gear' is 1 at index (0,), outside of Discrete(3, start=2)",
        ),
        (
            spaces.MultiDiscrete([2, 3], start=[1, 0]),
            np.array([[1, 2], [2, 0], [3, 0]]),
            "'gear' is 3 at index (2, 0), outside of MultiDiscrete([2 3], start=[1 0])",
        ),
        (
            spaces.Sequence(spaces.Discrete(4)),
            ((1, 2), (0, 7)),
            "'gear' is 7 at index (3,), outside of Discrete(4)",
        ),
    ],
    ids=str,
)
def test_a_choice_that_the_space_does_not_have_is_refused(space, value, message):
    """one_hot would make zeros of it."""
    tree = flatten_space(spaces.Dict(gear=space), "observation")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tree.to_tensors({"gear": value}, dtype=torch.float32)
