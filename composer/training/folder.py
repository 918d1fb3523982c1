"""The folder of a run. It appears whole, and every file in it is whole at any time. One process at a time uses it.

``run.json`` says what the run is, ``trainer.pt`` all that is needed to go on with it. The others are for users and
follow from ``trainer.pt``: ``model.safetensors``, ``curve.csv``, ``curve.png``, and at the end ``evaluation.json``.
"""

from __future__ import annotations

import json
import math
import os
import pickletools
import re
import secrets
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeGuard

import torch
from filelock import FileLock, Timeout

from composer.atomic import WriteError, replace_with
from composer.checkpoint.container import CheckpointError
from composer.source.files import outside, real_path
from composer.training.evaluation import Evaluation
from composer.training.trainer import MOST_COUNTED, Task, Trainer, TrainerState, TrainingError
from perception_blocks.words import cut

if TYPE_CHECKING:  # it needs matplotlib
    from composer.training.curve import LearningCurve

__all__ = ["RunFolder", "Saved", "in_use", "new_folder", "refuse_links_outside", "refuse_taken"]

FORMAT = "composer-run"
VERSION = 1
MOST_BYTES = 100_000_000  # of run.json
LOCK = ".lock"
FILES = ("run.json", "trainer.pt", "model.safetensors", "curve.csv", "curve.png", "evaluation.json")
PREFIX, SUFFIX = ".composer-run-", ".tmp"  # of a folder that is not whole yet
# What the fields of a Task are in JSON, by their annotations.
_KINDS = {"str": str, "int": int, "bool": bool, "Mapping[str, Any]": dict}
NEWER = {"device", "threads", "subprocess", "env_set"}  # fields that older runs lack


class Saved(TypedDict):
    """What ``trainer.pt`` holds."""

    steps: int
    curve: list[list[float]]
    recent: list[float]
    trainer: TrainerState


