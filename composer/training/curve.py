"""The learning curve: what the episodes of training were worth, as CSV and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from composer.training.trainer import Episode
from perception_blocks.registry import missing_extra

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise missing_extra("composer train", error, "train") from error

__all__ = ["LearningCurve", "Row"]


class Row(NamedTuple):
    """The episodes that ended between the step of the row before and ``step``."""

    step: int
    episodes: int
    return_mean: float
    return_min: float
    return_max: float
    length_mean: float


class LearningCurve:
    """Rows of at least ``every`` steps each; episodes that ended since the last one wait for the next."""

    def __init__(self, every: int, rows: Iterable[Sequence[float]] = ()) -> None:
        self.every = every
        self.rows = [Row(int(step), int(count), *rest) for step, count, *rest in rows]
        self._waiting: list[Episode] = []

    def add(self, step: int, episodes: Iterable[Episode]) -> None:
        """Note the ``episodes`` that have ended by ``step``."""
        self._waiting.extend(episodes)
        if self._waiting and step >= self._last + self.every:
            self.close_row(step)

    def close_row(self, step: int) -> None:
        """Make a row of what waits, at the end of a run also of fewer steps."""
        if not self._waiting:
            return
        totals = [episode.total for episode in self._waiting]
        length = fmean(episode.length for episode in self._waiting)
        self.rows.append(Row(step, len(totals), fmean(totals), min(totals), max(totals), length))
        self._waiting = []

    def write_csv(self, path: str | Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows([_rounded(value) for value in row] for row in self.rows)

    def draw(self, path: str | Path, title: str) -> None:
        """The mean return over the steps, and between which numbers the episodes lay, as PNG."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps = [row.step for row in self.rows]
        lowest, highest = (
            [getattr(r, f"return_{end}") for r in self.rows] for end in ("min", "max")
        )
        axes.fill_between(steps, lowest, highest, alpha=0.2, linewidth=0, label="lowest to highest")
        axes.plot(steps, [row.return_mean for row in self.rows], marker=".", label="mean")
        axes.set_title(title)
        axes.set_xlabel("steps of the environment")
        axes.set_ylabel("return of an episode in training")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
        figure.savefig(path, dpi=120, format="png")

    @property
    def _last(self) -> int:
        return self.rows[-1].step if self.rows else 0


def _rounded(value: float) -> float | int:
    return value if isinstance(value, int) else round(value, 6)
