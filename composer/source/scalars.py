"""The scalars of YAML 1.2's core schema, and its syntax errors in plain words. Needs no YAML library."""

from __future__ import annotations

import re
from typing import TypeAlias

__all__ = ["Scalar", "no_space_in_words", "parse_scalar", "syntax_error_in_words"]

Scalar: TypeAlias = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {"": None, "~": None}
_WORDS |= dict.fromkeys(("null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NUMBERS_BEGIN = "+-.0123456789"
_MAX_DIGITS = 300  # a float's range; Python itself refuses integers of more than 4,300


def parse_scalar(text: str) -> Scalar:
    """What an unquoted ``text`` means. Raises ValueError for a number no computer word could hold.

    >>> [parse_scalar(text) for text in ("1e-3", "no", "0o17", "012", "~", ".inf", "1_000")]
    [0.001, 'no', 15, 12, None, inf, '1_000']
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBERS_BEGIN:
        return text
    if len(text) > _MAX_DIGITS and (_INTEGER.fullmatch(text) or _FLOAT.fullmatch(text)):
        raise ValueError(f"a number of {len(text)} characters is too long")
    if _INTEGER.fullmatch(text):
        bases = {"0o": 8, "0x": 16}
        return int(text, bases.get(text[:2], 10))
    if _FLOAT.fullmatch(text) or _SPECIAL.fullmatch(text):
        return float(
            text.replace(".i", "i").replace(".I", "I").replace(".n", "n").replace(".N", "N")
        )
    return text


# The parser's messages, and what they mean for the author of a spec.
_SYNTAX = {
    "mapping values are not allowed": "a ':' is out of place here: a text that holds ': ' must be in quotes, "
    "and keys of one mapping must start in the same column",
    "expected ',' or '}'": "a ',' or the closing '}' is missing before this",
    "expected ',' or ']'": "a ',' or the closing ']' is missing before this",
    "expected key": "a key of the mapping is expected here; check the indentation and the brackets before it",
    "expected '-'": "an entry of the list is expected here, starting with '-'; check the indentation",
    "could not find expected ':'": "a ':' is missing before this, after the key",
    "unexpected end of stream": "this quote is never closed",
    "unknown escape": "this '\\' escape is unknown; write '\\\\', or use single quotes",
    "tab character": "a tab cannot indent YAML; use spaces",
    "block sequence entries are not allowed": "a list entry '-' cannot start here; put it on a line of its own",
    "unknown directive": "a line cannot start with '%'; put the text in quotes",
}
_Place: TypeAlias = tuple[int, int]
_NO_SPACE = re.compile(r"[\s-]*([A-Za-z_]\w*:[^\s:#/][^:#]*)")  # 'block:dense'


def no_space_in_words(text: str) -> str:
    """What is wrong with ``text``, which is to be a key and its value."""
    key, _, value = text.partition(":")
    return f"a space is missing after the ':' of {text!r}; write {key}: {value}"


def syntax_error_in_words(
    text: str, reason: str, place: _Place | None, opened: _Place | None
) -> tuple[str, _Place]:
    """The parser's ``reason`` in plain words, and the place to show.

    Places are 0-based lines and columns of ``text``: where the parser stopped, and where what it read began.
    """
    lines = text.splitlines() or [""]
    stopped, _ = place = place or (0, 0)
    if stopped >= len(lines):  # the end of the text; the place to show is inside of the file
        place = (len(lines) - 1, len(lines[-1]))
    line, column = place
    here = lines[line] if line < len(lines) else ""
    rest = here[column:]
    if rest.startswith("{") and here[:column].endswith("$"):
        reference = rest[: rest.find("}") + 1] or rest
        return f'"${reference}" must be in quotes inside {{ }} and [ ]', (line, column - 1)
    for above in (line, line - 1) if "':'" in reason or "mapping values" in reason else ():
        match = _NO_SPACE.fullmatch(lines[above]) if above >= 0 else None
        if match:
            return no_space_in_words(match[1]), (above, match.start(1))
    if "cannot start any token" in reason:
        if rest.startswith("\t"):
            return _SYNTAX["tab character"], place
        return f"a text cannot start with {rest[:1]!r}; put it in quotes", place
    words = next((words for part, words in _SYNTAX.items() if part in reason), None)
    if words is None:
        return f"not valid YAML: {reason}", place
    if opened and "end of stream" in reason:
        return words, opened
    if opened and "closing" in words and opened[0] != stopped:
        words += f"; the bracket was opened at line {opened[0] + 1}, column {opened[1] + 1}"
    return words, place
