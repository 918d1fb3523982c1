"""Many equal drafts drawn as one: branches that do the same side by side, and steps that repeat one after another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from composer.diagram.picture import Kind
from composer.summary.rows import Row

__all__ = ["DraftFrame", "DraftBox", "Draft", "Value", "fold", "boxes_of"]

MIN_BRANCHES = 5  # equal branches from which on they are drawn as one
MIN_REPEATS = 4  # repeats of a step (or of a few) from which on they are drawn once
MAX_PERIOD = 4  # steps that repeat together

Value: TypeAlias = tuple[str, ...]  # names a tensor in the whole picture


@dataclass(eq=False)
class DraftBox:
    """A box before its label. Boxes of one ``form`` look alike; ``names`` are the nodes that it stands for."""

    kind: Kind
    names: list[str]
    form: Hashable
    reads: list[Value]
    writes: list[Value]
    lines: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    row: Row | None = None
    masks: list[Value] = field(default_factory=list)  # the reads that mask an action
    counts: list[tuple[int, str]] = field(default_factory=list)  # (64, "side by side")
    paths: list[str] = field(default_factory=list)  # of all nodes that it stands for

    def __post_init__(self) -> None:
        if not self.paths:
            self.paths = [_path(self)]


@dataclass(eq=False)
class DraftFrame:
    """A frame around drafts, before its label."""

    names: list[str]
    children: list[Draft]
    network: bool = False
    counts: list[tuple[int, str]] = field(default_factory=list)
    remark: str = ""


Draft: TypeAlias = DraftBox | DraftFrame


def _path(box: DraftBox) -> str:
    """The path of a node; of a tensor, and of a class in a network, the kind before it, as a node may have its name."""
    if box.row is not None and box.kind == "block":
        return "/".join(box.row.path)
    before = {"input": "inputs", "output": "outputs", "opaque": "classes"}[box.kind]
    *_, value = box.writes or [("", *box.names)]
    return "/".join(filter(None, [before, *value[1:]]))


def boxes_of(drafts: Iterable[Draft]) -> list[DraftBox]:
    """All boxes, in their order."""
    boxes: list[DraftBox] = []
    for draft in drafts:
        boxes += [draft] if isinstance(draft, DraftBox) else boxes_of(draft.children)
    return boxes


def fold(drafts: list[Draft]) -> list[Draft]:
    """``drafts`` (each after all it reads) with equal ones merged; the boxes are changed in place."""
    return _Folder(drafts).fold(drafts)


class _Folder:
    """Folds a picture's levels, the inner ones first; it keeps the writer and the readers of each value."""

    def __init__(self, drafts: list[Draft]) -> None:
        self.writer: dict[Value, DraftBox] = {}
        self.readers: defaultdict[Value, list[DraftBox]] = defaultdict(list)
        for box in boxes_of(drafts):
            self.writer |= dict.fromkeys(box.writes, box)
            for value in box.reads:
                self.readers[value].append(box)

    def fold(self, drafts: list[Draft]) -> list[Draft]:
        for draft in drafts:
            if isinstance(draft, DraftFrame):
                draft.children = self.fold(draft.children)
        return self._fold_rows(self._fold_branches(drafts))

    # --- side by side -------------------------------------------------------------------------------------------------

    def _fold_branches(self, drafts: list[Draft]) -> list[Draft]:
        if len(drafts) < MIN_BRANCHES:
            return drafts
        level = _Level(drafts, self)
        colors = level.colors()
        classes: defaultdict[Hashable, list[int]] = defaultdict(list)
        for index, color in enumerate(colors):
            classes[color].append(index)
        alike = [
            members
            for members in classes.values()
            if len(members) >= MIN_BRANCHES and level.is_regular(members, colors)
        ]
        gone: set[int] = set()
        for members in alike:
            first, *others = (drafts[index] for index in members)
            for other in others:
                self._merge(first, other)
            first.counts.insert(0, (len(members), "side by side"))
            gone |= set(members[1:])
        return [draft for index, draft in enumerate(drafts) if index not in gone]

    def _merge(self, first: Draft, other: Draft) -> None:
        """Let ``first`` stand for ``other`` too, with the inputs and the readers of both."""
        first.names += other.names
        for into, box in zip(boxes_of([first]), boxes_of([other])):
            if into is not first:
                into.names += box.names
            into.paths += box.paths
            self._redirect(box, into)
            known = set(into.reads)
            for value in box.reads:
                self.readers[value] = [into if r is box else r for r in self.readers[value]]
                if value not in known:
                    into.reads.append(value)
            into.masks += box.masks

    def _redirect(self, old: DraftBox, new: DraftBox) -> None:
        """Let the readers of ``old`` read ``new``."""
        for before, after in zip(old.writes, new.writes):
            for reader in self.readers.pop(before, []):
                reader.reads = [after if value == before else value for value in reader.reads]
                self.readers[after].append(reader)

    # --- one after another --------------------------------------------------------------------------------------------

    def _fold_rows(self, drafts: list[Draft]) -> list[Draft]:
        level = _Level(drafts, self)
        following = level.following()
        starts = [i for i in range(len(drafts)) if i not in set(following.values())]
        instead: dict[int, Draft | None] = {}
        for start in starts:
            row = [start]
            while row[-1] in following:
                row.append(following[row[-1]])
            forms = [level.forms[index] for index in row]
            for begin, period, times in _repeats(forms):
                self._fold_row(drafts, row[begin : begin + period * times], period, instead)
        folded = (instead.get(index, draft) for index, draft in enumerate(drafts))
        return [draft for draft in folded if draft is not None]

    def _fold_row(
        self, drafts: list[Draft], row: Sequence[int], period: int, instead: dict[int, Draft | None]
    ) -> None:
        """Let the first ``period`` drafts of a row stand for all of it."""
        times = len(row) // period
        first = [drafts[index] for index in row[:period]]
        last = [drafts[index] for index in row[-period:]]
        names = [name for index in row for name in drafts[index].names]
        for value in (value for box in boxes_of(first[-1:]) for value in box.writes):
            self.readers[value] = [r for r in self.readers[value] if r in set(boxes_of(first))]
        for new, old in zip(boxes_of(first), boxes_of(last)):
            self._redirect(old, new)
        for begin in range(period, len(row), period):
            step = [drafts[index] for index in row[begin : begin + period]]
            for new, old in zip(boxes_of(first), boxes_of(step)):
                new.paths += old.paths
        instead |= dict.fromkeys(row, None)
        count = (times, "in a row")
        if period == 1:
            first[0].names = names
            first[0].counts.insert(0, count)
            instead[row[0]] = first[0]
        else:
            instead[row[0]] = DraftFrame([names[0], names[-1]], first, counts=[count])


