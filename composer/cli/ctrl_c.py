"""Ctrl-C in the command line: one line, and the exit status 130. It imports next to nothing, to be there first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

__all__ = ["STATUS", "answer_ctrl_c", "interrupted_in_a_line", "say_interrupted"]

STATUS = 128 + signal.SIGINT


class _State:
    working = False  # whether there may be something to clean up
    came = False


def answer_ctrl_c() -> None:
    """Ctrl-C ends this process in a line, from here to its end; not where it is ignored, as in the background."""
    with suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _answer)


@contextmanager
def interrupted_in_a_line() -> Iterator[None]:
    """Clean up the work in this context before Ctrl-C ends the process; a second Ctrl-C does not wait."""
    _State.working = True
    try:
        yield
    except BaseException:
        if _State.came:  # whatever an extension module that was being imported has made of it
            _end()
        raise
    finally:
        _State.working = False


def say_interrupted() -> None:
    """On standard error, which may be in the middle of a write of ours, or of the line of a progress bar."""
    with suppress(OSError):
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}interrupted\n".encode())


def _answer(number: int, frame: object) -> None:
    if not _State.working or _State.came:
        _end()
    _State.came = True
    raise KeyboardInterrupt


def _end() -> NoReturn:
    say_interrupted()
    # Without what the interpreter does at its end: it may be slow, and Ctrl-C come again.
    os._exit(STATUS)
