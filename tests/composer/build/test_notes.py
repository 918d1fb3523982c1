"""What the builder notes of networks and nodes, also where the spec is wrong."""

import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

from composer.build.budget import Budget
from composer.build.construction import SeededConstruction
from composer.build.context import BuildContext, BuildNotes
from composer.build.policy_and_critic import build_policy_and_critic
from composer.errors import Problems, SpecError
from composer.limits import Limits
from composer.source.load import load_source
from composer.spaces.actors import read_actors
from composer.spaces.lookup import is_by_actor
from composer.spec.model_spec import NodeSpec, of_one_actor
from composer.spec.read import read_spec
from composer.summary.rows import flops_of_node

SPACES = (Dict(a=Box(-1, 1, (3, 4)), b=Box(-1, 1, (4,))), Discrete(2))
GOOD = """
version: 1
ignore: [b]
policy:
  graph:
    first: {block: flatten, in: a}
    second: {block: dense, in: first, hidden_units: [8]}
  heads: {in: second}
"""


def notes_of(text, spaces=SPACES, **context):
    """The notes of the spec ``text``, and what is wrong with it."""
    source = load_source(text)
    spec, notes = read_spec(source), BuildNotes()
    actors = read_actors(*spaces) if is_by_actor(spaces[0]) else None
    spec = of_one_actor(spec) if actors is None else spec
    given = BuildContext(source, Problems(source), (), 0, True, Budget(Limits()), **context)
    try:
        build_policy_and_critic(spec, given, spaces, actors, torch.float32, notes)
    except SpecError as error:
        return notes, error.problems
    return notes, ()


def shapes(notes, path):
    return {
        name: port.shape
        for built in notes.built.get(path, {}).values()
        for name, port in built.node.out_ports.items()
    }


def test_each_node_of_a_good_spec_is_noted_with_its_module():
    notes, problems = notes_of(GOOD)
    assert problems == ()
    assert shapes(notes, ("policy", "graph", "second")) == {"second": (8,)}
    ((path, built),) = notes.built["policy", "graph", "second"].items()
    assert path == ("policy", "second")
    assert sum(p.numel() for p in built.module.parameters()) == 12 * 8 + 8
    assert flops_of_node(*built) == 2 * 12 * 8
    known = {name: port.shape for name, port in notes.ports["policy",].items()}
    assert known == {"a": (3, 4), "first": (12,), "second": (8,)}


def test_nodes_of_a_network_that_fails_are_noted_too():
    notes, problems = notes_of(GOOD.replace("hidden_units: [8]", "hidden_units: [0]"))
    assert len(problems) == 1
    assert shapes(notes, ("policy", "graph", "first")) == {"first": (12,)}
    assert ("policy", "graph", "second") not in notes.built
    assert notes.ports["policy",]["first"].shape == (12,)
    assert notes.faults == {(("policy", "graph", "second", "hidden_units"), problems[0].message)}


def test_nested_graphs_and_each_application_of_them_are_noted():
    text = """
version: 1
ignore: [b]
policy:
  graph:
    rows:
      block: ensemble
      copies: 2
      in: {x: a}
      each: 1
      graph:
        inner: {block: dense, in: x, hidden_units: [5]}
    flat: {block: flatten, in: rows}
  heads: {in: flat}
"""
    notes, problems = notes_of(text)
    assert problems == ()
    nested = ("policy", "graph", "rows")
    assert shapes(notes, (*nested, "graph", "inner")) == {"inner": (5,)}
    assert {name: port.shape for name, port in notes.ports[nested].items()} == {
        "x": (4,),
        "inner": (5,),
    }
    (built,) = notes.built[nested].values()
    assert flops_of_node(*built) == 3 * 2 * (2 * 4 * 5)


def test_networks_of_agents_are_noted_by_their_paths():
    spaces = (
        {("x", 0): SPACES[0], ("x", 1): SPACES[0]},
        {("x", 0): Discrete(2), ("x", 1): Discrete(2)},
    )
    notes, problems = notes_of(GOOD.replace("policy:", "policy:\n  separate: true"), spaces)
    assert problems == ()
    names = list(notes.built["policy", "graph", "second"])
    assert names == [("policy/0", "second"), ("policy/1", "second")]


def test_a_broken_node_is_not_built_and_the_others_are_checked():
    text = GOOD.replace("in: first, hidden_units", "in: first, hidden_unit")
    broken = frozenset({("policy", "graph", "first", "block")})
    notes, _ = notes_of(text, broken=broken)
    assert ("policy", "graph", "first") not in notes.built
    (fault,) = [fault for fault in notes.faults if fault[0][2] == "second"]
    assert fault[0] == ("policy", "graph", "second", "hidden_unit")
    assert "did you mean 'hidden_units'?" in fault[1]


def test_a_mistake_in_an_inner_node_does_not_break_the_graph_around_it():
    path = ("policy", "graph", "outer")
    inner = NodeSpec((*path, "graph", "inner"), "inner", "dense", ("x",))
    outer = NodeSpec(path, "outer", "graph", {"x": "a"}, graph={"inner": inner})

    def broken(*place):
        source = load_source(GOOD)
        given = (source, Problems(source), (), 0, True, Budget(Limits()), frozenset({place}))
        return [node.name for node in (outer, inner) if BuildContext(*given).is_broken(node)]

    assert broken(*inner.path, "block") == ["inner"]
    assert broken(*outer.path, "in") == ["outer"]
    assert broken("policy", "graph") == []


class Keeping(SeededConstruction):
    """A cache of modules, by what they follow from."""

    kept: list[tuple[object, nn.Module]] = []

    def build(self, path, factory, *, resettable, key):
        for known, module in self.kept:
            if repr(known) == repr(key):
                return module
        module = super().build(path, factory, resettable=resettable, key=key)
        self.kept.append((key, module))
        return module


def test_a_construction_may_keep_modules_by_what_they_follow_from():
    Keeping.kept = []
    first, _ = notes_of(GOOD, construction=Keeping)
    second, _ = notes_of(GOOD, construction=Keeping)
    changed, _ = notes_of(GOOD.replace("[8]", "[9]"), construction=Keeping)
    path = ("policy", "graph", "second")
    modules = [next(iter(notes.built[path].values())).module for notes in (first, second, changed)]
    assert modules[0] is modules[1]
    assert modules[2] is not modules[0]
    keys = [key for key, _ in Keeping.kept]
    assert [key.settings for key in keys][:2] == [{}, {"hidden_units": [8]}]
    assert keys[1].ports[0].shape == (12,)
