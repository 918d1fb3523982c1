"""Environments in other processes, which tell why they end: an exception there would only be printed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium

from composer.errors import SpecError
from composer.training.trainer import Task, TrainingError

__all__ = ["TellingEnvironment", "processes_tell", "tell_folder", "telling", "told_by_a_process"]
__all__ += ["told_in"]


class _Processes:
    tell: str | None = None


@contextmanager
def processes_tell(task: Task) -> Iterator[None]:
    """Environments in other processes that are made in this context tell why they end, for `told_by_a_process`."""
    if not task.subprocess:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="composer-") as folder:
        _Processes.tell = folder
        try:
            yield
        finally:
            _Processes.tell = None


def tell_folder() -> str | None:
    """Where environments of other processes tell, within `processes_tell`."""
    return _Processes.tell


def told_by_a_process() -> str | None:
    """Why an environment in another process has ended, in words."""
    return told_in(_Processes.tell) if _Processes.tell else None


def told_in(folder: str) -> str | None:
    """What the first process that has ended told in ``folder``; None where none did."""
    for file in sorted(Path(folder).iterdir()):
        return file.read_text(encoding="utf-8")
    return None


@contextmanager
def telling(folder: str, without: str = "--subprocess") -> Iterator[None]:
    """End this process where the environment fails, which its parent is told: an exception would only be printed.

    ``without`` is the option that put it into a process.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if not isinstance(error, TrainingError | SpecError):
            text = (
                f"an environment in another process raised {type(error).__name__}: {error}; without {without} the "
                "traceback shows where"
            )
        file = Path(folder, f"{time.time_ns()}-{os.getpid()}")
        file.with_suffix(".tmp").write_text(text, encoding="utf-8")
        file.with_suffix(".tmp").rename(file)
        os._exit(1)


class TellingEnvironment(gymnasium.Wrapper):
    """An environment in another process, which tells why it ends; the arguments are as for `telling`."""

    def __init__(self, env: gymnasium.Env, folder: str, without: str = "--subprocess") -> None:
        super().__init__(env)
        self._told_to = (folder, without)

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        with telling(*self._told_to):
            return self.env.reset(**settings)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        with telling(*self._told_to):
            return self.env.step(action)
