"""From drafts to the labels of a Picture's boxes and frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from composer.diagram.folding import Draft, DraftBox, DraftFrame, Value
from composer.diagram.picture import Box, Frame, Picture
from composer.summary.rows import Row
from composer.summary.table import Summary, percent
from perception_blocks.dag import Dag, DagNode
from perception_blocks.port import format_shape

__all__ = ["typeset"]

LONG = 44  # characters of a line; longer ones are shortened, and whole in the details


def typeset(drafts: Iterable[Draft], summary: Summary) -> Picture:
    """The Picture of ``drafts``, its boxes named ``n0``, ``n1``, ... and its frames ``g0``, ``g1``, ... in order."""
    page = _Page(summary)
    page.add(drafts, None, "", 1)
    return page.picture()


@dataclass
class _Page:
    summary: Summary
    boxes: dict[str, Box] = field(default_factory=dict)
    frames: dict[str, Frame] = field(default_factory=dict)
    _drafts: dict[str, DraftBox] = field(default_factory=dict)
    _networks: dict[str, str] = field(default_factory=dict)  # the network that a box is in
    _writers: dict[Value, str] = field(default_factory=dict)

    def add(self, drafts: Iterable[Draft], frame: str | None, network: str, count: int) -> None:
        """Add drafts within ``frame``, which is in ``network`` and stands for ``count`` equal ones."""
        for draft in drafts:
            if isinstance(draft, DraftFrame):
                inside = draft.names[0] if draft.network else network
                name = self._frame(draft, frame)
                self.add(draft.children, name, inside, count * times(draft))
                continue
            name = f"n{len(self.boxes)}"
            self.boxes[name] = _box(draft, frame, count)
            self._drafts[name] = draft
            self._networks[name] = network
            self._writers |= dict.fromkeys(draft.writes, name)

    def picture(self) -> Picture:
        nodes, shared, masks, stopped = [], set(), set(), set()
        for name, draft in self._drafts.items():
            reads = [self._writers[value] for value in draft.reads]
            if draft.kind == "input":
                continue
            nodes.append(DagNode(name, tuple(dict.fromkeys(reads))))
            for value, writer in zip(draft.reads, reads):
                if self._networks[writer] not in ("", self._networks[name]):
                    shared.add((writer, name))
                row = self._drafts[writer].row
                if row is not None and row.stops_gradient:
                    stopped.add((writer, name))
                if value in draft.masks:
                    masks.add((writer, name))
        inputs = [name for name, draft in self._drafts.items() if draft.kind == "input"]
        caption = f"{self.summary.parameters:,} parameters"
        if self.summary.flops is not None:
            caption += f", {self.summary.flops:,} FLOPs"
        if self.summary.wrappers:
            caption += f"; policy wrapped in {', '.join(self.summary.wrappers)}"
        dag = Dag(nodes, inputs, None)
        pairs = frozenset(shared), frozenset(masks), frozenset(stopped)
        return Picture(dag, self.boxes, self.frames, *pairs, caption)

    def _frame(self, draft: DraftFrame, parent: str | None) -> str:
        """Add a frame; returns its name."""
        name = f"g{len(self.frames)}"
        remarks = [draft.remark, *(f"{count} {how}" for count, how in draft.counts)]
        remark = ", ".join(filter(None, remarks))
        if draft.network:
            count = f"{quantity(self.summary.by_network[draft.names[0]])} parameters"
            remark = " ".join(filter(None, [count, draft.remark]))
        self.frames[name] = Frame(first_to_last(draft.names), remark, parent, draft.network)
        return name


def _box(draft: DraftBox, frame: str | None, count: int) -> Box:
    """The label of a box; ``count`` is how often the frame around it repeats."""
    title = first_to_last(draft.names)
    row = draft.row
    whole = [] if row is None else ["/".join(row.path)]  # of a class, whose code has a box
    paths = draft.paths[0], tuple(dict.fromkeys([*draft.paths, *whole]))
    if row is None:
        lines = _counted(draft, list(draft.lines))
        details = draft.details | _stands_for(draft)
        return Box(draft.kind, title, tuple(lines), 0.0, False, False, frame, details, *paths)
    every = count * times(draft)
    share = row.share * every
    lines = _counted(draft, list(draft.lines) or [row.block, _shapes(row)])
    if row.parameters:
        lines.append(f"{quantity(row.parameters * every)} parameters, {percent(share)}")
    lines += filter(None, [row.each, row.memory, _shared(row), "frozen" if row.frozen else ""])
    remembers, details = row.memory.startswith("carries"), _details(draft, row, every)
    state = share, remembers, row.frozen
    return Box(draft.kind, title, tuple(lines), *state, frame, details, *paths)


def _counted(draft: DraftBox, lines: list[str]) -> list[str]:
    """``64 x dense side by side``"""
    for count, how in reversed(draft.counts):
        lines[0] = f"{count} x {lines[0]} {how}"
    return lines


def _stands_for(draft: DraftBox) -> dict[str, str]:
    return {"stands for": ", ".join(draft.names)} if len(draft.names) > 1 else {}


def times(draft: Draft) -> int:
    """The number of equal drafts that a draft stands for."""
    return math.prod(count for count, _ in draft.counts)


def _details(draft: DraftBox, row: Row, count: int) -> dict[str, str]:
    """The details of a box by name."""
    many = f" each, {count:,} of them" if count > 1 else ""
    details = {"path": "/".join(row.path), "block": row.block}
    details |= _stands_for(draft)
    details |= {f"setting {key}": show(value) for key, value in row.settings.items()}
    details["input"] = " + ".join(map(format_shape, row.in_shapes))
    details["output"] = " + ".join(map(format_shape, row.out_shapes))
    details["parameters"] = f"{row.parameters:,}{many} ({percent(row.share * count)} of all)"
    details["FLOPs"] = "not known" if row.flops is None else f"{row.flops:,}{many}"
    details["each"] = row.each
    details["memory"] = row.memory
    details["shares"] = _shared(row)
    details["trained"] = "no, it is frozen" if row.frozen else ""
    details["spec"] = row.position or ""
    return {key: value for key, value in details.items() if value}


def _shared(row: Row) -> str:
    return f"same module as {row.same_as!r}" if row.same_as else ""


def first_to_last(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _shapes(row: Row) -> str:
    """The shapes on one line, without the inputs where there are many."""
    if len(row.shapes) <= LONG:
        return row.shapes
    return "-> " + " + ".join(map(format_shape, row.out_shapes))


def quantity(count: int) -> str:
    """A number of parameters in at most five characters.

    >>> [quantity(n) for n in (9155, 12345, 2_500_000)]
    ['9,155', '12.3 k', '2.5 M']
    """
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size and count >= 10_000:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"


def show(value: object) -> str:
    """A setting as the user would write it; a function or class by its name."""
    if isinstance(value, str | int | float | bool | None | list | tuple | Mapping):
        return str(value)
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else f"a {type(value).__name__}"
