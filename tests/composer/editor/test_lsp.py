"""The language server over stdio, as an editor uses it."""

from pathlib import Path

import pytest
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

from tests.helpers.paths import ROOT

BROKEN = """\
version: 1
environment: CartPole-v1
params: {width: 64}
policy:
  graph:
    first: {block: dense, in: observation, hidden_units: ["${params.width}", 64], activatoin: tanh}
    latent: {block: dnse, in: first, hidden_units: 32}
  heads: {in: latent}
critic:
  kind: stat
  graph:
    value: {block: dense, in: observation, hidden_units: 8}
"""
MENDED = {"activatoin": "activation", "dnse": "dense", "stat\n": "state\n"}


def mended(text: str) -> str:
    for wrong, right in MENDED.items():
        text = text.replace(wrong, right).replace(
            wrong.replace("\n", "\r\n"), right.replace("\n", "\r\n")
        )
    return text


GOOD = mended(BROKEN).partition("critic")[0]
HEAD = GOOD.split("    latent:")[0]
TAIL = "  heads: {in: latent}\n"
SHAPES = ["→ (64,)", "→ (32,)", "→ action (2,)"]
WHOLE = {"start": {"line": 0, "character": 0}, "end": {"line": 1000, "character": 0}}


def config(name: str) -> str:
    return (ROOT / "configs" / name).read_text()


def words(editor, uri, diagnostics):
    return sorted(editor.under(uri, each.range) for each in diagnostics)


def hints(editor, uri):
    return [hint.label for hint in editor.ask(lsp.TEXT_DOCUMENT_INLAY_HINT, uri, range=WHOLE)]


# --- problems ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        BROKEN,
        BROKEN.replace("\n", "\r\n"),
        BROKEN + "  normalize_value: true",
        BROKEN.replace("{width: 64}", '{width: 64, "😀": 32}').replace(
            '}", 64]', '}", "${params.😀}"]'
        ),
        "\ufeff" + BROKEN,
        BROKEN.replace("version: 1\n", "version: 1 # \u2028 # ends a line of YAML\n"),
    ],
    ids=["plain", "CRLF", "no last line", "emoji", "byte order mark", "line separator"],
)
def test_problems_are_shown_at_the_very_words_and_fixed(editor, uri, text):
    diagnostics = editor.open(uri, text)
    assert words(editor, uri, diagnostics) == ["activatoin", "dnse", "stat"]
    assert {(each.source, each.code) for each in diagnostics} == {("composer", "shapes")}
    count = 0
    while diagnostics:
        where = diagnostics[0].range
        place = {"start": vars_of(where.start), "end": vars_of(where.end)}
        context = {"diagnostics": [], "only": ["quickfix"]}
        (action,) = editor.ask(lsp.TEXT_DOCUMENT_CODE_ACTION, uri, range=place, context=context)
        assert action.is_preferred
        assert action.title.startswith(f"Change '{editor.under(uri, where)}' to '")
        diagnostics = editor.open(uri, editor.edited(uri, action.edit.changes[uri]))
        count += 1
    assert count == 3
    assert editor.texts[uri] == mended(text)


def test_all_near_names_are_written_at_once(editor, uri):
    editor.open(uri, BROKEN)
    (action,) = editor.fixes(uri, ["source.fixAll"])
    assert action.kind == "source.fixAll.composer"
    text = editor.edited(uri, action.edit.changes[uri])
    assert (text, editor.open(uri, text)) == (mended(BROKEN), [])
    assert editor.fixes(uri) == []


def vars_of(place: lsp.Position) -> dict[str, int]:
    return {"line": place.line, "character": place.character}


@pytest.mark.parametrize(
    ("before", "title", "after"),
    [
        (
            "# an agent\nenvironment: CartPole-v1\npolicy: {template: {}}\n",
            "Add 'version: 1'",
            "# an agent\nversion: 1\nenvironment: CartPole-v1\npolicy: {template: {}}\n",
        ),
        (
            "version: 1\nenvironment: environments.complex_env:Complex-v0\n"
            "policy: {graph: {a: {block: dense, in: inventory, hidden_units: 8}}, heads: {in: a}}",
            "Name 'screen' under 'ignore'",
            "version: 1\nenvironment: environments.complex_env:Complex-v0\nignore: [screen]\n"
            "policy: {graph: {a: {block: dense, in: inventory, hidden_units: 8}}, heads: {in: a}}",
        ),
        (
            "version: 1\nenvironment: environments.complex_env:Complex-v0\nignore: [inventory]\n"
            "policy: {graph: {a: {block: gaussian_noise, in: screen}}, heads: {in: a}}",
            None,
            "",
        ),
    ],
)
def test_what_is_missing_is_added(editor, uri, before, title, after):
    before = before if title is None or "version: 1" in before else f"# composer:\n{before}"
    after = after if "version: 1\nenv" in before else f"# composer:\n{after}"
    editor.open(uri, before)
    actions = [each for each in editor.fixes(uri) if each.kind == "quickfix"]
    if title is None:
        assert actions == []
        return
    (action,) = actions
    assert action.title == title
    text = editor.edited(uri, action.edit.changes[uri])
    assert (text, editor.open(uri, text)) == (after, [])


