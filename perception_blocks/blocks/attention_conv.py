"""Attention over the pixels of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from perception_blocks.blocks.attention import Attention
from perception_blocks.blocks.conv import ImageBlock, image_shape
from perception_blocks.blocks.masks import (
    MaskedBlock,
    as_bool,
    blank,
    check_mask,
    same_shape,
    shapes_of,
)
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveInt, Probability

__all__ = ["SelfAttentionConvBlock"]


@BLOCKS.register("self_attention_conv")
class SelfAttentionConvBlock(MaskedBlock, ImageBlock):
    """Pixels attend to each other (SAGAN, Zhang et al., 2018): ``(C, H, W)`` -> ``(C, H, W)``; 1-d and 3-d likewise.

    The input plus the output of attention times a learned gain, at first ``init_gain``. A second input is a mask:
    ``(H, W)``, true for pixels to attend to, or ``(H * W, H * W)``, true where a pixel may attend to another.
    ``hidden_channels`` is C / 8 unless given; ``return_weights`` adds an output ``(H * W, H * W)``.

    >>> SelfAttentionConvBlock([(16, 4, 5)], return_weights=True).out_shapes
    [(16, 4, 5), (20, 20)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = True,
        return_weights: bool = False,
        init_gain: float = 0.0,
    ) -> None:
        name = "self_attention_conv"
        shapes = shapes_of(in_shapes, name, 1, 2, "an image and optionally a mask")
        channels, space = image_shape(shapes[:1], name)[0], shapes[0][1:]
        pixels = None if None in space else math.prod(space)  # type: ignore[arg-type]
        check_mask(name, shapes, 1, [space, (pixels, pixels)])
        weights = [(pixels, pixels)] if return_weights else []
        super().__init__(in_shapes, out_shapes=[shapes[0], *weights])
        width = hidden_channels or max(1, channels // 8)
        self.attention = Attention(
            (channels,) * 3, width, 1, out_features=channels, dropout=dropout, bias=bias, scale=1.0
        )
        self.init_gain = init_gain
        self.gain = nn.Parameter(torch.full((1,), float(init_gain)))
        self.return_weights = return_weights
        self.dims = len(space)
        self.mask_of_pixels = len(shapes) == 2 and same_shape(shapes[1], space)

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.fill_(self.init_gain)  # the gain, the only parameter of its own

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        pixels = seen = x.flatten(-self.dims).transpose(-2, -1)  # (..., H * W, C)
        if mask is not None:
            mask = as_bool(mask)
            if self.mask_of_pixels:
                mask = mask.flatten(-self.dims)
                seen, mask = blank(pixels, mask), mask[..., None, :]
            mask = mask.unsqueeze(-3)
        attended, weights = self.attention(pixels, seen, seen, mask, weighted=self.return_weights)
        y = x + self.gain * attended.transpose(-2, -1).unflatten(-1, x.shape[-self.dims :])
        return (y, weights.squeeze(-3)) if self.return_weights else y
