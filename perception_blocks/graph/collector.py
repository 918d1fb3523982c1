"""Python's garbage collector, paused while much is built that stays."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["collection_paused"]


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the collector, which would look at all objects again and again as they become more.

    A network of 10,000 blocks then takes as long for each of them as one of 100.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():  # else somebody froze objects, which are to stay frozen
                gc.freeze()  # all objects count as old then: the next collection would look at young ones
                gc.unfreeze()
            gc.enable()
