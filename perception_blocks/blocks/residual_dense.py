"""Residual multi-layer perceptrons that keep learning as they grow wider and deeper."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from perception_blocks.activations import make_activations
from perception_blocks.base_block import PerceptionBlock, one_vector
from perception_blocks.init import linear_layer
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, LayerCount, PositiveInt

__all__ = ["ResidualDenseBlock"]


@BLOCKS.register("residual_dense")
class ResidualDenseBlock(PerceptionBlock):
    """A linear layer, ``num_blocks`` residual pairs of linear layers, and norms: ``(F,)`` -> ``(hidden_units,)``.

    ``simba`` (Lee et al., 2024) normalises what each pair reads and, at the end, the sum of all. ``bronet`` (Nauman
    et al., 2024) normalises the first layer and each layer of a pair. ``expansion`` says how many times wider a pair is
    inside: 4 for simba and 1 for bronet unless given. Both papers normalise the observations too: put a normalize block
    before it.

    >>> ResidualDenseBlock([(3,)], hidden_units=8).out_shapes
    [(8,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_blocks: LayerCount = 2,
        form: Literal["simba", "bronet"] = "simba",
        expansion: PositiveInt | None = None,
        activation: Activation = "relu",
    ) -> None:
        features = one_vector(in_shapes, "residual_dense")
        super().__init__(in_shapes, out_shapes=[(hidden_units,)])
        simba = form == "simba"
        inner = hidden_units * (expansion or (4 if simba else 1))
        pair = SimbaPair if simba else BronetPair
        self.stem = linear_layer(features, hidden_units)
        self.stem_norm = None if simba else nn.LayerNorm(hidden_units)
        self.stem_activation = make_activations(activation, 0 if simba else 1)
        self.pairs = nn.ModuleList(pair(hidden_units, inner, activation) for _ in range(num_blocks))
        self.last_norm = nn.LayerNorm(hidden_units) if simba else None

    def forward(self, x_F: Tensor) -> Tensor:
        x_F = self.stem(x_F)
        if self.stem_norm is not None:
            x_F = self.stem_activation[0](self.stem_norm(x_F))
        for pair in self.pairs:
            x_F = pair(x_F)
        return x_F if self.last_norm is None else self.last_norm(x_F)


class SimbaPair(nn.Module):
    """Norm, wide linear layer, activation, linear layer; added to what it read."""

    def __init__(self, units: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(units)
        self.wide = linear_layer(units, inner)
        self.narrow = linear_layer(inner, units)
        self.activation = make_activations(activation)

    def forward(self, x_F: Tensor) -> Tensor:
        return x_F + self.narrow(self.activation[0](self.wide(self.norm(x_F))))


class BronetPair(nn.Module):
    """Two linear layers, each followed by a norm, an activation between them; added to what it read."""

    def __init__(self, units: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.wide = linear_layer(units, inner)
        self.wide_norm = nn.LayerNorm(inner)
        self.narrow = linear_layer(inner, units)
        self.narrow_norm = nn.LayerNorm(units)
        self.activation = make_activations(activation)

    def forward(self, x_F: Tensor) -> Tensor:
        h_F = self.activation[0](self.wide_norm(self.wide(x_F)))
        return x_F + self.narrow_norm(self.narrow(h_F))
