"""From leaves and clusters to labels: what each box of a Picture says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from composer.diagram.folding import Draft, DraftBox, DraftFrame, Value
from composer.diagram.picture import Box, Frame, Picture
from composer.summary.rows import Row
from composer.summary.table import Summary, percent
from perception_blocks.dag import Dag, DagNode
from perception_blocks.port import format_shape

__all__ = ["typeset"]

LONG = 44  # characters of a line; longer ones are shortened, and whole in the details


def typeset(parts: Iterable[Draft], summary: Summary) -> Picture:
    """The Picture of ``parts``, its boxes named ``n0``, ``n1``, ... and its groups ``g0``, ``g1``, ... in order."""
    page = _Page(summary)
    page.add(parts, None, "", 1)
    return page.picture()


@dataclass
class _Page:
    summary: Summary
    boxes: dict[str, Box] = field(default_factory=dict)
    groups: dict[str, Frame] = field(default_factory=dict)
    _leaves: dict[str, DraftBox] = field(default_factory=dict)
    _networks: dict[str, str] = field(default_factory=dict)  # the network that a box is in
    _writers: dict[Value, str] = field(default_factory=dict)

    def add(self, parts: Iterable[Draft], group: str | None, network: str, count: int) -> None:
        for part in parts:
            if isinstance(part, DraftFrame):
                inside = part.names[0] if part.network else network
                name = self._group(part, group)
                self.add(part.children, name, inside, count * times(part))
                continue
            name = f"n{len(self.boxes)}"
            self.boxes[name] = _box(part, group, count)
            self._leaves[name] = part
            self._networks[name] = network
            self._writers |= dict.fromkeys(part.writes, name)

    def picture(self) -> Picture:
        nodes, shared, masks = [], set(), set()
        for name, leaf in self._leaves.items():
            reads = [self._writers[value] for value in leaf.reads]
            if leaf.kind == "input":
                continue
            nodes.append(DagNode(name, tuple(dict.fromkeys(reads))))
            for value, writer in zip(leaf.reads, reads):
                if self._networks[writer] not in ("", self._networks[name]):
                    shared.add((writer, name))
                if value in leaf.masks:
                    masks.add((writer, name))
        inputs = [name for name, leaf in self._leaves.items() if leaf.kind == "input"]
        caption = f"{self.summary.parameters:,} parameters"
        if self.summary.flops is not None:
            caption += f", {self.summary.flops:,} FLOPs"
        if self.summary.wrappers:
            caption += f"; policy wrapped in {', '.join(self.summary.wrappers)}"
        return Picture(
            Dag(nodes, inputs, None),
            self.boxes,
            self.groups,
            frozenset(shared),
            frozenset(masks),
            caption,
        )

    def _group(self, part: DraftFrame, parent: str | None) -> str:
        name = f"g{len(self.groups)}"
        remarks = [part.remark, *(f"{count} {how}" for count, how in part.counts)]
        remark = ", ".join(filter(None, remarks))
        if part.network:
            count = f"{quantity(self.summary.by_network[part.names[0]])} parameters"
            remark = " ".join(filter(None, [count, part.remark]))
        self.groups[name] = Frame(first_to_last(part.names), remark, parent, part.network)
        return name


def _box(leaf: DraftBox, group: str | None, count: int) -> Box:
    """The label of a leaf; ``count`` is how often the frame around it repeats."""
    title = first_to_last(leaf.names)
    row = leaf.row
    if row is None:
        lines = _counted(leaf, list(leaf.lines))
        details = leaf.details | _stands_for(leaf)
        return Box(leaf.kind, title, tuple(lines), group=group, details=details)
    every = count * times(leaf)
    share = row.share * every
    lines = _counted(leaf, list(leaf.lines) or [row.block, shortened(row.shapes, row)])
    if row.parameters:
        lines.append(f"{quantity(row.parameters * every)} parameters, {percent(share)}")
    lines += filter(None, [row.memory, _shared(row)])
    remembers = row.memory.startswith("carries")
    return Box(leaf.kind, title, tuple(lines), share, remembers, group, _details(leaf, row, every))


def _counted(leaf: DraftBox, lines: list[str]) -> list[str]:
    """``64 x dense side by side``"""
    for count, how in reversed(leaf.counts):
        lines[0] = f"{count} x {lines[0]} {how}"
    return lines


def _stands_for(leaf: DraftBox) -> dict[str, str]:
    return {"stands for": ", ".join(leaf.names)} if len(leaf.names) > 1 else {}


def times(part: Draft) -> int:
    """How many equal ones a part stands for."""
    return math.prod(count for count, _ in part.counts)


def _details(leaf: DraftBox, row: Row, count: int) -> dict[str, str]:
    """What is said of a box when one asks."""
    many = f" each, {count:,} of them" if count > 1 else ""
    details = {"path": "/".join(row.path), "block": row.block}
    details |= _stands_for(leaf)
    details |= {f"setting {key}": show(value) for key, value in row.settings.items()}
    details["input"] = " + ".join(map(format_shape, row.in_shapes))
    details["output"] = " + ".join(map(format_shape, row.out_shapes))
    details["parameters"] = f"{row.parameters:,}{many} ({percent(row.share * count)} of all)"
    details["FLOPs"] = "not known" if row.flops is None else f"{row.flops:,}{many}"
    details["memory"] = row.memory
    details["shares"] = _shared(row)
    details["spec"] = row.position or ""
    return {key: value for key, value in details.items() if value}


def _shared(row: Row) -> str:
    return f"same module as {row.same_as!r}" if row.same_as else ""


def first_to_last(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def shortened(shapes: str, row: Row) -> str:
    """The shapes on one line: of many inputs only the output's."""
    if len(shapes) <= LONG:
        return shapes
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


def show(value: Any) -> str:
    """A setting as the user would write it; a function or class by its name."""
    if isinstance(value, str | int | float | bool | None | list | tuple | Mapping):
        return str(value)
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else f"a {type(value).__name__}"
