import random
import subprocess
import sys

import networkx
import pytest

from perception_blocks.dag import Dag, DagNode


def messages(nodes, inputs=("x",), outputs=None):
    return [p.message for p in Dag(nodes, inputs, outputs).problems()]


def test_nodes_come_after_what_they_read():
    nodes = [DagNode(f"n{i}", (f"n{i - 1}" if i else "x", "x")) for i in range(50)]
    random.Random(0).shuffle(nodes)
    order = [node.name for node in Dag(nodes, ["x"], ["n49"]).order()]
    assert order == [f"n{i}" for i in range(50)]


def test_only_what_outputs_need_is_kept():
    nodes = [DagNode("a", ("x",)), DagNode("b", ("a",)), DagNode("c", ("a",))]
    dag = Dag(nodes, ["x"], ["b"])
    assert [node.name for node in dag.order()] == ["a", "b"]
    assert dag.needed() == {"a", "b"}
    assert dag.sinks() == ["b", "c"]


def test_a_node_may_write_several_names():
    nodes = [DagNode("a", ("x",), ("left", "right")), DagNode("b", ("right",))]
    dag = Dag(nodes, ["x"], ["b"])
    assert dag.problems() == []
    assert [node.name for node in dag.order()] == ["a", "b"]


def test_a_graph_of_any_depth_is_ordered_without_recursion():
    nodes = [DagNode(f"n{i}", (f"n{i - 1}" if i else "x",)) for i in range(20_000)]
    dag = Dag(nodes, ["x"], ["n19999"])
    assert dag.problems() == []
    assert len(dag.order()) == 20_000


@pytest.mark.parametrize(
    ("nodes", "outputs", "expected"),
    [
        (
            [DagNode("a", ("b",)), DagNode("b", ("a",))],
            ["a"],
            ["the nodes form a cycle: 'a' -> 'b' -> 'a'"],
        ),
        (
            [DagNode("a", ("a",))],
            ["a"],
            ["'a' reads itself; if it is to read an input of that name, rename the node"],
        ),
        (
            [DagNode("a", ("x",)), DagNode("a", ("x",))],
            ["a"],
            ["the name 'a' is used by two nodes"],
        ),
        (
            [DagNode("x", ("x",))],
            ["x"],
            ["the node 'x' is named like an input; choose another name"],
        ),
        (
            [DagNode("a", ("x",), ("x",))],
            ["a"],
            ["the output 'x' is named like an input; choose another name"],
        ),
        (
            [DagNode("a", ("xx",))],
            ["a"],
            ["'a' reads 'xx', which is neither an input nor a node's output; did you mean 'x'?"],
        ),
        (
            [DagNode("latent", ("x",))],
            ["latnet"],
            ["the output 'latnet' is no node's output; did you mean 'latent'?"],
        ),
        (
            [DagNode("a", ("x",)), DagNode("b", ("x",))],
            ["a"],
            ["nothing uses 'b': it reaches no output"],
        ),
    ],
)
def test_what_is_wrong_is_said_in_words(nodes, outputs, expected):
    found = messages(nodes, outputs=outputs)
    assert found[: len(expected)] == expected


def test_an_unread_input_is_a_problem():
    (problem,) = Dag([DagNode("a", ("x",))], ["x", "y"], ["a"]).problems()
    assert problem.message == "the input 'y' is read by no node"
    assert (problem.kind, problem.name, problem.node) == ("unused_input", "y", None)


def test_all_mistakes_are_reported_at_once():
    nodes = [
        DagNode("a", ("b",)),
        DagNode("b", ("a",)),
        DagNode("c", ("d",)),
        DagNode("d", ("c", "zzz")),
        DagNode("e", ("x",)),
        DagNode("e", ("x",)),
    ]
    kinds = [p.kind for p in Dag(nodes, ["x"], ["a"]).problems()]
    assert sorted(kinds) == ["cycle", "cycle", "duplicate", "unknown"]


def test_without_inputs_any_unwritten_name_is_one():
    assert Dag([DagNode("a", ("anything",))], None, None).problems() == []


