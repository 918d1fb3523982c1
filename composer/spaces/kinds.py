"""The kinds of gymnasium spaces: for each its Port, and its values into a model and out of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.errors import Path
from composer.spaces.values import BoundsWatch, IntegerRange, on_host, refuse_outside
from perception_blocks.port import Port
from perception_blocks.words import cut

__all__ = ["KINDS", "Kind", "Leaf", "as_tensor", "format_space", "from_space_value", "kind_of"]
__all__ += ["as_drawn", "as_numbers", "from_numbers", "look_at", "to_numpy", "to_space_value"]
__all__ += ["torch_dtype", "unpacking", "unrounded", "watched"]

Bounds = tuple[float | Tensor, float | Tensor]


@dataclass(frozen=True, eq=False)
class Leaf:
    """One value of a space: its flat ``key``, the ``path`` to it, its ``port`` inside of a model.

    ``kind`` is box, discrete, multi_discrete or multi_binary; in a space whose values vary in size, which has several
    leaves with one ``path``, it is variable or mask. ``start`` is what a Discrete counts from. A Box has ``bounds``,
    exact in the dtype in which `to_space_value` compares; they are numbers if all elements have the same. ``integers``
    is the range of a space of whole numbers, outside of which a value is refused; ``watch`` warns of floats beyond
    their bounds. ``dtype`` is that of the space's numbers in torch.
    """

    key: str
    path: Path
    space: Space
    port: Port
    kind: str
    start: int | Tensor = 0
    bounds: Bounds | None = None
    integers: IntegerRange | None = None
    watch: BoundsWatch | None = None
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        # Once: numpy makes the name of a dtype anew each time, which takes longer than a small layer.
        object.__setattr__(self, "dtype", torch_dtype(self.space))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.port.shape  # type: ignore[return-value]  # of actions, of which no axis varies


def to_space_value(leaf: Leaf, tensor: Tensor) -> Tensor:
    """A model's value (zero-based or float, any leading axes) as a value of the space: with its start, dtype, bounds.

    A Box is clipped, one of integers rounded to the nearest before; a MultiBinary is int8. NaN remains NaN.
    """
    return KINDS[leaf.kind].outward(leaf, tensor)


def from_space_value(
    leaf: Leaf,
    value: object,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """A value of the space (array, number, tensor; any leading axes) as a model has it: zero-based int64, or ``dtype``.

    Tensors stay on their graph and, without ``device``, on their device. Raises ValueError for what is not numbers, and
    as `look_at` does.
    """
    return from_numbers(leaf, as_numbers(leaf.key, value, leaf.space), dtype, device)


def from_numbers(
    leaf: Leaf,
    numbers: np.ndarray | Tensor,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> Tensor:
    """`from_space_value` of what `as_numbers` returns."""
    look_at(leaf, numbers)
    tensor = numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)
    if device is not None:
        tensor = tensor.to(device)
    return KINDS[leaf.kind].inward(leaf, tensor, dtype)


def look_at(leaf: Leaf, value: np.ndarray | Tensor) -> None:
    """Raise ValueError for a value that a space of whole numbers does not have; warn of floats beyond their bounds.

    A cast would make another choice of it, and one_hot zeros. Tensors are checked where `on_host` allows it.
    """
    integers = leaf.integers
    if integers is not None:
        free = integers.free
        if free is not None and isinstance(value, np.ndarray):
            free = leaf.space.dtype
        if free is None or value.dtype != free:  # None is float64 to numpy
            refuse_outside(repr(leaf.key), value, integers)
    elif leaf.watch is not None and (isinstance(value, np.ndarray) or on_host(value)):
        leaf.watch.look(value)


def watched(leaf: Leaf) -> Leaf:
    """``leaf``, an observation, with a watch over its bounds if it is a Box of floats with bounds."""
    space = leaf.space
    if leaf.integers is not None or (leaf.port.low is None and leaf.port.high is None):
        return leaf
    assert isinstance(space, spaces.Box)
    text = format_space(space)
    return replace(
        leaf, watch=BoundsWatch(f"observation {leaf.key!r}", space.low, space.high, text)
    )


def unrounded(leaf: Leaf) -> Leaf:
    """``leaf``, an action, that takes the numbers of a Box as a distribution draws them, not rounded, not clipped."""
    return replace(leaf, integers=None) if leaf.kind == "box" else leaf


def as_drawn(leaf: Leaf) -> Leaf:
    """``leaf``, an action, that takes values as distributions draw them: choices from 0, a Box not yet rounded."""
    leaf = unrounded(leaf)
    if leaf.integers is None or leaf.port.cardinality is None:
        return leaf
    expected = f"outside of {format_space(leaf.space)}"
    if isinstance(leaf.start, Tensor) or leaf.start:
        counts = "policy.from_environment(action) counts an environment's action from zero"
        expected = f"{expected} counted from 0; {counts}"
    low, high, _, _ = leaf.integers
    return replace(leaf, start=0, integers=IntegerRange(low - low, high - low, expected))


def to_numpy(leaf: Leaf, value: Tensor) -> Any:
    """A value of the space as an array; of a Discrete without leading axes, a number of the space's dtype."""
    array = value.detach().cpu().numpy()
    if array.dtype != leaf.space.dtype:
        # A long double, which torch does not have: its bounds were rounded.
        space = leaf.space
        assert isinstance(space, spaces.Box)
        array = np.asarray(np.clip(array.astype(space.dtype), space.low, space.high))
    return array[()] if leaf.kind == "discrete" else array  # a number, not an array without axes


