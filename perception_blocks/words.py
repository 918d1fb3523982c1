"""Near names, listings, values and shapes in messages: one wording for both packages."""

from __future__ import annotations

import difflib
import functools
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from itertools import islice
from typing import ParamSpec, TypeAlias, TypeVar
from urllib.parse import quote

from perception_blocks.synonyms import SYNONYMS, folded

__all__ = [
    "Shape",
    "Shapes",
    "Suggestion",
    "describe",
    "listing",
    "few_of",
    "format_shape",
    "joined",
    "did_you_mean",
    "hint",
    "near_name",
    "suggest",
    "sparing",
    "as_module_name",
    "cut",
    "is_plain",
    "is_writable",
    "printable",
    "readable",
    "shortened",
    "wrapped",
]

Shape: TypeAlias = tuple[int | None, ...]
Shapes: TypeAlias = Sequence[Shape]

MOST_CHARACTERS = 2_000  # of a message
MOST_MESSAGES = 100
MOST_TEXT = 18_000  # of all messages together
# None of these ends a string, begins an escape or a placeholder, or is invisible. What generates code (PyTorch's
# guards, FX, ONNX's parsers) puts names between quotes, and not always with an escape.
_PLAIN = re.compile(r"[\w./: -]{1,200}")
_UNSAFE = re.compile(r"""["'`\\]""")

LONGEST_WORD = 100  # that others are compared with
COMPARISONS = 50_000
R = TypeVar("R")
P = ParamSpec("P")
_left: ContextVar[list[int] | None] = ContextVar("comparisons left", default=None)

MOST_NAMES, FEW_NAMES = 100, 6


class Suggestion(str):
    """Text that suggests to write another word: the name ``instead`` of ``word``.

    It stays so with text before or behind it by ``+``, and as the message of an exception; an f-string makes plain text
    of it.

    >>> message = f"unknown block {'dens'!r}" + did_you_mean("dens", ["dense", "lstm"])
    >>> message, str(ValueError(message)).instead
    ("unknown block 'dens'; did you mean 'dense'?", 'dense')
    """

    __slots__ = ("instead", "word")

    def __new__(cls, text: str, word: str, instead: str) -> Suggestion:
        self = super().__new__(cls, text)
        self.word, self.instead = word, instead
        return self

    def __str__(self) -> Suggestion:
        return self

    def __add__(self, text: str) -> Suggestion:
        return Suggestion(super().__add__(text), self.word, self.instead)

    def __radd__(self, text: str) -> Suggestion:
        return Suggestion(text.__add__(self), self.word, self.instead)

    def __reduce__(self) -> tuple:
        return (Suggestion, (self[:], self.word, self.instead))


