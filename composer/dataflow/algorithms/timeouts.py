"""A function in a process beside this one, which is killed where an answer takes too long.

No torch is imported here: the process imports this module, and what the function needs.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from operator import attrgetter
from types import TracebackType
from typing import Any

from composer.trust import allow_beside
from perception_blocks.words import cut

__all__ = ["FunctionError", "KillableFunction", "RaisedError", "in_words", "why_not_elsewhere"]

LONGEST = 500  # characters of what an error says
MOST_SECONDS = 1e6  # that the operating system waits for
START_SECONDS = 120.0  # to import the module of the function


class FunctionError(RuntimeError):
    """The function raised an error, took too long, or its process ended; the message ends a sentence about it."""


class RaisedError(FunctionError):
    """The function raised an error."""


def why_not_elsewhere(function: Callable[..., object]) -> str | None:
    """Why another process cannot import ``function``, or None if it can."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or "<" in name:
        return "it is not defined at the top of a module"
    if module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        return "it is defined in no file"
    return None


class KillableFunction:
    """Calls a function of a module in a process that begins with the first call, and is used until it is killed."""

    def __init__(self, function: Callable[..., object], seconds: float) -> None:
        self.seconds = min(seconds, MOST_SECONDS)
        self._module, self._name = function.__module__, function.__qualname__
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __call__(self, *arguments: object, **keywords: object) -> Any:
        """What the function returns. Raises FunctionError."""
        connection = self._connection or self._start()
        late = f"takes more than {self.seconds:g} s"
        kind, answer = self._answer(connection, self.seconds, late, (arguments, keywords))
        if kind == "raised":
            message, trace = answer
            error = RaisedError(message)
            error.add_note(trace)
            raise error
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._module, self._name, _folder_of(self._module))
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        weakref.finalize(self, self._process.kill)
        theirs.close()
        late = f"cannot be imported in {START_SECONDS:g} s"
        kind, answer = self._answer(self._connection, START_SECONDS, late)
        if kind == "raised":
            self.close()
            raise FunctionError(answer)
        return self._connection

    def _answer(
        self, connection: Connection, seconds: float, late: str, asked: object = None
    ) -> tuple[str, Any]:
        """What the process says to ``asked``, or of itself; where it says nothing it is killed."""
        try:
            if asked is not None:
                connection.send(asked)
            if connection.poll(seconds):
                return connection.recv()
        except (EOFError, ConnectionError):
            process = self._process
            assert process is not None
            process.join()
            late = f"ended its process, with the exit code {process.exitcode}"
        except BaseException:  # Ctrl-C, say: a late answer would be taken for that to the next call
            self.close()
            raise
        self.close()
        raise FunctionError(late)


def _folder_of(module: str) -> str | None:
    """The folder in which the top package or module of ``module`` is."""
    file = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
    if file is None or module == "__main__":
        return None
    folder = os.path.dirname(os.path.abspath(file))
    return os.path.dirname(folder) if os.path.basename(file) == "__init__.py" else folder


def _serve(connection: Connection, module: str, name: str, folder: str | None) -> None:
    """Answer calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        if folder is not None:
            allow_beside([folder], [module])
        function = attrgetter(name)(importlib.import_module(module))
        function = getattr(function, "wrapped", function)  # of a decorated one
        connection.send(("ready", None))
    except BaseException as error:
        connection.send(("raised", f"cannot be imported in a process: {in_words(error)}"))
        return
    while True:
        try:
            arguments, keywords = connection.recv()
        except EOFError:
            return
        try:
            numbers = function(*arguments, **keywords)
            answer = ("answer", numbers.tolist() if hasattr(numbers, "tolist") else numbers)
        except Exception as error:
            trace = "".join(traceback.format_exception(error.with_traceback(_below(error))))
            answer = ("raised", (f"raises {in_words(error)}", trace))
        try:
            connection.send(answer)
        except Exception as error:
            message = f"returns what cannot be sent: {in_words(error)}"
            connection.send(("raised", (message, "")))


def _below(error: BaseException) -> TracebackType | None:
    """The traceback of an error without this file."""
    return error.__traceback__ and error.__traceback__.tb_next


def in_words(error: BaseException) -> str:
    """The kind of an error and what it says, in a line."""
    text = cut(" ".join(str(error).split()), LONGEST)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
