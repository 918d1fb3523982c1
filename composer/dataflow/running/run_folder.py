"""The folder of a run of an experiment. It appears whole, and one process at a time uses it.

``run.json`` says what the run is, ``experiment.yaml`` is its experiment, ``checkpoint-...`` all that is needed to go on
after that many iterations: a folder for each model, and the log. ``log.csv`` and ``curve.png`` follow from it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from composer.atomic import FOLDER_SUFFIX, PREFIX, WriteError, replace_with, temporary_folder
from composer.checkpoint.container import CheckpointError
from composer.dataflow.running.run_log import RunLog
from composer.dataflow.running.schedule import RunError
from composer.parallel.state import consolidate
from composer.source.files import MAX_BYTES, is_regular
from composer.training.exclusive import new_folder, refuse_links_outside
from perception_blocks.words import cut

__all__ = ["Checkpoint", "RunFolder", "RunRecord"]

FORMAT, VERSION = "composer-experiment", 1
OF_A_TRAINING = "composer-run"
RECORD, EXPERIMENT, STATE = "run.json", "experiment.yaml", "log.json"
FILES = (RECORD, EXPERIMENT, "log.csv", "curve.png")
MOST_BYTES = 1_000_000_000  # of a log
CHECKPOINT = "checkpoint-"  # and the number of iterations
_CHECKPOINT = re.compile(CHECKPOINT + r"\d{8,18}")


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` says: the ``name`` of the experiment, and the ``folders`` whose files it may read."""

    name: str
    folders: list[str]


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``iteration`` iterations: the models below ``path``, and the ``rows`` of the log."""

    path: Path
    iteration: int
    rows: list[Mapping[str, float]]


class RunFolder:
    """The folder at ``path``. Raises RunError for a file that cannot be written or read; the others are whole."""

    def __init__(self, path: Path, record: RunRecord, text: str) -> None:
        self.path = path
        self.record = record
        self.text = text

    @classmethod
    @contextmanager
    def create(cls, path: Path, record: RunRecord, text: str) -> Iterator[RunFolder]:
        """A new folder, locked for other processes. Raises TrainingError if the path exists, or cannot be made."""

        def fill(hidden: Path) -> None:
            entry = {"format": FORMAT, "version": VERSION, **asdict(record)}
            _write_text(hidden / RECORD, json.dumps(entry, indent=2) + "\n", path / RECORD)
            _write_text(hidden / EXPERIMENT, text, path / EXPERIMENT)

        with new_folder(path, fill):
            yield cls(path, record, text)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that is there. Raises RunError for one that is damaged, or no run's."""
        refuse_links_outside(path, [*FILES, *(file.name for file in path.glob("*.safetensors"))])
        record = _read_record(path)
        return cls(path, record, _text_of(path / EXPERIMENT, MAX_BYTES))

    def save(self, log: RunLog, save_models: Callable[[str], None]) -> None:
        """A checkpoint of ``log`` and of what ``save_models`` writes into a folder; the one before is removed then."""
        iteration = len(log.rows)
        target = self.path / f"{CHECKPOINT}{iteration:08}"
        hidden = self.path / f"{PREFIX}{secrets.token_hex(8)}{FOLDER_SUFFIX}"
        try:
            with temporary_folder(hidden):
                save_models(str(hidden))
                rows = [{n: _in_json(v) for n, v in row.items()} for row in log.rows]
                text = json.dumps({"iteration": iteration, "rows": rows}, allow_nan=False)
                replace_with(hidden / STATE, lambda name: Path(name).write_text(text, "utf-8"))
                # It may be there of a run that went on from an earlier checkpoint.
                shutil.rmtree(target, ignore_errors=True)
                hidden.rename(target)
        except (WriteError, CheckpointError, OSError) as error:
            raise self._not_written(target, error) from error
        for other in self._checkpoints():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    def write_log(self, log: RunLog) -> None:
        """``log.csv``."""
        self._replace("log.csv", log.write_csv)

    def draw(self, log: RunLog) -> None:
        """``curve.png``, where there are numbers."""
        if log.names:
            title = f"{self.record.name}: {len(log.rows)} iterations"
            self._replace("curve.png", lambda name: log.draw(name, title))

    def write_models(self) -> None:
        """The models of the last checkpoint as files for `composer.load`, such as ``actor.safetensors``."""
        checkpoint = self.latest()
        for folder in [] if checkpoint is None else sorted(checkpoint.path.iterdir()):
            if not folder.is_dir():
                continue
            target = self.path / f"{folder.name}.safetensors"
            try:
                consolidate(folder, target)
            except CheckpointError as error:
                if isinstance(error.__cause__, WriteError):
                    raise self._not_written(target, error) from error
                # Otherwise a class in its spec has no name: the checkpoint has its weights.

    def _replace(self, name: str, write: Callable[[str], object]) -> None:
        try:
            replace_with(self.path / name, write)
        except WriteError as error:
            raise self._not_written(self.path / name, error) from error

    def latest(self) -> Checkpoint | None:
        """The last checkpoint; None where there is none yet. Raises RunError for a damaged one."""
        paths = self._checkpoints()
        if not paths:
            return None
        path = paths[-1]
        _refuse_odd_files(path)
        try:
            state = json.loads(_text_of(path / STATE, MOST_BYTES))
            iteration = int(path.name.removeprefix(CHECKPOINT))
            return Checkpoint(path, iteration, _rows_of(state, iteration))
        except (ValueError, RecursionError) as error:
            if isinstance(error, RunError):
                raise
            raise _damaged(path, f"{STATE!r} is not as it was saved") from error

    def _checkpoints(self) -> list[Path]:
        """By their numbers."""
        numbers = {
            int(path.name.removeprefix(CHECKPOINT)): path
            for path in self.path.iterdir()
            if _CHECKPOINT.fullmatch(path.name) and path.is_dir()
        }
        return [numbers[number] for number in sorted(numbers)]

    def _not_written(self, target: Path, error: Exception) -> RunError:
        cause = error.__cause__ if isinstance(error, CheckpointError) else error
        reason = getattr(cause, "strerror", None) or str(error)
        return RunError(
            f"{str(target)!r} cannot be written: {reason}; the run is as it was saved before: --resume {self.path}"
        )


