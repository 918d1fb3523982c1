"""What is wrong with a graph is said once, all of it, with near names."""

import pytest
import torch
from torch import nn

from composer.diagram.drawing import draw
from composer.summary.table import summarize
from perception_blocks import (
    Graph,
    GraphError,
    InferenceBlock,
    MemoryBlock,
    PerceptionBlock,
    Port,
)


def problems(graph: Graph, *outputs: str) -> list[str]:
    with pytest.raises(GraphError) as caught:
        InferenceBlock(graph, list(outputs))
    return str(caught.value).splitlines()


def small_graph() -> Graph:
    graph = Graph({"screen": (3, 8, 8), "inventory": (16,)})
    graph.add("flat", "flatten", "screen")
    graph.add("latent", "dense", "inventory", hidden_units=[8])
    graph.add("both", "concat", ["flat", "latent"])
    return graph


def test_everything_wrong_is_reported_at_once():
    graph = Graph({"screen": (3, 8, 8), "inventory": (16,)})
    graph.add("a", "dens", "inventory", hidden_units=[8])
    graph.add("b", "dense", "inventry", hidden_units=[8])
    graph.add("c", "dense", "inventory", hidden_unit=[8], activation="rleu")
    graph.add("d", "concat", ["inventory", "screen"])
    graph.add("e", "linear_output", "inventory", output_units=0)
    assert problems(graph, "a", "b", "c", "d", "e") == [
        "node 'b': 'b' reads 'inventry', which is neither an input nor a node's output; "
        "did you mean 'inventory'?",
        "node 'a': unknown block 'dens'; did you mean 'dense'?",
        "node 'c': 'hidden_unit' is not a setting of block 'dense'; did you mean 'hidden_units'?",
        "node 'c': 'activation' names the unknown activation 'rleu'; did you mean 'relu'?",
        "node 'd': block 'd' gets (16,) from 'inventory' and (3, 8, 8) from 'screen'; concat needs "
        "equal shapes but for the last axis. Add a flatten block after 'screen'.",
        "node 'e': 'output_units' must be a positive integer or null, got 0",
    ]


def test_a_cycle_is_named_in_order():
    graph = Graph({"x": (4,)})
    graph.add("a", "concat", ["x", "b"])
    graph.add("b", "dense", "a", hidden_units=[4])
    assert problems(graph, "b") == ["node 'a': the nodes form a cycle: 'a' -> 'b' -> 'a'"]


def test_unread_inputs_and_unused_nodes_are_errors():
    graph = Graph({"x": (4,), "y": (4,)})
    graph.add("a", "dense", "x", hidden_units=[4])
    graph.add("left", "dense", "x", hidden_units=[4])
    assert problems(graph, "a") == [
        "node 'left': nothing uses 'left': it reaches no output",
        "the input 'y' is read by no node",
    ]


def test_an_optional_input_may_stay_unread():
    graph = Graph({"x": (4,), "y": (4,)}, optional=["y"])
    graph.add("a", "dense", "x", hidden_units=[4])
    assert InferenceBlock(graph, ["a"]).in_keys == ["x"]


def test_an_unknown_output_suggests_a_near_one():
    assert problems(small_graph(), "bath") == [
        "the output 'bath' is no node's output; did you mean 'both'?"
    ]


def test_a_name_used_twice_is_an_error():
    graph = small_graph()
    graph.add("latent", "dense", "inventory", hidden_units=[8])
    assert "node 'latent': the name 'latent' is used by two nodes" in problems(graph, "both")


def test_a_node_named_like_an_input_is_an_error():
    graph = Graph({"x": (4,)})
    graph.add("x", "dense", "x", hidden_units=[4])
    assert "named like an input" in problems(graph, "x")[0]


@pytest.mark.parametrize("name", ["", "a.b", "1a", "a b", "a-b"])
def test_malformed_node_names_are_refused(name):
    with pytest.raises(ValueError, match="and hold letters, digits and '_' only"):
        Graph({"x": (4,)}).add(name, "dense", "x", hidden_units=[4])


@pytest.mark.parametrize("name", ["_", "training"])
def test_names_with_a_meaning_of_their_own_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is no name for a node: "):
        Graph({"x": (4,)}).add(name, "dense", "x", hidden_units=[4])


