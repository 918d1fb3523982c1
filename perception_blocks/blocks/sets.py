"""Sets of elements into one vector: the order of the elements makes no difference, masked ones do not count."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from perception_blocks.blocks.attention import Attention, head_width
from perception_blocks.blocks.dense import DenseBlock, unit_list
from perception_blocks.blocks.masks import MaskedBlock, Pooling, as_bool, blank, pool, set_shape
from perception_blocks.init import linear_layer
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, OneOrMany, PositiveInt, Probability

__all__ = ["AttentionPoolingBlock", "DeepSetBlock", "PointNetBlock"]

ElementNorm = Literal["none", "layer", "rms"]  # a batch's statistics would count masked elements
PointNorm = Literal["none", "layer", "rms", "batch"]


@BLOCKS.register("deep_set")
class DeepSetBlock(MaskedBlock):
    """Dense layers for each element, a pooling, dense layers for the set (Zaheer et al., 2017): ``(N, F)`` -> ``(h,)``.

    The optional mask ``(N,)`` is true where an element counts; a set without any gives zeros. ``element_units`` are
    the layers before the pooling, the same as ``hidden_units`` after it unless given.

    >>> DeepSetBlock([(10, 3), (10,)], hidden_units=[32, 16]).out_shapes
    [(16,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: OneOrMany,
        element_units: OneOrMany | None = None,
        pooling: Pooling = "sum",
        activation: Activation = "relu",
        last_activation: Activation | None = None,
        norm: ElementNorm = "none",
    ) -> None:
        _, features = set_shape(in_shapes, "deep_set")
        after = unit_list(hidden_units, "deep_set")
        before = after if element_units is None else unit_list(element_units, "deep_set")
        super().__init__(in_shapes, out_shapes=[(after[-1],)])
        self.element = DenseBlock(
            [(features,)], hidden_units=before, activation=activation, norm=norm
        )
        self.whole = DenseBlock(
            [(before[-1],)],
            hidden_units=after,
            activation=activation,
            last_activation=last_activation,
            norm=norm,
        )
        self.pooling: Pooling = pooling

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = blank(x, mask)
        if mask is None:
            return self.whole(pool(self.element(x), None, (-2,), self.pooling))
        mask = as_bool(mask).unsqueeze(-1)
        y = self.whole(pool(self.element(x), mask, (-2,), self.pooling))
        return y.masked_fill(~mask.any(dim=-2), 0.0)


@BLOCKS.register("attention_pooling")
class AttentionPoolingBlock(MaskedBlock):
    """Learned seeds attend to the set (Set Transformer, Lee et al., 2019): ``(N, F)`` -> ``(hidden_units,)``.

    The optional mask ``(N,)`` is true where an element counts; a set without any gives zeros. Several seeds give
    ``(num_seeds, hidden_units)``; ``hidden_units`` is F unless given. ``return_weights`` adds an output
    ``(num_heads, N)``, or ``(num_heads, num_seeds, N)``.

    >>> AttentionPoolingBlock([(10, 8), (10,)], num_seeds=3, num_heads=2).out_shapes
    [(3, 8)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_seeds: PositiveInt = 1,
        num_heads: PositiveInt = 1,
        hidden_units: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = True,
        return_weights: bool = False,
    ) -> None:
        elements, features = set_shape(in_shapes, "attention_pooling")
        width = head_width("attention_pooling", features, hidden_units, num_heads)
        seeds = () if num_seeds == 1 else (num_seeds,)
        weights = [(num_heads, *seeds, elements)] if return_weights else []
        super().__init__(in_shapes, out_shapes=[(*seeds, width), *weights])
        sizes = (width, features, features)
        self.attention = Attention(sizes, width, num_heads, dropout=dropout, bias=bias)
        self.seeds = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_seeds, width)))
        self.single = num_seeds == 1
        self.return_weights = return_weights

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(tensor, generator=generator)  # the seeds

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        x = blank(x, mask)
        seeds = self.seeds.expand(*x.shape[:-2], *self.seeds.shape)
        legal = None if mask is None else as_bool(mask)[..., None, None, :]
        y, weights = self.attention(seeds, x, x, legal, weighted=self.return_weights)
        y = y.squeeze(-2) if self.single else y
        if not self.return_weights:
            return y
        return y, weights.squeeze(-2) if self.single else weights


@BLOCKS.register("point_net")
class PointNetBlock(MaskedBlock):
    """The same layers for each point, then a pooling (Qi et al., 2017): ``(N, F)`` -> ``(hidden_units[-1],)``.

    The optional mask ``(N,)`` is true where a point counts; a cloud without any gives zeros. ``input_transform`` and
    ``feature_transform`` multiply the points, and what the first layer makes of them, by a matrix that a network of
    ``transform_units`` finds from the whole cloud; at first it is the identity. ``return_points`` adds an output
    ``(N, hidden_units[-1])``, the features of each point before the pooling, zeros for masked ones. ``norm`` "batch"
    takes its statistics over all points of a batch, and no mask.

    >>> PointNetBlock([(100, 3), (100,)], hidden_units=[64, 128], feature_transform=True).out_shapes
    [(128,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: OneOrMany = (64, 128, 256),
        pooling: Pooling = "max",
        input_transform: bool = False,
        feature_transform: bool = False,
        transform_units: OneOrMany = (64, 128),
        activation: Activation = "relu",
        norm: PointNorm = "none",
        return_points: bool = False,
    ) -> None:
        points, features = set_shape(in_shapes, "point_net")
        units = unit_list(hidden_units, "point_net")
        if norm == "batch" and len(in_shapes) > 1:
            raise ValueError(
                "point_net cannot leave masked points out of the statistics of norm 'batch'; "
                "use norm 'layer' or 'rms'"
            )
        per_point = [(points, units[-1])] if return_points else []
        super().__init__(in_shapes, out_shapes=[(units[-1],), *per_point])
        self.return_points = return_points
        layers = {"activation": activation, "norm": norm}
        hidden = unit_list(transform_units, "point_net")
        self.input_transform = PointTransform(features, hidden, layers) if input_transform else None
        self.first = DenseBlock([(features,)], hidden_units=units[:1], **layers)
        self.feature_transform = (
            PointTransform(units[0], hidden, layers) if feature_transform else None
        )
        rest = units[1:]
        self.rest = DenseBlock([(units[0],)], hidden_units=rest, **layers) if rest else None
        self.pooling: Pooling = pooling

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        x = blank(x, mask)
        valid = None if mask is None else as_bool(mask).unsqueeze(-1)
        if self.input_transform is not None:
            x = self.input_transform(x, valid)
        x = self.first(x)
        if self.feature_transform is not None:
            x = self.feature_transform(x, valid)
        if self.rest is not None:
            x = self.rest(x)
        pooled = pool(x, valid, (-2,), self.pooling)
        if not self.return_points:
            return pooled
        return pooled, x if valid is None else x.masked_fill(~valid, 0.0)


class PointTransform(nn.Module):
    """Points (..., N, F) times a matrix found from all of them; ``valid`` (..., N, 1) says which count."""

    def __init__(self, features: int, hidden_units: list[int], layers: dict[str, Any]) -> None:
        super().__init__()
        self.element = DenseBlock([(features,)], hidden_units=hidden_units, **layers)
        self.matrix = linear_layer(hidden_units[-1], features * features)
        self.features = features
        with torch.no_grad():
            self.adjust_parameters()

    def adjust_parameters(self) -> None:
        """Start from the identity."""
        self.matrix.weight.zero_()
        self.matrix.bias.zero_()

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        change = self.matrix(pool(self.element(x), valid, (-2,), "max"))
        identity = torch.eye(self.features, dtype=x.dtype, device=x.device)
        return x @ (change.unflatten(-1, (self.features, self.features)) + identity)