def as_tensor(key: str, value: object, device: torch.device | str | None = None) -> Tensor:
    """The tensor of what `as_numbers` returns."""
    numbers = as_numbers(key, value)
    tensor = numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)
    return tensor if device is None else tensor.to(device)


def as_numbers(key: str, value: object, space: Space | None = None) -> np.ndarray | Tensor:
    """``value`` of any numeric dtype as an array; a tensor is returned as it is.

    An array is copied: an environment may write its next observation into the same one. Raises ValueError, which names
    the ``space`` if it is given, for what is not numbers.
    """
    if isinstance(value, Tensor) and not value.is_complex():
        return value
    try:
        array = np.array(value, order="C")
    except ValueError:
        array = np.array(None)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        its_space = "" if space is None else f"; its space is {format_space(space)}"
        hint = unpacking(value)
        raise ValueError(f"{key!r} must be numbers, got {_described(value)}{its_space}{hint}")
    return array


def unpacking(value: object) -> str:
    """The end of a message about the whole tuple that `env.reset` or `env.step` returned."""
    if not (isinstance(value, tuple) and value and isinstance(value[-1], dict)):
        return ""
    if len(value) == 2:
        return "; write observation, info = env.reset() and give the observation"
    if len(value) == 5:
        return "; write observation, reward, terminated, truncated, info = env.step(action) and give the observation"
    return ""


def _described(value: object) -> str:
    """A value that is not numbers, in words."""
    if value is None:
        return "None"
    got = f" of dtype {value.dtype}" if isinstance(value, np.ndarray | Tensor) else ""
    return f"a {type(value).__name__}{got}"


def format_space(space: Space) -> str:
    """A space in one short line: ``Box(0, 255, (84, 84, 4), uint8)``, cut where its bounds are long."""
    text = " ".join(repr(space).split())
    return cut(text, 80)


# The supported kinds of fixed size. Whoever adds one writes its three functions and a line in KINDS.


def _discrete(key: str, path: Path, space: spaces.Discrete) -> Leaf:
    port = Port((), torch.int64, cardinality=int(space.n), source=path)
    start = int(space.start)
    integers = IntegerRange(start, start + int(space.n) - 1, f"outside of {format_space(space)}")
    return Leaf(key, path, space, port, "discrete", start=start, integers=integers)


