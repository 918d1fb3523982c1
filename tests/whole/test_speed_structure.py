"""What keeps large networks fast, without a clock: nothing recurses over a graph, nothing is done once more per node."""

import copy
import gc
import importlib
import pickle
import sys
import typing

import gymnasium
import numpy as np
import pytest
import torch

import composer
from composer.summary.flops import FlopCounterMode
from composer.summary.table import summarize
from perception_blocks import Graph, InferenceBlock, settings
from perception_blocks.dag import Dag
from perception_blocks.graph.collector import collection_paused
from perception_blocks.graph.graph import GraphError
from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
MANY = 2 * sys.getrecursionlimit()
SPACES = {
    "observation_space": gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32),
    "action_space": gymnasium.spaces.Discrete(2),
}


def chain(count: int) -> InferenceBlock:
    graph = Graph({"x": (4,)})
    name = "x"
    for i in range(count):
        name = graph.add(f"n{i}", "dense", name, hidden_units=4)
    return InferenceBlock(graph, {"y": name})


def nested(depth: int) -> InferenceBlock:
    inner = Graph({})
    inner.add("y", "dense", "x", hidden_units=4)
    for _ in range(depth):
        outer = Graph({})
        outer.add("y", inner, {"x": "x"})
        inner = outer
    graph = Graph({"x": (4,)})
    graph.add("y", inner, {"x": "x"})
    return InferenceBlock(graph, ["y"])


def chain_text(count: int) -> str:
    nodes = [f"    n{i}: {{block: dense, in: n{i - 1}, hidden_units: 4}}" for i in range(1, count)]
    first = "    n0: {block: dense, in: observation, hidden_units: 4}"
    return (
        "\n".join(
            ["version: 1", "policy:", "  graph:", first, *nodes, f"  heads: {{in: n{count - 1}}}"]
        )
        + "\n"
    )


@pytest.fixture(scope="module")
def long_chain():
    return chain(MANY)


def test_a_network_of_10000_blocks_is_built_and_runs():
    net = chain(10_000)
    assert net({"x": torch.randn(2, 4)})["y"].shape == (2, 4)
    assert net.source().count("\n") > 10_000


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_long_chain_is_copied_and_pickled(long_chain, twin):
    x = {"x": torch.randn(2, 4)}
    assert torch.equal(twin(long_chain)(x)["y"], long_chain(x)["y"])


def test_gradients_reach_the_start_of_a_long_chain(long_chain):
    long_chain({"x": torch.randn(2, 4)})["y"].sum().backward()
    assert long_chain.get_submodule("n0").linears[0].weight.grad is not None


def test_a_long_chain_is_a_table_and_a_picture(long_chain, tmp_path):
    assert len(summarize(long_chain).rows) == MANY
    for ending in ("dot", "mmd"):
        text = composer.draw(long_chain, tmp_path / f"chain.{ending}").read_text()
        assert "dense" in text  # equal nodes in a row are one box


def test_a_long_spec_is_composed_saved_and_loaded(tmp_path):
    model = composer.compose(chain_text(MANY), **SPACES)
    model.save(tmp_path / "long.pt")
    loaded = composer.load(tmp_path / "long.pt")
    x = np.zeros(4, np.float32)
    assert torch.equal(loaded.policy(x)["action"], model.policy(x)["action"])


def test_graphs_nest_100_deep():
    net = nested(99)  # and one that holds them all
    x = {"x": torch.randn(2, 4)}
    assert torch.equal(copy.deepcopy(net)(x)["y"], net(x)["y"])
    assert len(summarize(net).rows) == 101


def test_annotations_are_read_once_per_class(monkeypatch):
    chain(1)
    calls = []
    monkeypatch.setattr(settings, "get_type_hints", lambda *_, **__: calls.append(1) or {})
    monkeypatch.setattr(typing, "get_type_hints", lambda *_, **__: calls.append(1) or {})
    chain(50)
    assert calls == []


def test_a_graph_is_put_in_order_once(monkeypatch):
    calls = []
    order = Dag.order
    monkeypatch.setattr(Dag, "order", lambda dag: calls.append(1) or order(dag))
    chain(50)
    assert calls == [1]


def test_equal_nodes_are_counted_once(monkeypatch):
    entered = []
    enter = FlopCounterMode.__enter__
    monkeypatch.setattr(FlopCounterMode, "__enter__", lambda mode: entered.append(1) or enter(mode))
    summary = summarize(chain(20))
    assert len(entered) == 1
    assert summary.flops == 20 * 2 * 4 * 4


def test_nodes_that_differ_in_a_setting_are_counted_each():
    graph = Graph({"x": (4,)})
    graph.add("narrow", "dense", "x", hidden_units=2)
    graph.add("wide", "dense", "x", hidden_units=8)
    graph.add("again", None, "x", same_as="wide")
    rows = summarize(InferenceBlock(graph, ["narrow", "wide", "again"])).rows
    assert [row.flops for row in rows] == [2 * 4 * 2, 2 * 4 * 8, 2 * 4 * 8]


def test_the_collector_is_paused_while_building_and_goes_on_after():
    def paused(x):
        assert not gc.isenabled()
        return x

    graph = Graph({"x": (4,)})
    graph.add("y", paused, "x")
    InferenceBlock(graph, ["y"])
    assert gc.isenabled()


def test_the_collector_goes_on_after_an_error_and_stays_off_where_it_was_off():
    graph = Graph({"x": (4,)})
    graph.add("y", "dense", "x", hidden_units=0)
    with pytest.raises(GraphError):
        InferenceBlock(graph, ["y"])
    assert gc.isenabled()
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_built_is_old_for_the_collector_and_what_was_frozen_stays_so():
    gc.collect()
    with collection_paused():
        built = [[] for _ in range(100)]
    assert any(old is built for old in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with collection_paused():
            pass
        assert gc.get_freeze_count() > frozen / 2 > 0  # some frozen objects may die meanwhile
    finally:
        gc.unfreeze()


def test_70_billion_parameters_are_counted_exactly_and_not_made(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    decoder = importlib.import_module("decoder")

    words = gymnasium.spaces.MultiDiscrete([decoder.WORDS] * decoder.LENGTH)
    action = gymnasium.spaces.Discrete(decoder.WORDS)
    model = composer.compose(
        decoder.spec(), observation_space=words, action_space=action, device="meta"
    )
    summary = summarize(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert summary.parameters == decoder.parameters() == 70_320_160_000
    assert summary.flops == decoder.flops()


def test_dtype_and_device_of_weights_that_were_made_in_place():
    spec = chain_text(3)
    double = composer.compose(spec, **SPACES, seed=1, dtype=torch.float64)
    single = composer.compose(spec, **SPACES, seed=1)
    later = composer.compose(spec, **SPACES, seed=1, device="meta").materialize()
    for name, weight in single.state_dict().items():
        assert torch.equal(weight, later.state_dict()[name])
        assert torch.equal(weight.double(), double.state_dict()[name])
