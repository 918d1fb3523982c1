"""From where to where values and keys are written, the value at a place, and text that is not saved yet."""

import pickle
import re

import pytest

from composer.errors import Position, SpecError
from composer.model import compose
from composer.source.load import Source, load_source
from perception_blocks.registry import Registry

TEXT = """version: 1  # the first
params: {h: [64, 32]}
policy:
  graph:
    cut: &x
      block: dense   # kind
      in: "\U0001f600 obs"
      hidden_units: "${params.h}"

      # a comment

    copy: *x
    empty:
    literal: |
      two
      lines
    plain: words that
      go on
    flow: [1,
      2]
    'quoted key': q
  heads: {in: cut}
"""
GRAPH = ("policy", "graph")


def written(source: Source, text: str, path: tuple, key: bool = False) -> str | None:
    """The text of a span, which starts where the problem of its value would stand."""
    span = source.span(path, key)
    if span is None:
        return None
    assert span.start == source.position(path, key)
    lines = re.split(r"(?<=\n)", text)  # characters of the text, whatever the line breaks
    places = [(place.line or 1, place.column or 1) for place in span]
    starts = [sum(map(len, lines[: line - 1])) + column - 1 for line, column in places]
    return text[starts[0] : starts[1]]


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("version",), "1", "version"),
        (("params", "h", 1), "32", None),
        ((*GRAPH, "cut", "block"), "dense", "block"),
        ((*GRAPH, "cut", "in"), '"\U0001f600 obs"', "in"),
        ((*GRAPH, "cut", "hidden_units"), '"${params.h}"', "hidden_units"),
        ((*GRAPH, "empty"), "", "empty"),
        ((*GRAPH, "literal"), "|\n      two\n      lines\n", "literal"),
        ((*GRAPH, "plain"), "words that\n      go on", "plain"),
        ((*GRAPH, "flow"), "[1,\n      2]", "flow"),
        ((*GRAPH, "quoted key"), "q", "'quoted key'"),
        (("policy", "heads"), "{in: cut}", "heads"),
    ],
)
def test_a_span_is_what_is_written(path, value, key, line_break):
    text = TEXT.replace("\n", line_break)
    source = load_source(text)
    assert written(source, text, path) == value.replace("\n", line_break)
    if key is not None:
        assert written(source, text, path, key=True) == key


def test_a_block_ends_with_its_last_value_and_not_with_the_comments_behind_it():
    source = load_source(TEXT)
    block = written(source, TEXT, (*GRAPH, "cut"))
    assert block is not None
    assert block.startswith("&x\n")
    assert block.endswith('"${params.h}"')
    assert written(source, TEXT, ()) == TEXT.rstrip()


def test_an_alias_has_the_span_of_its_anchor_and_a_place_of_its_own():
    source = load_source(TEXT)
    assert source.span((*GRAPH, "copy")) == source.span((*GRAPH, "cut"))
    assert written(source, TEXT, (*GRAPH, "copy"), key=True) == "copy"
    assert source.at(Position("<spec>", 12, 12)) == ((*GRAPH, "copy"), False)


def test_a_value_that_is_not_there_has_the_span_of_its_nearest_ancestor():
    source = load_source(TEXT)
    assert source.span((*GRAPH, "empty", "block")) == source.span((*GRAPH, "empty"))


def test_overrides_and_mappings_have_no_span():
    source = load_source(TEXT, ["params.h=[8]", "policy.graph.new={block: flatten}"])
    assert source.span(("params", "h")) is None
    assert source.span((*GRAPH, "cut", "hidden_units")) is None  # its value is the override's
    assert written(source, TEXT, (*GRAPH, "cut", "hidden_units"), key=True) == "hidden_units"
    assert source.span((*GRAPH, "new"), key=True) is None
    assert written(source, TEXT, (*GRAPH, "cut", "block")) == "dense"
    assert load_source({"version": 1}).span(("version",)) is None


def test_the_values_of_a_param_are_written_where_the_param_is():
    source = load_source(TEXT)
    assert written(source, TEXT, (*GRAPH, "cut", "hidden_units", 0)) == "64"


