"""Why a node has its shapes: settings with their origin, and what it reads, back to the observations."""

import pytest
from gymnasium.spaces import Box, Dict, Discrete

from composer.editor.analysis import analyse_source
from composer.editor.asked_node import NoSuchNodeError, node_asked, node_names
from composer.editor.environments import MadeSpaces
from composer.editor.given import Given
from composer.editor.why import MOST_NODES, why
from composer.source.load import load_source

STATE = (Dict(image=Box(0, 1, (3, 8, 8)), state=Box(-1, 1, (4,))), Discrete(2))
TWO = (
    {"left": Box(-1, 1, (4,)), "right": Box(-1, 1, (4,))},
    {"left": Discrete(2), "right": Discrete(3)},
)
BASE = """\
version: 1
params: {base: 16, width: "${params.base}", act: tanh}
policy:
  graph:
    first: {block: dense, in: state, hidden_units: ["${params.width}", 8]}
    outer:
      block: graph
      in: {x: first}
      graph:
        a: {block: dense, in: x, hidden_units: [4], activation: "${params.act}"}
        b: {block: dense, in: a, hidden_units: [5]}
    last: {block: concat, in: [outer, first]}
  heads: {in: last, init_scale: 0.1}
"""
OVER = "extends: base.yaml\nparams: {base: 32}\npolicy:\n  graph:\n    first: {activation: elu}\n"


def analysed(spec, overrides=(), spaces=STATE, **options):
    given = Given("Two-v0", MadeSpaces(spaces)) if spaces else Given(unknown="no environment")
    return analyse_source(load_source(spec, overrides, **options), lambda spec, text: given)


def answer(analysis, asked, **options) -> str:
    return why(analysis, node_asked(analysis, asked), **options)


@pytest.fixture
def specs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "spec.yaml").write_text(OVER)
    return tmp_path


def test_settings_have_their_origin_in_params_bases_and_overrides(specs):
    analysis = analysed(specs / "spec.yaml", ["policy.graph.outer.graph.b.hidden_units=[9]"])
    assert answer(analysis, "last", folder=str(specs)) == """\
last (17,)  concat, 0 parameters  base.yaml:12
  outer (9,)  graph  base.yaml:6
    b (9,)  dense  base.yaml:11
      hidden_units = [9]  --set policy.graph.outer.graph.b.hidden_units=[9]
      a (4,)  dense  base.yaml:10
        hidden_units = [4]  base.yaml:10
        activation = params.act = tanh  base.yaml:2
        first (8,)  dense  spec.yaml:5
          hidden_units = [params.width, 8] = [32, 8]  base.yaml:5
            params.width = params.base = 32  spec.yaml:2
          activation = elu  spec.yaml:5
          state (4,)  an observation of Two-v0
  first (8,), see above"""  # fmt: skip


def test_an_answer_ends_where_it_is_told_to(specs):
    text = answer(analysed("spec.yaml"), "last", depth=1)
    assert (
        text
        == """\
last (13,)  concat, 0 parameters  base.yaml:12
  outer (5,)  graph  base.yaml:6
  first (8,)  dense  spec.yaml:5
    hidden_units = [params.width, 8] = [32, 8]  base.yaml:5
      params.width = params.base = 32  spec.yaml:2
    activation = elu  spec.yaml:5"""
    )


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("b", ("policy", "graph", "outer", "graph", "b")),
        ("policy/outer/b", ("policy", "graph", "outer", "graph", "b")),
        ("policy.graph.outer.graph.b", ("policy", "graph", "outer", "graph", "b")),
        ("heads", ("policy", "heads")),
        ("policy/heads/action", ("policy", "heads")),
        ("5", ("policy", "graph", "first")),
        ("spec.yaml:5", ("policy", "graph", "first")),
        ("base.yaml:6", ("policy", "graph", "outer")),
        ("base.yaml:8", ("policy", "graph", "outer")),
        ("base.yaml:11", ("policy", "graph", "outer", "graph", "b")),
        ("base.yaml:13", ("policy", "heads")),
    ],
)
def test_a_node_is_asked_for_by_name_path_or_line(specs, asked, place):
    assert node_asked(analysed("spec.yaml"), asked) == place


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("lats", "there is no node 'lats'; did you mean 'last'?"),
        (
            "zzz",
            "there is no node 'zzz'; there is 'policy/first', 'policy/outer/a', 'policy/outer/b', "
            "'policy/outer', 'policy/last', 'policy/heads/action'",
        ),
        ("2", "spec.yaml:2 is in no node; the nearest is 'policy/first' at line 5"),
        ("base.yaml:1", "base.yaml:1 is in no node; the nearest is 'policy/outer' at line 6"),
        (
            "nets:1",
            "the spec is not written in 'nets'; it is in 'spec.yaml', 'base.yaml'",
        ),
        ("basis.yaml:1", "the spec is not written in 'basis.yaml'; did you mean 'base.yaml'?"),
    ],
)
def test_what_is_no_node_is_answered_with_what_there_is(specs, asked, message):
    analysis = analysed("spec.yaml")
    with pytest.raises(NoSuchNodeError) as caught:
        node_asked(analysis, asked)
    assert str(caught.value) == message