def test_a_node_is_a_block_or_shares_one():
    graph = Graph({"x": (4,)})
    with pytest.raises(ValueError, match="needs exactly one of block and same_as"):
        graph.add("a", None, "x")
    with pytest.raises(ValueError, match="needs exactly one of block and same_as"):
        graph.add("a", "dense", "x", same_as="b")


def test_same_as_needs_the_shapes_it_was_built_for():
    graph = Graph({"x": (4,), "y": (5,)})
    graph.add("a", "dense", "x", hidden_units=[3])
    graph.add("b", None, "y", same_as="a")
    assert problems(graph, "a", "b") == ["node 'b': 'a' was built for (4,) and cannot take (5,)"]


def test_same_as_an_unknown_node_is_reported_once():
    graph = Graph({"x": (4,)})
    graph.add("encoder", "dense", "x", hidden_units=[3])
    graph.add("b", None, "x", same_as="encodr")
    assert problems(graph, "encoder", "b") == [
        "node 'b': 'same_as' names the unknown node 'encodr'; did you mean 'encoder'?"
    ]


def test_each_needs_the_axes_it_repeats_over():
    graph = Graph({"x": (4,), "y": (2, 3), "z": (5, 3)})
    graph.add("a", "dense", "x", each=2, hidden_units=[3])
    graph.add("b", "concat", ["y", "z"], each=1)
    assert problems(graph, "a", "b") == [
        "node 'a': 'each: 2' needs as many axes; 'x' has the shape (4,)",
        "node 'b': 'each: 1' needs inputs with the same first axes, got (2,) and (5,)",
    ]


def test_each_cannot_repeat_a_memory():
    graph = Graph({"x": (2, 4)})
    graph.add("a", "lstm", "x", each=1, hidden_units=3)
    assert problems(graph, "a") == [
        "node 'a': 'each' cannot repeat block 'lstm': it carries a state"
    ]


def test_out_names_as_many_values_as_the_block_has():
    graph = Graph({"x": (4,)})
    graph.add("a", "dense", "x", out=["p", "q"], hidden_units=[3])
    assert problems(graph, "p", "q") == ["node 'a': 'out' names 2 outputs, but block 'dense' has 1"]


def test_an_argument_that_forward_does_not_have_is_an_error():
    graph = Graph({"x": (4,)})
    graph.add(
        "a",
        nn.Bilinear,
        {"input1": "x", "inputt": "x"},
        in1_features=4,
        in2_features=4,
        out_features=2,
    )
    assert problems(graph, "a") == [
        "node 'a': 'inputt' is not an argument of block 'torch.nn.Bilinear'; did you mean 'input2'?"
    ]


def test_torch_modules_that_cannot_take_their_input_say_so():
    graph = Graph({"x": (16,)})
    graph.add("a", nn.Linear, "x", in_features=3, out_features=3)
    assert problems(graph, "a") == [
        "node 'a': block 'a' gets (16,) from 'x'; torch.nn.Linear fails: "
        "mat1 and mat2 shapes cannot be multiplied (11x16 and 3x3)."
    ]


def test_a_module_that_loses_its_batch_axis_is_refused():
    class Total(nn.Module):
        def forward(self, x):
            return x.sum()

    graph = Graph({"x": (16,)})
    graph.add("a", Total, "x")
    assert problems(graph, "a") == [
        "node 'a': block 'Total' returned () for a batch of 11; "
        "the first axis of the output must be the batch axis of the input"
    ]


class Fuse(nn.Module):
    def forward(self, image, vector, *, scale=1.0):
        raise AssertionError("never called")


class FuseBlock(PerceptionBlock):
    forward = Fuse.forward


@pytest.mark.parametrize("block", [Fuse, Fuse(), FuseBlock])
@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ("x", "one input: missing a required argument: 'vector'"),
        (["x", "x", "x"], "3 inputs: too many positional arguments"),
        ({"vector": "x"}, "one input: missing a required argument: 'image'"),
    ],
)
def test_a_forward_that_does_not_take_its_inputs_is_not_run(block, inputs, text):
    graph = Graph({"x": (4,)})
    graph.add("a", block, inputs)
    name = "FuseBlock" if block is FuseBlock else "Fuse"
    assert problems(graph, "a") == [
        f"node 'a': block {name!r}: forward(image, vector, scale) does not take {text}; "
        "'in' names its inputs, in order or as {argument: value}"
    ]


