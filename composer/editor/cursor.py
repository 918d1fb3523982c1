"""Where the cursor is in YAML that is being typed, which need not parse.

Columns of lines give the block part of the path, a scan of brackets the flow part: ``{block: dense, in: [latent, |``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from composer.errors import Path
from composer.source.parse import BOM

__all__ = ["YAML_BREAK", "Cursor", "cursor_at", "yaml_lines"]

# YAML ends a line in more places than an editor does.
YAML_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

# A key of a block mapping: 'latent:', 'in: observation', '"a key":'.
_KEY = re.compile(r"""("[^"]*"|'[^']*'|[^\s#{}\[\],:"'&*!|>%@`-][^#{}\[\],:"']*?)\s*:(?=\s|$)""")
_DASH = re.compile(r"-(\s+|$)")
_BLOCK_TEXT = re.compile(
    r"[|>][-+0-9]*\s*(#.*)?$"
)  # 'key: |', whose text follows in the next lines
_PIECE = re.compile(r"""[^{}\[\],:#"'\s]+|.""")
_COLON_BEHIND = re.compile(r"""\w*["']?\s*:(\s|$)""")
_BLOCK_MAPPING, _BLOCK_LIST = "block mapping", "block list"


def yaml_lines(text: str) -> list[str]:
    """The lines of a text as YAML has them, without their ends."""
    return YAML_BREAK.split(text.removeprefix(BOM))


@dataclass
class Cursor:
    """What is being typed: the value of ``key`` in the mapping at ``path``, or with None a key of that mapping.

    ``prefix`` is what is typed of it, from ``column`` of the line on. An entry of a list is a value of the list's key.
    ``mappings`` has, for each beginning of ``path``, the keys of the mapping there and the texts of their values; a
    bracket stands for a value in brackets. ``after_colon``: no space stands between the colon and the cursor.
    ``before_colon``: the cursor stands in a key that has its colon.
    """

    path: Path = ()
    key: str | None = None
    prefix: str = ""
    column: int = 0
    mappings: tuple[dict[str, str], ...] = ({},)
    after_colon: bool = False
    before_colon: bool = False
    in_block_list: bool = False  # behind a dash, where a mapping may begin as well

    @property
    def beside(self) -> dict[str, str]:
        """The keys of the mapping that the cursor stands in."""
        return self.mappings[-1]


def cursor_at(lines: Sequence[str], line: int, column: int) -> Cursor | None:
    """The Cursor before ``column`` of ``line`` (both from 0); None in a comment, and in a text of several lines."""
    reader = _Reader()
    for text in lines[:line]:
        if text.strip():
            reader.read(text)
    text = lines[line].rstrip("\r\n") if line < len(lines) else ""
    reader.read(text[:column])
    if reader.in_comment or reader.text_column is not None:
        return None
    cursor = reader.cursor()
    cursor.after_colon = not cursor.prefix and cursor.column == column and text[:column][-1:] == ":"
    cursor.before_colon = cursor.key is None and bool(_COLON_BEHIND.match(text[column:]))
    reader.read_behind(text[column:], lines[line + 1 :])
    return cursor


@dataclass
class _Open:
    """A mapping or a list that is not finished; ``part`` leads to what is being read, None where a key is awaited."""

    kind: str  # _BLOCK_MAPPING, _BLOCK_LIST, "{" or "["
    column: int
    part: str | int | None = None
    keys: dict[str, str] = field(
        default_factory=dict
    )  # of a mapping, with the texts of their values
    token: str = ""  # what was read since the last comma or colon
    start: int = 0  # the column where it begins
    quote: str = ""  # the quote that is open in it

    def begin(self, column: int) -> None:
        """What is read next begins at ``column``, or behind the spaces there."""
        self.token, self.start, self.quote = "", column, ""

    def finish(self) -> None:
        """Note the text of the value that ends here."""
        if isinstance(self.part, str) and self.token.strip():
            self.keys[self.part] = _unquoted(self.token)

    @property
    def is_block(self) -> bool:
        return self.kind in (_BLOCK_MAPPING, _BLOCK_LIST)


class _Reader:
    """Reads lines from the first one on. ``open`` leads to what is read last; the first is the document."""

    def __init__(self) -> None:
        self.in_comment = False
        self.text_column: int | None = None  # of the key of a text of several lines
        self._open: list[_Open] = []

    def read(self, text: str) -> None:
        """Take a line, or the beginning of the cursor's."""
        text = text.rstrip("\r\n")
        indent = len(text) - len(text.lstrip(" "))
        if self.text_column is not None:
            if indent > self.text_column or not text.strip():
                return
            self.text_column = None
        self.in_comment = False
        block = next((each for each in reversed(self._open) if each.is_block), None)
        key = _KEY.match(text, indent)
        if block is not None and not self._open[-1].is_block:
            if not (key and indent <= block.column):
                self._open[-1].begin(0)  # quotes end with the line, as one may be left open
                self._scan(text, 0)
                return
            del self._open[self._open.index(block) + 1 :]  # left open: it does not go on here
        self._read_block(text, indent)

    def _read_block(self, text: str, column: int) -> None:
        is_item = False
        while dash := _DASH.match(text, column):
            self._begin_item(column)
            is_item, column = True, dash.end()
        if key := _KEY.match(text, column):
            mapping = self._mapping(column)
            mapping.part = _unquoted(key[1])
            value = text[key.end() :].lstrip()
            mapping.keys[mapping.part] = finished = _finished(value)
            if _BLOCK_TEXT.match(value):
                self.text_column = column
            if finished:
                mapping.begin(len(text))
                return
            column = key.end()
        elif not is_item:
            self._mapping(column).part = None
        self._open[-1].begin(column)
        self._scan(text, column)

    def _begin_item(self, column: int) -> None:
        """A dash at ``column``: another entry of the list there, or the first of a new one."""
        while self._open and self._open[-1].column > column:
            self._open.pop()
        last = self._open[-1] if self._open else None
        if last is not None and last.kind == _BLOCK_LIST and last.column == column:
            last.part = int(last.part or 0) + 1
        else:  # it may begin in the column of the key that it belongs to
            self._open.append(_Open(_BLOCK_LIST, column, 0))

    def _mapping(self, column: int) -> _Open:
        """The block mapping whose keys begin at ``column``."""
        while self._open:
            last = self._open[-1]
            if last.column < column or (last.column == column and last.kind == _BLOCK_MAPPING):
                break
            self._open.pop()
        if not self._open or self._open[-1].column < column:
            self._open.append(_Open(_BLOCK_MAPPING, column))
        return self._open[-1]

    def _scan(self, text: str, column: int) -> None:
        """Take what stands from ``column`` on, with the brackets that are open."""
        for piece in _PIECE.finditer(text, column):
            at, word = piece.start(), piece[0]
            last = self._open[-1]
            if last.quote:
                last.quote = "" if word == last.quote else last.quote
            elif word == "#" and text[max(0, at - 1) : at] in ("", " ", "\t"):
                self.in_comment = True
                break
            elif self._take_sign(last, word, at, text):
                continue
            if not last.token.strip():
                last.begin(at)
                last.quote = word if word in ("'", '"') else ""
            last.token += word
        self._open[-1].finish()

    def _take_sign(self, last: _Open, word: str, at: int, text: str) -> bool:
        """Take a bracket, a comma or a key's colon; False for anything else."""
        refers = last.token.endswith("$") or ("${" in last.token and "}" not in last.token)
        if word in ("{", "[") and not refers:
            if isinstance(last.part, str):
                last.keys[last.part] = word
            self._open.append(_Open(word, at, 0 if word == "[" else None, start=at + 1))
        elif last.is_block or refers:
            return False
        elif word in ("}", "]"):
            last.finish()
            self._open.pop()
            self._open[-1].begin(at + 1)
        elif word == ",":
            last.finish()
            last.part = int(last.part or 0) + 1 if last.kind == "[" else None
            last.begin(at + 1)
        elif word == ":" and last.kind == "{" and last.part is None and _ends_key(text, at, last):
            last.part = _unquoted(last.token)
            last.keys[last.part] = ""
            last.begin(at + 1)
        else:
            return False
        return True

    def cursor(self) -> Cursor:
        last = self._open[-1]
        typed, column = last.token, last.start
        if typed[:1] in ("'", '"'):
            typed, column = typed[1:], column + 1
        elif not typed.strip():
            typed, column = "", last.start + len(typed)
        levels = list(self._open)
        while len(levels) > 1 and levels[-1].kind in (_BLOCK_LIST, "["):
            levels.pop()
        path = tuple(level.part for level in levels[:-1] if level.part is not None)
        key = levels[-1].part
        mappings = tuple(level.keys for level in levels)
        cursor = Cursor(path, None if key is None else str(key), typed, column, mappings)
        cursor.in_block_list = last.kind == _BLOCK_LIST
        return cursor

    def read_behind(self, rest: str, lines: Sequence[str]) -> None:
        """Add the keys that stand behind the cursor to the mappings that it stands in."""
        last = self._open[-1]
        last.begin(0)
        if not last.is_block:
            self._scan(rest, 0)
        elif last.kind == _BLOCK_MAPPING and last.part is None:
            last.part = ""  # of what is below the word that is typed
        for text in lines:
            if text.strip():
                self.read(text)


def _finished(value: str) -> str:
    """What is known of a ``value`` in brackets that ends in its line; nothing of any other.

    Most lines are such, and all of them are read before a list of names can appear.
    """
    value = value.partition(" #")[0]
    if value[:1] not in ("{", "[") or value[-1:] not in ("}", "]"):
        return ""
    is_balanced = all(value.count(a) == value.count(b) for a, b in ("{}", "[]"))
    return value[0] if is_balanced else ""


def _ends_key(text: str, at: int, frame: _Open) -> bool:
    """Whether the colon at ``at`` ends a key: a space or nothing follows, or the key is in quotes."""
    return text[at + 1 : at + 2] in ("", " ", "\t") or frame.token.strip()[-1:] in ("'", '"')


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")
