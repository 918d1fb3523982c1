"""What each kind of gymnasium space is inside of a model: its Port, and its values inwards and outwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from perception_blocks.port import Port

__all__ = ["KINDS", "Leaf", "as_tensor", "format_space", "from_space_value", "kind_of", "to_numpy"]
__all__ += ["to_space_value"]

Path = tuple[Any, ...]
Bounds = tuple[float | Tensor, float | Tensor]


@dataclass(frozen=True, eq=False)
class Leaf:
    """One value of a space: its flat ``key``, the ``path`` to it, its ``port`` inside of a model.

    ``kind`` is box, discrete, multi_discrete or multi_binary; in a space whose values vary in size, which has several
    leaves with one ``path``, it is variable or mask. ``start`` is what a Discrete counts from. ``bounds`` are those of
    a Box, exact in the dtype in which `to_space_value` compares; numbers where all elements have the same.
    """

    key: str
    path: Path
    space: Space
    port: Port
    kind: str
    start: int | Tensor = 0
    bounds: Bounds | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.port.shape  # type: ignore[return-value]  # of actions, of which no axis varies


def to_space_value(leaf: Leaf, tensor: Tensor) -> Tensor:
    """A model's value (zero-based or float, any leading axes) as one of the space: start, dtype, bounds.

    A Box is clipped, one of integers rounded to the nearest before; a MultiBinary is int8. NaN remains NaN.
    """
    return KINDS[leaf.kind].outward(leaf, tensor)


def from_space_value(
    leaf: Leaf,
    value: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """A value of the space (array, number, tensor; any leading axes) as a model has it: zero-based int64, or ``dtype``.

    Tensors stay on their graph and, without ``device``, on their device. Raises ValueError for what is not numbers, and
    for a choice that the space does not have, which one_hot would make zeros of; in tensors, which may be anywhere, it
    is not looked for.
    """
    if isinstance(value, Tensor) or leaf.port.cardinality is None:
        return KINDS[leaf.kind].inward(leaf, as_tensor(leaf.key, value, device), dtype)
    choice = KINDS[leaf.kind].inward(leaf, as_tensor(leaf.key, value), dtype)
    _refuse_no_choice(leaf, choice.numpy())
    return choice if device is None else choice.to(device)


def to_numpy(leaf: Leaf, value: Tensor) -> Any:
    """A value of the space as an array; of a Discrete without leading axes, a number of the space's dtype."""
    array = value.detach().cpu().numpy()
    if array.dtype != leaf.space.dtype:
        # A long double, which torch does not have: its bounds were rounded.
        space: Any = leaf.space
        array = np.asarray(np.clip(array.astype(space.dtype), space.low, space.high))
    return array[()] if leaf.kind == "discrete" else array  # a number, not an array without axes


def as_tensor(key: str, value: Any, device: torch.device | str | None = None) -> Tensor:
    """``value`` of any numeric dtype as a tensor; a tensor is itself. Raises ValueError for what is not numbers.

    An array becomes a tensor of its own: an environment may write its next observation into the same array.
    """
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    try:
        array = np.array(value, order="C")
    except ValueError:
        array = np.array(None)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{key!r} must be numbers, got a {type(value).__name__}")
    return torch.from_numpy(array).to(device)


def _refuse_no_choice(leaf: Leaf, choice: np.ndarray) -> None:
    """Raise ValueError for the first of (zero-based) choices that the space does not have."""
    space: Any = leaf.space
    sizes = space.nvec if leaf.kind == "multi_discrete" else space.n
    wrong = choice.view(np.uint64) >= sizes  # in which a number below 0 is a large one
    if np.count_nonzero(wrong):
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        start = np.broadcast_to(np.asarray(leaf.start), choice.shape)
        where = f" at index {index}" if index else ""
        raise ValueError(
            f"{leaf.key!r} is {choice[index] + start[index]}{where}, outside of {format_space(space)}"
        )


def format_space(space: Space) -> str:
    """A space in one short line: ``Box(0, 255, (84, 84, 4), uint8)``, cut where its bounds are long."""
    text = " ".join(repr(space).split())
    return text if len(text) <= 80 else text[:77] + "..."


# The supported kinds of fixed size. Whoever adds one writes its three functions and a line in KINDS.


def _discrete(key: str, path: Path, space: spaces.Discrete) -> Leaf:
    port = Port((), torch.int64, cardinality=int(space.n), source=path)
    return Leaf(key, path, space, port, "discrete", start=int(space.start))


