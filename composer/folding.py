"""Many equal parts drawn as one: branches that do the same side by side, and steps that repeat one after another."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from composer.picture import Kind
from composer.rows import Row

__all__ = ["Cluster", "Leaf", "Part", "Value", "fold", "leaves"]

MIN_BRANCHES = 5  # equal branches from which on they are drawn as one
MIN_REPEATS = 4  # repeats of a step (or of several) from which on they are drawn once
MAX_PERIOD = 4  # steps that repeat together

Value: TypeAlias = tuple[str, ...]  # names a tensor in the whole picture


@dataclass(eq=False)
class Leaf:
    """What becomes one box; ``names`` are all that it stands for. Leaves of one ``form`` look alike."""

    kind: Kind
    names: list[str]
    form: Hashable
    reads: list[Value]
    writes: list[Value]
    lines: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    row: Row | None = None
    masked_by: Value | None = None
    count: int = 1


@dataclass(eq=False)
class Cluster:
    """What becomes a frame around others; ``count`` says how often what is inside repeats."""

    names: list[str]
    children: list[Part]
    network: bool = False
    count: int = 1


Part: TypeAlias = Leaf | Cluster


def leaves(parts: Iterable[Part]) -> list[Leaf]:
    """All leaves, in their order."""
    found: list[Leaf] = []
    for part in parts:
        found += [part] if isinstance(part, Leaf) else leaves(part.children)
    return found


def fold(parts: list[Part]) -> list[Part]:
    return parts
