"""Ctrl-C and SIGTERM are noted, and stop a run where nothing is left half done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Interruption", "interruption_noted"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """``signal`` is the first that came, None as long as none did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def interruption_noted(doing: Callable[[], str] = lambda: "training") -> Iterator[Interruption]:
    """Note signals that would end the process; a second one ends it at once.

    A message on standard error says at once that the signal was received, and that the run first completes ``doing()``.
    Outside of the main thread, where Python allows no handlers, nothing is noted.
    """
    noted = Interruption()
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        noted.signal = number
        restore()
        _say(
            f"{signal.Signals(number).name} received: the run stops when the current step ({doing()}) is complete, and "
            "is saved; a second one stops it at once, without saving"
        )

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield noted
    finally:
        restore()


def _say(text: str) -> None:
    """On standard error, which may be in the middle of a write of ours, or of the line of a progress bar."""
    with suppress(OSError):
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}{text}\n".encode())