class RunFolder:
    """The folder at ``path`` of the run ``task``; ``name`` is its path in messages, if it is to be renamed.

    Raises TrainingError for a file that cannot be written, as on a full disk; the file before it is then still whole.
    """

    def __init__(self, path: Path, task: Task, name: Path | None = None) -> None:
        self.path = path
        self.task = task
        self._name = name or path

    @classmethod
    @contextmanager
    def create(
        cls, path: Path, task: Task, trainer: Trainer, curve: LearningCurve
    ) -> Iterator[RunFolder]:
        """A new folder with the first state of a run, locked for other processes.

        Raises TrainingError if the path exists, or cannot be created.
        """

        def fill(hidden: Path) -> None:
            folder = cls(hidden, task, name=path)
            folder.write_task()
            folder.save(trainer, curve, 0)

        with new_folder(path, fill):
            yield cls(path, task)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run. Raises TrainingError if there is none."""
        _refuse_no_run(path)
        refuse_links_outside(path, FILES)
        return cls(path, _read_task(path))

    def write_task(self) -> None:
        self._write_json("run.json", {"format": FORMAT, "version": VERSION, **asdict(self.task)})

    def begin_again(self) -> None:
        """Prepare for more steps, maybe more than were asked for at first."""
        self.write_task()
        try:
            (self.path / "evaluation.json").unlink(missing_ok=True)
        except OSError as error:
            name = str(self.path / "evaluation.json")
            raise TrainingError(f"{name!r} cannot be removed: {error.strerror}") from error

    def save(self, trainer: Trainer, curve: LearningCurve, steps: int) -> None:
        """Write the state after ``steps`` steps, each file at once."""
        rows = [list(row) for row in curve.rows]
        state = {
            "steps": steps, "curve": rows, "recent": list(curve.recent), "trainer": trainer.state(),
        }  # fmt: skip
        self._write("trainer.pt", lambda file: _save_state(state, file))
        with self._writing("model.safetensors") as path:
            trainer.model.save(path)
        self._write("curve.csv", curve.write_csv)
        if curve.rows:
            title = f"{self.task.environment}: {self.task.algorithm} of {self.task.trainer}"
            self._write("curve.png", lambda file: curve.draw(file, title))

    def load(self) -> Saved:
        """What `save` wrote. Nothing in the file is executed."""
        path = self.path / "trainer.pt"
        if not _answer(path, os.path.lexists):
            raise TrainingError(f"there is no run in {str(self.path)!r}: it has no trainer.pt")
        try:
            _refuse_damage(path)
            return _as_saved(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises whatever the damage led to
            raise TrainingError(f"{str(path)!r} is damaged and cannot be resumed") from error

    def write_evaluation(self, evaluation: Evaluation, steps: int) -> None:
        record = {
            "steps": steps, "episodes": len(evaluation.returns),
            "mean": evaluation.mean, "std": evaluation.std,
            "returns": evaluation.returns, "lengths": evaluation.lengths,
        }  # fmt: skip
        self._write_json("evaluation.json", record)

    def _write_json(self, name: str, record: Mapping[str, object]) -> None:
        text = json.dumps(record, indent=2) + "\n"
        self._write(name, lambda file: Path(file).write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[str], object]) -> None:
        with self._writing(name) as path:
            replace_with(path, write)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """The path of the file ``name``; if it cannot be written, a TrainingError says so."""
        try:
            yield self.path / name
        except (WriteError, CheckpointError) as error:
            reason = error if isinstance(error, WriteError) else error.__cause__
            if not isinstance(reason, WriteError):
                raise
            is_new = self.path != self._name
            rest = "" if is_new else f"; the run is as it was saved before: --resume {self.path}"
            if not is_new and not self.path.exists():
                rest = ": what was trained is lost"
            problem = f"{str(self._name / name)!r} cannot be written: {reason.strerror}"
            raise TrainingError(problem + rest) from error


def _save_state(state: Mapping[str, object], path: str) -> None:
    """Raises OSError where the file cannot be written."""
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's own, which says nothing of the disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


# --- one process at a time --------------------------------------------------------------------------------------------


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
    _refuse_no_run(path)
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


# --- what is read is checked ------------------------------------------------------------------------------------------


def _answer(path: Path, question: Callable[[Path], bool]) -> bool:
    """The answer to ``question``; no for what cannot be asked of, such as a name that is too long."""
    try:
        return question(path)
    except (OSError, ValueError):
        return False


def _refuse_no_run(path: Path) -> None:
    if not _answer(path, Path.is_dir):
        raise TrainingError(f"there is no folder {cut(str(path), 200)!r} to resume")
    if not _answer(path / "run.json", os.path.lexists):
        raise TrainingError(f"there is no run in {str(path)!r}: it has no run.json")


def refuse_links_outside(path: Path, names: Iterable[str]) -> None:
    """Raise TrainingError where a file of the run lies elsewhere: it would be read and written there."""
    for name in names:
        if (path / name).is_symlink() and outside(str(path / name), [real_path(str(path))]):
            raise TrainingError(
                f"{str(path / name)!r} is a link that leads out of the run's folder; put the file itself there"
            )


def _refuse_damage(path: Path) -> None:
    """Raise ValueError for a file of torch that is not as it was saved, or would be much larger in memory."""
    _refuse_no_file(path)
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
        if archive.testzip() is not None:
            raise ValueError("a checksum in it is wrong")
        names = [name.casefold() for name in archive.namelist()]  # torch does not mind the case
        (state,) = (name for name in archive.namelist() if name.casefold().endswith("/data.pkl"))
        if len(set(names)) < len(names):
            raise ValueError("it has two parts of one name")
        _refuse_more_than_tensors(archive.read(state))


def _refuse_more_than_tensors(state: bytes) -> None:
    """Raise ValueError unless ``state`` makes tensors and plain data only: a ``bytearray`` may be of any size."""
    for opcode, what, _ in pickletools.genops(state):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ"):
            raise ValueError("it names a class in a way that torch does not")
        if opcode.name == "GLOBAL" and not _MADE.fullmatch(str(what)):
            raise ValueError(f"it makes {what!r}")


_MADE = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (\w+Storage|Size|device)|"
    r"torch (bool|u?int\d+|b?float\d+|complex\d+)"
)


def _refuse_no_file(path: Path) -> None:
    """Raise ValueError for a pipe, a device or a folder: to read one could take for ever."""
    if not path.is_file():
        raise ValueError("it is not a regular file")


def _read_task(path: Path) -> Task:
    """The task in ``run.json``. Raises TrainingError with what is wrong with it."""
    file = path / "run.json"
    try:
        _refuse_no_file(file)
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError("it does not describe a run")
        if record.get("version") != VERSION:
            raise ValueError("it is of another version")
        return _task_of(record)
    except RecursionError:
        reason = "it is nested too deeply"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise TrainingError(f"run.json in {str(path)!r} cannot be read: {reason}")


def _task_of(record: Mapping[str, Any]) -> Task:
    known = {
        field.name: _KINDS[str(field.type)]
        for field in fields(Task)
        if field.name in record or field.name not in NEWER
    }
    for name, kind in known.items():
        if name not in record:
            raise ValueError(f"it has no {name!r}")
        if type(record[name]) is not kind:
            raise ValueError(f"{name!r} must be {_CALLED[kind]}")
    unknown = record.keys() - known.keys() - {"format", "version"}
    if unknown:
        raise ValueError(f"{min(unknown)[:40]!r} is not a field of a run")
    return Task(**{name: record[name] for name in known})


_CALLED = {str: "a text", int: "an integer", bool: "true or false", dict: "a mapping"}


def _as_saved(state: object) -> Saved:
    """``state`` as it was saved. Raises ValueError for what is of another form."""
    if not isinstance(state, dict) or not isinstance(state.get("trainer"), dict):
        raise ValueError("it holds no trainer")
    steps, curve, recent = state.get("steps"), state.get("curve"), state.get("recent", [])
    if type(steps) is not int or not 0 <= steps < MOST_COUNTED:
        raise ValueError("it holds no number of steps")
    if not isinstance(curve, list) or not all(map(_is_row, curve)) or not _are_numbers(recent):
        raise ValueError("it holds no learning curve")
    at = [0, *(row[0] for row in curve), steps]
    if at != sorted(at) or any(row[1] < 1 or row[5] < 1 for row in curve):
        raise ValueError("its learning curve counts backwards")
    return {"steps": steps, "curve": curve, "recent": recent, "trainer": state["trainer"]}


def _is_row(row: object) -> bool:
    return _are_numbers(row) and len(row) in (6, 7)


def _are_numbers(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in values
    )


# --- its name ---------------------------------------------------------------------------------------------------------


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
        for lock in folder.glob(f"{PREFIX}*{SUFFIX}/{LOCK}"):  # without one it is just being made
            if lock.parent.is_symlink():  # none of ours is
                continue
            with suppress(TrainingError), _locked(lock.parent, lock.parent):
                shutil.rmtree(lock.parent, ignore_errors=True)


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
    if _answer(path / "run.json", Path.exists):
        raise TrainingError(
            f"there is a run in {str(path)!r} already; continue it with --resume {path}, or choose another folder"
        )
    raise TrainingError(f"{str(path)!r} is there already; remove it or choose another folder")
