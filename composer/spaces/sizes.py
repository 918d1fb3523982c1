"""How large and how deep a space may be: more is refused in words, before anything of that size is made."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gymnasium import Space, spaces

__all__ = ["MOST_LEVELS", "MOST_NUMBERS", "SpaceSizes", "refuse_actors", "refuse_sizes"]

MOST_LEVELS = 100  # of spaces within spaces
MOST_PARTS = 10_000
MOST_ACTORS = 10_000
MOST_AXES = 32  # of one array, which numpy can walk over
MOST_NUMBERS = 2**25  # of one value of the whole space; an image in 4K with four channels has fewer
MOST_CHOICES = 2**31  # of one integer


class SpaceSizes:
    """Counts the parts and numbers of one space. Raises ValueError for what is more than a model reads."""

    def __init__(self) -> None:
        self.parts = 0
        self.numbers = 0

    def enter(self, level: int) -> None:
        """One more part, within ``level`` others."""
        self.parts += 1
        if level > MOST_LEVELS:
            raise ValueError(f"spaces are nested more than {MOST_LEVELS} deep, which is not read")
        if self.parts > MOST_PARTS:
            raise ValueError(f"the space has more than {MOST_PARTS:,} parts, which is not read")

    def add(self, kind: str, shape: tuple[int, ...]) -> None:
        """The numbers of a ``kind`` of space of this shape."""
        if any(size < 0 for size in shape):
            raise ValueError(f"{kind} has the shape {_shown(shape)}; sizes are 0 or more")
        if len(shape) > MOST_AXES:
            raise ValueError(
                f"{kind} has {len(shape):,} axes, more than {MOST_AXES}, which is not read; reshape it in a wrapper of "
                "the environment"
            )
        self.numbers += math.prod(shape)
        if self.numbers > MOST_NUMBERS:
            raise ValueError(
                f"{kind} of the shape {_shown(shape)} makes the numbers of one value more than {MOST_NUMBERS:,}, "
                "which is not read; make it smaller in a wrapper of the environment"
            )

    def choices(self, kind: str, count: int, start: int = 0) -> None:
        """An integer of ``count`` values from ``start`` on."""
        if count > MOST_CHOICES:
            raise ValueError(
                f"{kind} has {_number(count)} values, more than {MOST_CHOICES:,}, which is not read; hash them to "
                "fewer in a wrapper of the environment"
            )
        if not -(2**63) <= start <= 2**63 - count:
            raise ValueError(f"{kind} starts at {_number(start)}, which int64 does not hold")


def refuse_actors(count: int) -> None:
    """Raise ValueError for a mapping of more actors than models read."""
    if count > MOST_ACTORS:
        raise ValueError(
            f"there are {count:,} actors, more than {MOST_ACTORS:,}, which are not read; for a step with any number "
            "of agents, use the one actor (step, None)"
        )


def refuse_sizes(space: Space) -> None:
    """Raise ValueError for a space that is larger or deeper than models read; none of its own code runs."""
    sizes = SpaceSizes()
    waiting = [(space, 0)]
    while waiting:
        part, level = waiting.pop()
        sizes.enter(level)
        kind = type(part).__name__
        if isinstance(part, spaces.Box | spaces.MultiBinary):
            sizes.add(kind, tuple(map(int, part.shape)))
        elif isinstance(part, spaces.MultiDiscrete):
            sizes.add(kind, part.nvec.shape)
            sizes.choices(kind, int(part.nvec.max(initial=0)), int(part.start.max(initial=0)))
        elif isinstance(part, spaces.Discrete):
            sizes.choices(kind, int(part.n), int(part.start))
        elif isinstance(part, spaces.Text):
            sizes.add(kind, (int(part.max_length),))
        waiting += [(inner, level + 1) for inner in _inner(part)]


def _inner(space: Space) -> Iterator[Space]:
    if isinstance(space, spaces.Dict):
        yield from space.spaces.values()
    elif isinstance(space, spaces.Tuple | spaces.OneOf):
        yield from space.spaces
    elif isinstance(space, spaces.Sequence):
        yield space.feature_space
    elif isinstance(space, spaces.Graph):
        yield from (part for part in (space.node_space, space.edge_space) if part is not None)


def _shown(shape: tuple[int, ...]) -> str:
    sizes = ", ".join(map(_number, shape[:8])) + (", ..." if len(shape) > 8 else "")
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _number(value: int) -> str:
    """A number as text; a long one by its number of bits, because Python refuses to print 5,000 digits."""
    return f"{value:,}" if abs(value) < 10**30 else f"a number of {value.bit_length():,} bits"