def format_shape(shape: Sequence[int | None]) -> str:
    """A shape as a user would write it; a varying axis is a ``?``.

    >>> format_shape((3, None))
    '(3, ?)'
    """
    sizes = ["?" if size is None else str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def joined(messages: Iterable[str]) -> str:
    """The messages, with semicolons between them; a single one is kept as it is."""
    messages = list(messages)
    return messages[0] if len(messages) == 1 else "; ".join(messages)


def describe(value: object) -> str:
    """A value in words, for messages: ``"the number 3"``.

    >>> describe([1]), describe(None), describe("x" * 100)
    ('a list', 'nothing (null)', "the text 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'")
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {cut(str(value), 40)}"
    if isinstance(value, str):
        return f"the text {cut(value, 40)!r}"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, type):
        return f"the class {value.__qualname__!r}"
    return f"an object of type {type(value).__name__!r}"


def listing(names: Iterable[object]) -> str:
    """Names for the end of a message: ``"'a', 'b', 'c'"``; of many the first ones."""
    first = [*islice(names, MOST_NAMES + 1)]
    more = ", ..." if len(first) > MOST_NAMES else ""
    return ", ".join(repr(name) for name in first[:MOST_NAMES]) + more


def few_of(names: Iterable[object], most: int = FEW_NAMES) -> str:
    """A few of ``names``, and how many more there are.

    >>> few_of("abc", most=2)
    "'a', 'b' and 1 more"
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return listing(names[:most]) + more


def near_name(word: str, words: Iterable[str], kind: str = "") -> str | None:
    """The known word that ``word`` was most likely meant to be, or None.

    With the ``kind`` of a registry it may also be an entry that other libraries call ``word``, or a ``torch.nn`` class
    without an entry. Within `sparing`, it is None once enough words have been compared.

    >>> near_name("LeakyReLU", ["relu", "leaky_relu"]), near_name("swish", ["silu", "hardswish"], "activation")
    ('leaky_relu', 'silu')
    """
    if len(word) > LONGEST_WORD or not _may_compare(0):
        return None
    words = [*words]
    if not _may_compare(len(words)):
        return None
    known = {folded(str(each)): str(each) for each in reversed(words)}  # of two alike the first
    plain = folded(word)
    if plain and plain in known:
        return known[plain]
    meant = SYNONYMS.get(kind, {}).get(plain)
    if meant is not None and (folded(meant) in known or meant.startswith("torch.nn.")):
        return meant
    matches = difflib.get_close_matches(
        word.lower(), [name.lower() for name in known.values()], n=1, cutoff=0.6
    )
    return next((name for name in known.values() if name.lower() in matches), None)


def sparing(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with a bound on the comparisons for near names: of 20,000 mistakes only 100 are shown."""

    @functools.wraps(function)
    def bounded(*arguments: P.args, **keywords: P.kwargs) -> R:
        if _left.get() is not None:  # within another one
            return function(*arguments, **keywords)
        token = _left.set([COMPARISONS])
        try:
            return function(*arguments, **keywords)
        finally:
            _left.reset(token)

    return bounded


def _may_compare(count: int) -> bool:
    left = _left.get()
    if left is None:
        return True
    left[0] -= count
    return left[0] >= 0


def did_you_mean(word: str, words: Iterable[str], kind: str = "") -> str:
    """The end of an error message: ``"; did you mean 'dense'?"`` or nothing.

    >>> did_you_mean("dens", ["dense", "lstm"])
    "; did you mean 'dense'?"
    """
    near = near_name(word, words, kind)
    return suggest(word, near) if near else ""


def suggest(word: str, instead: str) -> Suggestion:
    """The end of an error message that suggests to write ``instead`` of ``word``.

    >>> suggest("nn.ReLU", "torch.nn.ReLU")
    "; did you mean 'torch.nn.ReLU'?"
    """
    return Suggestion(f"; did you mean {instead!r}?", word, instead)


def hint(
    name: object,
    known: Iterable[str],
    says: str = "there is",
    *,
    kind: str = "",
    listed: Iterable[object] | None = None,
    shown: Callable[[Iterable[object]], str] = listing,
) -> str:
    """The end of a message about a ``name`` that is none of ``known``: the near name, or else a listing of all.

    ``listed`` are the names to list, if not ``known``; ``shown`` turns them into words.

    >>> hint("dens", ["dense", "lstm"]), hint("xyz", ["dense", "lstm"], "it has"), hint("xyz", [])
    ("; did you mean 'dense'?", "; it has 'dense', 'lstm'", '; there is none')
    """
    known = list(known)
    near = did_you_mean(str(name), known, kind)
    return near or f"; {says} {shown(known if listed is None else listed) or 'none'}"


def cut(text: str, most: int) -> str:
    """``text``, cut to its first characters where it has more than ``most``.

    >>> cut("abcdefghij", 10), cut("abcdefghijk", 10)
    ('abcdefghij', 'abcdefg...')
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_plain(text: str) -> bool:
    """Whether ``text`` can be a name in an exported file: 1 to 200 letters, digits, ``_ . / : -`` and blanks.

    >>> is_plain("intruders/at"), is_plain("joint pos"), is_plain("agent's view"), is_plain("")
    (True, True, False, False)
    """
    return _PLAIN.fullmatch(text) is not None


def as_module_name(text: str) -> str:
    """``text`` with quotes, backslashes and unprintable characters percent-encoded; the caller encodes ``%``.

    FX writes ``getattr(self, "<name>")`` with a module's name as it is.

    >>> as_module_name('a"b'), as_module_name("top_cam")
    ('a%22b', 'top_cam')
    """
    if text.isprintable() and not _UNSAFE.search(text):
        return text
    return "".join(map(_encoded, text))


def is_writable(text: str) -> bool:
    """Whether a file can hold ``text``: one half of a surrogate pair has no form in UTF-8.

    >>> is_writable("state"), is_writable(chr(0xD800))
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str, most: int | None = None) -> str:
    """``text`` on one line as a screen may show it, with escapes for what cannot be printed or reorders text.

    Of more than ``most`` characters those in the middle are left out.

    >>> printable("left\\nright"), printable("\\x1b[31m"), printable("abcdefghijklmnop", 9)
    ('left\\\\nright', '\\\\x1b[31m', 'abcd...p')
    """
    text = text if most is None else _without_middle(text, most)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if most is None else _without_middle(text, most)


def readable(text: str, most: int | None = None) -> str:
    """`printable` for each line of ``text``."""
    text = text if most is None else _without_middle(text, most)
    text = "\n".join(map(printable, text.split("\n")))
    return text if most is None else _without_middle(text, most)


def shortened(messages: str | Iterable[object]) -> str:
    """Messages, or the lines of one, and how many more there are than are shown.

    Shown are at most 100, of 2,000 characters each and 18,000 together.

    >>> shortened(range(102))[-17:]
    '99\\n... and 2 more'
    """
    every = messages.split("\n") if isinstance(messages, str) else list(messages)
    shown: list[str] = []
    room = MOST_TEXT
    for message in every[:MOST_MESSAGES]:
        text = readable(str(message), MOST_CHARACTERS)
        room -= len(text) + 1
        if room < 0:
            break
        shown.append(text)
    more = len(every) - len(shown)
    return "\n".join([*shown, *([f"... and {more:,} more"] if more else [])])


def _without_middle(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[3 - most // 2 :]}"


def _encoded(character: str) -> str:
    if character.isprintable() and not _UNSAFE.match(character):
        return character
    return quote(character, safe="", errors="surrogatepass")


def wrapped(line: str, width: int | None, indent: str = "    ") -> list[str]:
    """``line`` in lines of at most ``width`` characters, those after the first behind ``indent``."""
    if width is None or len(line) <= width:
        return [line]
    return textwrap.wrap(
        line, max(width, len(indent) + 8), subsequent_indent=indent, break_on_hyphens=False
    )
