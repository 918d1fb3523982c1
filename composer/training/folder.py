"""The folder of a run. It appears whole, and whatever is in it is whole at any time.

``run.json`` says what the run is, ``trainer.pt`` all that is needed to go on with it. The others are for users and
follow from ``trainer.pt``: ``model.safetensors``, ``curve.csv``, ``curve.png``, and at the end ``evaluation.json``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from composer.atomic import WriteError, replace_with
from composer.checkpoint import CheckpointError
from composer.training.curve import LearningCurve
from composer.training.evaluation import Evaluation
from composer.training.trainer import Task, Trainer, TrainingError

__all__ = ["RunFolder", "refuse_taken"]

FORMAT = "composer-run"
VERSION = 1


class RunFolder:
    """The folder at ``path``, of the run ``task``; ``name`` is what messages call it where it is to have another path.

    A file that cannot be written, as on a full disk, is a TrainingError; what was there before is whole then.
    """

    def __init__(self, path: Path, task: Task, name: Path | None = None) -> None:
        self.path = path
        self.task = task
        self._name = name or path

    @classmethod
    def create(cls, path: Path, task: Task, trainer: Trainer, curve: LearningCurve) -> RunFolder:
        """A new folder with the first state of a run. Raises TrainingError where there is one, or it cannot be."""
        refuse_taken(path)
        hidden = path.parent / f".{path.name}.{os.getpid()}"  # until it is whole
        try:
            hidden.mkdir(parents=True)
        except OSError as error:
            raise TrainingError(f"{str(path)!r} cannot be made: {error.strerror}") from error
        try:
            made = cls(hidden, task, name=path)
            made.write_task()
            made.save(trainer, curve, 0)
            _rename(hidden, path)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        return cls(path, task)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was made before. Raises TrainingError where there is none."""
        if not path.is_dir():
            raise TrainingError(f"there is no folder {str(path)!r} to resume")
        try:
            record = json.loads((path / "run.json").read_text(encoding="utf-8"))
            if record.pop("format") != FORMAT or record.pop("version") != VERSION:
                raise ValueError("it is of another version")
            return cls(path, Task(**record))
        except FileNotFoundError:
            raise TrainingError(f"there is no run in {str(path)!r}: it has no run.json") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(f"run.json in {str(path)!r} cannot be read: {error}") from error

    def write_task(self) -> None:
        self._write_json("run.json", {"format": FORMAT, "version": VERSION, **asdict(self.task)})

    def begin_again(self) -> None:
        """Prepare for more steps, maybe more than were asked for at first."""
        self.write_task()
        (self.path / "evaluation.json").unlink(missing_ok=True)

    def save(self, trainer: Trainer, curve: LearningCurve, steps: int) -> None:
        """All there is after ``steps`` steps, each file at once."""
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

    def load(self) -> dict[str, Any]:
        """What `save` wrote: ``steps``, ``curve`` and the ``trainer``'s state. Nothing in the file is executed."""
        path = self.path / "trainer.pt"
        try:
            return torch.load(path, weights_only=True)
        except FileNotFoundError:
            raise TrainingError(
                f"there is no run in {str(self.path)!r}: it has no trainer.pt"
            ) from None
        except Exception as error:  # torch raises whatever the damage led to
            raise TrainingError(f"{str(path)!r} is damaged and cannot be resumed") from error

    def write_evaluation(self, evaluation: Evaluation, steps: int) -> None:
        record = {
            "steps": steps, "episodes": len(evaluation.returns),
            "mean": evaluation.mean, "std": evaluation.std,
            "returns": evaluation.returns, "lengths": evaluation.lengths,
        }  # fmt: skip
        self._write_json("evaluation.json", record)

    def _write_json(self, name: str, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=2) + "\n"
        self._write(name, lambda file: Path(file).write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[str], Any]) -> None:
        with self._writing(name) as path:
            replace_with(path, write)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """The file ``name``; that it cannot be written becomes a TrainingError."""
        try:
            yield self.path / name
        except (WriteError, CheckpointError) as error:
            reason = error if isinstance(error, WriteError) else error.__cause__
            if not isinstance(reason, WriteError):
                raise
            is_new = self.path != self._name
            rest = "" if is_new else f"; the run is as it was saved before: --resume {self.path}"
            problem = f"{str(self._name / name)!r} cannot be written: {reason.strerror}"
            raise TrainingError(problem + rest) from error


def _save_state(state: dict[str, Any], path: str) -> None:
    """Raises OSError where the file cannot be written."""
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's own, which says nothing of the disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _rename(hidden: Path, path: Path) -> None:
    """Give the whole folder its name. Raises TrainingError where meanwhile there is another, or it cannot be."""
    try:
        hidden.rename(path)
    except OSError as error:
        refuse_taken(path)
        raise TrainingError(f"{str(path)!r} cannot be made: {error.strerror}") from error


def refuse_taken(path: Path) -> None:
    """Raise TrainingError where there is something at ``path``, be it a run or not."""
    if (path / "run.json").exists():
        raise TrainingError(
            f"there is a run in {str(path)!r} already; go on with it by --resume {path}, or choose another folder"
        )
    if path.exists() or path.is_symlink():
        raise TrainingError(f"{str(path)!r} is there already; remove it or choose another folder")
