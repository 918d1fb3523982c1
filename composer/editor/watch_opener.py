"""The user's command that opens a place in an editor."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil

from composer.editor.watch_look import Place
from composer.errors import RefusedError

__all__ = ["Opener", "OpenerError"]


class OpenerError(RefusedError):
    """A command that opens nothing; the message says why."""


class Opener:
    """``code -g {file}:{line}:{column}``, split into words before a place is put in: a file's name is at most a word.

    No shell reads it. Raises OpenerError for a command that cannot be.
    """

    def __init__(self, command: str) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise OpenerError(f"--open {command!r} is no command: {error}") from error
        if not any("{file}" in word for word in self._words[1:]):
            raise OpenerError(
                f"--open {command!r} does not say where the file goes; write such as --open 'code -g {{file}}:{{line}}'"
            )
        if shutil.which(self._words[0]) is None:
            raise OpenerError(f"--open: there is no program {self._words[0]!r} on the PATH")
        self._running: set[asyncio.Task[int]] = set()

    def words(self, place: Place) -> list[str]:
        """The program and its arguments for ``place``."""
        texts = {
            "{file}": os.path.abspath(place.file),
            "{line}": str(place.line),
            "{column}": str(place.column),
        }
        return [self._words[0], *(_filled(word, texts) for word in self._words[1:])]

    async def open(self, place: Place) -> None:
        """Start the command, and do not wait for its end; it outlives this process. Raises OpenerError."""
        nowhere = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *self.words(place),
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
                start_new_session=True,  # Ctrl-C is for us
            )
        except OSError as error:
            raise OpenerError(f"{self._words[0]!r} does not start: {error.strerror}") from error
        task = asyncio.create_task(process.wait())
        self._running.add(task)
        task.add_done_callback(self._running.discard)


def _filled(word: str, texts: dict[str, str]) -> str:
    """``word`` with all texts put in at once: a file may be called ``{line}``."""
    pattern = "|".join(map(re.escape, texts))
    return re.sub(pattern, lambda match: texts[match[0]], word)
