"""Which files of a spec have changed: by the notices of the system, and by a look at them every second.

Notices alone do not come from every network drive, and none comes for a folder that was removed and made again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeAlias

import watchfiles

__all__ = ["changes"]

SETTLING, STEP = 80, 20  # milliseconds: an editor writes, renames and removes when it saves
LOOK_EVERY = 1_000

State: TypeAlias = tuple[int, int, int] | None


async def changes(files: Callable[[], Iterable[str]], stop: asyncio.Event) -> AsyncIterator[None]:
    """Yields whenever one of ``files()`` has changed or they have become others, until ``stop`` is set.

    Changes that come together count as one.
    """
    before = _states(files())
    while not stop.is_set():
        folders = _folders(before)
        notices = watchfiles.awatch(
            *folders,
            watch_filter=None,
            debounce=SETTLING,
            step=STEP,
            rust_timeout=LOOK_EVERY,
            yield_on_timeout=True,
            stop_event=stop,
            recursive=False,
        )
        try:
            async with aclosing(notices):
                async for _ in notices:
                    states = _states(files())
                    if states != before:
                        before = states
                        yield
                    if _folders(before) != folders:
                        break
        except OSError:  # a folder went away before it was watched
            await asyncio.sleep(STEP / 1000)


def _states(files: Iterable[str]) -> dict[str, State]:
    """By the paths of the files, and of those that links lead to."""
    paths = [os.path.abspath(file) for file in files]
    return {path: _state(path) for path in (*paths, *map(os.path.realpath, paths))}


def _folders(paths: Iterable[str]) -> dict[str, int]:
    """The folders of files, or what there is above them."""
    folders = {}
    for path in paths:
        folder = os.path.dirname(path)
        while not os.path.isdir(folder) and folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
        folders[folder] = os.stat(folder).st_ino
    return folders


def _state(path: str) -> State:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
