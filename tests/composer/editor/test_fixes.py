"""A near name becomes the change of the text that writes it."""

import pytest
from gymnasium.spaces import Box, Discrete

from composer.editor.fixes import edit_of
from composer.errors import Position, Problem, SpecError
from composer.model import compose
from composer.source.load import load_source
from perception_blocks.words import suggest

HEAD = "version: 1\npolicy:\n  graph:\n"
TAIL = "  heads: {in: last}\n"


def mended(text: str, allow=()) -> str:
    """``text`` after the edits of all its problems, as composing finds them."""
    spaces = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}
    with pytest.raises(SpecError) as caught:
        compose(text, **spaces, device="meta")
    try:
        source = load_source(text)
    except SpecError:
        source = None
    edits = []
    for problem in caught.value.problems:
        span = source.span(problem.path, problem.key) if source else None
        edit = edit_of(problem, text, span)
        assert edit is not None, problem
        edits.append(edit)
    lines = text.splitlines(keepends=True)
    for span, word in sorted(edits, reverse=True):
        assert span.start.line == span.end.line
        line = lines[span.start.line - 1]
        lines[span.start.line - 1] = (
            line[: span.start.column - 1] + word + line[span.end.column - 1 :]
        )
    return "".join(lines)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("    last: {block: dens, in: observation, hidden_units: [4]}\n", "dense"),
        ("    last: {block: 'dens', in: observation, hidden_units: [4]}\n", "'dense'"),
        ('    last: {"blok": dense, in: observation, hidden_units: [4]}\n', '{"block": '),
        ("    last:\n      block: dense\n      hiden_units: [4]\n      in: observation\n", "hidden_units"),
        ("    a: {block: flatten, in: observation}\n    last: {block: add, in: [a, 'obsrvation']}\n", "'observation'"),
        ("    a: {block: flatten, in: observation}\n    last: {block: add, in: [\n      a,\n      obsrvation]}\n", "\n      observation]"),
        ("    last: {block: torch.nn.LayerNrom, in: observation, normalized_shape: 4}\n", "torch.nn.LayerNorm,"),
        ("    last: {block: nn.Identity, in: observation}\n", "torch.nn.Identity"),
        ("    last: {block: dense, in: {x_f: observation}, hidden_units: [4]}\n", "{x_F: "),
        ("    last: {block: dense, in: observation, hidden_units: [4], activation: {leaky_rleu: {}}}\n", "{leaky_relu: "),
        ("    last: {block: dense, in: observation, hidden_units: [4], init: {orthogonal: {gian: 1.0}}}\n", "{gain: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_what_is_misspelt_is_mended(wrong, right, line_break):
    text = (HEAD.replace("policy:", "policy: # \U0001f600") + wrong + TAIL).replace(
        "\n", line_break
    )
    after = mended(text)
    assert right.replace("\n", line_break) in after
    compose(after, observation_space=Box(-1, 1, (4,)), action_space=Discrete(2), device="meta")


def test_a_param_and_an_alias_are_mended():
    node = '    last: {block: dense, in: observation, hidden_units: ["${params.wdth}"]}\n'
    text = "params: {width: 4}\n" + HEAD + node + TAIL
    assert '"${params.width}"' in mended(text)
    text = HEAD + "    last: {block: dense, in: observation, hidden_units: &width [4]}\n" + TAIL
    assert "*width}" in mended(text + "  init: {gain: *widht}\n".replace("init", "x"))


def problem(column: int, word: str, instead: str) -> Problem:
    return Problem("wrong" + suggest(word, instead), ("a",), Position("a.yaml", 1, column))


@pytest.mark.parametrize(
    ("text", "instead", "written"),
    [
        ("a: ab", "true", '"true"'),
        ("a: ab", "x: y", '"x: y"'),
        ("a: 'ab'", "it's", "it''s"),
        ('a: "ab"', 'a "b"', 'a \\"b\\"'),
        ("a: [xab, ab]", "ac", "ac"),
        ("a: [ab/x, ab]", "ac", "ac"),
    ],
)
def test_a_name_is_written_as_yaml_reads_it(text, instead, written):
    edit = edit_of(problem(4, "ab", instead), text)
    assert edit is not None
    assert edit.text == written
    begin = text.rindex("ab") + 1
    assert [place.column for place in edit.span] == [begin, begin + 2]


def test_there_is_no_edit_where_the_word_is_elsewhere():
    assert edit_of(problem(4, "ab", "ac"), "a: ${params.x}") is None
    assert edit_of(problem(4, "ab", "ac"), "a: abc") is None
    assert edit_of(Problem("wrong" + suggest("ab", "ac")), "a: ab") is None  # of no file
    assert edit_of(Problem("wrong", ("a",), Position("a.yaml", 1, 4)), "a: ab") is None
    span = load_source("a: x\nb: ab\n").span(("a",))
    assert span is not None
    at_a = Problem("wrong" + suggest("ab", "ac"), ("a",), span.start)
    assert edit_of(at_a, "a: x\nb: ab\n", span) is None  # it ends with the value
