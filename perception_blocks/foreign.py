"""Text from outside (of specs, spaces, keys and files), where it reaches a code generator or a screen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

__all__ = ["as_module_name", "cut", "is_plain", "is_writable", "printable", "readable", "shortened"]

MOST_CHARACTERS = 2_000  # of a message
MOST_MESSAGES = 100

# None of these ends a string, begins an escape or a placeholder, or is invisible. What generates code (PyTorch's
# guards, FX, ONNX's readers) puts names between quotes, and not always with an escape.
_PLAIN = re.compile(r"[\w./: -]{1,200}")
_UNSAFE = re.compile(r"""["'`\\]""")


def cut(text: str, most: int) -> str:
    """``text``, of more than ``most`` characters the first ones.

    >>> cut("abcdefghij", 10), cut("abcdefghijk", 10)
    ('abcdefghij', 'abcdefg...')
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_plain(text: str) -> bool:
    """Whether ``text`` can be a name in a file for others: letters, digits, ``_ . / : -`` and blanks, 200 at most.

    >>> is_plain("intruders/at"), is_plain("joint pos"), is_plain("agent's view"), is_plain("")
    (True, True, False, False)
    """
    return _PLAIN.fullmatch(text) is not None


def as_module_name(text: str) -> str:
    """``text`` with quotes, backslashes and what cannot be printed percent-encoded, for texts whose own ``%`` is.

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
    return not any("\ud800" <= character <= "\udfff" for character in text)


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
    """The same of several lines, which stay lines."""
    text = text if most is None else _without_middle(text, most)
    text = "\n".join(map(printable, text.split("\n")))
    return text if most is None else _without_middle(text, most)


def shortened(messages: str | Iterable[object]) -> str:
    """Messages, or the lines of one: at most 100 of 2,000 characters each, and how many more there are.

    >>> shortened(range(102))[-17:]
    '99\\n... and 2 more'
    """
    every = messages.split("\n") if isinstance(messages, str) else list(messages)
    shown = [readable(str(message), MOST_CHARACTERS) for message in every[:MOST_MESSAGES]]
    more = len(every) - MOST_MESSAGES
    return "\n".join([*shown, *([f"... and {more:,} more"] if more > 0 else [])])


def _without_middle(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[3 - most // 2 :]}"


def _encoded(character: str) -> str:
    if character.isprintable() and not _UNSAFE.match(character):
        return character
    return quote(character, safe="", errors="surrogatepass")