def test_a_mistake_in_a_base_is_shown_there_and_gone_once_it_is_mended_unsaved(editor, tmp_path):
    base, over = (tmp_path / "base.yaml"), (tmp_path / "over.yaml").as_uri()
    base.write_text(GOOD.replace("tanh", "tahn"))
    there = base.as_uri()
    text = "extends: base.yaml\npolicy: {graph: {latent: {hidden_units: 16}}}\n"
    assert editor.open(over, text) == []
    editor.wait_until(lambda: editor.diagnostics.get(there))
    editor.texts[there] = base.read_text()
    assert words(editor, there, editor.diagnostics[there]) == ["tahn"]
    editor.send(there, GOOD)
    editor.wait_until(lambda: not editor.diagnostics[there])
    editor.send(there, GOOD.replace("tanh", "tahn"))
    editor.wait_until(lambda: editor.diagnostics[there])
    assert len(editor.diagnostics[there]) == 1  # both documents say it
    editor.close(there)
    base.write_text(GOOD)
    changes = [lsp.FileEvent(there, lsp.FileChangeType.Changed)]
    editor.client.workspace_did_change_watched_files(lsp.DidChangeWatchedFilesParams(changes))
    editor.wait_until(lambda: not editor.diagnostics[there])
    base.write_text(GOOD.replace("tanh", "tahn"))
    editor.client.workspace_did_change_watched_files(lsp.DidChangeWatchedFilesParams(changes))
    editor.wait_until(lambda: editor.diagnostics[there])
    editor.close(over)
    editor.wait_until(lambda: not editor.diagnostics[there])


def test_a_mismatch_names_the_shapes_that_do_not_go_together(editor, uri):
    text = """\
version: 1
environment: environments.complex_env:Complex-v0
policy:
  graph:
    scaled: {block: scale_image, in: screen} # 😀
    both: {block: concat, in: [inventory, scaled]}
    latent: {block: dense, in: both, hidden_units: 8}
  heads: {in: latent}
"""
    (diagnostic,) = editor.open(uri, text)
    assert diagnostic.related_information
    told = {
        (editor.under(uri, each.location.range), each.message)
        for each in diagnostic.related_information
    }
    assert ("scaled", "'scaled' gives (3, 64, 64)") in told


@pytest.mark.parametrize(
    ("name", "text", "is_ours"),
    [
        ("a.composer.yaml", "", True),
        ("a.yaml", "# composer: env=CartPole-v1\nx: 1\n", True),
        ("a.yaml", "version: 1\npolicy: {}\n", True),
        ("a.yaml", "extends: b.yaml\nparams: {a: 1}\n", True),
        ("a.yaml", "version: 3\nservices: {}\n", False),
        ("a.yaml", "on: push\njobs: {version: 1, policy: 2}\n", False),
    ],
)
def test_other_yaml_is_left_alone(editor, tmp_path, name, text, is_ours):
    address = (tmp_path / name).as_uri()
    editor.send(address, text)
    assert editor.ask(lsp.TEXT_DOCUMENT_INLAY_HINT, address, range=WHOLE) == ()
    if is_ours:
        editor.wait_until(lambda: address in editor.diagnostics)
        assert editor.diagnostics[address]
    assert (address in editor.diagnostics) == is_ours
    assert bool(editor.ask(lsp.TEXT_DOCUMENT_COMPLETION, address, (9, 0)).items) == is_ours
    editor.close(address)


# --- what is known ----------------------------------------------------------------------------------------------------


def test_shapes_stay_while_the_text_is_broken(editor, uri):
    assert editor.open(uri, GOOD) == []
    assert hints(editor, uri) == SHAPES
    assert len(editor.open(uri, GOOD.replace("activation", "activatoin"))) == 1
    assert [label.removesuffix("?") for label in hints(editor, uri)] == SHAPES
    assert hints(editor, uri)[0] == "→ (64,)?"
    half = GOOD.replace("hidden_units: 32}", "hidden_units: 32")
    assert [each.code for each in editor.open(uri, half)] == ["syntax"]
    assert [label.removesuffix("?") for label in hints(editor, uri)] == SHAPES


