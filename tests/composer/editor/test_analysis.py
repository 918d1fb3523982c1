"""What is known of a text while it is being written."""

import sys

import pytest
from gymnasium.spaces import Box, Dict, Discrete

import composer
from composer.editor.analysis import Analyser
from composer.editor.environments import MadeSpaces, SpaceKeeper
from composer.errors import Position, SpecError
from composer.spaces.lookup import made_spaces

SPACES = {
    "Two-v0": (Dict(image=Box(0, 1, (3, 8, 8)), state=Box(-1, 1, (4,))), Discrete(2)),
    "Many-v0": (
        {"a": Box(-1, 1, (4,)), "b": Box(-1, 1, (3,))},
        {"a": Discrete(2), "b": Discrete(3)},
    ),
}
GOOD = """\
version: 1
environment: Two-v0
params: {width: 8}
policy:
  graph:
    flat: {block: flatten, in: image}
    both: {block: concat, in: [flat, state]}
    latent: {block: dense, in: both, hidden_units: "${params.width}"}
  heads: {in: latent}
critic:
  graph:
    flat: {block: flatten, in: image}
    both: {block: concat, in: [flat, state]}
    last: {block: dense, in: both, hidden_units: [4]}
"""


class Keeper(SpaceKeeper):
    """Known spaces, without a process."""

    def of_environment(self, environment, allow, path, position):
        if environment in SPACES:
            return MadeSpaces(SPACES[environment])
        return MadeSpaces(*made_spaces(environment, path))


@pytest.fixture
def look():
    analyser = Analyser(Keeper())

    def look(text, path="agent.yaml", **given):
        return analyser.analyse(text, path, **given)

    return look


def shapes(analysis):
    """The outputs of each node, with a mark where they are guessed."""
    return {
        ".".join(map(str, path)): f"{dict(facts[0].outputs)}{'?' * facts[0].guessed}"
        for path, facts in analysis.nodes.items()
    }


def messages(analysis):
    return [str(problem) for problem in analysis.problems]


def test_a_good_spec_is_known_as_a_whole(look):
    analysis = look(GOOD)
    assert messages(analysis) == []
    assert (analysis.stage, analysis.environment, analysis.unknown) == ("shapes", "Two-v0", "")
    assert analysis.params == {"width": 8}
    assert shapes(analysis) == {
        "policy.graph.flat": "{'flat': (192,)}",
        "policy.graph.both": "{'both': (196,)}",
        "policy.graph.latent": "{'latent': (8,)}",
        "policy.heads": "{'action': (2,)}",
        "critic.graph.flat": "{'flat': (192,)}",
        "critic.graph.both": "{'both': (196,)}",
        "critic.graph.last": "{'last': (4,)}",
    }
    (latent,) = analysis.nodes["policy", "graph", "latent"]
    assert (latent.block, latent.path) == ("dense", ("policy", "latent"))
    assert latent.inputs == {"both": (196,)}
    assert latent.parameters == 196 * 8 + 8
    assert latent.flops() == 2 * 196 * 8
    assert analysis.values["policy",] == {
        "image": (3, 8, 8), "state": (4,), "flat": (192,), "both": (196,), "latent": (8,)
    }  # fmt: skip


def test_keys_and_values_are_found_by_their_place(look):
    index = look(GOOD).index
    span = index.span(("policy", "graph", "latent", "block"))
    assert span is not None
    assert (span.start, span.end) == (
        Position("agent.yaml", 8, 21),
        Position("agent.yaml", 8, 26),
    )
    assert index.at(Position("agent.yaml", 8, 22)) == (
        ("policy", "graph", "latent", "block"),
        False,
    )
    assert index.at(Position("agent.yaml", 8, 15)) == (("policy", "graph", "latent", "block"), True)


