"""Python's garbage collector, paused while much is built that stays."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["collection_paused"]


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Nothing is collected within: the collector would look at all that stands, again and again as it grows.

    So a network of 10,000 blocks takes as long for each of them as one of 100.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            _settle()
            gc.enable()


def _settle() -> None:
    """All that stands counts as old, without a look at it: as young, it would be looked at by the next collection."""
    if not gc.get_freeze_count():  # else somebody froze objects, which are to stay so
        gc.freeze()
        gc.unfreeze()
