"""The text of a spec's file, or in words why it cannot be read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from composer.errors import Position, Problem, SpecError
from perception_blocks.words import Suggestion, near_name

__all__ = ["MAX_BYTES", "allowed_folders", "as_argument", "as_utf8", "begins_as_checkpoint"]
__all__ += ["display_name", "is_regular", "names_a_folder", "near_file", "no_file", "not_a_file"]
__all__ += ["outside", "read_text", "real_path"]

MAX_BYTES = 1024 * 1024


def names_a_folder(entry: str) -> bool:
    """Whether an entry of ``allow`` is a folder, not a module: it has a slash."""
    return "/" in entry or os.sep in entry


def allowed_folders(allow: Iterable[str]) -> tuple[str, ...]:
    """The folders in ``allow``, by their real paths."""
    return tuple(real_path(entry) for entry in allow if names_a_folder(entry))


def outside(path: str, folders: Iterable[str]) -> str | None:
    """Why a spec may not name the file at ``path``, or None where it lies in one of the ``folders``."""
    real = real_path(path)
    if any(real == folder or real.startswith(os.path.join(folder, "")) for folder in folders):
        return None
    folder = os.path.join(real if os.path.isdir(real) else os.path.dirname(real), "")
    return (
        f"{display_name(path)!r} is neither beside nor below the spec; pass allow=[{folder!r}] or "
        f"--allow {as_argument(folder)} if the spec may read it"
    )


def as_argument(text: str) -> str:
    """``text``, which may come from a file, quoted as one argument of a command that a message advises."""
    import shlex  # for messages alone

    return shlex.quote(text if text.isprintable() else ascii(text))


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a regular file, or leads to one: opening a pipe or a device can wait forever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def begins_as_checkpoint(data: bytes) -> bool:
    """Whether a file begins as safetensors do: eight bytes of length, then a header in JSON."""
    start = data[:9]
    return b"\0" in start and start.endswith(b"{")


def read_text(path: str, asked_at: Position | None, parents: Sequence[str] = ()) -> str:
    """The text of the file at ``path``. Raises SpecError for anything but a readable text file.

    ``parents`` are the real paths of the files that extend it: their names are no near ones.
    """
    name = display_name(path)
    if name.endswith(".py"):
        message = f"{name!r} is a Python file, not a spec; a spec names its classes: policy: {{_target_: module.Class}}"
        raise SpecError([Problem(message, (), asked_at)])
    problem, data = no_file(path, parents), b""
    if problem is None:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            problem = f"{name!r} cannot be read: {error.strerror}"
    if problem:
        raise SpecError([Problem(problem, (), asked_at)])
    return _decode(data, name)


def no_file(path: str, parents: Sequence[str] = ()) -> str | None:
    """Why there is no regular file at ``path``, or None; opening a pipe or a device would block or never end."""
    name = display_name(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            return f"{name!r} is a link to a file that is not there"
        return f"there is no file {name!r}" + near_file(path, parents)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"{name!r} cannot be read: {reason}"
    if stat.S_ISDIR(mode):
        return not_a_file(path, name)
    return None if stat.S_ISREG(mode) else f"{name!r} is not a regular file"


def not_a_file(folder: str, name: str, wanted: str = "a file") -> str:
    """That ``folder`` is not what is ``wanted``, with a way out where this library or transformers has written it."""
    kinds = {
        "checkpoint.json": "a checkpoint of shards; composer.parallel.consolidate(folder, file) makes a file of it",
        "run.json": f"the folder of a training run; its model is {os.path.join(name, 'model.safetensors')!r}",
        "config.json": "a folder of Hugging Face; a spec names it, as 'model_path' or as 'checkpoint' of a transformer",
    }
    known = (said for file, said in kinds.items() if os.path.isfile(os.path.join(folder, file)))
    return f"{name!r} is " + next(known, f"a folder, not {wanted}")


def _decode(data: bytes, name: str) -> str:
    if begins_as_checkpoint(data):
        message = f"{name!r} is a checkpoint, not a spec; composer.load makes a model from it"
        raise SpecError([Problem(message, (), Position(name, 1, 1))])
    if len(data) > MAX_BYTES:
        message = f"the file is larger than {MAX_BYTES} bytes, too large for a spec"
        raise SpecError([Problem(message, (), Position(name, 1, 1))])
    return as_utf8(data, name)


def as_utf8(data: bytes, name: str, line: int = 1) -> str:
    """The text of ``data``, which begins at ``line`` of the file ``name``. Raises SpecError at what is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[start : error.start].decode("utf-8", "replace")) + 1
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8; is this a text file?"
        place = Position(name, line + data.count(b"\n", 0, error.start), column)
        raise SpecError([Problem(message, (), place)]) from None


def near_file(path: str, but: Sequence[str] = ()) -> str:
    """The end of a message about a file that is missing: the near name in its folder, ``but`` for these paths."""
    folder, file = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except (OSError, ValueError):
        return ""
    taken = {os.path.basename(path) for path in but if os.path.dirname(path) == real_path(folder)}
    near = near_name(file, [name for name in names[:1000] if name not in taken])
    if not near:
        return ""
    return Suggestion(f"; did you mean {display_name(os.path.join(folder, near))!r}?", file, near)


def display_name(path: str) -> str:
    """``path`` as messages show it: ``base.yaml``, not ``configs/../base.yaml``."""
    return os.path.normpath(path) if path else path


def real_path(path: str) -> str:
    """The one name of a file that several lead to; ``path`` itself where no file can have that name."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # the current folder may be gone
        return path
