"""The spaces in the JSON of a Stable-Baselines3 agent, read from their texts."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perception_blocks.words import is_writable

__all__ = ["Bounds", "Seen", "action_of", "action_size_of", "bounds_of", "observations_of"]

Form = Literal["vector", "array", "image", "categories"]
Bounds = tuple[list[float], list[float]]  # low and high of each element

MOST_TEXT = 1_000_000  # characters of a space
MOST_AXES, MOST_DIGITS = 32, 9  # of a shape, and of a number in it
_CLASS = re.compile(r"<class '(?:\w+\.)*+(\w+)'>")
_ENTRY = re.compile(  # of a Dict: {'camera': Box(0, 255, ...
    r"""(?<!\\)('(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"): (\w+)\("""
)
_SHAPE = re.compile(r"\((\d[\d, ]*)\), (\w+)\)")  # ends a Box: (3, 84, 84), uint8)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf)")


@dataclass(frozen=True)
class Seen:
    """An observation: its ``key`` here, the key ``theirs`` (empty for one that is no Dict), its form.

    ``size`` is how many numbers it has as a vector, categories one-hot; None where the text does not say it.
    """

    key: str
    theirs: str
    form: Form
    size: int | None = None


def observations_of(space: object) -> list[Seen] | None:
    """What the space of observations holds, in its order; None where its text cannot be read."""
    if not isinstance(space, Mapping):
        return None
    kind = _class_of(space)
    if kind == "Dict":
        return _entries_of(_text(space.get("spaces")))
    sizes = _sizes(space)
    form = None if sizes is None else _form(kind, sizes, str(space.get("dtype")))
    if sizes is None or form is None:
        return None
    size: int | None = math.prod(sizes)
    if form == "categories":
        size = _choices(_text(space.get("nvec" if kind == "MultiDiscrete" else "n")))
    return [Seen("observation", "", form, size)]


def _entries_of(text: str) -> list[Seen] | None:
    """The observations in the text of a Dict."""
    starts = [*_ENTRY.finditer(text)]
    ends = [*(match.start() for match in starts[1:]), len(text)]
    seen = []
    for match, end in zip(starts, ends, strict=False):
        inner = text[match.end() : end]
        shape = _SHAPE.search(inner)
        sizes = [] if shape is None else _wholes(shape[1])
        form = _form(match[2], sizes, "" if shape is None else shape[2])
        if form is None or len(sizes) > MOST_AXES:
            return None
        size = math.prod(sizes) if shape else None
        if match[2] == "MultiBinary":
            size = math.prod(_wholes(inner)[:MOST_AXES])
        elif form == "categories":
            size = _choices(inner.partition(", start")[0])
        key = _unquoted(match[1])
        if key is None:
            return None
        seen.append(Seen(key, key, form, size))
    return seen or None


def _unquoted(text: str) -> str | None:
    """What a text in quotes is, as Python writes it; None where it does not write it so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that are none
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) and is_writable(value) else None


def _text(value: object) -> str:
    """``value`` as text; the text of a space that is longer than any is not read."""
    text = str(value) if isinstance(value, str | int | list) else ""
    return text if len(text) <= MOST_TEXT else ""


def _wholes(text: str) -> list[int]:
    """The whole numbers in ``text``; of one with very many digits the first ones."""
    return [int(number[:MOST_DIGITS]) for number in re.findall(r"\d+", text)]


def _choices(text: str) -> int | None:
    """How many choices there are of a Discrete, or of all elements of a MultiDiscrete."""
    return None if "..." in text else sum(_wholes(text.partition("]")[0])) or None


def action_of(space: object) -> str | None:
    """The class of the space of actions; None where its text cannot be read."""
    return _class_of(space) or None if isinstance(space, Mapping) else None


def action_size_of(space: object) -> int | None:
    """How many numbers a Box of actions has; None for other spaces."""
    if not isinstance(space, Mapping) or _class_of(space) != "Box":
        return None
    sizes = _sizes(space)
    return None if sizes is None else math.prod(sizes)


def bounds_of(space: object) -> Bounds | None:
    """The bounds of each element of a Box; None where the text has not all of them."""
    if not isinstance(space, Mapping) or (size := action_size_of(space)) is None:
        return None
    low, high = (_numbers(_text(space.get(key)), size) for key in ("low", "high"))
    return None if low is None or high is None else (low, high)


def _numbers(text: str, size: int) -> list[float] | None:
    numbers = [float(number) for number in _NUMBER.findall(text)]
    return numbers if len(numbers) == size and "..." not in text else None


def _class_of(space: Mapping[Any, Any]) -> str:
    match = _CLASS.fullmatch(_text(space.get(":type:")))
    return match[1] if match else ""


def _sizes(space: Mapping[Any, Any]) -> list[int] | None:
    """The shape, of no axes where there is none; None where it is no shape."""
    shape = space.get("_shape", space.get("shape"))
    if not isinstance(shape, list):
        return []
    is_shape = all(type(size) is int and 0 <= size < 10**MOST_DIGITS for size in shape)
    return shape if is_shape and len(shape) <= MOST_AXES else None


def _form(kind: str, sizes: list[int], dtype: str) -> Form | None:
    if kind in ("Discrete", "MultiDiscrete"):
        return "categories"
    if kind == "MultiBinary":
        return "vector" if len(sizes) < 2 else "array"
    if kind != "Box":
        return None
    if len(sizes) == 3 and dtype == "uint8":
        return "image"
    return "vector" if len(sizes) == 1 else "array"
