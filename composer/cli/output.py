"""How the commands print: with escapes for what a terminal cannot show, in lines as long as its own."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TextIO

from perception_blocks.words import readable, wrapped

__all__ = ["say", "say_fitted", "silence_output", "width_of_terminal", "write"]


def say(text: object, end: str = "\n", file: TextIO | None = None) -> None:
    """Print ``text``, which may quote files, with escapes for what a terminal cannot show."""
    write(readable(str(text)) + end, sys.stdout if file is None else file)


def write(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def width_of_terminal() -> int | None:
    """The columns of the terminal; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say_fitted(text: str) -> None:
    """Print ``text`` in lines as long as the terminal's; those after the first of a line are indented."""
    width = width_of_terminal()
    say("\n".join(part for line in text.splitlines() for part in wrapped(line, width)))


def silence_output() -> None:
    """At its end the process does not try again to write the rest of the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
