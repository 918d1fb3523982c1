"""One thread for all checks: torch, registries and users' classes are not for several at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Worker"]

Result = TypeVar("Result")


class Worker:
    """Runs functions one after the other beside an event loop.

    The thread does not outlive its process: a user's class that never ends does not keep a closed editor's server.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run ``function`` after those that were given before; one whose result nobody awaits any more is left out."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def job() -> None:
            if future.cancelled():
                return
            try:
                result = function()
            except BaseException as error:  # also SystemExit of a user's class: the thread goes on
                _tell(loop, future, error=error)
            else:
                _tell(loop, future, result=result)

        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checks", daemon=True)
            self._thread.start()
        return future

    def _work(self) -> None:
        while True:
            self._jobs.get()()


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future,
    result: object = None,
    error: BaseException | None = None,
) -> None:
    def done() -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, Exception):
            future.set_exception(error)
        else:
            future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

    try:
        loop.call_soon_threadsafe(done)
    except RuntimeError:  # the loop is closed: nobody waits
        return