def _multi_discrete(key: str, path: Path, space: spaces.MultiDiscrete) -> Leaf:
    cardinality = tuple(int(n) for n in space.nvec.flat)
    first = space.start.astype(np.int64)
    start = torch.tensor(first.tolist(), dtype=torch.int64, device="cpu") if first.any() else 0
    port = Port(space.nvec.shape, torch.int64, cardinality=cardinality, source=path)
    last = first + space.nvec.astype(np.int64) - 1
    integers = IntegerRange(first, last, f"outside of {format_space(space)}")
    return Leaf(key, path, space, port, "multi_discrete", start=start, integers=integers)


def _multi_binary(key: str, path: Path, space: spaces.MultiBinary) -> Leaf:
    port = Port(tuple(space.shape), low=0.0, high=1.0, source=path)
    integers = IntegerRange(0, 1, f"outside of {format_space(space)}", torch.bool)
    return Leaf(key, path, space, port, "multi_binary", integers=integers)


def _box(key: str, path: Path, space: spaces.Box) -> Leaf:
    dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
    alike = _one_if_alike(space)
    low, high = _finite_bounds(alike)
    channels = _channels(space.shape) if space.dtype == np.uint8 else None
    port = Port(
        space.shape, dtype, low=_compact(low), high=_compact(high), channels=channels, source=path
    )
    integers = None if space.dtype.kind == "f" else _whole_numbers(alike, format_space(space))
    return Leaf(key, path, space, port, "box", bounds=_exact_bounds(alike), integers=integers)


def _one_if_alike(space: spaces.Box) -> spaces.Box:
    """A Box of one element in place of one whose elements all have the same bounds, which may be millions."""
    bounds = {n: getattr(space, n) for n in ("low", "high", "bounded_below", "bounded_above")}
    if space.low.size < 2 or not all((b == b.flat[0]).all() for b in bounds.values()):
        return space
    single = copy.copy(space)
    single._shape = (1,)
    for name, bound in bounds.items():
        setattr(single, name, bound.reshape(-1)[:1])
    return single


def _whole_numbers(space: spaces.Box, shown: str) -> IntegerRange:
    """The range of a Box of integers or booleans, which messages call ``shown``."""
    low, high = (
        int(b.flat[0]) if b.size and (b == b.flat[0]).all() else b for b in (space.low, space.high)
    )
    least, most = 0, 1
    if space.dtype.kind != "b":
        info = np.iinfo(str(space.dtype))
        least, most = int(info.min), int(info.max)
    is_free = isinstance(low, int) and isinstance(high, int) and low <= least and high >= most
    expected = (
        f"outside of {shown}; pass values as the space has them, whole and unscaled, "
        "or compose with the space of what you pass"
    )
    return IntegerRange(low, high, expected, torch_dtype(space) if is_free else None)


def _finite_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Bounds in float64; the largest number of the dtype or of float32, which stands for no bound, becomes infinite."""
    low = np.where(space.bounded_below, space.low.astype(np.float64), -np.inf)
    high = np.where(space.bounded_above, space.high.astype(np.float64), np.inf)
    if space.dtype.kind == "f":
        largest = min(float(np.finfo(str(space.dtype)).max), float(np.finfo(np.float32).max))
        low = np.where(low <= -largest, -np.inf, low)
        high = np.where(high >= largest, np.inf, high)
    return low, high


def _compact(bound: np.ndarray) -> float | tuple | None:
    """One number where all are the same, None where all are infinite, else nested tuples."""
    finite = np.isfinite(bound)
    if not finite.any():
        return None
    if finite.all() and (bound == bound.flat[0]).all():
        return float(bound.flat[0])
    return _nested_tuple(bound.tolist())


def _nested_tuple(values: object) -> Any:
    return tuple(map(_nested_tuple, values)) if isinstance(values, list) else values


def _channels(shape: tuple[int, ...]) -> Literal["first", "last"] | None:
    """Whether channels are an image's first or last axis; None where both or none can be."""
    if len(shape) != 3 or (shape[0] in (1, 3, 4)) == (shape[-1] in (1, 3, 4)):
        return None
    return "first" if shape[0] in (1, 3, 4) else "last"


