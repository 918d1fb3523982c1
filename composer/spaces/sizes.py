"""How large and how deep a space may be: more is refused in words, before anything of that size is made."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gymnasium import Space, spaces

from composer.limits import Limits, how_to_raise

__all__ = ["SpaceSizes", "refuse_actors", "refuse_sizes"]

# No caller raises these: Python calls itself for each level, and numpy walks over no more axes.
MOST_LEVELS = 100  # of spaces within spaces
MOST_AXES = 32  # of one array


class SpaceSizes:
    """Counts the parts and numbers of one space. Raises ValueError for what is above ``limits``."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.parts = 0
        self.numbers = 0

    def enter(self, level: int) -> None:
        """One more part, within ``level`` others."""
        self.parts += 1
        if level > MOST_LEVELS:
            raise ValueError(f"spaces are nested more than {MOST_LEVELS} deep, which is not read")
        if self.parts > self.limits.parts:
            raise _above("the space has more parts", "parts", self.limits, 2 * self.limits.parts)

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
        if self.numbers > self.limits.numbers:
            what = f"with {kind} of the shape {_shown(shape)} one value has {_number(self.numbers)} numbers"
            raise _above(what, "numbers", self.limits, self.numbers, _SMALLER)

    def choices(self, kind: str, count: int, start: int = 0) -> None:
        """An integer of ``count`` values from ``start`` on."""
        if count > self.limits.choices:
            what = f"{kind} has {_number(count)} values"
            raise _above(what, "choices", self.limits, count, _HASHED)
        if not -(2**63) <= start <= 2**63 - count:
            raise ValueError(f"{kind} starts at {_number(start)}, which int64 does not hold")


_SMALLER = "make it smaller in a wrapper of the environment"
_HASHED = "hash them to fewer in a wrapper of the environment"


def _above(what: str, name: str, limits: Limits, needed: int, advice: str = "") -> ValueError:
    """For ``what`` is above the limit ``name``; ``advice`` is a way out that needs no other limit."""
    first = f"{advice}, or " if advice else ""
    most = getattr(limits, name)
    return ValueError(
        f"{what}, but the limit of {name} is {most:,}; {first}{how_to_raise(name, needed)}"
    )


def refuse_actors(count: int, limits: Limits) -> None:
    """Raise ValueError for a mapping of more actors than ``limits`` allow."""
    if count > limits.actors:
        advice = "for a step with any number of agents, use the one actor (step, None)"
        raise _above(f"there are {count:,} actors", "actors", limits, count, advice)


def refuse_sizes(space: Space, limits: Limits) -> None:
    """Raise ValueError for a space that is larger than ``limits`` allow, or too deep; none of its own code runs."""
    sizes = SpaceSizes(limits)
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
