"""The ends of networks: values as a number, as quantiles or as a distribution over bins, and logits of legal actions.

A value block's ``to_scalar`` turns what it returns into expected values: one, (..., 1), or one per action where it has
``output_units``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from perception_blocks.base_block import PerceptionBlock, capturing, is_traced, one_vector
from perception_blocks.blocks.dense import DenseBlock, LinearOutputBlock
from perception_blocks.blocks.elementwise import widened
from perception_blocks.blocks.masks import MaskedBlock, as_bool, check_mask, shapes_of
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, OneOrMany, PositiveFloat, PositiveInt, Range

__all__ = ["ActionMaskingBlock", "CategoricalValueBlock", "DuelingBlock", "QuantileValueBlock"]
__all__ += ["ValueBlock", "ValueHead", "symexp", "symlog"]


@BLOCKS.register("dueling")
class DuelingBlock(PerceptionBlock):
    """A state's value plus each action's advantage (Wang et al., 2015): ``(F,)`` -> ``(output_units,)``.

    The ``mean`` (or the ``max``) of the advantages is subtracted. With ``hidden_units`` each of the two streams has
    dense layers before its last layer.

    >>> DuelingBlock([(3,)], output_units=2, hidden_units=[8]).out_shapes
    [(2,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        output_units: PositiveInt,
        hidden_units: OneOrMany | None = None,
        activation: Activation = "relu",
        baseline: Literal["mean", "max"] = "mean",
    ) -> None:
        one_vector(in_shapes, "dueling")
        super().__init__(in_shapes, out_shapes=[(output_units,)])
        self.value = _stream(in_shapes, 1, hidden_units, activation)
        self.advantage = _stream(in_shapes, output_units, hidden_units, activation)
        self.from_mean = baseline == "mean"

    def forward(self, x_F: Tensor) -> Tensor:
        advantage = self.advantage(x_F)
        baseline = torch.mean if self.from_mean else torch.amax
        return self.value(x_F) + advantage - baseline(advantage, dim=-1, keepdim=True)


class ValueHead(PerceptionBlock):
    """What value blocks share: one linear layer to one value, or one per action, of ``width`` numbers each.

    ``raw_name`` says what these numbers are, where they are not the value itself.
    """

    raw_name: ClassVar[str | None] = None

    def __init__(
        self,
        in_shapes: Shapes,
        name: str,
        width: int,
        output_units: int | None,
        init_scale: float,
        init_bias: float | None = None,
    ) -> None:
        one_vector(in_shapes, name)
        shape = (width,) if output_units is None else (output_units, width)
        super().__init__(in_shapes, out_shapes=[shape])
        self.head = LinearOutputBlock(
            in_shapes, output_shape=shape, init_scale=init_scale, init_bias=init_bias
        )
        self.single = output_units is None

    def forward(self, x_F: Tensor) -> Tensor:
        return self.head(x_F)

    def to_scalar(self, output: Tensor) -> Tensor:
        """Expected values (..., 1), or (..., output_units), from what forward returned; needs no weights."""
        raise TypeError(f"{type(self).__name__} must define to_scalar(output)")


@BLOCKS.register("value")
class ValueBlock(ValueHead):
    """A value as one number: ``(F,)`` -> ``(1,)``.

    >>> ValueBlock([(3,)]).out_shapes
    [(1,)]
    """

    def __init__(
        self, in_shapes: Shapes, *, init_scale: PositiveFloat = 1.0, init_bias: float | None = None
    ) -> None:
        super().__init__(in_shapes, "value", 1, None, init_scale, init_bias)

    def to_scalar(self, output: Tensor) -> Tensor:
        return output


@BLOCKS.register("quantile_value")
class QuantileValueBlock(ValueHead):
    """A value as quantiles of its distribution (QR-DQN, Dabney et al., 2017): ``(F,)`` -> ``(num_quantiles,)``.

    With ``output_units`` there is one such value per action: ``(output_units, num_quantiles)``. Quantile i stands for
    the ``fractions`` (2i + 1) / (2 * num_quantiles); the expected value is their mean.

    >>> QuantileValueBlock([(3,)], num_quantiles=4).fractions
    [0.125, 0.375, 0.625, 0.875]
    """

    raw_name = "quantiles"

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_quantiles: PositiveInt = 200,
        output_units: PositiveInt | None = None,
        init_scale: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(in_shapes, "quantile_value", num_quantiles, output_units, init_scale)
        self.num_quantiles = num_quantiles

    @property
    def fractions(self) -> list[float]:
        """Which part of the values lies below each quantile."""
        count = self.num_quantiles
        return [(2 * i + 1) / (2 * count) for i in range(count)]

    def to_scalar(self, output: Tensor) -> Tensor:
        return output.mean(dim=-1, keepdim=self.single)


MOST_SYMLOG = 88  # a larger one stands for a number beyond float32


@BLOCKS.register("categorical_value")
class CategoricalValueBlock(ValueHead):
    """A value as logits over bins: ``(F,)`` -> ``(num_bins,)``, or ``(output_units, num_bins)`` with one per action.

    The bins are evenly spaced from ``low`` to ``high``, and ``two_hot`` is the target of a cross-entropy loss. With
    ``linear`` spacing they are values themselves (C51, Bellemare et al., 2017). The others cover all sizes of reward;
    low and high are then symlogs of values, ``sign(v) * log(1 + |v|)``. With ``symlog`` the mean is taken over the
    symlogs and brought back (DreamerV3, arXiv:2301.04104, first version). With ``symexp`` the bins are brought back
    first, so that they are exponentially spaced values and the mean over them is the expected value; equal logits give
    exactly 0 where low is -high (the final version: 255 bins from -20 to 20).

    >>> block = CategoricalValueBlock([(3,)], num_bins=5, low=-2, high=2)
    >>> block.two_hot(torch.tensor([0.5])).tolist()
    [[0.0, 0.0, 0.5, 0.5, 0.0]]
    """

    raw_name = "logits"

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_bins: Annotated[int, Range(low=2)] = 51,
        low: float = -10.0,
        high: float = 10.0,
        spacing: Literal["linear", "symlog", "symexp"] = "linear",
        output_units: PositiveInt | None = None,
        init_scale: PositiveFloat = 1.0,
    ) -> None:
        if not low < high:
            raise ValueError(f"'low' is {low}, not below 'high' {high}")
        if spacing != "linear" and max(-low, high) > MOST_SYMLOG:
            rule = f"with spacing {spacing!r} they are symlogs, of {MOST_SYMLOG} at most"
            raise ValueError(f"'low' is {low} and 'high' {high}; {rule}")
        super().__init__(in_shapes, "categorical_value", num_bins, output_units, init_scale)
        self.num_bins, self.low, self.high = num_bins, float(low), float(high)
        self.symlog, self.symexp = spacing == "symlog", spacing == "symexp"

    def bins(self, like: Tensor) -> Tensor:
        """(num_bins,): where the bins are, on the scale of their mean, at the precision of a float or better."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        bins = torch.linspace(self.low, self.high, self.num_bins, dtype=dtype, device=like.device)
        if self.low == -self.high:  # also after rounding, so that equal logits give exactly 0
            bins = 0.5 * (bins - bins.flip(0))
        return symexp(bins) if self.symexp else bins

    def to_scalar(self, output: Tensor) -> Tensor:
        bins = self.bins(output)
        parts = output.softmax(dim=-1, dtype=bins.dtype) * bins
        if self.symexp:  # huge parts cancel in pairs, before the sum rounds small ones away
            parts = 0.5 * parts + 0.5 * parts.flip(-1)
        mean = parts.sum(-1, keepdim=self.single)
        return (symexp(mean) if self.symlog else mean).to(output.dtype)

    def two_hot(self, values: Tensor) -> Tensor:
        """(...) -> (..., num_bins): each value shared between the bins beside it, so that their mean is the value.

        What lies outside the bins goes to the outermost. This is the target of a cross-entropy loss.
        """
        place = self._place(values)
        numbers = torch.arange(self.num_bins, dtype=place.dtype, device=place.device)
        return (1.0 - (place.unsqueeze(-1) - numbers).abs()).clamp_min(0.0)

    def _place(self, values: Tensor) -> Tensor:
        """(...) -> (...): the number of the bin at or below each value, plus the share of the way to the next bin."""
        if not self.symexp:
            values = symlog(values) if self.symlog else values
            step = (self.high - self.low) / (self.num_bins - 1)
            return (values.clamp(self.low, self.high) - self.low) / step
        bins = self.bins(values)
        values = values.to(bins.dtype).clamp(bins[0], bins[-1])
        below = (values.unsqueeze(-1) >= bins[1:-1]).sum(dim=-1)
        return below + (values - bins[below]) / (bins[below + 1] - bins[below])

    def project(self, values: Tensor, probabilities: Tensor) -> Tensor:
        """A distribution over any values, both (..., k), onto the bins: (..., num_bins), as in C51's Bellman update."""
        return (self.two_hot(values) * probabilities.unsqueeze(-1)).sum(dim=-2)


