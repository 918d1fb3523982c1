"""What the calls of a run have logged: rows of numbers, as CSV and as a picture."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perception_blocks.registry import missing_extra
from perception_blocks.words import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunLog"]

MOST_PANELS = 12
COLUMNS = 3
LONGEST_TITLE = 80
IMPORTANT = ("reward", "loss", "accuracy")


@dataclass
class RunLog:
    """``rows[i]`` are the numbers of iteration i, by call and name: ``rows[0]["actor_train/loss"]``.

    ``folder`` is the run's, None without one; ``signal`` is the number of the signal that interrupted the run.
    """

    rows: list[Mapping[str, float]] = field(default_factory=list)
    folder: Path | None = None
    signal: int | None = None

    @property
    def files(self) -> list[str]:
        """The names of the files and folders of the run that a user may read."""
        if self.folder is None:
            return []
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))

    @property
    def names(self) -> list[str]:
        """All names, in the order in which they came."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def numbers(self, name: str) -> list[float]:
        """The number called ``name`` of every iteration that has one."""
        return [row[name] for row in self.rows if name in row]

    def mean(self, name: str) -> float:
        """Its mean over the iterations, as of an evaluation."""
        numbers = self.numbers(name)
        return math.fsum(numbers) / len(numbers)

    def shown(self, most: int) -> list[str]:
        """The names of the most important numbers: rewards, losses and accuracies first."""

        def rank(name: str) -> int:
            return next((i for i, word in enumerate(IMPORTANT) if word in name), len(IMPORTANT))

        return sorted(self.names, key=rank)[:most]

    def write_csv(self, path: str | Path) -> None:
        """A row for each iteration; numbers are written with all their digits."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            names = self.names
            writer.writerow(["iteration", *names])
            writer.writerows([i, *map(row.get, names)] for i, row in enumerate(self.rows))

    def draw(self, path: str | Path, title: str) -> None:
        """The numbers over the iterations, one panel each, as PNG. Raises MissingExtraError without matplotlib."""
        try:
            from matplotlib import style
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing_extra("the curve of a run", error, "train") from error
        with style.context("default"):  # whatever a matplotlibrc in the current folder says
            names = self.shown(MOST_PANELS)
            lines = -(-len(names) // COLUMNS)
            figure = Figure(figsize=(11, 0.6 + 2.2 * max(lines, 1)), layout="constrained")
            self._fill(figure, names, lines)
            figure.suptitle(readable(title, LONGEST_TITLE), parse_math=False)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks
                figure.savefig(path, dpi=110, format="png")

    def _fill(self, figure: Figure, names: Sequence[str], lines: int) -> None:
        for index, name in enumerate(names):
            axes = figure.add_subplot(lines, COLUMNS, index + 1)
            points = [(i, row[name]) for i, row in enumerate(self.rows) if name in row]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "")
            axes.set_title(readable(name, LONGEST_TITLE), fontsize="small", parse_math=False)
            axes.grid(alpha=0.3)
            if index >= len(names) - COLUMNS:
                axes.set_xlabel("iteration")
