"""What the page of `composer watch` shows: the newest look at the spec, and the last picture that could be drawn."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from composer.diagram.render import GivenUp
from composer.editor.watch_files import changes
from composer.editor.watch_look import Drawing, Look, Place
from composer.errors import Problem

__all__ = ["Watch"]

ENDINGS = (".yaml", ".yml")
MOST_FILES = 500  # beside a broken spec


class Watch:
    """Follows the files of the spec ``file``: ``look`` is called after each change; a newer change gives it up.

    ``number`` counts the states that differ from the one before, ``picture`` is the number of the state that has
    brought the picture. ``stopped`` is set by `stop`.
    """

    def __init__(self, file: str, look: Callable[[GivenUp], Look]) -> None:
        self.stopped = asyncio.Event()
        self.number = self.picture = 0
        self._file = file
        self._look = look
        self._state: Look | None = None
        self._drawing: Drawing | None = None
        self._changed = asyncio.Condition()
        self._dirty = asyncio.Event()
        self._change = 0
        self._thread: threading.Thread | None = None

    @property
    def is_looking(self) -> bool:
        """Whether a look goes on, also after `follow`: a user's class may never return."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        self.stopped.set()
        self._dirty.set()

    async def follow(self) -> None:
        """Look now, and after each change, until `stop`."""
        looking = asyncio.create_task(self._looking())
        self._touch()
        try:
            async for _ in changes(lambda: list(self._files()), self.stopped):
                self._touch()
        finally:
            self.stop()
            await looking

    def _touch(self) -> None:
        self._change += 1
        self._dirty.set()

    def _files(self) -> Iterator[str]:
        """The files of the spec; where something is wrong, what may be missing lies beside it."""
        yield self._file
        if self._state is None:
            return
        yield from self._state.files
        if self._state.drawing is None:
            folder = os.path.dirname(os.path.abspath(self._file))
            try:
                names = sorted(name for name in os.listdir(folder) if name.endswith(ENDINGS))
            except OSError:
                return
            yield from (os.path.join(folder, name) for name in names[:MOST_FILES])

    async def _looking(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self.stopped.is_set():
                break
            change = self._change

            def given_up(change: int = change) -> bool:
                return self.stopped.is_set() or self._change != change

            looking = self._in_thread(lambda: self._look(given_up))
            ended = asyncio.create_task(self.stopped.wait())
            await asyncio.wait({looking, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not given_up():
                await self._take(looking.result())
        async with self._changed:
            self._changed.notify_all()

    def _in_thread(self, function: Callable[[], Look]) -> asyncio.Future[Look]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Look] = loop.create_future()

        def run() -> None:
            look = function()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(future.set_result, look)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return future

    async def _take(self, look: Look) -> None:
        before, self._state = self._state, look
        if before is not None and _says(before) == _says(look):
            return
        async with self._changed:
            self.number += 1
            if look.drawing is not None and look.drawing != self._drawing:
                self._drawing, self.picture = look.drawing, self.number
            self._changed.notify_all()

    async def newer_than(self, number: int, seconds: float) -> bool:
        """Wait until there is a newer state than ``number``, at most so long; returns whether there is."""

        def is_newer() -> bool:
            return self.number != number or self.stopped.is_set()

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(is_newer), seconds)
            except TimeoutError:
                return False
        return self.number != number

    # --- what the page gets -------------------------------------------------------------------------------------------

    def message(self, picture: int) -> str:
        """The state as JSON, with its picture if the page does not have that: its is ``picture``."""
        look, drawing = self._state, self._drawing
        problems = () if look is None else look.problems
        state: dict[str, Any] = {
            "number": self.number,
            "picture": self.picture,
            "name": os.path.basename(self._file),
            "good": None if look is None else look.drawing is not None,
            "seconds": 0 if look is None else look.seconds,
            "problems": [_told(problem, drawing) for problem in problems],
        }
        if drawing is not None and picture != self.picture:
            state["drawing"] = _drawn(drawing)
        return json.dumps(state)

    def place(self, asked: bytes) -> Place | None:
        """What the page asks to open: ``{"box": path}``, or ``{"problem": index, "number": of the state}``."""
        try:
            wanted = json.loads(asked)
        except (ValueError, RecursionError):
            return None
        if not isinstance(wanted, dict):
            return None
        box, index = wanted.get("box"), wanted.get("problem")
        if isinstance(box, str) and self._drawing is not None and box in self._drawing.by_path:
            return self._drawing.by_path[box].place
        problems: Sequence[Problem] = () if self._state is None else self._state.problems
        if not isinstance(index, int) or wanted.get("number") != self.number:
            return None
        return _place(problems[index]) if 0 <= index < len(problems) else None


def _says(look: Look) -> tuple[object, ...]:
    return look.drawing, tuple(look.problems)


def _place(problem: Problem) -> Place | None:
    position = problem.position
    if position is None or position.line is None or position.column is None:
        return None
    return Place(position.file, position.line, position.column)


def _told(problem: Problem, drawing: Drawing | None) -> dict[str, object]:
    place = _place(problem)
    return {
        "where": problem.where
        if place is None
        else str(place._replace(file=os.path.basename(place.file))),
        "place": None if place is None else str(place),
        "message": problem.message,
        "box": None if drawing is None else drawing.box_of(problem.path),
    }


def _drawn(drawing: Drawing) -> dict[str, object]:
    boxes = {
        name: {
            "path": box.path,
            "title": box.title,
            "details": list(box.details),
            "said": box.said,
            "place": None if box.place is None else str(box.place),
        }
        for name, box in drawing.boxes.items()
    }
    return {"svg": drawing.svg, "caption": drawing.caption, "boxes": boxes}