def _multi_discrete(key: str, path: Path, space: spaces.MultiDiscrete) -> Leaf:
    cardinality = tuple(int(n) for n in space.nvec.flat)
    start = torch.tensor(space.start.astype(np.int64).tolist(), dtype=torch.int64, device="cpu")
    port = Port(space.nvec.shape, torch.int64, cardinality=cardinality, source=path)
    return Leaf(key, path, space, port, "multi_discrete", start=start if start.any() else 0)


def _multi_binary(key: str, path: Path, space: spaces.MultiBinary) -> Leaf:
    port = Port(tuple(space.shape), low=0.0, high=1.0, source=path)
    return Leaf(key, path, space, port, "multi_binary")


def _box(key: str, path: Path, space: spaces.Box) -> Leaf:
    dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
    low, high = _finite_bounds(space)
    channels = _channels(space.shape) if space.dtype == np.uint8 else None
    port = Port(
        space.shape, dtype, low=_compact(low), high=_compact(high), channels=channels, source=path
    )
    return Leaf(key, path, space, port, "box", bounds=_exact_bounds(space))


def _finite_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Bounds in float64; what stands for "none" (the largest number of the dtype or of float32) is infinite."""
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


def _nested_tuple(values: Any) -> Any:
    return tuple(map(_nested_tuple, values)) if isinstance(values, list) else values


def _channels(shape: tuple[int, ...]) -> Literal["first", "last"] | None:
    """Where an image has its channels, if only one of the two ends can be them."""
    if len(shape) != 3 or (shape[0] in (1, 3, 4)) == (shape[-1] in (1, 3, 4)):
        return None
    return "first" if shape[0] in (1, 3, 4) else "last"


def _exact_bounds(space: spaces.Box) -> Bounds:
    """Bounds that a value is clipped to: in the space's dtype if that is a float, else in float64."""
    low, high = space.low, space.high
    if space.dtype.kind != "f":
        low, high = _inside(low, 1), _inside(high, -1)
    if low.size and (low == low.flat[0]).all() and (high == high.flat[0]).all():
        return float(low.flat[0]), float(high.flat[0])
    dtype = _torch_dtype(space) if space.dtype.kind == "f" else torch.float64
    return (
        torch.tensor(low.tolist(), dtype=dtype, device="cpu").reshape(space.shape),
        torch.tensor(high.tolist(), dtype=dtype, device="cpu").reshape(space.shape),
    )


def _inside(bound: np.ndarray, direction: int) -> np.ndarray:
    """Integers as float64, moved inwards where float64 cannot say them: 2**63 - 1 would become 2**63."""
    nearest = bound.astype(np.float64)
    outside = [
        (int(n) - int(b)) * direction < 0 for n, b in zip(nearest.flat, bound.flat, strict=True)
    ]
    moved = np.nextafter(nearest, direction * np.inf)
    return np.where(np.array(outside, dtype=bool).reshape(bound.shape), moved, nearest)


def _torch_dtype(space: Space) -> torch.dtype:
    try:
        return torch.from_numpy(np.empty(0, space.dtype)).dtype
    except TypeError:  # a long double
        return torch.float64


def _start_on(leaf: Leaf, tensor: Tensor) -> int | Tensor:
    return leaf.start if isinstance(leaf.start, int) else leaf.start.to(tensor.device)


def _discrete_out(leaf: Leaf, tensor: Tensor) -> Tensor:
    return (tensor.to(torch.int64) + _start_on(leaf, tensor)).to(_torch_dtype(leaf.space))


def _multi_binary_out(leaf: Leaf, tensor: Tensor) -> Tensor:
    return (tensor != 0).to(torch.int8)


def _box_out(leaf: Leaf, tensor: Tensor) -> Tensor:
    """Cast, then clip: in the dtype of the space its bounds are exact, and no rounding follows."""
    assert leaf.bounds is not None
    dtype = _torch_dtype(leaf.space)
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


class _Kind(NamedTuple):
    space: type[Space]
    leaf: Callable[[str, Path, Any], Leaf]
    inward: Callable[[Leaf, Tensor, torch.dtype], Tensor]
    outward: Callable[[Leaf, Tensor], Tensor]


KINDS: dict[str, _Kind] = {
    "box": _Kind(spaces.Box, _box, _number_in, _box_out),
    "discrete": _Kind(spaces.Discrete, _discrete, _integer_in, _discrete_out),
    "multi_discrete": _Kind(spaces.MultiDiscrete, _multi_discrete, _integer_in, _discrete_out),
    "multi_binary": _Kind(spaces.MultiBinary, _multi_binary, _number_in, _multi_binary_out),
}


def kind_of(space: Space) -> _Kind | None:
    return next((kind for kind in KINDS.values() if isinstance(space, kind.space)), None)
