"""The rows of a data file, json or jsonl, each with the place where it is written, and what is wrong at that place."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from composer.errors import Position, Problem, SpecError
from composer.source.files import as_utf8, display_name, no_file
from perception_blocks.reading import file_at
from perception_blocks.words import describe

__all__ = ["DataError", "Row", "RowProblems", "read_rows", "rows_from"]

MAX_LINE = 2**26  # bytes
MAX_JSON = 2**30  # bytes of a file that is read as a whole
MAX_PROBLEMS = 1000  # after which nothing more is read
_SPACE = " \t\n\r"


class DataError(SpecError):
    """What is wrong in the rows of a data set, one problem a line, each with its file, line and column."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row, which is written at ``start`` of ``text``, in ``line`` of the file; one from Python has no line."""

    values: Mapping[str, Any]
    file: str
    line: int | None = None
    text: str = ""
    start: int = 0

    def position(self, key: str | None = None) -> Position:
        """Where the row begins, or ``key`` in it."""
        if self.line is None:
            return Position(self.file)
        at = -1 if key is None else self.text.find(json.dumps(key, ensure_ascii=False), self.start)
        return _position(self.file, self.text, max(at, self.start), self.line, self.start)


class RowProblems:
    """Collects the problems of a data set; after the first 1,000 they are raised."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def add(self, position: Position, message: str) -> None:
        self._problems.append(Problem(message, (), position))
        if len(self._problems) >= MAX_PROBLEMS:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raise DataError with all problems noted up to now."""
        if self._problems:
            raise DataError(self._problems)


def read_rows(path: str, problems: RowProblems) -> Iterator[Row]:
    """The rows of a file: a list in ``.json``, one a line in ``.jsonl``. Those that cannot be read are left out.

    Raises DataError for a file that cannot be read.
    """
    name = display_name(path)
    readers = {".json": _rows_of_list, ".jsonl": _rows_of_lines}
    read = readers.get(os.path.splitext(path)[1])
    if read is None:
        raise _unread(f"the name of a data file ends in .json or .jsonl, got {name!r}")
    try:
        place = file_at(path)
    except ValueError as error:
        raise _unread(str(error)) from error
    if problem := no_file(place):
        raise _unread(problem)
    try:
        with open(place, "rb") as file:
            yield from read(name, file, problems)
    except OSError as error:
        raise _unread(f"{name!r} cannot be read: {error.strerror}") from error


def rows_from(builder: Callable[[], Iterable[object]], problems: RowProblems) -> Iterator[Row]:
    """The rows that a function gives."""
    for number, values in enumerate(builder()):
        row = f"dataset_builder, row {number}"
        if isinstance(values, Mapping):
            yield Row(values, row)
        else:
            problems.add(Position(row), _no_row(values))


def _rows_of_lines(name: str, file: BinaryIO, problems: RowProblems) -> Iterator[Row]:
    for line, data in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
        if len(data) > MAX_LINE:
            message = f"the line is longer than {MAX_LINE:,} bytes"
            raise DataError([Problem(message, (), Position(name, line, 1))])
        try:
            text = as_utf8(data, name, line).rstrip("\r\n")
        except SpecError as error:
            problems.add(error.problems[0].position or Position(name), error.problems[0].message)
            continue
        if not text.strip(_SPACE):
            continue
        if text.strip(_SPACE) == "[" or text.startswith("[{"):
            advice = "a file with a list of rows is called .json"
            problems.add(Position(name, line, 1), f"a .jsonl file has one row a line; {advice}")
            return
        row, end = _row_at(name, text, _skip(text, 0), line, problems)
        if end is not None and _skip(text, end) < len(text):
            place = _position(name, text, _skip(text, end), line, 0)
            problems.add(place, "there is more behind the row; a line has one row")
        elif row is not None:
            yield row


def _rows_of_list(name: str, file: BinaryIO, problems: RowProblems) -> Iterator[Row]:
    if os.fstat(file.fileno()).st_size > MAX_JSON:
        advice = "a .jsonl file, with one row a line, may have any size"
        raise _unread(f"{name!r} is larger than {MAX_JSON:,} bytes; {advice}")
    try:
        text = as_utf8(file.read(MAX_JSON), name)
    except SpecError as error:
        raise DataError(error.problems) from None
    at, line, seen = _skip(text, 0), 1, 0
    if text[at : at + 1] != "[":
        advice = "a file with one row a line is called .jsonl"
        problems.add(_position(name, text, at, 1, 0), f"a .json file is a list of rows; {advice}")
        return
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        line, seen = line + text.count("\n", seen, at), at
        row, end = _row_at(name, text, at, line, problems)
        if end is None:
            return  # where the next row begins cannot be known
        if row is not None:
            yield row
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            place = _position(name, text, at, line, seen)
            problems.add(place, "there is neither ',' nor ']' behind the row")
            return
    if (at := _skip(text, at + 1)) < len(text):
        problems.add(_position(name, text, at, line, seen), "there is more behind the list of rows")


def _row_at(
    name: str, text: str, start: int, line: int, problems: RowProblems
) -> tuple[Row | None, int | None]:
    """The row at ``start`` of ``text``, which is in ``line``, and its end; None for what cannot be read, and noted."""
    try:
        values, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        place = _position(name, text, error.pos, line, start)
        problems.add(place, f"this is no JSON: {error.msg[0].lower()}{error.msg[1:]}")
        return None, None
    except (ValueError, RecursionError) as error:
        reason = (
            str(error) if isinstance(error, _RowError) else "it is too deep, or a number too long"
        )
        problems.add(_position(name, text, start, line, start), f"the row cannot be read: {reason}")
        return None, None
    row = Row(values, name, line, text, start)
    if not isinstance(values, dict):
        problems.add(row.position(), _no_row(values))
        return None, end
    return row, end


class _RowError(ValueError):
    """What JSON leaves open, and we do not take."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _RowError(f"the key {twice!r} is given twice")
    return values


def _no_constant(word: str) -> None:
    raise _RowError(f"{word} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant)


def _no_row(values: object) -> str:
    return f'a row is a mapping such as {{"prompt": "..."}}, got {describe(values)}'


def _skip(text: str, at: int) -> int:
    """The place of the next character that is no space."""
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _position(file: str, text: str, at: int, line: int, start: int) -> Position:
    """The place of the character ``at``, where ``start`` is in ``line``."""
    column = at - text.rfind("\n", 0, at)
    return Position(file, line + text.count("\n", start, at), column)


def _unread(message: str) -> DataError:
    return DataError([Problem(message)])