def test_an_exception_in_a_users_class_keeps_its_traceback_and_names_the_node():
    class Broken(nn.Module):
        def forward(self, x):
            return x / self.missing

    graph = Graph({"x": (16,)})
    graph.add("a", Broken, "x")
    with pytest.raises(AttributeError) as caught:
        InferenceBlock(graph, ["a"])
    line = Broken.forward.__code__.co_firstlineno + 1
    assert caught.value.__notes__ == [f"in node 'a' (block 'Broken'), raised at {__file__}:{line}"]


def test_problems_inside_a_nested_graph_carry_its_path():
    inner = Graph({})
    inner.add("a", "dense", "x", hidden_unit=[4])
    graph = Graph({"x": (4,)})
    graph.add("outer", inner, {"x": "x"}, out=["a"])
    assert problems(graph, "a") == [
        "node 'outer/a': 'hidden_unit' is not a setting of block 'dense'; did you mean 'hidden_units'?"
    ]


def test_a_nested_graph_with_several_ends_must_name_its_outputs():
    inner = Graph({})
    inner.add("a", "dense", "x", hidden_units=[4])
    inner.add("b", "dense", "x", hidden_units=[4])
    graph = Graph({"x": (4,)})
    graph.add("outer", inner, {"x": "x"})
    assert problems(graph, "outer") == [
        "node 'outer': the nested graph ends in 2 values ('a', 'b'); say which with 'out'"
    ]


def test_integers_and_unscaled_images_are_refused_where_numbers_are_needed():
    graph = Graph(
        {
            "level": Port((), dtype=torch.int64, cardinality=5),
            "screen": Port((3, 36, 36), dtype=torch.uint8, low=0.0, high=255.0),
        }
    )
    graph.add("a", "flatten_dense", "level", hidden_units=[4])
    graph.add("b", "nature_cnn", "screen")
    first, second = problems(graph, "a", "b")
    assert "put a one_hot or embedding block before it" in first.lower()
    assert "scale_image" in second


def test_a_users_block_says_what_is_wrong_in_its_own_words():
    class Even(PerceptionBlock):
        def __init__(self, in_shapes):
            super().__init__(in_shapes, out_shapes=in_shapes)
            if in_shapes[0][-1] % 2:
                raise ValueError("even takes an even number of features")

    graph = Graph({"x": (5,)})
    graph.add("a", Even, "x")
    assert problems(graph, "a") == ["node 'a': even takes an even number of features"]


class Counter(MemoryBlock):
    """A memory block of a user's own, which may say the wrong thing about its state."""

    def __init__(self, in_shapes, *, name: str = "count", size: int = 1):
        super().__init__(in_shapes, out_shapes=in_shapes)
        self.state_shapes = {"count": (1,)}
        self.name, self.size = name, size

    def advance(self, x, state):
        count = state["count"] + 1
        return x + count, {self.name: count.expand(*count.shape[:-1], self.size)}


def test_a_users_memory_is_held_to_the_state_that_it_declares():
    graph = Graph({"x": (4,)})
    graph.add("good", Counter, "x")
    assert InferenceBlock(graph, ["good"]).state_shapes == {"good/count": (1,)}
    graph.add("misnamed", Counter, "x", name="counts")
    graph.add("misshapen", Counter, "x", size=3)
    assert problems(graph, "good", "misnamed", "misshapen") == [
        "node 'misnamed': block 'Counter' declares the state 'count', but returns 'counts'",
        "node 'misshapen': block 'Counter' declares the state 'count' as (1,), but returns (3,)",
    ]


def test_settings_are_checked_also_behind_what_failed():
    graph = Graph({"x": (4,)})
    graph.add("a", "dense", "x", hidden_units=-3)
    graph.add("b", "dense", "a", hiden_units=8)
    graph.add("c", "dens", "b")
    graph.add("d", "embedding", "c", embedding_dim="8")
    with pytest.raises(GraphError) as caught:
        InferenceBlock(graph, ["d"])
    found = [(problem.path, problem.key) for problem in caught.value.problems]
    expected = [("a", "hidden_units"), ("b", "hiden_units"), ("c", "block"), ("d", "embedding_dim")]
    assert found == [((node,), key) for node, key in expected]


