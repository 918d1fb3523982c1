"""Checks of values before a cast, which would change some of them silently.

Only values on the host are checked: a check on an accelerator would have to wait, and while code is traced
(torch.compile, torch.export, torch.func) there are no values.
"""

from __future__ import annotations

import sys
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["FLAGS", "BoundsWatch", "IntegerRange", "OutOfBoundsWarning", "as_flags", "flags_for"]
__all__ += ["on_host", "refuse_outside"]

_is_compiling = torch.compiler.is_compiling
# What torch.func.vmap and grad are at; None where they are not.
_transformation = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]


def on_host(tensor: Tensor) -> bool:
    """Whether the values can be checked: not on an accelerator, which would have to wait, nor while code is traced."""
    return (
        tensor.is_cpu
        and type(tensor) is Tensor
        and not _is_compiling()
        and _transformation() is None
    )


class IntegerRange(NamedTuple):
    """The range of a value of whole numbers: ``low`` to ``high``, numbers or arrays of the value's shape.

    ``expected`` ends the message about another value. All values of the dtype ``free`` are in the range; None: of none.
    """

    low: int | np.ndarray
    high: int | np.ndarray
    expected: str
    free: torch.dtype | None = None


FLAGS = IntegerRange(0, 1, "expected 0 or 1", torch.bool)


def refuse_outside(name: str, values: np.ndarray | Tensor, integers: IntegerRange) -> None:
    """Raise ValueError for the first of ``values`` that is no whole number in the range, NaN included.

    Tensors are checked where `on_host` allows it.
    """
    if isinstance(values, Tensor) and not on_host(values):
        return
    low, high, expected, _ = integers
    if type(low) is int and not values.ndim:  # in half of the time
        number = values.item()
        if low <= number <= high and number == int(number):
            return
    if isinstance(low, np.ndarray) and values.shape[-low.ndim :] != low.shape:
        return  # shapes are checked elsewhere
    array = values if isinstance(values, np.ndarray) else _as_array(values)
    outside = array < low
    outside |= array > high
    if array.dtype.kind == "f":
        outside |= array != np.floor(array)
    if np.count_nonzero(outside):
        value, where = _first(array, outside)
        raise ValueError(f"{name} is {value}{where}, {expected}")


def as_flags(name: str, values: Tensor) -> Tensor:
    """Zeros and ones as a tensor of booleans. Raises ValueError as `refuse_outside` does for other values."""
    if values.dtype == torch.bool:
        return values
    refuse_outside(name, values, FLAGS)
    return values != 0


class OutOfBoundsWarning(UserWarning):
    """An environment gives numbers beyond the bounds that its space declares."""


class BoundsWatch:
    """Warns once of numbers beyond the bounds of a Box: environments give them, and networks read them unchanged.

    A check takes time, so it happens ever more rarely: at the first value, the second, the fourth, the eighth, ...
    """

    def __init__(self, name: str, low: np.ndarray, high: np.ndarray, space: str) -> None:
        self.name, self.low, self.high, self.space = name, low, high, space
        self.looks = 0
        self.is_over = False

    def look(self, values: np.ndarray | Tensor) -> None:
        self.looks += 1
        if self.is_over or self.looks & (self.looks - 1):
            return
        array = values if isinstance(values, np.ndarray) else _as_array(values)
        array = array.astype(self.low.dtype, copy=False)  # 0.1 differs in float64 and float32
        outside = (array < self.low) | (array > self.high)
        if np.count_nonzero(outside):
            self.is_over = True
            value, where = _first(array, outside)
            warnings.warn(
                f"{self.name} is {value}{where}, beyond the bounds of {self.space}; the network reads it unchanged. "
                "This warning is given once",
                OutOfBoundsWarning,
                stacklevel=_frames_to_caller(),
            )


def _frames_to_caller() -> int:
    """The ``stacklevel`` of the line outside of this library and torch whose call led here.

    `warnings.warn` finds it itself (``skip_file_prefixes``) from Python 3.12 on.
    """
    inside = ("composer", "perception_blocks", "torch")
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    return level


def _first(array: np.ndarray, wrong: np.ndarray) -> tuple[str, str]:
    """The first value that is ``wrong``, and where it is."""
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    value = array[index].item()
    text = f"{value:.6g}" if isinstance(value, float) else str(int(value))
    return text, f" at index {index}" if index else ""


def _as_array(tensor: Tensor) -> np.ndarray:
    if tensor.is_floating_point():
        tensor = tensor.detach()
        if tensor.itemsize < 4:
            tensor = tensor.float()  # numpy has no bfloat16
    return tensor.numpy()


def flags_for(value: Tensor, flags: Tensor) -> Tensor:
    """``flags`` (...) with axes of size 1 behind, to broadcast with ``value`` (..., *shape)."""
    return flags.reshape(*flags.shape, *[1] * (value.dim() - flags.dim()))
