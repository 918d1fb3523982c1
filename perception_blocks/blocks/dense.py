"""Blocks of linear layers over one vector: a multi-layer perceptron and a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import make_activations
from perception_blocks.base_block import PerceptionBlock, block_name, one_input, one_vector
from perception_blocks.direct import layers, linear
from perception_blocks.init import linear_layer
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import (
    Activation,
    OneOrMany,
    PositiveFloat,
    PositiveInt,
    Probability,
)

__all__ = [
    "ChannelBatchNorm",
    "DenseBlock",
    "FeatureBatchNorm",
    "FlattenDenseBlock",
    "LinearOutputBlock",
]

NormName = Literal["none", "layer", "rms", "batch"]


@BLOCKS.register("dense")
class DenseBlock(PerceptionBlock):
    """Linear layers, each followed by its norm, activation and dropout: ``(F,)`` -> ``(hidden_units[-1],)``.

    ``last_activation`` replaces the activation after the last layer; "identity" leaves it out. Parameters are called
    ``linears.0.weight`` and so on; the layers' norms ``norms.0.weight``.

    >>> DenseBlock([(3,)], hidden_units=[8, 4]).out_shapes
    [(4,)]
    """

    # Makes a layer from (features, units, bias=...).
    layer: Callable[..., nn.Module] = staticmethod(linear_layer)

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: OneOrMany,
        activation: Activation = "relu",
        norm: NormName = "none",
        dropout: Probability = 0.0,
        bias: bool = True,
        last_activation: Activation | None = None,
    ) -> None:
        name = block_name(self)
        features = one_vector(in_shapes, name)
        units = unit_list(hidden_units, name)
        super().__init__(in_shapes, out_shapes=[(units[-1],)])
        sizes = zip([features, *units], units)
        self.linears = nn.ModuleList([self.layer(n, m, bias=bias) for n, m in sizes])
        self.norms = None if norm == "none" else nn.ModuleList([make_norm(norm, n) for n in units])
        self.activations = make_activations(activation, len(units), last_activation)
        self.dropout = dropout

    def forward(self, x_F: Tensor) -> Tensor:
        if self.norms is None and not self.dropout:
            for layer, activation in zip(layers(self, "linears"), self.activations):
                x_F = activation(linear(layer, x_F))
            return x_F
        for index, layer in enumerate(self.linears):
            x_F = linear(layer, x_F)
            if self.norms is not None:
                x_F = self.norms[index](x_F)
            x_F = self.activations[index](x_F)
            x_F = functional.dropout(x_F, self.dropout, self.training)
        return x_F


@BLOCKS.register("flatten_dense")
class FlattenDenseBlock(PerceptionBlock):
    """All axes joined into one vector, then `DenseBlock`: ``(...,)`` -> ``(hidden_units[-1],)``.

    >>> FlattenDenseBlock([(2, 3)], hidden_units=4).out_shapes
    [(4,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: OneOrMany,
        activation: Activation = "relu",
        norm: NormName = "none",
        dropout: Probability = 0.0,
        bias: bool = True,
        last_activation: Activation | None = None,
    ) -> None:
        shape = one_input(in_shapes, "flatten_dense")
        features = known_size(shape, "flatten_dense")
        dense = DenseBlock(
            [(features,)],
            hidden_units=hidden_units,
            activation=activation,
            norm=norm,
            dropout=dropout,
            bias=bias,
            last_activation=last_activation,
        )
        super().__init__(in_shapes, out_shapes=dense.out_shapes)
        self.dense = dense
        self.rank = len(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x.flatten(-self.rank) if self.rank else x.unsqueeze(-1))


@BLOCKS.register("linear_output")
class LinearOutputBlock(PerceptionBlock):
    """One linear layer, the head of a network: ``(F,)`` -> ``(output_units,)`` or ``output_shape``.

    ``init_scale`` multiplies the drawn weights. ``init_bias`` sets the bias: a number, one number per output, or
    ``{probability: p}`` for outputs that are logits of a Bernoulli variable which is first true with probability p.

    >>> LinearOutputBlock([(3,)], output_units=2, init_bias={"probability": 0.5}).linear.bias.tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        output_units: PositiveInt | None = None,
        output_shape: Sequence[PositiveInt] | None = None,
        bias: bool = True,
        init_scale: PositiveFloat = 1.0,
        init_bias: float | Sequence[float] | Mapping[str, Any] | None = None,
    ) -> None:
        features = one_vector(in_shapes, "linear_output")
        if (output_units is None) == (output_shape is None):
            raise ValueError("linear_output needs exactly one of output_units and output_shape")
        shape: Shape = (output_units,) if output_shape is None else tuple(output_shape)
        units = math.prod(shape)  # type: ignore[arg-type]
        if init_bias is not None and not bias:
            raise ValueError("linear_output has no bias that init_bias could set; drop bias: false")
        super().__init__(in_shapes, out_shapes=[shape])
        self.linear = linear_layer(features, units, bias=bias)
        self.output_shape = shape
        self.init_scale = init_scale
        self.init_bias = None if init_bias is None else bias_values(init_bias, units)
        with torch.no_grad():
            self.adjust_parameters()

    def adjust_parameters(self) -> None:
        self.linear.weight.mul_(self.init_scale)
        if self.init_bias is not None:
            self.linear.bias.copy_(torch.tensor(self.init_bias))

    def forward(self, x_F: Tensor) -> Tensor:
        y = linear(self._modules["linear"], x_F)  # type: ignore[arg-type]
        return y if len(self.output_shape) == 1 else y.reshape(*y.shape[:-1], *self.output_shape)


class ChannelBatchNorm(nn.BatchNorm1d):
    """Batch norm of each channel over (B, channels, ...), whatever the number of axes.

    Fewer than two values per channel have no variance: they are normalised by the running statistics, in train mode
    too.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any number of axes after the channels

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() < 2 * self.num_features:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class FeatureBatchNorm(ChannelBatchNorm):
    """Batch norm over the last axis, whatever the number of leading axes."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, self.num_features)).reshape(input.shape)


def make_norm(norm: str, features: int) -> nn.Module:
    classes = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": FeatureBatchNorm}
    return classes[norm](features)


def unit_list(hidden_units: int | Sequence[int], name: str) -> list[int]:
    """``hidden_units`` as a list with at least one entry."""
    given = hidden_units if isinstance(hidden_units, Sequence) else [hidden_units]
    units = [int(count) for count in given]
    if not units:
        raise ValueError(f"{name} needs at least one layer, got hidden_units=[]")
    return units


def known_size(shape: Shape, name: str) -> int:
    """The number of elements of ``shape``, no axis of which may vary."""
    if None in shape:
        raise InputShapeError(f"{name} needs to know the size of every axis", {0: shape})
    return math.prod(shape)  # type: ignore[arg-type]


def bias_values(value: float | Sequence[float] | Mapping[str, Any], units: int) -> list[float]:
    """``init_bias`` as one number per output."""
    logits = isinstance(value, Mapping)
    if isinstance(value, Mapping):
        if set(value) != {"probability"}:
            raise ValueError(f"'init_bias' as a mapping is {{probability: p}}, got {dict(value)!r}")
        value = value["probability"]
    many = isinstance(value, Sequence) and not isinstance(value, str)
    try:
        values = [float(v) for v in value] if many else [float(value)] * units  # type: ignore[union-attr, arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"'init_bias' needs numbers, got {value!r}") from error
    if len(values) != units:
        raise ValueError(f"'init_bias' has {len(values)} numbers for {units} outputs")
    if not logits:
        return values
    if not all(0.0 < p < 1.0 for p in values):
        raise ValueError(f"'init_bias' needs probabilities between 0 and 1, got {value!r}")
    return [math.log(p / (1.0 - p)) for p in values]
