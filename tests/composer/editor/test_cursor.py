import pytest

from composer.editor.choices import choices
from composer.editor.cursor import Cursor, cursor_at
from composer.reference.schema import json_schema
from tests.helpers.paths import ROOT

HEAD = """\
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: 64}
"""
GRAPH = ("policy", "graph")
NODE = (*GRAPH, "b")


def at(text: str, mark: str = "|") -> Cursor | None:
    """The Cursor at the mark."""
    before, _, after = text.partition(mark)
    column = len(before) - before.rfind("\n") - 1
    return cursor_at((before + after).split("\n"), before.count("\n"), column)


def known(text: str) -> Cursor:
    cursor = at(text)
    assert cursor is not None
    return cursor


@pytest.mark.parametrize(
    ("text", "path", "key", "prefix"),
    [
        ("|", (), None, ""),
        ("pol|", (), None, "pol"),
        (HEAD + "    b: {block: de|", NODE, "block", "de"),
        (HEAD + "    b: {block: de|\n  heads: {in: latent}\n", NODE, "block", "de"),
        (HEAD + "    b: {block: dense, in: |", NODE, "in", ""),
        (HEAD + "    b: {block: dense, in:|", NODE, "in", ""),
        (HEAD + "    b: {block: dense, in: [latent, ob|", NODE, "in", "ob"),
        (HEAD + "    b: {block: dense, in: 'la|", NODE, "in", "la"),
        (HEAD + "    b: {block: dense, in: {x: la|", (*NODE, "in"), "x", "la"),
        (HEAD + "    b: {block: dense, in: latent, act|}", NODE, None, "act"),
        (HEAD + "    b: {block: dense, in: latent, activation: |}", NODE, "activation", ""),
        (HEAD + "    b:\n      block: dense\n      activation: ta|", NODE, "activation", "ta"),
        (HEAD + "    b:\n      block: dense\n      act|", NODE, None, "act"),
        (HEAD + "    b:\n      in:\n        - latent\n        - ob|", NODE, "in", "ob"),
        (HEAD + "    b:\n      in:\n      - latent\n      - |\n      block: dense", NODE, "in", ""),
        (HEAD + "    b:\n      block: dense\n    |\n  heads: {in: b}", GRAPH, None, ""),
        (HEAD + "  heads: {in: |", ("policy", "heads"), "in", ""),
        (HEAD + "  heads: {in: latent}\n  |", ("policy",), None, ""),
        (HEAD + "  heads: {in: latent}\ncritic:\n  kind: |\n", ("critic",), "kind", ""),
        (HEAD + "    b: {block: dense, in: latent,\n      bias: true, act|", NODE, None, "act"),
        (HEAD + '    b: {in: x, hidden_units: "${params.w|', NODE, "hidden_units", "${params.w"),
        (HEAD + "    b: {in: x, hidden_units: ${params.w|}", NODE, "hidden_units", "${params.w"),
        (HEAD + "    b: {block: dense, # {\n  heads: {in: la|", ("policy", "heads"), "in", "la"),
        (HEAD + "  observations: [ob|", ("policy",), "observations", "ob"),
        (
            HEAD + "    g:\n      block: graph\n      in: {x: latent}\n      graph:\n"
            "        y: {block: dense, in: |",
            (*GRAPH, "g", "graph", "y"), "in", "",
        ),
        ("distributions:\n  - action: steer\n    dis|", ("distributions", 0), None, "dis"),
        ("distributions:\n- {action: a}\n- {action: b, dis|", ("distributions", 1), None, "dis"),
        ("distributions: [{action: steer, |", ("distributions", 0), None, ""),
        (
            "policy:\n  networks:\n  - graph:\n      a: {block: |\n",
            ("policy", "networks", 0, "graph", "a"), "block", "",
        ),
        ('policy: {"graph": {"a":{"in":|', ("policy", "graph", "a"), "in", ""),
        ("policy: {graph: {a😀: {in: ob|", ("policy", "graph", "a😀"), "in", "ob"),
        ("policy:\r\n  graph:\r\n    a: {in: ob|", ("policy", "graph", "a"), "in", "ob"),
    ],
)  # fmt: skip
def test_the_place_of_the_cursor(text, path, key, prefix):
    cursor = known(text)
    assert (cursor.path, cursor.key, cursor.prefix) == (path, key, prefix)
    before = text.partition("|")[0]
    assert cursor.column == len(before) - before.rfind("\n") - 1 - len(prefix)


@pytest.mark.parametrize(
    "text", ["# a ^", "version: 1 # pol^", "a: >\n  some ^\nb: 1", "a: |-\n  ^"]
)
def test_nothing_is_typed_in_a_comment_and_in_a_long_text(text):
    assert at(text, "^") is None


