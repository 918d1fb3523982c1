"""Blocks of several inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from perception_blocks.base_block import PerceptionBlock
from perception_blocks.port import InputShapeError, Port, Shape, Shapes, as_shape
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import NegativeInt

__all__ = ["ConcatBlock"]


@BLOCKS.register("concat")
class ConcatBlock(PerceptionBlock):
    """Inputs concatenated along the feature axis ``dim``, counted from the right: ``(3,), (4,)`` -> ``(7,)``.

    >>> ConcatBlock([(3,), (4,)]).out_shapes
    [(7,)]
    """

    takes = "any"

    def __init__(self, in_shapes: Shapes, *, dim: NegativeInt = -1) -> None:
        shapes = [as_shape(shape) for shape in in_shapes]
        check_concat(shapes, dim)
        sizes = [shape[dim] for shape in shapes]
        total = None if None in sizes else sum(sizes)  # type: ignore[arg-type]
        first = shapes[0]
        axis = len(first) + dim
        super().__init__(in_shapes, out_shapes=[(*first[:axis], total, *first[axis + 1 :])])
        self.dim = dim
        self.keeps_mask = len(first) + dim > 0  # not where it joins the elements themselves

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=self.dim)

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        shapes = [port.shape for port in in_ports]
        unscaled = [i for i, port in enumerate(in_ports) if port.dtype == torch.uint8]
        if 0 < len(unscaled) < len(in_ports) and len({len(shape) for shape in shapes}) > 1:
            rule = "concat needs equal shapes but for the last axis"
            deeper = [index for index, shape in enumerate(shapes) if len(shape) > 1]
            advice = f"put a scale_image block after {_named(unscaled)}"
            advice += f", and a flatten block after that of {_named(deeper)}" if deeper else ""
            raise InputShapeError(rule, dict(enumerate(in_ports)), advice)
        integers = [index for index, port in enumerate(in_ports) if port.is_integer]
        if integers and len(integers) < len(in_ports):
            rule = "concat takes either numbers or integers"
            advice = f"put a one_hot or embedding block after {_named(integers)}"
            raise InputShapeError(rule, dict(enumerate(in_ports)), advice)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """Integers stay integers; what holds an unscaled uint8 part is unscaled."""
        (shape,) = self.out_shapes
        unscaled = any(port.dtype == torch.uint8 for port in in_ports)
        dtype = torch.uint8 if unscaled else in_ports[0].dtype
        bounds = {(port.low, port.high) for port in in_ports}
        low, high = bounds.pop() if len(bounds) == 1 else (None, None)
        if isinstance(low, tuple) or isinstance(high, tuple):
            # They have one bound for each element, of which there are more now.
            low = high = None
        return [Port(shape, dtype, self._cardinality(in_ports), low, high)]

    def _cardinality(self, in_ports: Sequence[Port]) -> int | tuple[int, ...] | None:
        counts = [port.cardinality for port in in_ports]
        if None in counts:
            return None
        if len(set(counts)) == 1 and isinstance(counts[0], int):
            return counts[0]
        parts = [_spread(port) for port in in_ports]
        return tuple(torch.cat(parts, dim=self.dim).flatten().tolist())


def check_concat(shapes: Sequence[Shape], dim: int) -> None:
    """Raise InputShapeError unless ``shapes`` agree in all axes but ``dim``."""
    if not shapes:
        raise InputShapeError("concat takes one input or more", {})
    short = {index: shape for index, shape in enumerate(shapes) if len(shape) < -dim}
    if short:
        rule = f"concat along dim {dim} needs {_axes(-dim)}"
        advice = "put a flatten block (numbers) or a one_hot block (integers) after "
        raise InputShapeError(rule, short, advice + _named(short) if dim == -1 else "")
    rests = [_without(shape, dim) for shape in shapes]
    if len(set(rests)) == 1:
        return
    odd = [index for index, rest in enumerate(rests) if rest != rests[0]]
    got = {index: shapes[index] for index in (0, *odd)}
    axis = "the last axis" if dim == -1 else f"axis {dim}"
    lowest = min(len(shape) for shape in got.values())
    deeper = [index for index, shape in got.items() if len(shape) > lowest]
    advice = f"add a flatten block after {_named(deeper)}" if deeper and lowest == 1 else ""
    known = all(None not in shape for shape in shapes)
    if dim == -1 and lowest > 1 and known:
        advice = f"add a flatten block after {_named(range(len(shapes)))}"
    raise InputShapeError(f"concat needs equal shapes but for {axis}", got, advice)


def _without(shape: Shape, dim: int) -> Shape:
    return shape[: len(shape) + dim] + shape[len(shape) + dim + 1 :]


def _axes(count: int) -> str:
    return "one axis or more" if count == 1 else f"{count} axes or more"


def _named(indices: Iterable[int]) -> str:
    """Placeholders of an InputShapeError's advice: ``{0} and {2}``."""
    return " and ".join(f"{{{index}}}" for index in indices)


def _spread(port: Port) -> Tensor:
    """The number of values of each element of an integer input."""
    shape = tuple(size for size in port.shape if size is not None)
    counts = torch.as_tensor(port.cardinality, device="cpu")
    return counts.expand(shape) if counts.dim() == 0 else counts.reshape(shape)
