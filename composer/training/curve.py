"""The learning curve: returns of the training episodes, as CSV and as a picture."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from composer.training.trainer import Episode
from perception_blocks.registry import missing_extra

try:
    from matplotlib import style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise missing_extra("a training or its evaluation", error, "train") from error

__all__ = ["LearningCurve", "Row", "SeedCurves"]

WINDOW = 100  # episodes that the curve is a mean over


class Row(NamedTuple):
    """The episodes that ended between the step of the row before and ``step``."""

    step: int
    episodes: int
    return_mean: float
    return_min: float
    return_max: float
    length_mean: float
    return_mean_100: float  # of the last 100 episodes, of earlier rows too


class LearningCurve:
    """Rows of at least ``every`` steps each; episodes that ended since the last one wait for the next."""

    def __init__(
        self, every: int, rows: Iterable[Sequence[float]] = (), recent: Iterable[float] = ()
    ) -> None:
        self.every = every
        self.rows = [_row(values) for values in rows]
        self.recent = deque(recent, maxlen=WINDOW)  # returns of the last episodes
        self._waiting: list[Episode] = []

    @property
    def recent_mean(self) -> float | None:
        return fmean(self.recent) if self.recent else None

    def add(self, step: int, episodes: Iterable[Episode]) -> None:
        """Add the ``episodes`` that have ended by ``step``."""
        for episode in episodes:
            self._waiting.append(episode)
            self.recent.append(episode.total)
        last = self.rows[-1].step if self.rows else 0
        if self._waiting and step >= last + self.every:
            self.close_row(step)

    def close_row(self, step: int) -> None:
        """Make a row of the waiting episodes, at the end of a run also of fewer steps."""
        if not self._waiting:
            return
        totals = [episode.total for episode in self._waiting]
        length = fmean(episode.length for episode in self._waiting)
        spread = (fmean(totals), min(totals), max(totals))
        self.rows.append(Row(step, len(totals), *spread, length, fmean(self.recent)))
        self._waiting = []

    def write_csv(self, path: str | Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows([round(value, 6) for value in row] for row in self.rows)

    def draw(self, path: str | Path, title: str) -> None:
        """The mean return of the last 100 episodes over the steps, and the range of all of them, as PNG."""
        with style.context("default"):  # whatever a matplotlibrc in the current folder says
            self._figure(title).savefig(path, dpi=120, format="png")

    def _figure(self, title: str) -> Figure:
        figure, axes = _axes(title)
        steps = [row.step for row in self.rows]
        lowest, highest = (
            [getattr(r, f"return_{end}") for r in self.rows] for end in ("min", "max")
        )
        axes.fill_between(steps, lowest, highest, alpha=0.2, linewidth=0, label="lowest to highest")
        means = [row.return_mean_100 for row in self.rows]
        axes.plot(steps, means, marker=".", label=f"mean of the last {WINDOW} episodes")
        axes.legend(loc="best")
        return figure


class SeedCurves:
    """The curves of several seeds as one, where all of them have steps: mean, lowest and highest.

    ``curves`` are the rows of a `LearningCurve` for each seed. Between two rows a curve is a straight line.
    """

    def __init__(self, curves: Iterable[Iterable[Sequence[float]]]) -> None:
        lines = [[_row(values) for values in curve] for curve in curves]
        self._lines = [line for line in lines if line]
        begin = max((line[0].step for line in self._lines), default=0)
        end = min((line[-1].step for line in self._lines), default=0)
        steps = {row.step for line in self._lines for row in line}
        self.steps = sorted(step for step in steps if begin <= step <= end)
        self.values = np.array([self._at(line) for line in self._lines])  # (seeds, steps)

    def _at(self, line: Sequence[Row]) -> np.ndarray:
        rows = [row.step for row in line], [row.return_mean_100 for row in line]
        return np.interp(self.steps, *rows)

    def write_csv(self, path: str | Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["step", "seeds", "mean", "std", "min", "max"])
            for index, step in enumerate(self.steps):
                values = self.values[:, index]
                spread = (values.mean(), values.std(), values.min(), values.max())
                writer.writerow([step, len(values), *(round(float(each), 6) for each in spread)])

    def draw(self, path: str | Path, title: str) -> None:
        """The mean over the seeds, each seed as a thin line, and a band from the lowest to the highest, as PNG."""
        with style.context("default"):
            figure, axes = _axes(title)
            for line in self.values:
                axes.plot(self.steps, line, color="C0", linewidth=0.6, alpha=0.5)
            lowest, highest = self.values.min(0), self.values.max(0)
            band = f"lowest to highest of {len(self.values)} seeds"
            axes.fill_between(self.steps, lowest, highest, alpha=0.2, linewidth=0, label=band)
            axes.plot(self.steps, self.values.mean(0), label="mean over the seeds")
            axes.legend(loc="best")
            figure.savefig(path, dpi=120, format="png")


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("steps of the environment")
    axes.set_ylabel("return of a training episode")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    return figure, axes


def _row(values: Sequence[float]) -> Row:
    """A row of a file; one of an older version has no mean of the last episodes."""
    step, count, mean, *rest = values
    return Row(
        int(step), int(count), mean, *rest, *([mean] if len(values) < len(Row._fields) else [])
    )
