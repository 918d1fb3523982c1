"""The questions of the language server to the process that checks, which may be ended, and begun anew, at any time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from composer.editor.child import (
    LENGTH,
    FileState,
    command_of,
    end_group,
    frame_of,
    state_of,
    value_of,
)

__all__ = ["IMPORT_LIMIT", "LIMIT", "CheckStoppedError", "Checker"]

LIMIT = 30.0  # seconds: longer than an environment may take
IMPORT_LIMIT = 120.0  # of a module, which may load a simulator
STARTING = 300.0
ANSWERING = 1.0  # to say where a check is


class CheckStoppedError(Exception):
    """What was asked has ended the process, or came to no end; the text goes on after what that was.

    ``module`` is where it was, if that is known.
    """

    def __init__(self, text: str, module: str | None = None) -> None:
        super().__init__(text)
        self.module = module


class _Asked(NamedTuple):
    """One question; ``about`` is the document that is to blame if it does not end well."""

    future: asyncio.Future[Any]
    method: str
    arguments: tuple[Any, ...]
    about: object
    limit: float


class Checker:
    """Asks the methods of `composer.editor.checks.Checks`, one after the other, in a process that is begun when needed.

    ``ended`` is told, with what was asked about, when that has cost the process its life: all that was known there is
    gone.
    """

    def __init__(self, ended: Callable[[object], None], limit: float = LIMIT) -> None:
        self.limit = limit
        self.files: Mapping[
            str, FileState
        ] = {}  # of allowed modules, as they were when they were imported
        self._ended = ended
        self._queue: asyncio.Queue[_Asked] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self._asking: asyncio.Task[None] | None = None

    async def ask(
        self, method: str, *arguments: Any, about: object = None, limit: float | None = None
    ) -> Any:
        """The answer to a question, after those that were asked before; one that is cancelled meanwhile is left out.

        Raises CheckStoppedError where it takes longer than ``limit`` seconds or ends the process.
        """
        return await self._put(method, arguments, about, limit or self.limit)

    def tell(self, method: str, *arguments: Any) -> None:
        """Ask something whose answer nobody waits for."""
        self._put(method, arguments, None, self.limit).add_done_callback(asyncio.Future.exception)

    def _put(
        self, method: str, arguments: tuple[Any, ...], about: object, limit: float
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Asked(future, method, arguments, about, limit))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return future

    @property
    def is_outdated(self) -> bool:
        """Whether a module has changed since it was imported. A file that is gone may be about to be written."""
        return any(state_of(file) not in (state, None) for file, state in self.files.items())

    @property
    def process(self) -> int | None:
        """The id of the process, where there is one."""
        return None if self._process is None else self._process.pid

    def restart(self) -> None:
        """End the process: another one answers from here on, also what is being asked now."""
        process, self._process = self._process, None
        self.files = {file: state_of(file) for file in self.files}
        if process is not None:
            end_group(process)

    async def close(self) -> None:
        """End the process, and ask nothing more."""
        process = self._process
        self.restart()
        if self._asking is not None:
            self._asking.cancel()
        if process is not None:
            await process.wait()

    async def _ask_all(self) -> None:
        while True:
            asked = await self._queue.get()
            if asked.future.done():
                continue
            try:
                answer = await self._answer(asked)
            except Exception as error:
                if not asked.future.done():
                    asked.future.set_exception(error)
            else:
                if not asked.future.done():
                    asked.future.set_result(answer)

    async def _answer(self, asked: _Asked) -> Any:
        while True:
            process = await self._running(asked.about)
            if asked.future.done():  # meanwhile
                return None
            question = asked.method, asked.arguments, asked.limit
            try:
                answering = self._told(process, question, "answer")
                return await asyncio.wait_for(answering, asked.limit)
            except TimeoutError:
                where = await self._where(process)
                error = _too_long(asked.limit, where)
            except (EOFError, ConnectionError):
                status = await process.wait()
                error = CheckStoppedError(f"ended its process {_how(status)}")
            if self._process is process:  # else it was ended for a new one, which is asked the same
                self.restart()
                self._ended(asked.about)
                raise error

    async def _running(self, about: object) -> asyncio.subprocess.Process:
        """The process, which is begun if there is none; what is asked is ``about`` a document."""
        if self._process is not None and self._process.returncode is not None:
            self.restart()  # it has ended while nothing was asked: this document is not to blame
            self._ended(about)
        while self._process is None:
            process = self._process = await asyncio.create_subprocess_exec(
                *command_of("composer.editor.checks"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # what it starts ends with it
            )
            try:
                await asyncio.wait_for(self._heard(process, "ready"), STARTING)
            except (EOFError, ConnectionError, TimeoutError):
                end_group(process)
                status = await process.wait()
                if self._process is process:
                    self._process = None
                    raise RuntimeError(
                        f"the process of checks ended as it began, {_how(status)}"
                    ) from None
        return self._process

    async def _told(
        self, process: asyncio.subprocess.Process, question: object, wanted: str
    ) -> Any:
        """What the process says to a ``question``; a long one may have to wait until it is read."""
        assert process.stdin is not None
        process.stdin.write(frame_of(question))
        await process.stdin.drain()
        return await self._heard(process, wanted)

    async def _heard(self, process: asyncio.subprocess.Process, wanted: str) -> Any:
        """The next value of the kind ``wanted`` that the process says."""
        assert process.stdout is not None
        while True:
            length = int.from_bytes(await process.stdout.readexactly(LENGTH), "big")
            kind, value = value_of(await process.stdout.readexactly(length))
            if kind == wanted:
                return value
            if kind == "files":
                self.files = {**self.files, **value}
            if kind == "fault" and wanted == "answer":
                raise RuntimeError(value)

    async def _where(self, process: asyncio.subprocess.Process) -> tuple[str, str] | None:
        """In which module, and where, a check is that takes too long; None where it does not even say that."""
        with suppress(Exception):
            return await asyncio.wait_for(self._told(process, None, "where"), ANSWERING)
        return None


def _too_long(limit: float, where: tuple[str, str] | None) -> CheckStoppedError:
    module, place = where or (None, "")
    text = f"took longer than {limit:g} seconds and was ended"
    return CheckStoppedError(f"{text}, in {place}" if place else text, module)


def _how(status: int) -> str:
    """How a process ended."""
    if status < 0:
        with suppress(ValueError):
            return f"by {signal.Signals(-status).name}"
    return f"with status {status}"