def test_a_misspelt_block_hides_no_misspelt_setting_and_no_shape(look):
    text = GOOD.replace(
        "block: concat, in: [flat, state]}\n    latent",
        "block: conct, in: [flat, state]}\n    latent",
    )
    analysis = look(text.replace("hidden_units: [4]", "hidden_unit: [4]"))
    assert messages(analysis) == [
        "agent.yaml:7:19: unknown block 'conct'; did you mean 'concat'?",
        "agent.yaml:14:36: 'hidden_unit' is not a setting of block 'dense'; did you mean 'hidden_units'?",
    ]
    known = shapes(analysis)
    assert known["policy.graph.flat"] == "{'flat': (192,)}"
    assert known["policy.graph.both"] == "{'both': (196,)}?"
    assert known["policy.graph.latent"] == "{'latent': (8,)}?"
    assert known["critic.graph.both"] == "{'both': (196,)}"
    assert known["critic.graph.last"] == "{'last': (4,)}?"
    assert analysis.values["policy",]["latent"] == (8,)


@pytest.mark.parametrize(
    "line",
    [
        "    latent: {block: dense, in: both, hidden_units: [8",
        "    latent: {block: dense, in: both, hidden_un",
        "    latent: {block: dense, in: both, ",
        "    latent: {block: dense, in: [both",
        '    latent: {block: dense, in: "both',
    ],
)
def test_a_text_that_is_no_yaml_yet_is_known_up_to_the_mistake(look, line):
    analysis = look("\n".join([*GOOD.split("\n")[:7], line]))
    (problem,) = analysis.problems
    assert analysis.stage == "syntax"
    assert problem.position is not None
    known = shapes(analysis)
    assert known["policy.graph.flat"] == "{'flat': (192,)}?"
    assert known["policy.graph.both"] == "{'both': (196,)}?"
    assert analysis.values["policy",]["both"] == (196,)
    assert analysis.index.span(("policy", "graph", "both")) is not None


def test_the_last_facts_of_a_node_stay_while_its_own_text_does(look):
    look(GOOD)
    broken = GOOD.replace("policy:\n", "polcy: [\n")
    known = shapes(look(broken))
    assert known["policy.graph.both"] == "{'both': (196,)}?"
    known = shapes(look(broken.replace("in: both", "in: bo")))
    assert "policy.graph.latent" not in known


def test_an_environment_may_stand_in_a_comment(look):
    text = "# composer: env=Two-v0\n" + GOOD.replace("environment: Two-v0\n", "")
    analysis = look(text)
    assert messages(analysis) == []
    assert (analysis.environment, analysis.stage) == ("Two-v0", "shapes")


def test_the_editor_has_an_environment_for_files_that_name_none(look):
    text = GOOD.replace("environment: Two-v0\n", "")
    analysis = look(text)
    assert (analysis.environment, analysis.stage) == (None, "structure")
    assert analysis.unknown == (
        "shapes are not known: the spec names no environment; write environment: ID, or a comment "
        "# composer: env=ID or # composer: spaces=agent.safetensors"
    )
    assert analysis.values["policy",] == {"flat": None, "both": None, "latent": None}
    assert look(text, environment="Two-v0").environment == "Two-v0"
    failed = look(text, environment="Nowhere-v0")
    assert failed.problems == ()
    assert failed.unknown.startswith(
        "shapes are not known: the environment 'Nowhere-v0' cannot be made"
    )


def test_spaces_come_from_a_checkpoint(look, tmp_path):
    observation, action = SPACES["Two-v0"]
    text = GOOD.replace("environment: Two-v0\n", "")
    model = composer.compose(text, None, observation, action, seed=0)
    model.save(tmp_path / "agent.safetensors")
    text = "# composer: spaces=agent.safetensors\n" + text
    path = str(tmp_path / "agent.yaml")
    analysis = look(text, path, makes_environments=False)
    assert (analysis.environment, analysis.stage) == ("agent.safetensors", "shapes")
    assert messages(analysis) == []
    lost = look(text.replace("agent.s", "lost.s"), path)
    (problem,) = lost.problems
    assert problem.position == Position(path, 1, 13)
    assert problem.message.endswith("lost.safetensors' cannot be read: No such file or directory")
    (problem,) = look(text.replace("agent.s", "\0.s"), path).problems
    assert problem.message.startswith("the character U+0000 has no place in YAML")


