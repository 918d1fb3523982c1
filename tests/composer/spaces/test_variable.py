"""Sequence, Graph, Text and OneOf observations as padded tensors and masks."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import GraphInstance

from composer.spaces.tree import flatten_space, holds_tensors
from composer.spaces.variable import PRINTABLE
from perception_blocks.port import Port

INT = torch.int64
BOX = spaces.Box(-1, 1, (2,))
UNIT = spaces.Dict({"kind": spaces.Discrete(3, start=5), "pos": BOX})


def ports_of(space, **keywords):
    return flatten_space(space, "observation", **keywords).ports


def read(space, value, **keywords):
    tree = flatten_space(space, "observation")
    tensors = tree.to_tensors(value, dtype=torch.float32, **keywords)
    tree.leading(tensors)
    return tensors


def mask_port(*source, shape: Any = (None,)):
    return Port(shape, torch.bool, source=source)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(
    ("element", "port"),
    [
        (spaces.Box(-1, 1, (2,)), Port((None, 2), low=-1.0, high=1.0)),
        (spaces.Box(-1, 1, ()), Port((None,), low=-1.0, high=1.0)),
        (spaces.Discrete(4, start=7), Port((None,), INT, cardinality=4)),
        (spaces.MultiDiscrete([2, 3]), Port((None, 2), INT, cardinality=(2, 3))),
        (spaces.MultiBinary(3), Port((None, 3), low=0.0, high=1.0)),
    ],
    ids=str,
)
def test_a_sequence_is_a_set_with_a_mask(element, port, stack):
    space = spaces.Dict({"units": spaces.Sequence(element, stack=stack)})
    expected = Port(
        port.shape, port.dtype, port.cardinality, port.low, port.high,
        mask="units:mask", source=("units",),
    )  # fmt: skip
    assert ports_of(space) == {"units": expected, "units:mask": mask_port("units")}


@pytest.mark.parametrize("stack", [False, True])
def test_the_parts_of_a_sequence_have_one_mask(stack):
    space = spaces.Dict({"units": spaces.Sequence(spaces.Tuple([UNIT, BOX]), stack=stack)})
    ports = ports_of(space)
    assert {key: (port.shape, port.mask, port.source) for key, port in ports.items()} == {
        "units/0/kind": ((None,), "units:mask", ("units", 0, "kind")),
        "units/0/pos": ((None, 2), "units:mask", ("units", 0, "pos")),
        "units/1": ((None, 2), "units:mask", ("units", 1)),
        "units:mask": ((None,), None, ("units",)),
    }


def test_a_text_is_token_ids_with_a_mask():
    assert ports_of(spaces.Text(5, charset="abc")) == {
        "observation": Port((5,), INT, cardinality=4, mask="observation:mask"),
        "observation:mask": mask_port(shape=(5,)),
    }


def test_a_graph_is_nodes_and_edges():
    graph = spaces.Graph(spaces.Box(-1, 1, (4,)), spaces.Discrete(3))
    assert ports_of(spaces.Dict({"g": graph})) == {
        "g/nodes": Port(
            (None, 4), low=-1.0, high=1.0, mask="g/nodes:mask", source=("g", "nodes")
        ),
        "g/nodes:mask": mask_port("g", "nodes"),
        "g/edges": Port(
            (None,), INT, cardinality=3, mask="g/edges:mask", source=("g", "edges")
        ),
        "g/edge_links": Port((None, 2), INT, mask="g/edges:mask", source=("g", "edge_links")),
        "g/edges:mask": mask_port("g", "edges"),
    }  # fmt: skip
    bare = spaces.Dict({"g": spaces.Graph(spaces.Discrete(3), None)})
    assert list(ports_of(bare)) == ["g/nodes", "g/nodes:mask"]


def test_each_alternative_has_a_mask_of_its_own():
    space = spaces.OneOf([BOX, spaces.Dict({"a": spaces.Discrete(2), "s": spaces.Sequence(BOX)})])
    ports = ports_of(spaces.Dict({"o": space}))
    assert {key: (port.shape, port.mask) for key, port in ports.items()} == {
        "o/choice": ((), None),
        "o/0": ((2,), "o/0:mask"),
        "o/0:mask": ((), None),
        "o/1/a": ((), "o/1:mask"),
        "o/1/s": ((None, 2), "o/1/s:mask"),
        "o/1/s:mask": ((None,), None),
        "o/1:mask": ((), None),
    }
    assert ports["o/choice"].cardinality == 2
    assert flatten_space(spaces.Dict({"o": space}), "observation").masks == {
        "o/0:mask", "o/1/s:mask", "o/1:mask",
    }  # fmt: skip


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("stack", [False, True])
def test_sets_are_padded_to_the_longest(stack, as_tensors):
    space = spaces.Sequence(BOX, stack=stack)
    arrays = [np.full((size, 2), size, np.float32) for size in (1, 3, 0)]
    held = [torch.from_numpy(array) for array in arrays] if as_tensors else arrays
    batch = tuple(held) if stack else tuple(tuple(one) for one in held)
    tensors = read(space, batch)
    assert tensors["observation:mask"].tolist() == [
        [True, False, False], [True, True, True], [False, False, False],
    ]  # fmt: skip
    assert tensors["observation"][..., 0].tolist() == [[1, 0, 0], [3, 3, 3], [0, 0, 0]]
    single = read(space, batch[1])
    assert single["observation"].equal(torch.full((3, 2), 3.0))
    assert single["observation:mask"].tolist() == [True] * 3


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("leading", [(), (2,), (3, 2)])
def test_an_empty_set_is_one_padded_element(stack, leading):
    value: Any = ()
    for size in reversed(leading):
        value = (value,) * size
    tensors = read(spaces.Sequence(UNIT, stack=stack), value)
    assert tensors["observation/kind"].equal(torch.zeros(*leading, 1, dtype=INT))
    assert tensors["observation/pos"].equal(torch.zeros(*leading, 1, 2))
    assert tensors["observation:mask"].equal(torch.zeros(*leading, 1, dtype=torch.bool))


def test_an_array_of_equal_sets_is_a_batch():
    tensors = read(spaces.Sequence(BOX), np.ones((5, 4, 3, 2)))
    assert tensors["observation"].equal(torch.ones(5, 4, 3, 2))
    assert tensors["observation:mask"].equal(torch.ones(5, 4, 3, dtype=torch.bool))


def test_integers_are_zero_based_and_padded_with_zero():
    tensors = read(spaces.Sequence(UNIT), (({"kind": 7, "pos": [0.5, 1]},), ()))
    assert tensors["observation/kind"].tolist() == [[2], [0]]
    assert tensors["observation/pos"].tolist() == [[[0.5, 1.0]], [[0.0, 0.0]]]


def test_a_text_counts_its_characters_from_one():
    space = spaces.Text(4, charset="cab")
    assert read(space, "abc")["observation"].tolist() == [2, 3, 1, 0]
    tensors = read(space, ("a", "", "cccc"))
    assert tensors["observation"].tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert tensors["observation:mask"].sum(-1).tolist() == [1, 0, 4]
    assert read(space, np.array(["a", "b"]))["observation"][:, 0].tolist() == [2, 3]


def test_graphs_are_padded_by_node_and_by_edge():
    space = spaces.Dict({"g": spaces.Graph(BOX, spaces.Discrete(3, start=1))})
    first = GraphInstance(np.ones((3, 2)), np.array([1, 3]), np.array([[0, 2], [2, 1]]))
    second = GraphInstance(np.ones((1, 2)), None, None)
    tensors = read(space, {"g": (first, second)})
    assert tensors["g/nodes"].shape == (2, 3, 2)
    assert tensors["g/nodes:mask"].tolist() == [[True] * 3, [True, False, False]]
    assert tensors["g/edges"].tolist() == [[0, 2], [0, 0]]
    assert tensors["g/edge_links"].tolist() == [[[0, 2], [2, 1]], [[0, 0], [0, 0]]]
    assert tensors["g/edges:mask"].tolist() == [[True, True], [False, False]]
    assert tensors["g/edge_links"].dtype == INT
    assert read(space, {"g": second})["g/edge_links"].tolist() == [[0, 0]]


def test_arrays_may_be_read_only_and_are_copied():
    arrays = np.ones((2, 2)), np.ones((1, 2)), np.array([[0, 1]])
    for array in arrays:
        array.flags.writeable = False
    tensors = read(spaces.Graph(BOX, BOX), GraphInstance(*arrays))
    for array in arrays:
        array.flags.writeable = True
        array[:] = 0
    assert tensors["observation/nodes"].equal(torch.ones(2, 2))
    assert tensors["observation/edge_links"].tolist() == [[0, 1]]


def test_only_the_chosen_alternative_has_values():
    space = spaces.Dict({"o": spaces.OneOf([BOX, spaces.Discrete(3, start=1), spaces.Text(2)])})
    tensors = read(space, {"o": ((1, 3), (np.int64(0), np.ones(2)), (2, "b"))})
    assert tensors["o/choice"].tolist() == [1, 0, 2]
    assert tensors["o/0"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert tensors["o/0:mask"].tolist() == [False, True, False]
    assert tensors["o/1"].tolist() == [2, 0, 0]
    assert tensors["o/1:mask"].tolist() == [True, False, False]
    assert tensors["o/2:mask"].tolist() == [[False] * 2, [False] * 2, [True, False]]
    assert read(space, {"o": (1, 2)})["o/1:mask"].tolist() is True


def test_a_sequence_may_hold_alternatives():
    space = spaces.Sequence(spaces.OneOf([BOX, spaces.Discrete(3)]))
    tensors = read(space, (((0, np.ones(2)), (1, 2)), ((1, 1),)))
    assert tensors["observation/0:mask"].tolist() == [[True, False], [False, False]]
    assert tensors["observation/1:mask"].tolist() == [[False, True], [True, False]]
    assert tensors["observation/1"].tolist() == [[0, 2], [1, 0]]
    assert tensors["observation:mask"].tolist() == [[True, True], [True, False]]


MIXED: Any = spaces.Dict(
    {
        "g": spaces.Graph(BOX, spaces.Discrete(3, start=1)),
        "o": spaces.OneOf([BOX, spaces.Discrete(2)]),
        "s": spaces.Sequence(UNIT),
        "stacked": spaces.Sequence(UNIT, stack=True),
        "t": spaces.Tuple([spaces.Text(3), BOX]),
        "x": spaces.Box(-1, 1, (3,)),
    }
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_tensors_are_taken_as_they_are(dtype):
    tree = flatten_space(MIXED, "observation")
    MIXED.seed(0)
    samples = [MIXED.sample() for _ in range(3)]
    batch: dict[str, Any] = {key: tuple(sample[key] for sample in samples) for key in "gos"}
    batch["stacked"] = tuple(sample["stacked"] for sample in samples)
    batch["t"] = (tuple(s["t"][0] for s in samples), np.ones((3, 2)))
    batch["x"] = np.ones((3, 3))
    tensors = tree.to_tensors(batch, dtype=dtype)
    assert tree.leading(tensors) == (3,)
    assert list(tensors) == list(tree.leaves)
    for value in (tensors, tree.unflatten(tensors)):
        again = tree.to_tensors(value, dtype=dtype)
        assert all(again[key].equal(tensors[key]) for key in tensors)
    wide = {key: tensor[:, None].expand(3, 5, *tensor.shape[1:]) for key, tensor in tensors.items()}
    assert tree.leading(tree.to_tensors(wide, dtype=dtype)) == (3, 5)


def test_some_keys_can_be_asked_for():
    tree = flatten_space(MIXED, "observation")
    value = {"s": ({"kind": 5, "pos": [0, 1]},)}
    tensors = tree.to_tensors(value, dtype=torch.float32, keys=["s/pos", "s:mask"])
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "s/pos": (1, 2),
        "s:mask": (1,),
    }
    padded = {"s/pos": torch.ones(4, 2)}
    assert list(tree.to_tensors(padded, dtype=torch.float32, keys=["s/pos"])) == ["s/pos"]


def test_masks_of_any_dtype_become_bool():
    given = {"observation": torch.ones(2, 3, 2), "observation:mask": np.array([[1, 1, 0]] * 2)}
    tensors = read(spaces.Sequence(BOX), given)
    assert tensors["observation:mask"].tolist() == [[True, True, False]] * 2


def test_a_flat_key_may_hold_a_sample_of_a_nested_space():
    space = spaces.Dict({"robot": spaces.Dict({"g": spaces.Graph(BOX, None)})})
    graph = GraphInstance(np.ones((3, 2)), None, None)
    for value in ({"robot": {"g": graph}}, {"robot/g": graph}):
        assert read(space, value)["robot/g/nodes"].shape == (3, 2)


def test_a_tree_copies():
    tree = pickle.loads(pickle.dumps(copy.deepcopy(flatten_space(MIXED, "observation"))))
    sample = MIXED.sample()
    expected = flatten_space(MIXED, "observation").to_tensors(sample, dtype=torch.float32)
    again = tree.to_tensors(sample, dtype=torch.float32)
    assert all(again[key].equal(expected[key]) for key in expected)


def test_gradients_flow_into_padded_sets():
    x = torch.ones(3, 2, requires_grad=True)
    tensors = read(spaces.Sequence(BOX, stack=True), (x, x[:1]))
    tensors["observation"].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[2, 2], [1, 1], [1, 1]]


def test_padded_tensors_can_be_traced():
    tree = flatten_space(spaces.Dict({"s": spaces.Sequence(BOX), "x": BOX}), "observation")

    def reads(s, mask, x):
        tensors = tree.to_tensors({"s": s, "s:mask": mask, "x": x}, dtype=torch.float32)
        return (tensors["s"] * tensors["s:mask"][..., None]).sum(-2) + tensors["x"]

    args = torch.rand(5, 4, 2), torch.rand(5, 4) > 0.5, torch.rand(5, 2)
    compiled = torch.compile(reads, fullgraph=True, backend="eager")
    assert compiled(*args).equal(reads(*args))


class Mission(spaces.Space[str]):
    def __init__(self):
        super().__init__(dtype=str)

    def contains(self, x):
        return isinstance(x, str)


class Riddle(spaces.Space):
    def contains(self, x):
        return True


def test_a_text_of_its_own_class_is_declared():
    space = spaces.Dict({"mission": Mission(), "riddle": Riddle(), "x": BOX})
    texts = {"mission": {"max_length": 64}, "riddle": {"max_length": 3, "charset": "xy"}}
    tree = flatten_space(space, "observation", texts=texts)
    assert tree.ports["mission"].shape == (64,)
    assert tree.ports["mission"].cardinality == len(PRINTABLE) + 1 == 96
    assert tree.ports["riddle"].cardinality == 3
    value = {"mission": "go to the red ball", "riddle": "yx", "x": [0, 1]}
    tensors = tree.to_tensors(value, dtype=torch.float32)
    assert int(tensors["mission:mask"].sum()) == 18
    assert tensors["riddle"].tolist() == [2, 1, 0]


def test_a_declaration_may_replace_that_of_a_text_space():
    texts = {"observation": {"max_length": 3, "charset": "0123"}}
    tree = flatten_space(spaces.Text(10_000), "observation", texts=texts)
    assert tree.to_tensors("12", dtype=torch.float32)["observation"].tolist() == [2, 3, 0]


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        (["g/edges"], ["g/nodes", "g/nodes:mask", "g/edge_links", "g/edges:mask"]),
        (["g/edges", "g/edge_links"], ["g/nodes", "g/nodes:mask"]),
        (["g/nodes"], ["g/edges", "g/edge_links", "g/edges:mask"]),
        (["g", "g/edges"], []),
    ],
)
def test_parts_of_a_graph_can_be_ignored(ignore, left):
    space = spaces.Dict({"g": spaces.Graph(BOX, spaces.Discrete(2)), "x": BOX})
    tree = flatten_space(space, "observation", ignore)
    assert list(tree.leaves) == [*left, "x"]
    assert list(tree.to_tensors(space.sample(), dtype=torch.float32)) == [*left, "x"]


def test_ignored_parts_of_elements_may_be_of_any_kind_and_missing():
    element = spaces.Dict({"id": Riddle(), "x": BOX, "word": spaces.Text(3)})
    space = spaces.Dict({"o": spaces.OneOf([BOX, Riddle()]), "s": spaces.Sequence(element)})
    tree = flatten_space(space, "observation", ["s/id", "s/word", "o/1", "o/choice"])
    value = {"o": (1, None), "s": ({"x": [0, 1], "id": None}, {"x": [1, 1]})}
    tensors = tree.to_tensors(value, dtype=torch.float32)
    assert list(tensors) == ["o/0", "o/0:mask", "s/x", "s:mask"]
    assert tensors["s/x"].tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": "a", "x": torch.zeros(2)}, True),
        ({"o": (2, torch.zeros(2))}, True),
        ({"s": (), "x": torch.zeros(2)}, True),
        ({"s": (), "x": np.zeros(2)}, False),
        ("text", False),
        (((), ()), False),
    ],
)
def test_tensors_are_found_behind_texts_and_empty_sets(value, expected):
    assert holds_tensors(value) is expected
