"""The folder of a run. It appears whole, and every file in it is whole at any time. One process at a time uses it.

``run.json`` says what the run is, ``trainer.pt`` all that is needed to go on with it. The others are for users and
follow from ``trainer.pt``: ``model.safetensors``, ``best.safetensors``, ``curve.csv``, ``curve.png``,
``evaluations.csv``, ``progress.csv``, and at the end ``evaluation.json`` and ``video.mp4``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from composer.atomic import WriteError, replace_with
from composer.checkpoint.container import CheckpointError
from composer.training.evaluation import Evaluation
from composer.training.events import EVENTS
from composer.training.exclusive import answer, new_folder, refuse_links_outside, refuse_no_run
from composer.training.records import Records
from composer.training.stored import FORMAT, VERSION, Saved, read_record, read_saved, task_of
from composer.training.trainer import Task, Trainer, TrainingError

__all__ = ["BEST", "CHECKPOINTS", "MODEL", "VIDEO", "RunFolder", "best_model"]

MODEL, BEST, VIDEO = "model.safetensors", "best.safetensors", "video.mp4"
CHECKPOINTS = "checkpoints"
FILES = (
    "run.json", "trainer.pt", MODEL, BEST, VIDEO, "curve.csv", "curve.png", "evaluation.json",
    "evaluations.csv", "progress.csv", CHECKPOINTS, EVENTS,
)  # fmt: skip
_CHECKPOINT = re.compile(r"step-(\d{9,10})\.safetensors")


class RunFolder:
    """The folder at ``path`` of the run ``task``; ``name`` is its path in messages, if it is to be renamed.

    Raises TrainingError for a file that cannot be written, as on a full disk; the file before it is then still whole.
    """

    def __init__(
        self,
        path: Path,
        task: Task,
        about: Mapping[str, Any] | None = None,
        name: Path | None = None,
    ) -> None:
        self.path = path
        self.task = task
        # What is not part of the task: versions, overrides, how long it took.
        self.about = dict(about or {})
        self._name = name or path

    @classmethod
    @contextmanager
    def create(
        cls, path: Path, task: Task, trainer: Trainer, records: Records, about: Mapping[str, Any]
    ) -> Iterator[RunFolder]:
        """A new folder with the first state of a run, locked for other processes.

        Raises TrainingError if the path exists, or cannot be created.
        """

        def fill(hidden: Path) -> None:
            folder = cls(hidden, task, about, name=path)
            folder.write_task()
            folder.save(trainer, records, 0)

        with new_folder(path, fill):
            yield cls(path, task, about)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run. Raises TrainingError if there is none."""
        refuse_no_run(path)
        refuse_links_outside(path, FILES)
        inner = [path / name for name in (CHECKPOINTS, EVENTS)]
        for folder in (folder for folder in inner if answer(folder, Path.is_dir)):
            refuse_links_outside(folder, [file.name for file in folder.iterdir()], path)
        record = read_record(path / "run.json")
        return cls(path, task_of(record, path / "run.json"), _about(record))

    def write_task(self) -> None:
        head = {"format": FORMAT, "version": VERSION}
        self._write_json("run.json", {**head, **asdict(self.task), "about": self.about})

    def begin_again(self, trainer: Trainer, saved: Saved, best: int | None) -> None:
        """Prepare for more steps, maybe more than were asked for at first. ``best`` is the step of the best evaluation.

        What a process that was killed has written after its last save follows from ``saved`` again.
        """
        self.write_task()
        later = [file for step, file in self.checkpoints() if step > saved["steps"]]
        for file in [self.path / "evaluation.json", self.path / VIDEO, *later]:
            self._remove(file)
        if best == saved["steps"]:
            self._save_model(trainer, BEST)

    def save(self, trainer: Trainer, records: Records, steps: int) -> None:
        """Write the state after ``steps`` steps, each file at once."""
        curve, best = records.curve, records.evaluations.best
        state = {
            "steps": steps, "curve": [list(row) for row in curve.rows], "recent": list(curve.recent),
            "evaluations": [list(row) for row in records.evaluations.rows],
            "progress": records.progress.rows, "seconds": records.seconds, "trainer": trainer.state(),
        }  # fmt: skip
        self._write("trainer.pt", lambda file: _save_state(state, file))
        self._save_model(trainer, MODEL)
        if best is not None and best.step == steps:
            self._save_model(trainer, BEST)
        self._write("curve.csv", curve.write_csv)
        self._write("progress.csv", records.progress.write_csv)
        if self.task.eval_every:
            self._write("evaluations.csv", records.evaluations.write_csv)
        if curve.rows:
            title = f"{self.task.environment}: {self.task.algorithm} of {self.task.trainer}"
            self._write("curve.png", lambda file: curve.draw(file, title))
        if steps:
            self.about["seconds"] = round(records.seconds, 3)
            self.write_task()

    def load(self) -> Saved:
        """What `save` wrote. Nothing in the file is executed."""
        path = self.path / "trainer.pt"
        if not answer(path, os.path.lexists):
            raise TrainingError(f"there is no run in {str(self.path)!r}: it has no trainer.pt")
        return read_saved(path)

    def write_checkpoint(self, trainer: Trainer, steps: int) -> None:
        """The weights after ``steps`` steps as a numbered file; of many, the last ``task.keep`` stay."""
        folder = self.path / CHECKPOINTS
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{str(folder)!r} cannot be made: {error.strerror}") from error
        self._save_model(trainer, f"{CHECKPOINTS}/step-{steps:09}.safetensors")
        for _, file in self.checkpoints()[: -self.task.keep] if self.task.keep else []:
            self._remove(file)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """The numbered checkpoints, each with its step, in order."""
        folder = self.path / CHECKPOINTS
        files = folder.iterdir() if answer(folder, Path.is_dir) else ()
        named = ((_CHECKPOINT.fullmatch(file.name), file) for file in files)
        return sorted((int(match[1]), file) for match, file in named if match)

    def write_video(self, write: Callable[[str], object]) -> None:
        """``video.mp4``, by ``write``."""
        self._write(VIDEO, write)

    def _save_model(self, trainer: Trainer, name: str) -> None:
        with self._writing(name) as path:
            trainer.model.save(path)

    def _remove(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(f"{str(file)!r} cannot be removed: {error.strerror}") from error

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


def best_model(path: Path) -> Path:
    """The checkpoint of the best evaluation of the run in ``path``, or else of its last save."""
    return path / BEST if answer(path / BEST, Path.exists) else path / MODEL


def _about(record: Mapping[str, Any]) -> Mapping[str, Any]:
    about = record.get("about", {})
    return about if isinstance(about, dict) else {}
