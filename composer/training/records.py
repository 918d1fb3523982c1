"""What a run records as it goes on: its curve, its evaluations, and the numbers of its trainer."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from composer.training.curve import LearningCurve
from composer.training.evaluation import Evaluation

__all__ = ["EvaluationLog", "EvaluationRow", "ProgressLog", "Records"]

COLUMNS = ("step", "seconds", "steps_per_second")
DIGITS = 6  # behind the point of what is written as CSV


class EvaluationRow(NamedTuple):
    """An evaluation after ``step`` steps: returns of whole episodes, without exploration."""

    step: int
    episodes: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float


class EvaluationLog:
    """The evaluations of a run, in order."""

    def __init__(self, rows: Iterable[Sequence[float]] = ()) -> None:
        self.rows = [EvaluationRow(int(row[0]), int(row[1]), *row[2:]) for row in rows]

    def add(self, step: int, evaluation: Evaluation) -> EvaluationRow:
        """Add the ``evaluation`` after ``step`` steps; one of the same step, before an interruption, is replaced."""
        self.rows = [row for row in self.rows if row.step != step]
        returns = evaluation.returns
        spread = (evaluation.mean, evaluation.std, min(returns), max(returns))
        self.rows.append(EvaluationRow(step, len(returns), *spread, fmean(evaluation.lengths)))
        return self.rows[-1]

    @property
    def best(self) -> EvaluationRow | None:
        """The first of those with the highest mean return."""
        return max(self.rows, key=lambda row: row.return_mean, default=None)

    def write_csv(self, path: str | Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(EvaluationRow._fields)
            writer.writerows([round(value, DIGITS) for value in row] for row in self.rows)


class ProgressLog:
    """The trainer's numbers over the steps, and its speed: means over at least ``every`` steps.

    A row has ``step``, ``seconds`` (of the run, evaluations and saving included), ``steps_per_second`` (of training
    alone), and the numbers by name. Numbers that appear later become columns behind the others.
    """

    def __init__(self, every: int, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = [dict(row) for row in rows]
        self._waiting: dict[str, list[float]] = {}
        self._is_silent = all(len(row) == len(COLUMNS) for row in self.rows)
        self._begun: tuple[int, float] | None = None  # step and time of training of the row before

    def add(
        self, step: int, seconds: float, training: float, metrics: Mapping[str, float] | None
    ) -> dict[str, float] | None:
        """Add ``metrics`` after ``step`` steps and ``training`` seconds of training; returns a row that is complete.

        As long as a trainer has none, there are rows a hundredth as often, of its speed alone.
        """
        if self._begun is None:
            self._begun = (0, 0.0)
        self.note(metrics or {})
        self._is_silent &= not metrics
        if step < self._begun[0] + self.every * (100 if self._is_silent else 1):
            return None
        if metrics or self._is_silent:
            return self.close_row(step, seconds, training)
        return None

    def note(self, metrics: Mapping[str, float]) -> None:
        """Add ``metrics`` to the next row, beside those of the trainer."""
        for name, value in metrics.items():
            self._waiting.setdefault(name, []).append(float(value))

    def begin(self, step: int, training: float) -> None:
        """Count from ``step`` on, where a run is resumed."""
        self._begun = (step, training)

    def close_row(self, step: int, seconds: float, training: float) -> dict[str, float] | None:
        """Make a row of what has been added since the last, and return it.

        Where no step has been made since, the numbers complete the last row and are returned; None without any.
        """
        begun, at = self._begun or (0, 0.0)
        numbers = {name: fmean(values) for name, values in self._waiting.items()}
        if step <= begun:
            if not (numbers and self.rows and self.rows[-1]["step"] == step):
                return None
            self._waiting = {}
            self.rows[-1] |= numbers
            return {"step": step, **numbers}
        speed = (step - begun) / max(training - at, 1e-9)
        row: dict[str, float] = {"step": step, "seconds": seconds, "steps_per_second": speed}
        self.rows.append(row | numbers)
        self._waiting, self._begun = {}, (step, training)
        return self.rows[-1]

    @property
    def names(self) -> list[str]:
        """The columns, in the order in which they appeared."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def write_csv(self, path: str | Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            names = self.names or COLUMNS
            writer.writerow(names)
            writer.writerows([_shown(row.get(name)) for name in names] for row in self.rows)


def _shown(value: float | None) -> float | str:
    """Small numbers keep their digits: losses and learning rates may be any power of ten."""
    return "" if value is None else float(f"{value:.7g}") if isinstance(value, float) else value


@dataclass
class Records:
    """All that a run has recorded; ``seconds`` is how long it has run, over all its parts."""

    curve: LearningCurve
    evaluations: EvaluationLog
    progress: ProgressLog
    seconds: float = 0.0
