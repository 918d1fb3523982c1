"""A cycle or a name of two nodes: what lies outside of it is built, and its mistakes are reported as well."""

import pytest

from perception_blocks import Graph, GraphError, InferenceBlock
from perception_blocks.graph.construct import Construction


class Noting(Construction):
    def __init__(self):
        self.shapes = {}

    def note(self, path, built):
        ports = built.node.out_ports.items()
        self.shapes["/".join(path)] = {name: port.shape for name, port in ports}


def graph():
    graph = Graph({"x": (4,)})
    graph.add("good", "dense", "x", hidden_units=[8])
    graph.add("left", "dense", "right", hidden_units=[8])
    graph.add("right", "dense", "left", hidden_units=[8])
    graph.add("behind", "dense", "right", hidden_unit=[8])
    graph.add("bad", "dense", "good", hidden_units=[0])
    return graph


def test_what_lies_outside_of_a_cycle_is_built_and_checked():
    noting = Noting()
    with pytest.raises(GraphError) as caught:
        InferenceBlock(graph(), ["behind", "bad"], construction=noting)
    assert [str(problem) for problem in caught.value.problems] == [
        "node 'left': the nodes form a cycle: 'left' -> 'right' -> 'left'",
        "node 'bad': 'hidden_units' must be a positive integer or a list of positive integers, got [0]",
        "node 'behind': 'hidden_unit' is not a setting of block 'dense'; did you mean 'hidden_units'?",
    ]
    assert noting.shapes == {"good": {"good": (8,)}}
    assert {name: port.shape for name, port in caught.value.ports.items()} == {
        "x": (4,),
        "good": (8,),
    }


def test_a_value_of_two_writers_is_unknown():
    graph = Graph({"x": (4,)})
    graph.add("good", "dense", "x", hidden_units=[8])
    graph.add("first", "dense", "x", out=["h"], hidden_units=[8])
    graph.add("second", "dense", "x", out=["h"], hidden_units=[9])
    graph.add("reader", "dense", "h", hidden_units=[0])
    noting = Noting()
    with pytest.raises(GraphError) as caught:
        InferenceBlock(graph, ["reader"], construction=noting)
    assert [str(problem) for problem in caught.value.problems] == [
        "node 'second': the output 'h' is named like an output of 'first'; choose another name",
        "node 'reader': 'hidden_units' must be a positive integer or a list of positive integers, got [0]",
    ]
    assert noting.shapes == {"good": {"good": (8,)}, "first": {"h": (8,)}}
    assert set(caught.value.ports) == {"x", "good"}


def test_a_graph_that_holds_itself_is_not_built():
    graph = Graph({"x": (4,)})
    graph.add("good", "dense", "x", hidden_units=[8])
    inner = Graph({})
    inner.add("again", inner, "x")
    graph.add("self", inner, "x")
    noting = Noting()
    with pytest.raises(GraphError, match="nested in it more than 100 deep"):
        InferenceBlock(graph, ["self", "good"], construction=noting)
    assert noting.shapes == {"good": {"good": (8,)}}