class _Level:
    """The drafts within one frame: their forms, and how they are connected."""

    def __init__(self, drafts: list[Draft], folder: _Folder) -> None:
        self.drafts = drafts
        self.forms = [_form(draft) for draft in drafts]
        # What a draft reads (drafts of this level, values from outside), and who reads it (these, or boxes outside).
        self.before: list[list[int | Value]] = []
        self.after: list[list[int | DraftBox]] = []
        self._writer = folder.writer
        inside = [boxes_of([draft]) for draft in drafts]
        home = {box: index for index, group in enumerate(inside) for box in group}
        owner = {
            value: i for i, group in enumerate(inside) for box in group for value in box.writes
        }
        for index, group in enumerate(inside):
            reads = (owner.get(value, value) for box in group for value in box.reads)
            self.before.append([r for r in reads if r != index])
            readers = (r for box in group for v in box.writes for r in folder.readers.get(v, ()))
            self.after.append([h for r in readers if (h := home.get(r, r)) != index])

    def colors(self) -> list[tuple[int, int]]:
        """A color for each draft, equal for drafts of one form whose inputs and readers have equal colors too."""
        numbers: dict[Hashable, int] = {}

        def number(key: Hashable) -> int:
            return numbers.setdefault(key, len(numbers))

        down: list[int] = []
        for form, before in zip(self.forms, self.before):
            read = (down[b] if isinstance(b, int) else number(self._outside(b)) for b in before)
            down.append(number((form, tuple(read))))
        up: dict[int, int] = {}
        for index in reversed(range(len(self.drafts))):
            readers = (up[a] if isinstance(a, int) else number(a) for a in self.after[index])
            up[index] = number((self.forms[index], tuple(sorted(readers))))
        return [(down[index], up[index]) for index in range(len(self.drafts))]

    def is_regular(self, members: list[int], colors: list[tuple[int, int]]) -> bool:
        """Whether all members have the same inputs and readers, or each has its own."""
        for neighbours in (self.before, self.after):
            by_color: defaultdict[Hashable, list[frozenset]] = defaultdict(list)
            for member in members:
                groups: defaultdict[Hashable, set] = defaultdict(set)
                for n in neighbours[member]:
                    color = colors[n] if isinstance(n, int) else self._outside(n)
                    groups[color].add(n)
                for color, group in groups.items():
                    by_color[color].append(frozenset(group))
            for groups_of_members in by_color.values():
                once = max(Counter(n for g in groups_of_members for n in g).values()) == 1
                if not once and len(set(groups_of_members)) > 1:
                    return False
        return True

    def following(self) -> dict[int, int]:
        """Draft -> its only reader, if that reads nothing else."""
        following = {}
        for index, after in enumerate(self.after):
            readers = set(after)
            reader = readers.pop() if len(readers) == 1 else None
            if not isinstance(reader, int) or set(self.before[reader]) != {index}:
                continue
            if _is_step(self.drafts[index]) and _is_step(self.drafts[reader]):
                following[index] = reader
        return following

    def _outside(self, neighbour: Value | DraftBox) -> Hashable:
        """The color of a neighbour outside: for a value the form of its writer, for a reader the reader itself."""
        return neighbour if isinstance(neighbour, DraftBox) else _form(self._writer[neighbour])


def _form(draft: Draft) -> Hashable:
    if isinstance(draft, DraftBox):
        return (draft.kind, draft.form, len(draft.reads), tuple(draft.counts))
    inside = boxes_of([draft])
    place = {value: (i, j) for i, box in enumerate(inside) for j, value in enumerate(box.writes)}
    wiring = tuple(tuple(place.get(value) for value in box.reads) for box in inside)
    children = tuple(_form(child) for child in draft.children)
    return (children, wiring, tuple(draft.counts), draft.remark)


def _is_step(draft: Draft) -> bool:
    return draft.kind == "block" if isinstance(draft, DraftBox) else not draft.network


def _repeats(forms: Sequence[Hashable]) -> Iterable[tuple[int, int, int]]:
    """Where forms repeat: (begin, period, times), none overlapping, the longest stretch first at each place."""
    begin = 0
    while begin < len(forms):
        period, times = max(
            ((p, _times(forms, begin, p)) for p in range(1, MAX_PERIOD + 1)),
            key=lambda run: (run[1] >= MIN_REPEATS, run[0] * run[1], -run[0]),
        )
        if times >= MIN_REPEATS:
            yield begin, period, times
            begin += period * times
        else:
            begin += 1


def _times(forms: Sequence[Hashable], begin: int, period: int) -> int:
    """How often ``forms[begin : begin + period]`` repeats from there on."""
    end = begin + period
    while end < len(forms) and forms[end] == forms[end - period]:
        end += 1
    return (end - begin) // period if end <= len(forms) else 0
