"""A problem that has a near name, as the change of the text that mends it."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from composer.errors import Position, Problem, Span
from composer.source.scalars import parse_scalar

__all__ = ["Edit", "edit_of"]

_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
_PLAIN = re.compile(r"\w[\w ./-]*")  # never in need of quotes, unless it is a number or the like
_WHOLE, _PART = r"[\w./-]", r"\w"  # what may not stand beside a name, and beside a word in one


class Edit(NamedTuple):
    """``text`` is to stand in the place of ``span``."""

    span: Span
    text: str


def edit_of(problem: Problem, text: str, within: Span | None = None) -> Edit | None:
    """What writes `Problem.instead` for `Problem.word` in ``text``, that of the problem's file.

    ``within``: the span of the key or value at fault, if it is known; else the word is looked for in the rest of the
    line. None where there is no near name, or the word is not there: it may come from a param or a base.
    """
    start = problem.position
    if problem.instead is None or problem.word is None or start is None or start.line is None:
        return None
    known = within is not None and within.start == start
    breaks = [0, *(match.end() for match in _LINE_BREAK.finditer(text))]
    begin = _offset(breaks, start)
    line_end = _LINE_BREAK.search(text, begin)
    end = line_end.start() if line_end else len(text)
    if known and within is not None:
        end = _offset(breaks, within.end)
    word = re.escape(problem.word)
    for beside in (_WHOLE, _PART):
        pattern = re.compile(rf"(?<!{beside}){word}(?!{beside})")
        match = pattern.search(text, begin, end)
        if match:
            places = (_position(breaks, each, start.file) for each in match.span())
            return Edit(Span(*places), _written(problem.instead, text, match))
    return None


def _written(name: str, text: str, match: re.Match[str]) -> str:
    """``name`` as YAML reads it in the place of ``match``: in quotes where it needs them."""
    before, after = text[: match.start()][-1:], text[match.end() :][:1]
    if before == after == '"':
        return json.dumps(name, ensure_ascii=False)[1:-1]
    if before == after == "'":
        return name.replace("'", "''")
    is_plain = _PLAIN.fullmatch(name) and isinstance(parse_scalar(name), str)
    is_part = bool(re.match(r"[\w./${}-]", before) or re.match(r"[\w./${}-]", after))
    return name if is_plain or is_part else json.dumps(name, ensure_ascii=False)


def _offset(breaks: list[int], position: Position) -> int:
    line, column = position.line or 1, position.column or 1
    return breaks[min(line, len(breaks)) - 1] + column - 1


def _position(breaks: list[int], offset: int, file: str) -> Position:
    line = max(index for index, begin in enumerate(breaks) if begin <= offset)
    return Position(file, line + 1, offset - breaks[line] + 1)
