"""Problems as an editor shows them, and the edits that mend them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lsprotocol import types as lsp

from composer.editor.checked import Checked
from composer.editor.fixes import edit_of
from composer.editor.places import Places
from composer.errors import Position, Problem, Span
from composer.source.files import MAX_BYTES
from composer.source.parse import BOM
from composer.spec.top_level import VERSION

__all__ = ["SOURCE", "Fix", "Shown", "Target", "fixes_of"]
__all__ += ["problem_of_length", "shown_problems"]

SOURCE = "composer"
_WORD = re.compile(r"[\w./-]+")
_UNREAD = re.compile(
    r"the observation '(?P<name>[^']+)'.* is read by no network; name it under 'ignore'"
)
_NO_VERSION = re.compile(rf".* has no 'version'; write version: {VERSION}$")
# Keys that stand before `ignore` in specs.
_BEFORE_IGNORE = ("distributions", "params", "environment", "extends", "version")


class Target(NamedTuple):
    """A file in which problems are shown: where its text is known, and its address."""

    uri: str
    places: Places


class Fix(NamedTuple):
    """An edit that mends a problem: ``text`` in the place of ``where``."""

    title: str
    where: lsp.Range
    text: str
    uri: str
    is_sure: bool = False  # whether it may be made with all others of the file at once


class Shown(NamedTuple):
    """A problem in the file ``uri``."""

    uri: str
    diagnostic: lsp.Diagnostic
    problem: Problem
    fix: Fix | None = None


Find = Callable[[str | None], Target]
"""The file of a name in problems; of None the document that is checked."""


def shown_problems(analysis: Checked, find: Find) -> list[Shown]:
    """The problems of an analysis, each at the words that are wrong."""
    return [_shown(analysis, problem, find) for problem in analysis.problems]


def _shown(analysis: Checked, problem: Problem, find: Find) -> Shown:
    position = problem.position
    is_placed = position is not None and position.line is not None
    target = find(position.file if position is not None and is_placed else None)
    span = analysis.index.span(problem.path, problem.key)
    edit = edit_of(problem, target.places.text.removeprefix(BOM), span)
    where = target.places.range(*_extent(problem, span, target.places))
    fix = _other_fix(analysis, problem, find(None))
    if edit is not None:
        where = target.places.range_of(edit.span)
        title = f"Change {problem.word!r} to {problem.instead!r}"
        fix = Fix(title, where, edit.text, target.uri, True)
    diagnostic = lsp.Diagnostic(
        where,
        str(problem.message),
        severity=lsp.DiagnosticSeverity.Error,
        source=SOURCE,
        code=analysis.stage,
        related_information=list(_related(analysis, problem, find)) or None,
    )
    return Shown(target.uri, diagnostic, problem, fix)


def _extent(problem: Problem, span: Span | None, places: Places) -> tuple[int, int]:
    """From where to where in the text the words of a problem stand."""
    position = problem.position
    if position is None or position.line is None:
        return 0, places.end_of_line(0)
    start = places.offset(position)
    end = places.end_of_line(start)
    if span is not None and span.start == position and span.end.line == position.line:
        end = places.offset(span.end)
    elif word := _WORD.match(places.text, start):
        end = word.end()
    if (
        end - start > 1
        and places.text[start] in "\"'"
        and places.text[end - 1] == places.text[start]
    ):
        start, end = start + 1, end - 1
    if places.text[start : start + 1] in ("", "\r", "\n") and start > 0:
        return start - 1, start  # at the end of a line its last character is shown
    return start, min(max(end, start + 1), len(places.text))


def _related(
    analysis: Checked, problem: Problem, find: Find
) -> Iterator[lsp.DiagnosticRelatedInformation]:
    for path, text in problem.related:
        span = analysis.index.span(path, True)
        if span is not None:
            target = find(span.start.file)
            where = lsp.Location(target.uri, target.places.range_of(span))
            yield lsp.DiagnosticRelatedInformation(where, text)


# --- what mends them --------------------------------------------------------------------------------------------------


def _other_fix(analysis: Checked, problem: Problem, document: Target) -> Fix | None:
    """What mends a problem that has no near name."""
    if match := _UNREAD.match(problem.message):
        return _ignored(analysis, match["name"], document)
    if _NO_VERSION.match(problem.message):
        start = document.places.at(_behind_comments(document.places.text))
        text = f"version: {VERSION}\n"
        return Fix(f"Add 'version: {VERSION}'", lsp.Range(start, start), text, document.uri)
    return None


def _ignored(analysis: Checked, name: str, document: Target) -> Fix | None:
    """Name an observation under `ignore`, in the document that is checked."""
    places = document.places
    title = f"Name {name!r} under 'ignore'"
    word = name if re.fullmatch(r"[A-Za-z_][\w/]*", name) else f"'{name}'"
    listed = analysis.index.data.get("ignore")
    last = (
        analysis.index.span(("ignore", len(listed) - 1))
        if isinstance(listed, list) and listed
        else None
    )
    if last is not None and _is_in(analysis, last.start):
        is_flow = not places.text[: places.offset(last.start)].rstrip(" ").endswith("-")
        at = places.at(places.offset(last.end))
        indent = " " * ((last.start.column or 1) - 3)
        text = f", {word}" if is_flow else f"\n{indent}- {word}"
        return Fix(title, lsp.Range(at, at), text, document.uri)
    if "ignore" in analysis.index.data:
        return None
    index = _behind_keys(analysis, places)
    at, line = places.at(index), f"ignore: [{word}]"
    is_end = index == len(places.text) and places.text[-1:] != "\n"
    return Fix(title, lsp.Range(at, at), f"\n{line}" if is_end else f"{line}\n", document.uri)


def _behind_keys(analysis: Checked, places: Places) -> int:
    """The begin of the line behind the keys that stand before `ignore`, else of the first line with a key."""
    ends = []
    index = analysis.index
    for key in _BEFORE_IGNORE:
        is_there = key in index.data or (key == "params" and index.params)
        span = index.span((key,)) if is_there else None
        if span is not None and _is_in(analysis, span.start):
            ends.append(places.offset(span.end))
    if not ends:
        return _behind_comments(places.text)
    end = places.text.find("\n", max(ends))
    return len(places.text) if end < 0 else end + 1


def _is_in(analysis: Checked, position: Position) -> bool:
    """Whether a place is in the document that is checked, not in a file that it extends."""
    return position.file == (analysis.index.name or "")


def _behind_comments(text: str) -> int:
    """The begin of the first line that is no comment."""
    match = re.match(r"(\ufeff?[ \t]*(#[^\n]*|---[ \t]*)?\n)*", text)
    return match.end() if match else 0


def fixes_of(shown: Iterable[Shown], uri: str) -> list[Fix]:
    """The fixes that can be made at once in a file: the first of those that overlap."""
    fixes: list[Fix] = []
    for each in shown:
        fix = each.fix
        if fix is None or fix.uri != uri or not fix.is_sure:
            continue
        if all(not _overlap(fix.where, other.where) for other in fixes):
            fixes.append(fix)
    return fixes


def _overlap(first: lsp.Range, second: lsp.Range) -> bool:
    return (first.start < second.end and second.start < first.end) or first == second


def problem_of_length(target: Target) -> Shown:
    """That a text is too long to be read."""
    message = f"the spec is longer than {MAX_BYTES} characters, too long for a spec"
    where = target.places.range(0, target.places.end_of_line(0))
    diagnostic = lsp.Diagnostic(
        where, message, severity=lsp.DiagnosticSeverity.Error, source=SOURCE, code="syntax"
    )
    return Shown(target.uri, diagnostic, Problem(message))
