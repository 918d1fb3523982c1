"""Ctrl-C and SIGTERM as something that is noted, and answered where nothing is left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
def interruption_noted() -> Iterator[Interruption]:
    """Signals that would end the process are noted instead; a second one ends it at once, as ever.

    Outside of the main thread, where Python allows no handlers, nothing is noted.
    """
    noted = Interruption()
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        noted.signal = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield noted
    finally:
        restore()
