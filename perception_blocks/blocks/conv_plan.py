"""Shape arithmetic of convolutions: what each layer does to each axis, worked out before a weight exists."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from perception_blocks.port import InputShapeError, Shape, format_shape
from perception_blocks.settings import NonNegativeInt, PositiveInt, Words

__all__ = ["ConvPlan", "Padding", "PaddingMode", "PerLayer", "SpatialShape", "plan_layers"]
__all__ += ["pooled_shape"]

SpatialShape: TypeAlias = tuple[int | None, ...]
PerLayer: TypeAlias = Annotated[
    PositiveInt | Sequence[PositiveInt | Sequence[PositiveInt]],
    Words(
        "a positive integer, or a list with one per layer (or one list per layer, of one per axis)"
    ),
]
AxisPadding: TypeAlias = NonNegativeInt | Sequence[NonNegativeInt]
LayerPadding: TypeAlias = NonNegativeInt | Literal["same"] | Sequence[AxisPadding]
Padding: TypeAlias = Annotated[
    NonNegativeInt | Literal["same"] | Sequence[LayerPadding],
    Words(
        "an integer of 0 or more, 'same', or a list with one of them (or one list, of one per axis) per layer"
    ),
]
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
Sides: TypeAlias = tuple[int, int]  # padding before and after an axis


@dataclass(frozen=True)
class ConvPlan:
    """One layer from ``channels`` to ``hidden`` ones: a number per axis of each kind, and the sizes it leaves."""

    channels: int
    hidden: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[Sides, ...]
    out_space: SpatialShape

    @property
    def symmetric(self) -> bool:
        return all(before == after for before, after in self.padding)

    @property
    def torch_pad(self) -> list[int]:
        """As torch's ``pad`` reads it: the last axis first."""
        return [side for sides in reversed(self.padding) for side in sides]


def plan_layers(
    name: str,
    in_shape: tuple[int, *SpatialShape],
    channels: Sequence[int],
    *,
    kernels: object,
    strides: object = 1,
    dilations: object = 1,
    padding: object = 0,
    padding_mode: str = "zeros",
    advice: str = "use smaller kernels or strides, fewer layers, or padding",
    got: Shape | None = None,
) -> list[ConvPlan]:
    """The layers of block ``name`` over an image of ``in_shape``, channels first; messages show ``got`` in its place.

    Raises ValueError for lists of the wrong length, InputShapeError where a layer's image is smaller than its kernel.
    """
    given = {
        "hidden_kernels": kernels,
        "strides": strides,
        "dilations": dilations,
        "padding": padding,
    }
    _check_lengths(name, len(channels), len(in_shape) - 1, given)
    space = in_shape[1:]
    shown = in_shape if got is None else got
    plans = []
    for index, (before, after) in enumerate(itertools.pairwise([in_shape[0], *channels])):
        kernel, stride, dilation = (
            _per_axis(_of_layer(values, index), len(space))
            for values in (kernels, strides, dilations)
        )
        spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))
        sides = _sides(_of_layer(padding, index), spans)
        where = f"layer {index + 1} of {name}"
        _check_padding(where, shown, space, sides, padding_mode)
        padded = tuple(None if n is None else n + sum(s) for n, s in zip(space, sides))
        if any(n is not None and n < span for n, span in zip(padded, spans)):
            rule = f"{where} has a kernel that spans {format_shape(spans)}, but reads only {format_shape(padded)}"
            raise InputShapeError(rule, {0: shown}, advice)
        space = tuple(
            None if n is None else (n - span) // step + 1
            for n, span, step in zip(padded, spans, stride)
        )
        plans.append(ConvPlan(before, after, kernel, stride, dilation, sides, space))
    return plans


def pooled_shape(name: str, in_shape: Shape, channels: Sequence[int]) -> SpatialShape:
    """What stages that halve each axis leave of an image. Raises InputShapeError where nothing is left."""
    if not channels:
        raise ValueError(f"{name} needs at least one stage, got hidden_channels=[]")
    space = in_shape[1:]
    for stage in range(1, len(channels) + 1):
        if any(n is not None and n < 2 for n in space):
            rule = f"stage {stage} of {name} halves its image, but reads only {format_shape(space)}"
            raise InputShapeError(rule, {0: in_shape}, "use fewer stages or a larger image")
        space = tuple(None if n is None else n // 2 for n in space)
    return space


def _check_lengths(name: str, layers: int, dims: int, given: dict[str, Any]) -> None:
    if not layers:
        raise ValueError(f"{name} needs at least one layer, got hidden_channels=[]")
    problems = []
    for setting, values in given.items():
        if not _is_list(values):
            continue
        if len(values) != layers:
            problems.append(f"{setting!r} has {len(values)} entries for {layers} hidden_channels")
            continue
        for value in values:
            if _is_list(value) and len(value) != dims:
                problems.append(
                    f"{setting!r} has {len(value)} numbers in {value!r} for {dims} axes"
                )
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _of_layer(values: Any, index: int) -> Any:
    return values[index] if _is_list(values) else values


def _per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, Sequence) else (int(value),) * dims


def _sides(value: Any, spans: tuple[int, ...]) -> tuple[Sides, ...]:
    """A layer's padding as (before, after) for each axis."""
    if value == "same":
        return tuple(((span - 1) // 2, span // 2) for span in spans)
    sides = []
    for axis in value if _is_list(value) else [value] * len(spans):
        pair = tuple(map(int, axis)) if _is_list(axis) else (int(axis), int(axis))
        if len(pair) != 2:
            raise ValueError(f"'padding' of an axis is a number or [before, after], got {axis!r}")
        sides.append(pair)
    return tuple(sides)


def _check_padding(
    where: str, in_shape: Shape, space: SpatialShape, sides: tuple[Sides, ...], mode: str
) -> None:
    """Raise InputShapeError for more reflected or repeated values than an image has."""
    spare = {"reflect": 1, "circular": 0}.get(mode)
    if spare is None:
        return
    if any(n is not None and max(s) > n - spare for n, s in zip(space, sides)):
        most = [max(s) for s in sides]
        rule = f"{where} pads by {format_shape(most)} in mode {mode!r}, but reads only {format_shape(space)}"
        raise InputShapeError(rule, {0: in_shape}, "use less padding, or padding_mode 'zeros'")
