"""Which files a network may read while it is built: any, unless whoever builds it says otherwise.

A model that is loaded from a checkpoint has its weights there: files that its classes read before may be gone.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["file_at", "files_found", "json_in", "require_regular", "without_lost_files"]

T = TypeVar("T")
_find: ContextVar[Callable[[str], str]] = ContextVar("find", default=str)
_has_weights: ContextVar[bool] = ContextVar("has_weights", default=False)
_ADVICE = (
    "the weights are in the checkpoint: a setting of the class that names this file, with the default None for "
    "no file, would be left to that"
)


@contextlib.contextmanager
def files_found(find: Callable[[str], str], *, has_weights: bool) -> Iterator[None]:
    """Let ``find`` say where the file is that a setting names, or raise ValueError where it may not be read.

    ``has_weights``: the weights come from a checkpoint afterwards.
    """
    tokens = _find.set(find), _has_weights.set(has_weights)
    try:
        yield
    finally:
        _find.reset(tokens[0])
        _has_weights.reset(tokens[1])


def file_at(path: str) -> str:
    """Where the file or folder is that a setting names. Raises ValueError where it may not be read."""
    return _find.get()(path)


def require_regular(file: str | os.PathLike[str]) -> None:
    """Raise ValueError unless ``file`` is a regular file: a pipe or a device can be waited for forever."""
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        raise ValueError(error.strerror) from error
    if not stat.S_ISREG(mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")


def json_in(
    file: str | os.PathLike[str], hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """What the JSON of ``file`` says, each of its mappings given to ``hook``. Raises ValueError where it is none."""
    require_regular(file)
    try:
        with open(file, encoding="utf-8") as opened:
            return json.load(opened, object_hook=hook)
    except OSError as error:
        raise ValueError(error.strerror) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def without_lost_files(
    cls: type[T], make: Callable[..., T], settings: Mapping[str, object]
) -> Callable[[], T]:
    """A function that calls ``make(**settings)`` to make a ``cls``.

    Where the weights come from a checkpoint, settings that name a file which is not there are left to their defaults.
    """
    if not _has_weights.get():
        return lambda: make(**settings)

    def make_without_lost() -> T:
        try:
            return make(**settings)
        except FileNotFoundError as error:
            parameters = inspect.signature(cls).parameters
            lost = {
                name
                for name, value in settings.items()
                if isinstance(value, str) and value and value in str(error)
                and name in parameters and parameters[name].default is not inspect.Parameter.empty
            }  # fmt: skip
            if not lost:
                error.add_note(_ADVICE)
                raise
        return make(**{name: value for name, value in settings.items() if name not in lost})

    return make_without_lost
