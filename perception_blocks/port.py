"""What is known of a value before it exists: its shape, and for an input where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

__all__ = ["Port", "Shape", "Shapes", "as_port", "format_shape"]

Shape: TypeAlias = tuple[int | None, ...]
Shapes: TypeAlias = Sequence[Shape]


@dataclass(frozen=True)
class Port:
    """A value in a graph. ``shape`` holds no batch and no carried time; None is an axis whose length varies.

    ``dtype`` is the dtype at the source: an image of a uint8 space says ``torch.uint8``, although the model hands it to
    the first block in its own float dtype, unscaled. ``cardinality`` is the number of values of an integer input (one
    number per element for MultiDiscrete), which is zero-based. ``low`` and ``high`` are bounds (a number, or nested
    tuples in the value's shape where they differ), ``channels`` says where an image has its channels, ``mask`` names the
    value that masks this one, ``source`` is the original path in the space.
    """

    shape: Shape
    dtype: torch.dtype = torch.float32
    cardinality: int | tuple[int, ...] | None = None
    low: float | tuple | None = None
    high: float | tuple | None = None
    channels: Literal["first", "last"] | None = None
    mask: str | None = None
    source: tuple[str | int, ...] = ()

    @property
    def is_integer(self) -> bool:
        """A zero-based integer to be embedded or one-hot encoded, not a quantity."""
        return self.cardinality is not None or self.dtype in (torch.int32, torch.int64)


def as_port(value: Port | Shape | Sequence[int | None]) -> Port:
    """``value`` itself, or the float Port of a bare shape."""
    return value if isinstance(value, Port) else Port(tuple(value))


def format_shape(shape: Sequence[int | None]) -> str:
    """A shape as a user would write it; a varying axis is a ``?``.

    >>> format_shape((3, None))
    '(3, ?)'
    """
    sizes = ["?" if size is None else str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"
