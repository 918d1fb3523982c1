"""The files of a run as they are read: ``run.json`` and ``trainer.pt``, which a stranger may have altered."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO, TypedDict, TypeGuard

from composer.checkpoint.torch_file import read_torch_file
from composer.training.trainer import MOST_COUNTED, Task, TrainerState, TrainingError

__all__ = [
    "FORMAT",
    "VERSION",
    "Saved",
    "read_curve",
    "read_evaluation",
    "read_record",
    "read_saved",
    "read_table",
]
__all__ += ["task_of"]

FORMAT, VERSION = "composer-run", 1
COUNTED = ("return_mean", "return_mean_100", "steps_per_second")  # what runs are compared by
MOST_BYTES = 100_000_000  # of run.json
# What the fields of a Task are in JSON, by their annotations.
_KINDS = {"str": str, "int": int, "bool": bool, "Mapping[str, Any]": dict}
_CALLED = {str: "a text", int: "an integer", bool: "true or false", dict: "a mapping"}
# Fields that older runs lack.
NEWER = {
    "device", "threads", "subprocess", "env_set", "eval_every", "checkpoint_every", "keep", "tensorboard", "video",
    "probe_every",
}  # fmt: skip


class Saved(TypedDict):
    """What ``trainer.pt`` holds."""

    steps: int
    curve: list[list[float]]
    recent: list[float]
    evaluations: list[list[float]]
    progress: list[dict[str, float]]
    seconds: float
    trainer: TrainerState


def read_saved(path: Path) -> Saved:
    """What is in the file ``trainer.pt``. Nothing in it is executed. Raises TrainingError for a damaged one."""
    try:
        _refuse_no_file(path)
        return _as_saved(read_torch_file(path, whole=True))
    except Exception as error:  # torch raises whatever the damage led to
        raise TrainingError(f"{str(path)!r} is damaged and cannot be resumed") from error


def _refuse_no_file(path: Path) -> None:
    """Raise ValueError for a pipe, a device or a folder: to read one could take for ever."""
    if not path.is_file():
        raise ValueError("it is not a regular file")


def read_record(file: Path, kind: str = FORMAT) -> dict[str, Any]:
    """What the file ``run.json`` or another one of the format ``kind`` holds. Raises TrainingError for any other."""
    try:
        _refuse_no_file(file)
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format") != kind:
            raise ValueError("it does not describe a run")
        if record.get("version") != VERSION:
            raise ValueError("it is of another version")
        return record
    except RecursionError:
        reason = "it is nested too deeply"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise _unreadable(file, reason)


def task_of(record: Mapping[str, Any], file: Path, more: Iterable[str] = ()) -> Task:
    """The task in a ``record`` of `read_record`, which may have ``more`` fields. Raises TrainingError."""
    try:
        return _task_of(record, {"format", "version", "about", *more})
    except ValueError as error:
        raise _unreadable(file, str(error)) from None


def read_evaluation(run: Path) -> dict[str, float]:
    """The numbers of ``evaluation.json`` of a run, such as ``mean``. Raises TrainingError."""
    file = run / "evaluation.json"
    try:
        _refuse_no_file(file)
        record = json.loads(file.read_text(encoding="utf-8"))
        numbers = {name: record[name] for name in ("steps", "episodes", "mean", "std")}
        if not _are_numbers([*numbers.values()]):
            raise ValueError("it holds no numbers")
        return numbers
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable(file, str(error)) from error


def read_table(file: Path) -> list[dict[str, float]]:
    """The rows of ``progress.csv`` or another one, by column; empty cells are left out. Raises TrainingError."""
    with _reading(file) as lines:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(lines)
        ]
        for number, row in enumerate(rows, 1):
            if not 0 <= row.get("step", math.nan) < MOST_COUNTED:
                raise ValueError(f"row {number} has no number of steps")
            wrong = [name for name in COUNTED if not math.isfinite(row.get(name, 0.0))]
            if wrong:
                raise ValueError(f"row {number} has {row[wrong[0]]} as {wrong[0]!r}")
    return rows


def read_curve(file: Path) -> list[list[float]]:
    """The rows of ``curve.csv``, in the order of their steps. Raises TrainingError for one that cannot be read."""
    with _reading(file) as lines:
        rows = [[float(value) for value in row] for row in [*csv.reader(lines)][1:]]
        if not all(map(_is_row, rows)):
            raise ValueError("it holds no learning curve")
        _refuse_no_curve(rows, MOST_COUNTED)
    return rows


@contextmanager
def _reading(file: Path) -> Iterator[TextIO]:
    """A CSV file of a run, opened; what cannot be read in this context is a TrainingError."""
    try:
        _refuse_no_file(file)
        with open(file, newline="", encoding="utf-8") as opened:
            yield opened
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    except (ValueError, TypeError, csv.Error) as error:
        raise _unreadable(file, str(error)) from error


def _unreadable(file: Path, reason: str) -> TrainingError:
    return TrainingError(f"{file.name} in {str(file.parent)!r} cannot be read: {reason}")


def _task_of(record: Mapping[str, Any], others: set[str]) -> Task:
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
    unknown = record.keys() - known.keys() - others
    if unknown:
        raise ValueError(f"{min(unknown)[:40]!r} is not a field of a run")
    return Task(**{name: record[name] for name in known})


def _as_saved(state: object) -> Saved:
    """``state`` as it was saved. Raises ValueError for what is of another form."""
    if not isinstance(state, dict) or not isinstance(state.get("trainer"), dict):
        raise ValueError("it holds no trainer")
    steps, curve, recent = state.get("steps"), state.get("curve"), state.get("recent", [])
    if type(steps) is not int or not 0 <= steps < MOST_COUNTED:
        raise ValueError("it holds no number of steps")
    if not isinstance(curve, list) or not all(map(_is_row, curve)) or not _are_numbers(recent):
        raise ValueError("it holds no learning curve")
    _refuse_no_curve(curve, steps)
    evaluations, progress = state.get("evaluations", []), state.get("progress", [])
    if not isinstance(evaluations, list) or not all(map(_is_evaluation, evaluations)):
        raise ValueError("it holds no evaluations")
    if not isinstance(progress, list) or not all(map(_is_progress, progress)):
        raise ValueError("it holds no progress")
    _refuse_other_order("evaluations", [row[0] for row in evaluations], steps)
    _refuse_other_order("progress", [row["step"] for row in progress], steps)
    seconds = state.get("seconds", 0.0)
    if not _are_numbers([seconds]) or seconds < 0:
        raise ValueError("it holds no time")
    return {
        "steps": steps, "curve": curve, "recent": recent, "trainer": state["trainer"],
        "evaluations": evaluations, "progress": progress, "seconds": seconds,
    }  # fmt: skip


def _refuse_no_curve(curve: list[list[float]], steps: int) -> None:
    _refuse_other_order("learning curve", [row[0] for row in curve], steps)
    if any(row[1] < 1 or row[5] < 1 for row in curve):
        raise ValueError("its learning curve has rows without episodes")


def _refuse_other_order(what: str, at: Sequence[float], steps: int) -> None:
    """Raise ValueError unless the numbers of steps ``at`` which something was recorded grow, up to ``steps``."""
    ordered = [0, *at, steps]
    if ordered != sorted(ordered):
        raise ValueError(f"its {what} counts backwards")


def _is_evaluation(row: object) -> bool:
    return _are_numbers(row) and len(row) == 7 and 0 <= row[0] < MOST_COUNTED and row[1] >= 1


def _is_progress(row: object) -> bool:
    """Numbers by name; those of a trainer may be infinite."""
    return (
        isinstance(row, dict)
        and all(type(key) is str and type(row[key]) in (int, float) for key in row)
        and _are_numbers([row.get(name) for name in ("step", "seconds", "steps_per_second")])
    )


def _is_row(row: object) -> bool:
    return _are_numbers(row) and len(row) in (6, 7)


def _are_numbers(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in values
    )
