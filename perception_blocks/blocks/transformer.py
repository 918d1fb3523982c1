"""Transformers: layers of self-attention and small networks over a sequence or set."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import make_activations
from perception_blocks.blocks.attention import Attention, AttentionBlock, head_width, sequence_shape
from perception_blocks.blocks.masks import blank, shapes_of
from perception_blocks.init import linear_layer
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, LayerCount, PositiveInt, Probability

__all__ = ["TransformerEncoderBlock"]


@BLOCKS.register("transformer_encoder")
class TransformerEncoderBlock(AttentionBlock):
    """Layers of self-attention and a feedforward network, pre-norm and residual: ``(N, F)`` -> ``(N, F)``.

    The pre-norm form (Xiong et al., 2020), with a norm at the end. Then an attention mask ``(N, N)`` or
    ``(num_heads, N, N)``, a key-padding mask ``(N,)``, or both; padding gives zeros. With ``causal`` no
    step attends to later ones; ``feedforward_units`` is 4 F unless given. It does not know positions: put a
    positional_encoding block before it where order matters.

    >>> TransformerEncoderBlock([(10, 8)], num_layers=2, num_heads=4, causal=True).out_shapes
    [(10, 8)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_layers: LayerCount = 1,
        num_heads: PositiveInt = 1,
        feedforward_units: PositiveInt | None = None,
        activation: Activation = "relu",
        dropout: Probability = 0.0,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        name = "transformer_encoder"
        shapes = shapes_of(in_shapes, name, 1, 3, "a sequence and optionally its masks")
        length, features = sequence_shape(shapes, 0, name)
        head_width(name, features, None, num_heads)
        super().__init__(in_shapes, out_shapes=[(length, features)])
        self.expect_masks(name, (length,), length, num_heads)
        units = feedforward_units or 4 * features
        self.layers = nn.ModuleList(
            EncoderLayer(features, num_heads, units, activation, dropout, bias)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(features, bias=bias)
        self.causal = causal

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        mask, padding = self.masks(attention_mask, key_padding_mask)
        x = blank(x, padding)
        for layer in self.layers:
            x = layer(x, mask, self.causal)
        return blank(self.norm(x), padding)


class EncoderLayer(nn.Module):
    """Self-attention, then two linear layers, over (..., N, F)."""

    def __init__(
        self,
        features: int,
        num_heads: int,
        units: int,
        activation: Activation,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(features, bias=bias)
        self.attention = Attention((features,) * 3, features, num_heads, dropout=dropout, bias=bias)
        self.norm = nn.LayerNorm(features, bias=bias)
        self.up = linear_layer(features, units, bias=bias)
        self.activations = make_activations(activation)
        self.down = linear_layer(units, features, bias=bias)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        normed = self.attention_norm(x)
        y, _ = self.attention(normed, normed, normed, mask, causal)
        x = x + self._dropped(y)
        hidden = self._dropped(self.activations[0](self.up(self.norm(x))))
        return x + self._dropped(self.down(hidden))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)
