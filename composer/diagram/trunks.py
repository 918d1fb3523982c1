"""The arrows of a value that many read, as one line that branches: layout takes seconds where each runs alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from composer.diagram.picture import Picture

__all__ = ["Trunk", "trunks_of"]

MIN_SAVED = 24  # rows that arrows need not run through

Levels = Mapping[str, int]


@dataclass(frozen=True)
class Trunk:
    """A line from ``writer`` down through ``points``, named in order, each with the readers that branch off there.

    The points lie in ``frame``. ``end`` is the reader that the last segment leads to, if it leads to no point.
    """

    writer: str
    frame: str | None
    points: Mapping[str, Sequence[str]]
    end: str | None = None

    def readers(self) -> list[str]:
        """The boxes that the line leads to, in order."""
        branches = [reader for readers in self.points.values() for reader in readers]
        return branches if self.end is None else [*branches, self.end]

    def lower_branches(self) -> list[tuple[str, str]]:
        """(point, reader) from the second point on; the end of the line counts as a branch of the last point."""
        _, *points = self.points
        pairs = [(point, reader) for point in points for reader in self.points[point]]
        return pairs if self.end is None else [*pairs, (list(self.points)[-1], self.end)]

    def segments(self) -> list[tuple[str, str]]:
        """The pairs that the line connects, without its branches."""
        line = [self.writer, *self.points, *([] if self.end is None else [self.end])]
        return list(pairwise(line))


def trunks_of(picture: Picture) -> list[Trunk]:
    """The lines that pay: arrows of one writer into one network that look alike and would run past many boxes.

    Their number, and the rows that each passes, decide how long layout takes: 200 arrows past 200 boxes are 20,000
    places to be ordered, a line with 200 branches 200.
    """
    groups: defaultdict[tuple, list[str]] = defaultdict(list)
    for arrow in picture.arrows():
        writer, reader = arrow
        look = (arrow in picture.shared, arrow in picture.masks, picture.labels.get(arrow))
        groups[writer, picture.network_of(reader), *look].append(reader)
    levels = _levels(
        picture, {writer for (writer, *_), readers in groups.items() if len(readers) > 1}
    )
    trunks = []
    taken = {*picture.boxes, *picture.frames}
    for (writer, *_), readers in groups.items():
        lengths = [levels[reader] - levels[writer] - 1 for reader in readers]
        if sum(lengths) - max(lengths) >= MIN_SAVED:
            trunks.append(_trunk(picture, writer, readers, levels, taken))
    return trunks


def _levels(picture: Picture, branching: Iterable[str]) -> Levels:
    """The row of each box: below all that it reads; right above its readers if it reads only ``branching`` values."""
    reads = {node.name: node.reads for node in picture.dag.nodes}
    readers: defaultdict[str, list[str]] = defaultdict(list)
    levels: dict[str, int] = {}
    for name in (
        *(box for box in picture.boxes if box not in reads),
        *(node.name for node in picture.dag.order()),
    ):
        levels[name] = 1 + max((levels[read] for read in reads.get(name, ())), default=-1)
        for read in reads.get(name, ()):
            readers[read].append(name)
    floating = {name for name, read in reads.items() if read and set(read) <= set(branching)}
    for name in reversed(levels):
        if name in floating and readers[name]:
            levels[name] = min(levels[reader] for reader in readers[name]) - 1
    return levels


def _trunk(
    picture: Picture, writer: str, readers: Sequence[str], levels: Levels, taken: set[str]
) -> Trunk:
    """The line to ``readers``; the names of its points are added to ``taken``."""
    branches: defaultdict[int, list[str]] = defaultdict(list)
    for reader in sorted(readers, key=levels.__getitem__):
        branches[levels[reader]].append(reader)
    *_, last = branches
    end = branches.pop(last)[0] if len(branches[last]) == 1 else None
    points = {}
    for level, names in branches.items():
        name = f"{writer}_{level}"
        while name in taken:
            name += "_"
        taken.add(name)
        points[name] = tuple(names)
    return Trunk(writer, picture.common_frame(readers), points, end)