def _write_text(path: Path, text: str, name: Path) -> None:
    """Raises RunError, which calls the file ``name``."""
    try:
        replace_with(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    except WriteError as error:
        raise RunError(f"{str(name)!r} cannot be written: {error.strerror}") from error


# --- what is read is checked ------------------------------------------------------------------------------------------


def _read_record(path: Path) -> RunRecord:
    file = path / RECORD
    try:
        record = json.loads(_text_of(file, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RunError):
            raise
        raise _damaged(path, f"{RECORD!r} cannot be read") from error
    form = record.get("format") if isinstance(record, dict) else None
    if form == OF_A_TRAINING:
        raise RunError(f"{str(path)!r} is a run of composer train: composer train --resume {path}")
    if form != FORMAT:
        raise RunError(f"{str(path)!r} is no run of an experiment")
    if record.get("version") != VERSION:
        raise RunError(f"{str(file)!r} is of another version")
    name, folders = record.get("name"), record.get("folders")
    known = {"format", "version", *(field.name for field in fields(RunRecord))}
    if isinstance(name, str) and isinstance(folders, list) and record.keys() == known:
        texts = [folder for folder in folders if isinstance(folder, str)]
        if len(texts) == len(folders):
            return RunRecord(name, texts)
    raise _damaged(path, f"{RECORD!r} is not as it was saved")


def _text_of(path: Path, most: int) -> str:
    """The text of a regular file of a run. Raises RunError."""
    try:
        if not is_regular(path) or path.is_symlink():
            raise RunError(f"there is no file {str(path)!r}, or it is no regular one")
        if path.stat().st_size > most:
            raise RunError(f"{str(path)!r} has more than {most:,} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _damaged(path.parent, f"{path.name!r} is no text") from error


def _refuse_odd_files(folder: Path) -> None:
    """Raise RunError where a checkpoint has a link, which would be read elsewhere, or what may never end, as a pipe."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        if path.is_symlink() or not (path.is_dir() or is_regular(path)):
            raise _damaged(folder, f"{path.name!r} is neither a file nor a folder")


def _rows_of(state: object, iteration: int) -> list[Mapping[str, float]]:
    """Raises ValueError for anything but what `RunFolder.save` writes."""
    if not isinstance(state, dict) or state.keys() != {"iteration", "rows"}:
        raise ValueError("it is no log")
    rows = state["rows"]
    if state["iteration"] != iteration or not isinstance(rows, list) or len(rows) != iteration:
        raise ValueError("it is of another iteration")
    if not all(isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows):
        raise ValueError("it has what is no number")
    return [{n: math.nan if v is None else float(v) for n, v in row.items()} for row in rows]


def _is_number(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]


def _in_json(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{cut(str(path), 200)!r} is damaged: {what}; take a copy of the folder")
