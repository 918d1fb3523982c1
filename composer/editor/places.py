"""Places in a text as YAML counts them, in characters, and as an editor does, in its units."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

from lsprotocol import types as lsp
from pygls.workspace import PositionCodec

from composer.editor.cursor import YAML_BREAK
from composer.errors import Position, Span
from composer.source.parse import BOM

__all__ = ["Places"]

_EDITOR_BREAK = re.compile("\r\n|[\n\r]")


class Places:
    """The lines of one text. ``codec`` counts an editor's units, which may be two or more for one character."""

    def __init__(self, text: str, codec: PositionCodec) -> None:
        self.text = text
        self._codec = codec
        self._yaml = _starts(text, YAML_BREAK)
        self._editor = _starts(text, _EDITOR_BREAK)
        self._mark = 1 if text.startswith(BOM) else 0  # which YAML does not count

    def offset(self, position: Position) -> int:
        """The index in the text of a place that a problem or a value has."""
        line, column = (position.line or 1) - 1, (position.column or 1) - 1
        if line >= len(self._yaml):
            return len(self.text)
        start = self._yaml[line] + (self._mark if line == 0 else 0)
        end = self._yaml[line + 1] if line + 1 < len(self._yaml) else len(self.text)
        return min(start + column, end)

    def at(self, offset: int) -> lsp.Position:
        """The editor's place of an index in the text."""
        line = bisect_right(self._editor, offset) - 1
        before = self.text[self._editor[line] : offset]
        return lsp.Position(line, self._units(before))

    def _units(self, text: str) -> int:
        return len(text) if text.isascii() else self._codec.client_num_units(text)

    def range(self, start: int, end: int) -> lsp.Range:
        return lsp.Range(self.at(start), self.at(end))

    def range_of(self, span: Span) -> lsp.Range:
        return self.range(self.offset(span.start), self.offset(span.end))

    def index_of(self, place: lsp.Position) -> int:
        """The index in the text of an editor's place; one behind the end of a line is the end of that line."""
        if place.line >= len(self._editor):
            return len(self.text)
        start = self._editor[place.line]
        end = self._editor[place.line + 1] if place.line + 1 < len(self._editor) else len(self.text)
        line = self.text[start:end].rstrip("\r\n")
        units = min(place.character, self._units(line))
        if units == 0 or line.isascii():
            return start + units
        found = self._codec.position_from_client_units([line], lsp.Position(0, units))
        return start + found.character

    def position(self, place: lsp.Position, file: str) -> Position:
        """An editor's place, as problems and values have theirs."""
        line, column = self.line_and_column(place)
        return Position(file, line + 1, column + 1)

    def line_and_column(self, place: lsp.Position) -> tuple[int, int]:
        """An editor's place as a line of `yaml_lines`, and a column in it, both from 0."""
        offset = self.index_of(place)
        line = bisect_right(self._yaml, offset) - 1
        mark = self._mark if line == 0 else 0
        return line, max(0, offset - self._yaml[line] - mark)

    def end_of_line(self, offset: int) -> int:
        """The end of the line in which an index lies, without the spaces before it."""
        found = YAML_BREAK.search(self.text, offset)
        end = found.start() if found else len(self.text)
        return max(offset, len(self.text[:end].rstrip()))


def _starts(text: str, breaks: re.Pattern[str]) -> Sequence[int]:
    return [0, *(found.end() for found in breaks.finditer(text))]