def test_hovers(editor, uri):
    editor.open(uri, GOOD)

    def hover(marked):
        answer = editor.ask(lsp.TEXT_DOCUMENT_HOVER, uri, editor.find(uri, marked))
        return answer and (answer.contents.value, editor.under(uri, answer.range))

    text, word = hover("    lat|ent: {")
    assert word == "latent"
    assert text.startswith(
        "**latent** `dense`: first (64,) → (32,)\n\n2,080 parameters, 4,096 FLOPs for one observation\n\n---\n"
    )
    assert "  hidden_units: a positive integer or a list of positive integers (required)" in text
    assert hover("activ|ation")[0].startswith(
        "activation: the name of an activation (default: relu)"
    )
    assert hover("in: fir|st")[0] == "`first` (64,)"
    assert hover("${params.wi|dth}")[0] == "`params.width` = 64"
    assert hover("pa|rams: {") == (
        'Values that "${params.name}" stands for anywhere below.',
        "params",
    )
    assert hover("version: |1") == ("The version of the format.", "1")
    assert hover("obser|vation")[0] == "`observation` (4,)"


def test_symbols_and_lenses(editor, uri):
    editor.open(uri, GOOD)
    symbols = editor.ask(lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL, uri)
    assert [symbol.name for symbol in symbols] == ["version", "environment", "params", "policy"]
    graph, heads = symbols[-1].children
    assert [(node.name, node.detail) for node in graph.children] == [
        ("first", "dense → (64,)"),
        ("latent", "dense → (32,)"),
    ]
    assert editor.under(uri, heads.range) == "heads: {in: latent}"
    titles = [lens.command.title for lens in editor.ask(lsp.TEXT_DOCUMENT_CODE_LENS, uri)]
    assert titles == ["draw", "6,626 parameters"]
    editor.open(uri, GOOD.replace("environment: CartPole-v1\n", ""))
    (lens,) = editor.ask(lsp.TEXT_DOCUMENT_CODE_LENS, uri)
    assert lens.command.title.startswith("shapes are not known: the spec names no environment")


def test_a_spec_is_drawn_and_the_page_opened(editor, uri):
    editor.open(uri, GOOD)
    command = {"command": "composer.draw", "arguments": [uri]}
    request = lsp.ExecuteCommandParams(**command)
    path = editor.command(request)
    assert "<svg" in Path(path).read_text()
    assert editor.opened[-1] == f"file://{path}"
    editor.open(uri, BROKEN)
    assert editor.command(request) is None
    assert editor.messages[-1] == "the spec has problems; mend them before it is drawn"


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "there", "absent"),
    [
        (HEAD + "    latent: {block: de|\n" + TAIL, {"dense", "deep_set"}, {"lstm"}),
        (HEAD + "    latent: {block: dense, in: |\n" + TAIL, {"first", "observation"}, {"latent"}),
        (HEAD + "    latent: {block: dense, in: [first, |\n" + TAIL, {"observation"}, {"latent"}),
        (HEAD + "    latent: {block: dense, in: {x: |\n" + TAIL, {"first"}, {"latent"}),
        (HEAD + "    latent: {block: dense, in: first, |}\n" + TAIL, {"activation"}, {"block", "in"}),
        (HEAD + "    latent: {block: dense, in: first, activation: t|}\n" + TAIL, {"tanh"}, {"relu"}),
        (HEAD + "    latent:\n      block: dense\n      in: |\n" + TAIL, {"first"}, {"latent"}),
        (HEAD + "    latent:\n      block: dense\n      in:\n      - |\n" + TAIL, {"first"}, set()),
        (HEAD + '    latent: {in: first, hidden_units: "${params.|\n' + TAIL, {"width"}, {"first"}),
        (HEAD + '    latent: {in: first, hidden_units: "${|\n' + TAIL, {"params.width"}, {"first"}),
        (HEAD + "  heads: {in: |\n", {"first"}, {"action"}),
        (GOOD + "|", {"critic", "distributions", "ignore"}, {"policy", "params"}),
        (GOOD + "critic:\n  kind: |", {"state", "state_action"}, set()),
        (GOOD.replace("in: observation", "in: |"), {"observation"}, {"first", "latent"}),
        (GOOD + "  shares: [|", {"first", "latent"}, {"observation"}),
        (GOOD + "  observations: [|", {"observation"}, {"first"}),
        (GOOD + "freeze: [|", {"policy", "policy/first"}, {"first"}),
        (GOOD + "learning_rate_scale: {|", {"policy/latent"}, set()),
        (GOOD + "distributions:\n  - |", {"action", "distribution"}, {"categorical"}),
        (GOOD + "critic:\n  graph:\n    a: {in: |", {"observation"}, {"first"}),
        (GOOD + "# |", set(), {"critic"}),
        (GOOD.replace("{width: 64}", '{"😀": 1, width: 64}') + '  observations: ["${params.w|', {"width"}, set()),
    ],
)  # fmt: skip
def test_completion(editor, uri, text, there, absent):
    editor.open(uri, GOOD)
    editor.known(uri)
    before, _, after = text.partition("|")
    editor.send(uri, before + after)
    place = before.count("\n"), len(before) - before.rfind("\n") - 1
    answer = editor.ask(lsp.TEXT_DOCUMENT_COMPLETION, uri, place)
    labels = {item.label for item in answer.items}
    assert there <= labels
    assert labels.isdisjoint(absent)
    if there:
        item = next(item for item in answer.items if item.label in there)
        editor.open(uri, editor.edited(uri, [item.text_edit]))
        assert item.label in editor.texts[uri].split("\n")[place[0]]