def test_keys_behind_the_cursor_are_there_already():
    assert list(known("|\nversion: 1\npolicy: {graph: {a: 1}}\n").beside) == ["version", "policy"]
    assert known(HEAD + "    b: {block: dense, |, in: latent}\n").beside == {
        "block": "dense", "in": "latent",
    }  # fmt: skip
    cursor = known(HEAD + "    b:\n      |\n      in: latent\n    c: {block: add}\ncritic: {}")
    assert cursor.beside == {"in": "latent"}
    assert list(cursor.mappings[0]) == ["version", "environment", "policy", "critic"]


def test_what_stands_around_the_cursor():
    assert known(HEAD + "    b: {block:|").after_colon
    assert not known(HEAD + "    b: {block: |").after_colon
    assert known(HEAD + "    b: {blo|ck: dense}").before_colon
    assert not known(HEAD + "    b: {blo|}").before_colon
    assert known("distributions:\n  - |").in_block_list
    assert not known("distributions: [|").in_block_list


def test_every_place_of_a_config_can_be_asked_about():
    lines = (ROOT / "configs" / "mixed_lstm.yaml").read_text().split("\n")
    for line, text in enumerate(lines):
        for column in range(0, len(text) + 1, 3):
            cursor_at(lines, line, column)
            cursor_at([*lines[:line], text[:column]], line, column)


# --- what may stand there ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema():
    return json_schema()


def names(schema, text: str) -> set[str]:
    cursor = known(text)
    assert cursor.key is None
    kinds = choices(schema, cursor.path, cursor.mappings, "object")
    return {*kinds.names} - {*cursor.beside}


def values(schema, text: str) -> list[object]:
    cursor = known(text)
    return choices(schema, (*cursor.path, str(cursor.key)), cursor.mappings).values


def test_keys_of_the_document_are_offered_until_they_are_there(schema):
    assert {"version", "policy", "extends", "model"} <= names(schema, "|")
    assert "version" not in names(schema, "version: 1\n|")
    assert "policy" not in names(schema, "|\npolicy: {}")


def test_settings_follow_from_the_block(schema):
    dense = names(schema, HEAD + "    b: {block: dense, in: latent, |}")
    assert {"hidden_units", "activation", "init", "each", "out"} <= dense
    assert dense.isdisjoint({"num_layers", "graph", "same_as", "block", "in"})
    assert "num_layers" in names(schema, HEAD + "    b: {block: lstm, in: latent, |}")
    assert names(schema, HEAD + "    b: {same_as: latent, |}") == {"in", "out", "each"}
    assert names(schema, HEAD + "    b: {|}") == {
        "block", "same_as", "graph", "in", "out", "each", "init",
    }  # fmt: skip
    assert "graph" in names(schema, HEAD + "    b: {block: graph, |}")
    assert "hidden_units" in names(schema, "extends: a\npolicy: {graph: {a: {block: dense, |")


def test_a_network_has_one_kind(schema):
    assert {"graph", "template", "_target_", "networks"} <= names(schema, "policy:\n  |")
    assert "networks" not in names(schema, HEAD + "  |")
    assert names(schema, "policy: {networks: {archer: {|") >= {"graph", "heads", "separate"}
    assert "in" not in names(schema, "policy:\n  template: {image: {block: dense, |")


def test_values_are_listed(schema):
    assert {"dense", "lstm", "graph"} <= {*values(schema, HEAD + "    b: {block: |}")}
    assert {"tanh", "relu"} <= {*values(schema, HEAD + "    b: {block: dense, activation: |}")}
    assert values(schema, "version: 1\ncritic:\n  kind: |")[:2] == ["state", "shared_state"]
    assert values(schema, HEAD + "    b: {block: dense, bias: |}") == [True, False]
    assert "beta" in values(schema, "distributions: [{action: a, distribution: |")
    assert values(schema, "policy: {graph: {a: {block: no_such, activation: |") == []


def test_arguments_follow_from_the_class_of_an_allowed_module(tmp_path, monkeypatch):
    (tmp_path / "cursor_nets.py").write_text(
        "from typing import Literal\nfrom torch import nn\nclass Policy(nn.Module):\n"
        "    def __init__(self, obs_shapes, action_logits_shapes, units: int, mode: Literal['a', 'b'] = 'a'):\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    schema = json_schema(["cursor_nets"])
    assert values(schema, "version: 1\npolicy: {_target_: |}") == ["cursor_nets.Policy"]
    beside = names(schema, "version: 1\npolicy: {_target_: cursor_nets.Policy, |}")
    assert {"units", "mode"} <= beside
    assert beside.isdisjoint({"obs_shapes", "action_logits_shapes", "graph", "heads"})
    mode = "version: 1\npolicy: {_target_: cursor_nets.Policy, mode: |}"
    assert {"a", "b"} <= {*values(schema, mode)}
