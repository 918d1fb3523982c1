"""What is known of a value before it exists: its shape, where it comes from, and why a block cannot take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from perception_blocks.words import Shape, Shapes, format_shape

__all__ = [
    "InputShapeError",
    "Port",
    "Shape",
    "Shapes",
    "as_port",
    "as_shape",
    "format_shape",
    "OutOfRangeError",
    "tell_out_of_range",
]


@dataclass(frozen=True)
class Port:
    """A value in a graph. ``shape`` holds no batch and no carried time; None is an axis whose length varies.

    ``dtype`` is the dtype at the source: an image of a uint8 space says ``torch.uint8``, although the model hands it to
    the first block in its own float dtype, unscaled. ``cardinality`` is the number of values of an integer input (one
    number per element for MultiDiscrete), which is zero-based. ``low`` and ``high`` are bounds (a number, or nested
    tuples in the value's shape where they differ), ``channels`` says where an image has its channels, ``mask`` names
    the value that masks this one, ``source`` is the original path in the space. ``normalized`` says that running
    statistics were applied to it already.
    """

    shape: Shape
    dtype: torch.dtype = torch.float32
    cardinality: int | tuple[int, ...] | None = None
    low: float | tuple | None = None
    high: float | tuple | None = None
    channels: Literal["first", "last"] | None = None
    mask: str | None = None
    source: tuple[str | int, ...] = ()
    normalized: bool = False

    @property
    def is_integer(self) -> bool:
        """A zero-based integer to be embedded or one-hot encoded, not a quantity."""
        return self.cardinality is not None or self.dtype in (torch.int32, torch.int64)

    def __str__(self) -> str:
        """As messages show it: the shape, after the kind of number where that matters."""
        if self.is_integer:
            return f"integers {format_shape(self.shape)}"
        unscaled = "uint8 " if self.dtype == torch.uint8 else ""
        return unscaled + format_shape(self.shape)


class InputShapeError(ValueError):
    """A block cannot take its inputs: ``rule`` says what it needs, ``got`` what it gets, ``advice`` the way out.

    ``got`` maps the position of each input at fault to its shape or Port; ``advice`` names inputs as ``{0}``, ``{1}``.

    >>> error = InputShapeError("dense takes one vector (features,)", {0: (3, 64, 64)}, "put a flatten block before it")
    >>> str(error)
    'dense takes one vector (features,), got (3, 64, 64); put a flatten block before it'
    >>> error.render(["screen"])
    "gets (3, 64, 64) from 'screen'; dense takes one vector (features,). Put a flatten block before it."
    """

    def __init__(self, rule: str, got: Mapping[int, Port | Shape], advice: str = "") -> None:
        super().__init__(rule, got, advice)
        self.rule = rule
        self.got = {index: str(as_port(value)) for index, value in got.items()}
        self.advice = advice

    def __str__(self) -> str:
        got = f", got {_joined(list(self.got.values()))}" if self.got else ""
        return self.rule + got + (f"; {self._advice(None)}" if self.advice else "")

    def render(self, names: Sequence[str]) -> str:
        """The message with the inputs' names in it, as the end of a sentence that begins with the node's name."""
        shown = [f"{what} from {names[index]!r}" for index, what in self.got.items()]
        text = f"gets {_joined(shown) or 'no input'}; {self.rule}."
        advice = self._advice(names)
        return f"{text} {advice[0].upper()}{advice[1:]}." if advice else text

    def _advice(self, names: Sequence[str] | None) -> str:
        """``names`` None: the inputs by their number, counted from 1."""
        if names is None:
            names = [f"input {index + 1}" for index in range(max(self.got, default=-1) + 1)]
        else:
            names = [repr(name) for name in names]
        return self.advice.format(*names)


def as_port(value: Port | Shape | Sequence[int | None]) -> Port:
    """``value`` itself, or the float Port of a bare shape."""
    return value if isinstance(value, Port) else Port(tuple(value))


def as_shape(value: Port | Shape | Sequence[int | None]) -> Shape:
    """The shape of a Port, or a bare shape."""
    return value.shape if isinstance(value, Port) else tuple(value)


def _joined(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


class OutOfRangeError(ValueError, IndexError):
    """An input holds an integer out of its range; torch's IndexError says neither which integer nor which input."""


def tell_out_of_range(
    error: IndexError, inputs: Mapping[str, Tensor], ports: Mapping[str, Port], nodes: Sequence[Any]
) -> None:
    """Raise OutOfRangeError if an input of the network, with its ``ports`` and ``nodes``, is why a lookup failed.

    On an accelerator torch raises no IndexError.
    """
    for name, port in ports.items():
        for value, count in _outside(inputs[name], port):
            blocks = [f"{n.label} {n.node.name!r}" for n in nodes if name in n.step.inputs]
            raise OutOfRangeError(
                f"{name!r} holds {value}, but has {count} values, 0 to {count - 1}; "
                f"it is read by {', '.join(blocks)}"
            ) from (error.__cause__ or error)  # not a nested network's words for it


def _outside(value: Tensor, port: Port) -> Iterator[tuple[int, int]]:
    """Integers of ``value`` that are out of range, each with the number of values that its element has."""
    if port.cardinality is None or not value.is_cpu:
        return
    counts = torch.as_tensor(port.cardinality)
    if counts.dim() and bool((counts == counts[0]).all()):
        counts = counts[0]  # a sequence may differ in length from the space
    elif counts.dim():
        counts = counts.reshape([size or -1 for size in port.shape])
    outside = (value < 0) | (value >= counts)
    yield from zip(value[outside].tolist(), counts.expand_as(value)[outside].tolist())