def test_a_name_in_several_networks_needs_its_path(specs):
    analysis = analysed(
        BASE + "critic:\n  graph:\n    last: {block: dense, in: state, hidden_units: [3]}\n"
    )
    with pytest.raises(NoSuchNodeError) as caught:
        node_asked(analysis, "last")
    assert str(caught.value) == "'last' is 'critic/last', 'policy/last': say which of them"
    for name in ("critic/last", "policy/last"):
        assert answer(analysis, name).startswith("last (")


def test_near_names_can_be_asked_for(specs):
    analysis = analysed(
        BASE + "critic:\n  graph:\n    last: {block: dense, in: state, hidden_units: [3]}\n"
    )
    with pytest.raises(NoSuchNodeError) as caught:
        node_asked(analysis, "lats")
    assert "'last'?" not in str(caught.value)  # which of them is not said
    names = {name for name, _ in node_names(analysis)}
    assert {"critic/last", "policy/last", "policy/heads/action"} <= names


def test_a_spec_without_nodes_says_so():
    with pytest.raises(NoSuchNodeError) as caught:
        node_asked(analysed({"version": 1, "model": {"model_type": "tiny_vla"}}), "x")
    assert str(caught.value) == "there is no node 'x': the spec has no nodes"


def test_a_shared_value_leads_into_the_policy():
    spec = """\
version: 1
policy:
  graph:
    flat: {block: flatten, in: image}
    latent: {block: dense, in: flat, hidden_units: [6]}
  heads: {in: latent}
  shares: [flat]
critic:
  graph:
    value: {block: dense, in: flat, hidden_units: [2]}
"""
    assert answer(analysed(spec), "critic/value") == """\
value (2,)  dense, 386 parameters  <spec>:10
  hidden_units = [2]  <spec>:10
  flat (192,)  flatten  <spec>:4
    image (3, 8, 8)  an observation of Two-v0"""  # fmt: skip


def test_one_head_may_stand_for_several_actions():
    spaces = (STATE[0], Dict(move=Discrete(4), use=Discrete(3)))
    text = answer(analysed(BASE, spaces=spaces), "policy/heads/use", depth=0)
    assert (
        text
        == """\
heads: move (4,), use (3,)  linear_output, 98 parameters  <spec>:13
  init_scale = 0.1  <spec>:13"""
    )


def test_networks_of_several_actors_are_told_apart():
    spec = """\
version: 1
policy:
  networks:
    left: {graph: {latent: {block: dense, in: observation, hidden_units: [4]}}, heads: {in: latent}}
    right: {graph: {latent: {block: dense, in: observation, hidden_units: [6]}}, heads: {in: latent}}
critic:
  kind: shared_state
  stack: true
  graph:
    seen: {block: deep_set, in: {x: observation, mask: present}, hidden_units: [5]}
"""
    analysis = analysed(spec, spaces=TWO)
    assert analysis.problems == ()
    with pytest.raises(NoSuchNodeError, match=r"'policy/left/latent', 'policy/right/latent'"):
        node_asked(analysis, "latent")
    assert answer(analysis, "policy/right/heads/action").startswith(
        "heads: action (3,)  linear_output, 21 parameters"
    )
    assert answer(analysis, "seen").splitlines()[2:] == [
        "  observation (2, 4)  an observation of Two-v0",
        "  present (2,)  which actors are present",
    ]


def test_templates_and_classes_are_explained(specs):
    text = answer(
        analysed("version: 1\npolicy:\n  template: {vector: {block: dense, hidden_units: [7]}}\n"),
        "policy/state_features",
    )
    assert (
        text
        == """\
state_features (7,)  dense, 35 parameters  <spec>:3
  hidden_units = [7]  <spec>:3
  state (4,)  an observation of Two-v0"""
    )


def test_without_an_environment_the_wiring_is_known_and_shapes_are_not(specs):
    text = answer(analysed("base.yaml", spaces=None), "last", depth=1)
    assert text.splitlines()[:2] == [
        "last ?  concat  base.yaml:12",
        "  outer ?  graph  base.yaml:6",
    ]


def test_shapes_past_a_mistake_are_marked_as_guessed(specs):
    analysis = analysed(BASE.replace("block: concat", "block: conact"))
    assert [problem.instead for problem in analysis.problems] == ["concat"]
    assert answer(analysis, "heads", depth=1).splitlines()[:3] == [
        "heads: action (2,)?  linear_output, 28 parameters  <spec>:13",
        "  init_scale = 0.1  <spec>:13",
        "  last (13,)?  concat  <spec>:12",
    ]


def test_params_in_a_circle_end_an_answer(specs):
    spec = BASE.replace("base: 16", 'base: "${params.width}"')
    assert answer(analysed(spec), "first").splitlines()[1:3] == [
        "  hidden_units = [params.width, 8] = ['${params.base}', 8]  <spec>:5",
        "    params.width = params.base = params.width = '${params.base}'  <spec>:2",
    ]
    whole = BASE.replace("act: tanh", 'act: ["${params.act}"]')
    assert "activation = params.act = [params.act] = " in answer(analysed(whole), "a")


def test_a_long_chain_is_cut_and_needs_no_recursion():
    nodes = [
        f"    n{i}: {{block: torch.nn.Identity, in: {f'n{i - 1}' if i else 'state'}}}\n"
        for i in range(1500)
    ]
    spec = "version: 1\npolicy:\n  graph:\n" + "".join(nodes) + "  heads: {in: n1499}\n"
    lines = answer(analysed(spec, spaces=None), "n1499").splitlines()
    assert len(lines) == MOST_NODES + 1
    assert lines[-1].strip() == "... and more"
