import pickle

import pytest
from lsprotocol import types as lsp
from pygls.workspace import PositionCodec

from composer.editor.analysis import Analyser
from composer.editor.cursor import yaml_lines
from composer.editor.described import Described
from composer.editor.diagnostics import Target, shown_problems
from composer.editor.documents import is_spec
from composer.editor.places import Places
from composer.errors import Position, Span
from tests.helpers.paths import ROOT, TESTS

UTF_16, UTF_8 = (PositionCodec(name) for name in ("utf-16", "utf-8"))


def spans(text: str, word: str) -> Span:
    """Where a word stands, as YAML counts."""
    before = text[: text.index(word)].removeprefix("\ufeff")
    lines = yaml_lines(before + "x")
    line, column = len(lines), len(lines[-1])
    return Span(Position("a", line, column), Position("a", line, column + len(word)))


@pytest.mark.parametrize(
    ("text", "codec", "place"),
    [
        ("a: 1\nb: word", UTF_16, (1, 3)),
        ("a: 1\r\nb: word\r\n", UTF_16, (1, 3)),
        ("a: 1\rb: word", UTF_16, (1, 3)),
        ("😀: word", UTF_16, (0, 4)),
        ("😀: word", UTF_8, (0, 6)),
        ("é: word", UTF_16, (0, 3)),
        ("\ufeffb: word", UTF_16, (0, 4)),
        ("\ufeffa: 1\nb: word", UTF_16, (1, 3)),
        # YAML ends a line here, an editor does not
        ("a: 1 # \u2028b: word", UTF_16, (0, 11)),
        ("a: 1 # \x85b: word\nc: 1", UTF_16, (0, 11)),
        # and here Python does, which nobody else does
        ("a: '\x0c'\nb: word", UTF_16, (1, 3)),
    ],
)
def test_a_place_is_the_same_for_yaml_and_for_an_editor(text, codec, place):
    places = Places(text, codec)
    span = spans(text, "word")
    found = places.range_of(span)
    assert (found.start.line, found.start.character) == place
    assert places.text[places.index_of(found.start) : places.index_of(found.end)] == "word"
    assert places.position(found.start, "a") == span.start
    _, line, column = span.start
    assert yaml_lines(text)[(line or 1) - 1][(column or 1) - 1 :].startswith("word")


def test_places_behind_the_text_are_its_ends():
    places = Places("ab\ncd", UTF_16)
    assert places.index_of(lsp.Position(0, 9)) == 2
    assert places.index_of(lsp.Position(9, 0)) == 5
    assert places.offset(Position("a", 9, 1)) == 5
    assert Places("", UTF_16).index_of(lsp.Position(0, 0)) == 0
    assert Places("ab\n", UTF_16).line_and_column(lsp.Position(1, 0)) == (1, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 1\npolicy:\n", True),
        ("\ufeffversion: 1\npolicy:\n", True),
        ("{version: 1, policy: {}}", True),
        ('"version": 1\n"policy": {}\n', True),
        ("version: 1\nmodel: {}\n", True),
        ("version: 1\nnetwork: {}\n", True),
        ("extends: a.yaml\ncritic: null\n", True),
        ("version: 1\ncalls: {}\n", True),
        ("extends: ppo\nmodels: {}\n", True),
        ("#composer:\n", True),
        ("a: 1\nb: 2\n # composer: env=A-v1\n", True),
        ("a: 1\nb: 2\nc: 3\n# composer: env=A-v1\n", False),
        ("version: 1\n", False),
        ("  version: 1\n  policy: 2\n", False),
        ("extends: a.yaml\nrules: {}\n", False),
        ("versions: 1\npolicy_x: 1", False),
    ],
)
def test_which_texts_are_specs(text, expected):
    assert is_spec(text, "any.yaml") == expected
    assert is_spec(text, "any.composer.yaml")


SPECS = sorted((TESTS / "specs" / "bad").glob("*/*.yaml"))


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if i % 20 == 0 else [pytest.mark.full]) for i, path in enumerate(SPECS)],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_every_problem_is_shown_somewhere_in_its_file(path):
    text = path.read_text()
    places = Places(text, UTF_16)
    analysis = Analyser().analyse(text, str(path), makes_environments=False)

    def find(file):
        return Target("own", places) if file in (None, str(path)) else Target("other", places)

    shown = shown_problems(analysis, find)
    assert shown_problems(pickle.loads(pickle.dumps(analysis.plain())), find) == shown
    assert len(shown) == len(analysis.problems)
    for each in shown:
        where = each.diagnostic.range
        assert where.start < where.end or text == ""
        if each.fix and each.uri == "own" and each.fix.title.startswith("Change"):
            assert (
                text[places.index_of(where.start) : places.index_of(where.end)] == each.problem.word
            )
    described = Described(analysis.plain(), places, str(path))
    list(described.hints())
    for symbol in described.symbols():
        assert symbol.range.start <= symbol.selection_range.start
        assert symbol.selection_range.end <= symbol.range.end


def test_the_numbers_of_lenses_are_those_of_the_model():
    path = ROOT / "configs" / "cartpole.yaml"
    import composer

    analysis = Analyser().analyse(path.read_text(), str(path))
    model = composer.compose(path)
    counts = {
        name: sum(p.numel() for p in getattr(model, name).parameters())
        for name in analysis.parameters
    }
    assert analysis.parameters == counts