def test_what_is_completed_has_its_shape_and_its_help(editor, uri):
    editor.open(uri, GOOD)
    editor.known(uri)

    def detail(text, label):
        before, _, after = text.partition("|")
        editor.send(uri, before + after)
        place = before.count("\n"), len(before) - before.rfind("\n") - 1
        items = editor.ask(lsp.TEXT_DOCUMENT_COMPLETION, uri, place).items
        return next((each.detail, each.text_edit.new_text) for each in items if each.label == label)

    assert detail(GOOD + "  shares: [|", "first") == ("(64,)", "first")
    assert detail(HEAD + "    latent: {in:|}", "observation") == ("(4,)", " observation")
    summary = "Linear layers, each followed by its norm"
    assert detail(HEAD + "    b: {block: |}", "dense")[0].startswith(summary)
    settings = "true or false (default: true), whether layers add a learned constant"
    assert detail(HEAD + "    b: {block: dense, |}", "bias") == (settings, "bias: ")
    assert detail(HEAD + "    b: {block: dense, |: 1}", "bias") == (settings, "bias")


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_shared_node_is_found_and_renamed_everywhere(editor, uri):
    text = config("complex_shared.yaml")
    assert editor.open(uri, text) == []
    place = editor.find(uri, "    latent|_screen: ")
    context = {"includeDeclaration": True}
    found = editor.ask(lsp.TEXT_DOCUMENT_REFERENCES, uri, place, context=context)
    assert [editor.under(uri, each.range) for each in found] == ["latent_screen"] * 4
    context = {"includeDeclaration": False}
    assert len(editor.ask(lsp.TEXT_DOCUMENT_REFERENCES, uri, place, context=context)) == 3
    used = editor.find(uri, "shares: [lat|ent_screen]")
    (made,) = editor.ask(lsp.TEXT_DOCUMENT_DEFINITION, uri, used)
    assert (made.range.start.line, made.range.start.character) == (place[0], 4)
    prepared = editor.ask(lsp.TEXT_DOCUMENT_PREPARE_RENAME, uri, used)
    assert prepared.placeholder == "latent_screen"
    edit = editor.ask(lsp.TEXT_DOCUMENT_RENAME, uri, used, newName="eyes")
    new = editor.edited(uri, edit.changes[uri])
    assert new == text.replace("latent_screen", "eyes")
    assert editor.open(uri, new) == []


@pytest.mark.parametrize(
    ("marked", "new", "reason"),
    [
        ("    fir|st: {", "latent", "'latent' is taken: the graph has a node or an output of this name already"),
        ("    fir|st: {", "observation", "'observation' is taken: an observation has this name"),
        (
            "    fir|st: {", "a b",
            "the node name 'a b' must start with a letter or '_' and hold letters, digits and '_' only",
        ),
        (
            "in: observ|ation", "seen",
            "'observation' is no node of the spec: it is an observation, which the environment names",
        ),
    ],
)  # fmt: skip
def test_a_rename_is_refused_in_words(editor, uri, marked, new, reason):
    editor.open(uri, GOOD)
    with pytest.raises(JsonRpcException) as refused:
        editor.ask(lsp.TEXT_DOCUMENT_RENAME, uri, editor.find(uri, marked), newName=new)
    assert (refused.value.message, refused.value.code) == (reason, -32803)


def test_a_name_is_renamed_in_the_base_too(editor, tmp_path):
    base, over = tmp_path / "base.yaml", (tmp_path / "over.yaml").as_uri()
    base.write_text(GOOD)
    editor.open(over, "extends: base.yaml\nfreeze: [policy/latent]\npolicy: {init: orthogonal}\n")
    edit = editor.ask(
        lsp.TEXT_DOCUMENT_RENAME, over, editor.find(over, "policy/lat|ent"), newName="z"
    )
    assert {address: len(edits) for address, edits in edit.changes.items()} == {
        base.as_uri(): 2, over: 1,
    }  # fmt: skip
    editor.close(over)