@pytest.mark.parametrize(
    ("line", "column", "at"),
    [
        (1, 1, (("version",), True)),
        (1, 8, (("version",), True)),  # right behind it
        (1, 10, (("version",), False)),
        (1, 14, ((), False)),  # in a comment
        (2, 14, (("params", "h", 0), False)),
        (6, 14, ((*GRAPH, "cut", "block"), False)),
        (6, 19, ((*GRAPH, "cut", "block"), False)),
        (7, 15, ((*GRAPH, "cut", "in"), False)),
        (8, 25, ((*GRAPH, "cut", "hidden_units"), False)),
        (12, 5, ((*GRAPH, "copy"), True)),
        (13, 11, ((*GRAPH, "empty"), False)),
        (22, 12, (("policy", "heads", "in"), True)),
        (99, 1, None),
    ],
)
def test_the_value_at_a_place(line, column, at):
    assert load_source(TEXT).at(Position("<spec>", line, column)) == at


def test_the_value_at_a_place_of_a_base(tmp_path):
    (tmp_path / "base.yaml").write_text("params: {h: 8}\npolicy:\n  graph: {a: {block: dense}}\n")
    (tmp_path / "spec.yaml").write_text("extends: base.yaml\npolicy:\n  heads: {in: a}\n")
    base, spec = str(tmp_path / "base.yaml"), str(tmp_path / "spec.yaml")
    source = load_source(spec)
    assert source.files == (spec, base)
    assert source.at(Position(base, 3, 23)) == ((*GRAPH, "a", "block"), False)
    assert source.at(Position(spec, 3, 4)) == (("policy", "heads"), True)
    assert source.at(Position(spec, 3, 16)) == (("policy", "heads", "in"), False)
    assert source.at(Position(base, 1, 3)) == (("params",), True)
    assert source.at(Position("other.yaml", 1, 1)) is None
    span = source.span((*GRAPH, "a"))
    assert span is not None
    assert span.start.file == span.end.file == base


def test_a_source_with_spans_is_pickled():
    source = load_source(TEXT)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.span((*GRAPH, "cut")) == source.span((*GRAPH, "cut"))


# --- text that is not saved yet ---

UNSAVED = """version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
  heads: {in: latent}
"""


def test_text_of_an_editor_is_read_in_place_of_files(tmp_path):
    base, spec = tmp_path / "base.yaml", tmp_path / "new.yaml"
    base.write_text(UNSAVED)
    texts = {
        str(spec): "\ufeffextends: base.yaml\npolicy:\n  graph:\n    latent: {hidden_units: [4]}\n",
        str(base): UNSAVED.replace("[8]", "[8, 16]"),
    }
    source = load_source(spec, files=texts)
    assert source.files == (str(spec), str(base))
    assert source.data["policy"]["graph"]["latent"]["hidden_units"] == [4]
    assert compose(source).policy.heads  # what is built from it needs no file
    assert load_source(base, files=texts).data["policy"]["graph"]["latent"]["hidden_units"] == [
        8,
        16,
    ]
    assert load_source(base).data["policy"]["graph"]["latent"]["hidden_units"] == [8]


def test_a_file_that_is_not_saved_is_known_by_all_of_its_names(tmp_path):
    (tmp_path / "specs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "specs")
    real = tmp_path / "specs" / "new.yaml"
    source = load_source(tmp_path / "link" / "new.yaml", files={str(real): UNSAVED})
    assert source.data["version"] == 1
    assert source.files == (str(tmp_path / "link" / "new.yaml"),)


def test_mistakes_in_text_that_is_not_saved_have_their_place(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(UNSAVED)
    with pytest.raises(SpecError, match=re.escape(f"{spec}:1:12: ")):
        load_source(spec, files={str(spec): "version: [1\n"})
    with pytest.raises(SpecError, match=re.escape("there is no file 'nowhere.yaml'")):
        load_source("nowhere.yaml", files={str(spec): UNSAVED})


def test_a_base_that_is_not_saved_must_be_allowed_as_on_disk(tmp_path):
    (tmp_path / "specs").mkdir()
    spec, base = tmp_path / "specs" / "spec.yaml", tmp_path / "base.yaml"
    texts = {str(spec): "extends: ../base.yaml\n", str(base): UNSAVED}
    with pytest.raises(SpecError, match="is neither beside nor below the spec"):
        load_source(spec, files=texts)
    assert load_source(spec, allow=[f"{tmp_path}/"], files=texts).data["version"] == 1


def test_a_registered_name_gives_way_to_a_file_that_is_not_saved(tmp_path):
    named = Registry("spec")
    named.register("ppo")(UNSAVED)
    spec = tmp_path / "spec.yaml"
    texts = {str(spec): "extends: base\n", str(tmp_path / "base"): UNSAVED}
    assert load_source(spec, named=named.get, files=texts).data["version"] == 1