def _exact_bounds(space: spaces.Box) -> Bounds:
    """The bounds to which a value is clipped: in the space's dtype if that is a float, else in float64."""
    low, high = space.low, space.high
    if space.dtype.kind != "f":
        low, high = _inside(low, 1), _inside(high, -1)
    if low.size and (low == low.flat[0]).all() and (high == high.flat[0]).all():
        return float(low.flat[0]), float(high.flat[0])
    dtype = torch_dtype(space) if space.dtype.kind == "f" else torch.float64

    def exact(bound: np.ndarray) -> Tensor:
        return torch.tensor(bound.tolist(), dtype=dtype, device="cpu").reshape(space.shape)

    return exact(low), exact(high)


def _inside(bound: np.ndarray, direction: int) -> np.ndarray:
    """Integers as float64, moved inwards where float64 cannot represent them: 2**63 - 1 would become 2**63."""
    nearest = bound.astype(np.float64)
    pairs = zip(nearest.flat, bound.flat, strict=True)
    outside = [(int(near) - int(exact)) * direction < 0 for near, exact in pairs]
    moved = np.nextafter(nearest, direction * np.inf)
    return np.where(np.array(outside, dtype=bool).reshape(bound.shape), moved, nearest)


def torch_dtype(space: Space) -> torch.dtype:
    """The dtype of a space's numbers; of a long double, which torch does not have, float64."""
    return getattr(torch, str(space.dtype), torch.float64)


def _start_on(leaf: Leaf, tensor: Tensor) -> int | Tensor:
    return leaf.start if isinstance(leaf.start, int) else leaf.start.to(tensor.device)


def _discrete_out(leaf: Leaf, tensor: Tensor) -> Tensor:
    return (tensor.to(torch.int64) + _start_on(leaf, tensor)).to(leaf.dtype)


def _multi_binary_out(leaf: Leaf, tensor: Tensor) -> Tensor:
    return (tensor != 0).to(torch.int8)


def _box_out(leaf: Leaf, tensor: Tensor) -> Tensor:
    """Cast, then clip: in the dtype of the space its bounds are exact, and no rounding follows."""
    assert leaf.bounds is not None
    dtype = leaf.dtype
    value = tensor.to(dtype) if dtype.is_floating_point else tensor.to(torch.float64).round()
    low, high = leaf.bounds
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        low, high = low.to(value.device), high.to(value.device)
    return value.clamp(low, high).to(dtype)  # type: ignore[call-overload]


def _integer_in(leaf: Leaf, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    start = _start_on(leaf, tensor)
    zero_based = tensor.to(torch.int64)
    return zero_based if isinstance(start, int) and start == 0 else zero_based - start


def _number_in(leaf: Leaf, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype)


class Kind(NamedTuple):
    """The class of a kind of space, what makes its `Leaf`, and its values into a model and out of it."""

    space: type[Space]
    leaf: Callable[[str, Path, Any], Leaf]
    inward: Callable[[Leaf, Tensor, torch.dtype], Tensor]
    outward: Callable[[Leaf, Tensor], Tensor]


KINDS: dict[str, Kind] = {
    "box": Kind(spaces.Box, _box, _number_in, _box_out),
    "discrete": Kind(spaces.Discrete, _discrete, _integer_in, _discrete_out),
    "multi_discrete": Kind(spaces.MultiDiscrete, _multi_discrete, _integer_in, _discrete_out),
    "multi_binary": Kind(spaces.MultiBinary, _multi_binary, _number_in, _multi_binary_out),
}


def kind_of(space: Space) -> Kind | None:
    return next((kind for kind in KINDS.values() if isinstance(space, kind.space)), None)