def nested(levels: int) -> Graph:
    graph = Graph({})
    graph.add("y", "linear_output", "x", output_units=2)
    for _ in range(levels):
        outer = Graph({"x": (4,)})
        outer.add("y", graph, {"x": "x"}, out=["y"])
        graph = outer
    return graph


NESTED = (
    "node 'y': graphs are nested in it more than 100 deep; "
    "does one hold itself? Put the nodes of inner graphs into outer ones"
)


@pytest.mark.parametrize("levels", [101, 300, 3000])
def test_graphs_nested_too_deep_are_refused(levels):
    assert problems(nested(levels), "y") == [NESTED]


def test_a_graph_that_holds_itself_is_refused():
    graph = Graph({"x": (4,)})
    graph.add("y", graph, {"x": "x"}, out=["y"])
    assert problems(graph, "y") == [NESTED]


def test_graphs_nested_as_deep_as_may_be_work_everywhere(tmp_path):
    net = InferenceBlock(nested(100), ["y"])
    x = {"x": torch.randn(2, 4)}
    assert torch.equal(net.lower()(x)["y"], net(x)["y"])
    assert summarize(net).parameters == 10
    assert draw(net, tmp_path / "net.dot").read_text().count("subgraph") == 100


def test_graphs_nested_50_deep_are_exported():  # at 100, torch.export meets Python's limit of recursion
    net = InferenceBlock(nested(50), ["y"])
    x = {"x": torch.randn(2, 4)}
    assert torch.equal(torch.export.export(net, (x,)).module()(x)["y"], net(x)["y"])


def test_as_a_networkx_graph_it_says_the_blocks_the_shapes_and_the_values():
    inner = Graph({"x": (4,)})
    inner.add("y", "dense", "x", hidden_units=[2])
    graph = Graph({"x": (4,)})
    graph.add("encoder", "dense", "x", hidden_units=[4])
    graph.add("again", None, "encoder", same_as="encoder")
    graph.add("normed", nn.LayerNorm, "again", normalized_shape=4)
    graph.add("pair", lambda x: (x, x), "normed", out=["one", "two"])
    graph.add("both", "concat", ["two", "one"])
    graph.add("nested", inner, {"x": "both"}, out=["y"])
    graph.add("votes", inner, {"x": "x"}, out={"vote": "y"}, copies=3)
    graph.add("move", "linear_output", "y", group="heads", output_units=3)
    found = graph.to_networkx()
    assert dict(found.nodes(data="block")) == {
        "x": None, "encoder": "dense", "again": "dense", "normed": "torch.nn.LayerNorm",
        "pair": "functional", "both": "concat", "nested": "graph", "votes": "ensemble",
        "heads:move": "linear_output",
    }  # fmt: skip
    assert found.nodes["x"] == {"kind": "input", "shape": (4,)}
    assert found.edges["pair", "both"]["values"] == ("two", "one")
    assert found.edges["nested", "heads:move"]["values"] == ("y",)


def test_a_network_as_a_networkx_graph_is_what_was_built_masks_included():
    graph = Graph({"set": Port((4, 3), mask="valid"), "valid": (4,)})
    graph.add("encoder", "dense", "set", each=1, hidden_units=[3])
    graph.add("again", None, "encoder", same_as="encoder", each=1)
    graph.add("pooled", "masked_global_pooling", "again")
    inner = Graph({"x": (3,)})
    inner.add("y", "dense", "x", hidden_units=[2])
    graph.add("votes", inner, {"x": "pooled"}, out={"vote": "y"}, copies=2)
    built = InferenceBlock(graph, ["vote"]).to_networkx()
    assert dict(built.nodes(data="block")) == {
        "set": None, "valid": None, "encoder": "dense", "again": "dense",
        "pooled": "masked_global_pooling", "votes": "ensemble",
    }  # fmt: skip
    assert built.nodes["valid"] == {"kind": "input", "shape": (4,)}
    assert built.edges["valid", "pooled"]["values"] == ("valid",)
    assert built.edges["pooled", "votes"]["values"] == ("pooled",)
