"""Files that appear whole or not at all.

A file is written beside its place, brought to the disk and then renamed: what was there before stays whole until then.
It keeps its mode, and a symbolic link stays one. The temporary files of processes that were killed are removed by
whoever writes into the same folder next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where such files are left
    fcntl: Any = None

__all__ = ["FOLDER_SUFFIX", "PREFIX", "WriteError", "lock", "new_folder", "replace_with"]
__all__ += ["temporary_folder"]

PREFIX, SUFFIX, FOLDER_SUFFIX = ".composer-", ".tmp", ".part"


class WriteError(OSError):
    """A file cannot be written; the message is one line. The file that was there before is whole."""

    def __init__(self, path: str | os.PathLike[str], reason: str, number: int = 0) -> None:
        super().__init__(number, reason, os.fspath(path))

    def __str__(self) -> str:
        return f"{self.filename!r} cannot be written: {self.strerror}"

    def __reduce__(self) -> tuple:
        return (type(self), (self.filename, self.strerror, self.errno))


def replace_with(path: str | os.PathLike[str], write: Callable[[str], object]) -> None:
    """Call ``write`` with the path of a temporary file, then replace ``path`` by that file.

    Raises WriteError if the file cannot be written; other exceptions of ``write`` pass through.
    """
    if "\0" in os.fspath(path):
        raise WriteError(path, "a name holds no null character", errno.EINVAL)
    try:
        target = _target(path)
        _remove_abandoned(target.parent)
        with _temporary_beside(target) as temporary:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        _bring_to_disk(target.parent)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error.strerror or str(error), error.errno or 0) from error


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[None]:
    """A new folder, `PREFIX` to `FOLDER_SUFFIX`, to be renamed when all is in it; it is gone afterwards if it is not.

    Those of processes that were killed are removed. Raises WriteError where there can be none.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        path.mkdir()
        handle = None if fcntl is None else os.open(path, os.O_RDONLY)
    except OSError as error:
        raise WriteError(path, error.strerror or str(error), error.errno or 0) from error
    try:
        if handle is not None:
            lock(handle)
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A `temporary_folder` beside ``target``, where nothing is yet, that takes its place once all is in it.

    Raises WriteError and OSError.
    """
    place = target.resolve()
    temporary = place.parent / f"{PREFIX}{secrets.token_hex(8)}{FOLDER_SUFFIX}"
    with temporary_folder(temporary):
        yield temporary
        os.replace(temporary, place)


def _target(path: str | os.PathLike[str]) -> Path:
    """The file to replace, to which ``path`` leads. Raises WriteError if it cannot be written."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise WriteError(path, os.strerror(errno.ELOOP), errno.ELOOP)
    if not target.parent.is_dir():
        folder = Path(path).parent if target.name == Path(path).name else target.parent
        raise WriteError(path, f"there is no folder {str(folder)!r}", errno.ENOENT)
    if target.is_dir():
        raise WriteError(path, "it is a folder", errno.EISDIR)
    if target.exists() and not target.is_file():
        raise WriteError(path, "it is not a regular file", errno.EINVAL)
    if target.exists() and not os.access(target, os.W_OK):
        raise WriteError(path, "it is write-protected", errno.EACCES)
    return target


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Iterator[str]:
    """A new file with the mode of ``target``, locked for as long as this process writes it, and gone afterwards."""
    name, handle = _locked_file(target.parent)
    try:
        mode = stat.S_IMODE(os.stat(name).st_mode)
        kept = stat.S_IMODE(target.stat().st_mode) & 0o777 if target.exists() else mode
        if kept != mode:
            os.chmod(name, kept)
        yield name
    finally:
        _discard(name, handle)


def _locked_file(folder: Path) -> tuple[str, int | None]:
    """A new file in ``folder`` and the handle that holds its lock; None on systems without locks."""
    while True:
        name = os.path.join(folder, f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            os.close(handle)
            return name, None
        try:
            if not lock(handle) or os.fstat(handle).st_nlink:
                return name, handle
        except BaseException:
            _discard(name, handle)
            raise
        os.close(handle)  # another process took it for abandoned before it was locked


def _discard(name: str, handle: int | None) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)
    if handle is not None:
        os.close(handle)


def lock(handle: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock the file; False where there are no locks, or another process holds this one."""
    if fcntl is None:
        return False
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in ``folder`` that no process writes any more."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(PREFIX) and name.endswith((SUFFIX, FOLDER_SUFFIX)):
                _remove_if_abandoned(os.path.join(folder, name))


def _remove_if_abandoned(path: str) -> None:
    with contextlib.suppress(OSError):
        mode, is_folder = os.lstat(path).st_mode, path.endswith(FOLDER_SUFFIX)
        if not (stat.S_ISDIR if is_folder else stat.S_ISREG)(mode):
            return
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            if lock(handle, wait=False):
                (shutil.rmtree if is_folder else os.unlink)(path)
        finally:
            os.close(handle)


def _bring_to_disk(folder: Path) -> None:
    """Make the new name last through a loss of power, where the file system can; the file is in its place already."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