def test_the_order_is_that_of_the_declaration_where_it_can_be():
    nodes = [DagNode("d", ("c",)), DagNode("a", ("x",)), DagNode("c", ("b",)), DagNode("b", ("x",))]
    order = Dag([*nodes, DagNode("e", ("a", "d"))], ["x"], ["e"]).order()
    assert [node.name for node in order] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (4, "the nodes form a cycle: 'n0' -> 'n1' -> 'n2' -> 'n3' -> 'n0'"),
        (
            1000,
            "1000 nodes form a cycle: "
            "'n0' -> 'n1' -> 'n2' -> 'n3' -> ... -> 'n998' -> 'n999' -> 'n0'",
        ),
    ],
)
def test_of_a_long_cycle_the_middle_is_left_out(size, message):
    nodes = [DagNode(f"n{i}", (f"n{(i - 1) % size}",)) for i in range(size)]
    (problem,) = Dag(nodes, inputs=["x"], outputs=["n0"]).problems()
    assert problem.message == message


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_first_of_the_declared_comes_first_whatever_is_left_to_sort(shuffled):
    """In both ways to an order: nodes that are declared in one, and those that networkx sorts."""
    rng = random.Random(7)
    nodes = [
        DagNode(f"n{i}", tuple({f"n{rng.randrange(i)}", "x"} if i else "x")) for i in range(60)
    ]
    if shuffled:
        rng.shuffle(nodes)
    left, done, expected = list(nodes), {"x"}, []
    while left:
        first = next(node for node in left if done.issuperset(node.reads))
        left.remove(first)
        done.add(first.name)
        expected.append(first)
    assert Dag(nodes, ["x"], None).order() == expected
    assert (expected == nodes) is not shuffled


def test_a_graph_that_is_declared_in_order_needs_no_networkx():
    code = (
        "import sys; from perception_blocks.dag import Dag, DagNode\n"
        "dag = Dag([DagNode('a', ('x',)), DagNode('b', ('a',))], ['x'], ['b'])\n"
        "print(dag.problems(), len(dag.order()), 'networkx' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[] 2 False\n", "")


def test_cycles_that_lead_to_others_are_reported_each_and_share_no_node():
    nodes = [
        DagNode("before", ("x",)),
        DagNode("a", ("b", "before")),
        DagNode("b", ("a",)),
        DagNode("c", ("d", "a")),
        DagNode("d", ("c",)),
        DagNode("after", ("d", "after")),
        DagNode("end", ("after",)),
    ]
    assert messages(nodes) == [
        "the nodes form a cycle: 'a' -> 'b' -> 'a'",
        "the nodes form a cycle: 'c' -> 'd' -> 'c'",
        "'after' reads itself; if it is to read an input of that name, rename the node",
    ]


def test_no_more_than_20_cycles_are_reported():
    nodes = [DagNode(f"n{i}", (f"n{i ^ 1}",)) for i in range(20_000)]
    assert len(messages(nodes)) == 20


def test_as_a_networkx_graph_it_has_inputs_nodes_and_the_values_between_them():
    nodes = [
        DagNode("a", ("x",), ("left", "right")),
        DagNode("b", ("right", "y", "left", "right")),
        DagNode("c", ("b", "unknown")),
    ]
    graph = Dag(nodes, ["x", "y"], ["b"]).to_networkx()
    assert isinstance(graph, networkx.DiGraph)
    assert dict(graph.nodes(data="kind")) == {
        "x": "input", "y": "input", "a": "node", "b": "node", "c": "node",
    }  # fmt: skip
    assert {edge[:2]: edge[2] for edge in graph.edges(data="values")} == {
        ("x", "a"): ("x",),
        ("a", "b"): ("right", "left"),
        ("y", "b"): ("y",),
        ("b", "c"): ("b",),
    }
    assert networkx.ancestors(graph, "b") == {"x", "y", "a"}


def test_without_inputs_the_networkx_graph_has_those_that_are_read():
    graph = Dag([DagNode("a", ("x",)), DagNode("b", ("a", "x"))], None, None).to_networkx()
    assert list(graph.nodes(data="kind")) == [("x", "input"), ("a", "node"), ("b", "node")]


def test_an_input_named_like_a_node_that_writes_other_names_is_no_cycle():
    dag = Dag([DagNode("a", ("a", "input:a"), ("b",))], ["a", "input:a"], ["b"])
    assert dag.problems() == []
    assert list(dag.to_networkx().edges) == [(("input", "a"), "a"), ("input:a", "a")]


def test_a_changed_networkx_graph_changes_no_order():
    dag = Dag([DagNode("b", ("a",)), DagNode("a", ("x",))], ["x"], None)
    dag.to_networkx().remove_node("a")
    assert [node.name for node in dag.order()] == ["a", "b"]
    assert "a" in dag.to_networkx()
