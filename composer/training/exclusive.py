"""Folders that appear whole, and that one process at a time uses: of a run, of an experiment, of several runs."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from composer.source.files import outside, real_path
from composer.training.trainer import TrainingError
from perception_blocks.words import cut, near_name

__all__ = ["in_use", "new_folder", "refuse_links_outside", "refuse_no_run", "refuse_taken"]
__all__ += ["answer", "near_folder"]

RECORDS = ("run.json", "seeds.json")  # either says that a folder holds a run
LOCK = ".lock"
PREFIX, SUFFIX = ".composer-run-", ".tmp"  # of a folder that is not whole yet


@contextmanager
def new_folder(path: Path, fill: Callable[[Path], None]) -> Iterator[None]:
    """The folder ``path``, which appears once ``fill`` has written into it; locked for other processes in this context.

    Raises TrainingError if the path exists, or cannot be created.
    """
    refuse_taken(path)
    hidden = _hidden_folder(path)
    with _locked(hidden, path) as lock:
        try:
            fill(hidden)
            lock.rename(hidden, path)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        yield


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Keep other processes from the run in ``path``. Raises TrainingError where one uses it, or there is no run."""
    refuse_no_run(path, RECORDS)
    with _locked(path, path):
        yield


class _Lock:
    """The lock of a run's folder; the operating system releases it when the process ends, however it ends."""

    def __init__(self, folder: Path, name: Path) -> None:
        self._acquire(folder, name)

    def _acquire(self, folder: Path, name: Path) -> None:
        self._file = folder / LOCK
        self._lock = FileLock(self._file, timeout=0)
        try:
            self._lock.acquire()
        except (Timeout, RuntimeError):  # RuntimeError: this very thread holds it
            raise TrainingError(
                f"the run in {str(name)!r} is in use by {_holder(self._file)}; wait for it to end, or stop it"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise TrainingError(f"the run in {str(name)!r} cannot be locked: {error}") from error
        with suppress(OSError):  # who holds it is for a message only
            self._file.write_text(f"{os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    def rename(self, folder: Path, path: Path) -> None:
        """Rename the locked ``folder`` to ``path``. Raises TrainingError if there is such a path, or it cannot be."""
        if os.name == "nt":  # which renames no folder with an open file in it
            self.release()
        try:
            folder.rename(path)
        except OSError as error:
            refuse_taken(path)
            _refuse(path, error)
        if os.name == "nt":
            self._acquire(path, path)
        self._file = path / LOCK

    def release(self) -> None:
        with suppress(OSError):
            self._file.unlink()
        self._lock.release()


@contextmanager
def _locked(folder: Path, name: Path) -> Iterator[_Lock]:
    lock = _Lock(folder, name)
    try:
        yield lock
    finally:
        lock.release()


def _holder(file: Path) -> str:
    """Which process holds the lock, as it says itself."""
    with suppress(OSError, UnicodeDecodeError), open(file, encoding="utf-8") as opened:
        who = opened.read(300).strip()
        if who:
            return f"process {who}" if who.isprintable() else "another process"
    return "another process"


# --- what is there ---


def answer(path: Path, question: Callable[[Path], bool]) -> bool:
    """The answer to ``question``; no for what cannot be asked of, such as a name that is too long."""
    try:
        return question(path)
    except (OSError, ValueError):
        return False


def near_folder(path: Path) -> str:
    """The end of a message about a missing folder: the folder beside it that has almost its name, or nothing."""
    beside = path.parent
    if not answer(beside, Path.is_dir):
        return ""
    near = near_name(
        path.name, [each.name for each in beside.iterdir() if answer(each, Path.is_dir)]
    )
    return f"; did you mean {str(beside / near)!r}?" if near else ""


def refuse_no_run(path: Path, records: Iterable[str] = RECORDS[:1]) -> None:
    """Raise TrainingError unless ``path`` is a folder with one of the ``records``."""
    if not answer(path, Path.is_dir):
        raise TrainingError(
            f"there is no folder {cut(str(path), 200)!r} to resume{near_folder(path)}"
        )
    if not any(answer(path / name, os.path.lexists) for name in records):
        raise TrainingError(f"there is no run in {str(path)!r}: it has no run.json")


def refuse_links_outside(path: Path, names: Iterable[str], run: Path | None = None) -> None:
    """Raise TrainingError where a file in ``path``, of the ``run``, lies elsewhere: there it would be written."""
    for name in names:
        if (path / name).is_symlink() and outside(str(path / name), [real_path(str(run or path))]):
            raise TrainingError(
                f"{str(path / name)!r} is a link that leads out of the run's folder; put the file itself there"
            )


# --- its name ---


def _hidden_folder(path: Path) -> Path:
    """A new hidden folder beside ``path``, to be renamed once it is whole. Removes those of killed processes."""
    _remove_abandoned(path.parent)
    hidden = path.parent / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
    try:
        hidden.mkdir(parents=True)
    except (OSError, ValueError) as error:
        _refuse(path, error)
    return hidden


def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError, ValueError):
        for hidden in folder.glob(f"{PREFIX}*{SUFFIX}"):
            if hidden.is_symlink():  # none of ours is
                continue
            if not (
                hidden / LOCK
            ).exists():  # it is just being made or removed, unless its process was killed
                if _was_killed(hidden):
                    shutil.rmtree(hidden, ignore_errors=True)
                continue
            with suppress(TrainingError), _locked(hidden, hidden):
                shutil.rmtree(hidden, ignore_errors=True)


def _was_killed(hidden: Path) -> bool:
    """Whether the process that made a hidden folder, whose name holds its id, is known to have ended."""
    process = hidden.name.removeprefix(PREFIX).partition("-")[0]
    if os.name != "posix" or not process.isdecimal():  # elsewhere the signal 0 would end it
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it belongs to another user
        pass
    return False


def _refuse(path: Path, error: OSError | ValueError) -> NoReturn:
    reason = error.strerror if isinstance(error, OSError) else error
    raise TrainingError(f"{cut(str(path), 200)!r} cannot be made: {reason}") from error


def refuse_taken(path: Path) -> None:
    """Raise TrainingError where there is something at ``path``, be it a run or not, or nothing can be."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        _refuse(path, error)
    if any(answer(path / name, Path.exists) for name in RECORDS):
        raise TrainingError(
            f"there is a run in {str(path)!r} already; continue it with --resume {path}, or choose another folder"
        )
    raise TrainingError(f"{str(path)!r} is there already; remove it or choose another folder")