def test_a_comment_names_no_checkpoint_elsewhere_as_a_spec_names_no_file(look, tmp_path):
    (tmp_path / "specs").mkdir()
    path, text = str(tmp_path / "specs" / "agent.yaml"), GOOD.replace("environment: Two-v0\n", "")
    model = composer.compose(text, None, *SPACES["Two-v0"], seed=0)
    model.save(tmp_path / "agent.safetensors")
    text = "# composer: spaces=../agent.safetensors\n" + text
    (problem,) = look(text, path).problems
    folder = f"{tmp_path}/"
    assert problem.message == (
        f"'{tmp_path}/agent.safetensors' is neither beside nor below the spec; "
        f"pass allow=['{folder}'] or --allow {folder} if the spec may read it"
    )
    assert problem.position == Position(path, 1, 13)
    assert look(text, path, allow=[folder]).stage == "shapes"


def test_nothing_of_a_module_that_is_not_allowed_is_imported(look, tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    in_key = look(GOOD.replace("Two-v0", "my_envs:Maze-v0"))
    text = GOOD.replace("environment: Two-v0\n", "")
    in_comment = look("# composer: env=my_envs:Maze-v0 allow=my_envs\n" + text)
    refusal = (
        "the environment 'my_envs:Maze-v0' would run code: 'my_envs' is outside the allowed modules (none); "
        "pass allow=['my_envs'] or --allow my_envs if you trust it"
    )
    assert messages(in_key) == [f"agent.yaml:2:14: {refusal}"]
    assert messages(in_comment) == [
        f"agent.yaml:1:13: {refusal}",
        "agent.yaml:1:33: 'allow' has no effect in a comment: a file does not say itself what may run; set "
        "composer.allow in the editor, or give --allow to the command",
    ]
    assert "my_envs" not in set(sys.modules) - before
    assert in_key.stage == in_comment.stage == "structure"
    assert in_key.unknown == "shapes are not known: the environment is not allowed"


def test_other_words_in_the_comment_are_problems(look):
    text = "# composer: evn=CartPole-v1 env=\n" + GOOD
    assert messages(look(text)) == [
        "agent.yaml:1:13: 'evn' is not known in '# composer:'; did you mean 'env'?",
        "agent.yaml:1:29: 'env' lacks its value; write env=...",
    ]


def test_problems_are_those_of_compose(look, tmp_path):
    text = GOOD.replace("[flat, state]}\n    latent", "[image, state]}\n    latent").replace(
        "[4]", "[0]"
    )
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        composer.compose(file, None, *SPACES["Two-v0"])
    assert look(text, str(file)).problems == caught.value.problems


def test_several_actors(look):
    text = """
version: 1
environment: Many-v0
policy:
  networks:
    a:
      graph: {latent: {block: dense, in: observation, hidden_units: [8]}}
      heads: {in: latent}
    b:
      graph: {latent: {block: dense, in: observation, hidden_units: [9]}}
      heads: {in: latent}
"""
    analysis = look(text)
    assert messages(analysis) == []
    assert shapes(analysis)["policy.networks.b.graph.latent"] == "{'latent': (9,)}"
    assert analysis.values["policy", "networks", "a"] == {
        "observation": (4,),
        "latent": (8,),
        "actor": (),
    } or analysis.values["policy", "networks", "a"] == {"observation": (4,), "latent": (8,)}


def test_texts_that_are_no_specs(look):
    for text in (
        "",
        "a",
        "[1]",
        "policy: 3",
        "\t",
        "a: b: c",
        "policy: {graph: {x: {}}}",
        "x: &a *a",
    ):
        assert look(text).problems


def test_unsaved_texts_of_other_files(look, tmp_path):
    base, over = tmp_path / "base.yaml", tmp_path / "agent.yaml"
    base.write_text("not: yaml: at all")
    text = "extends: base.yaml\ncritic: {kind: state}\n"
    analysis = look(text, str(over), files={str(base): GOOD})
    assert messages(analysis) == []
    analysis = look(text, str(over), files={str(base): GOOD.replace("concat", "conct", 1)})
    assert [str(problem.position) for problem in analysis.problems] == [f"{base}:7:19"]


def test_a_module_that_ends_the_process_is_a_problem(look, tmp_path, monkeypatch):
    (tmp_path / "ending_nets.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    analysis = look(GOOD, allow=["ending_nets"])
    assert messages(analysis) == ["the module 'ending_nets' cannot be imported: SystemExit: it ran"]
    assert analysis.stage == "shapes"


CLASS = """
from torch import nn

class Net(nn.Module):
    made = 0
    def __init__(self, obs_shapes, action_logits_shapes, width):
        super().__init__()
        type(self).made += 1
        if width > 99: raise SystemExit("too wide")
        if width > 9: raise KeyError(width)
        self.layer = nn.Linear(obs_shapes["state"][0], width)
        self.last = nn.Linear(width, 2)
    def forward(self, observations):
        return {"action": self.last(self.layer(observations["state"]))}
"""


def test_a_class_of_the_user(look, tmp_path, monkeypatch):
    (tmp_path / "kept_nets.py").write_text(CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    text = "version: 1\nenvironment: Two-v0\nignore: [image]\npolicy: {_target_: kept_nets.Net, width: 8}\n"
    analysis = look(text, allow=["kept_nets"])
    assert messages(analysis) == []
    (facts,) = analysis.nodes["policy", "_target_"]
    assert (facts.block, dict(facts.outputs), facts.parameters) == (
        "kept_nets.Net",
        {"action": (2,)},
        58,
    )
    assert facts.flops() == 2 * (4 * 8 + 8 * 2)
    made = sys.modules["kept_nets"].Net.made
    assert messages(look(text + "# seen", allow=["kept_nets"])) == []
    assert sys.modules["kept_nets"].Net.made == made
    for width, error in ((10, "KeyError: 10"), (100, "SystemExit: too wide")):
        (problem,) = look(text.replace("width: 8", f"width: {width}"), allow=["kept_nets"]).problems
        assert problem.message.startswith(error)


def test_what_is_remembered_has_bounds():
    analyser = Analyser(Keeper())
    for index in range(300):
        text = GOOD.replace("latent", f"latent{index}").replace("[4]", f"[{index + 1}]")
        assert analyser.analyse(text, "agent.yaml").problems == ()
    (memory,) = analyser._memories.values()
    assert len(memory.modules) < 7 + 2 * 14
    assert len(memory._last) < 6 + 2 * 202
    for index in range(40):
        analyser.analyse(GOOD, f"agent{index}.yaml")
    assert len(analyser._memories) == 16
    analyser.forget("agent39.yaml")
    assert len(analyser._memories) == 15


def test_other_kinds_of_specs(look):
    network = "version: 1\nnetwork:\n  inputs: {x: [4]}\n  outputs: {y: 3}\n  graph: {y: {block: dense, in: x, hidden_units: [3]}}\n"
    analysis = look(network)
    assert (messages(analysis), analysis.stage) == ([], "shapes")
    assert shapes(analysis) == {"network.graph.y": "{'y': (3,)}"}
    assert look(network.replace("hidden_units: [3]", "hidden_unit: 3")).problems
    experiment = "version: 1\ncalls: {}\n"
    assert look(experiment).problems
    action_model = "version: 1\nmodel: {model_typ: x}\n"
    assert look(action_model).problems


def test_a_nested_graph_and_an_ensemble(look):
    text = GOOD.replace(
        '    latent: {block: dense, in: both, hidden_units: "${params.width}"}',
        "    latent:\n      block: ensemble\n      copies: 3\n      in: {x: both}\n      graph:\n"
        '        inner: {block: dense, in: x, hidden_units: "${params.width}"}\n'
        "    all: {block: flatten, in: latent}",
    ).replace("{in: latent}", "{in: all}")
    for edit in ("8", "9"):
        analysis = look(text.replace("width: 8", f"width: {edit}"))
        assert messages(analysis) == []
        assert shapes(analysis)["policy.graph.latent.graph.inner"] == f"{{'inner': ({edit},)}}"
    assert analysis.values["policy", "graph", "latent"] == {"x": (196,), "inner": (9,)}