@BLOCKS.register("action_masking")
class ActionMaskingBlock(MaskedBlock):
    """Logits, very low for illegal actions: logits ``(n,)`` and mask ``(n,)``, true = legal -> ``(n,)``.

    The mask is bool or any numbers, zero = illegal; one mask serves logits of more axes. A row without a legal action
    is uniform, or with ``debug`` an error wherever the data can be looked at (not in compiled code).

    >>> ActionMaskingBlock([(3,), (3,)])(torch.zeros(3), torch.tensor([1, 0, 1])).softmax(-1).tolist()
    [0.5, 0.0, 0.5]
    """

    def __init__(self, in_shapes: Shapes, *, debug: bool = False) -> None:
        takes = "logits and a mask"
        logits, mask = shapes_of(in_shapes, "action_masking", 2, 2, takes)
        if not logits:
            raise InputShapeError("action_masking takes logits of one axis or more", {0: logits})
        check_mask("action_masking", [logits, mask], 1, [logits, logits[-1:]])
        super().__init__(in_shapes, out_shapes=[logits])
        self.ranks: tuple[int, int] = (len(mask), len(logits))
        self.debug = debug

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        legal = as_bool(mask)
        if self.debug and not (is_traced() or capturing() or legal.is_meta):
            require_choice(legal)
        # Half of the lowest number: dividing by a temperature or subtracting a maximum stays finite.
        return torch.where(widened(legal, *self.ranks), logits, torch.finfo(logits.dtype).min / 2)


def require_choice(legal: Tensor) -> None:
    """Raise ValueError where a row of (..., n) has no true element."""
    rows = legal.any(dim=-1)
    if not bool(rows.all()):
        index = tuple((~rows).nonzero()[0].tolist())
        where = f" at index {index}" if index else ""
        raise ValueError(
            f"action_masking got a mask without a legal action{where}; each row needs a true element"
        )


def symlog(x: Tensor) -> Tensor:
    """``sign(x) * log(1 + |x|)``: like x near zero, like its logarithm far from it."""
    return x.sign() * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * torch.expm1(x.abs())


def _stream(
    in_shapes: Shapes, units: int, hidden_units: int | Sequence[int] | None, activation: Activation
) -> nn.Sequential:
    """Dense layers, if any, and a linear one."""
    shapes: list[Shape] = list(in_shapes)
    layers: list[nn.Module] = []
    if hidden_units is not None:
        dense = DenseBlock(shapes, hidden_units=hidden_units, activation=activation)
        layers, shapes = [dense], dense.out_shapes
    return nn.Sequential(*layers, LinearOutputBlock(shapes, output_units=units))
