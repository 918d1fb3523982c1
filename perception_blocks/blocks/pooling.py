"""Axes pooled away: the space of an image, the elements of a set, masked or not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from perception_blocks.blocks.conv import Channels, ImageBlock, VggConvBlock, image_shape
from perception_blocks.blocks.masks import (
    MaskedBlock,
    Pooling,
    as_bool,
    check_mask,
    pool,
    shapes_of,
)
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, NegativeInt

__all__ = ["GlobalAveragePoolingBlock", "MaskedGlobalPoolingBlock", "VggConvGapBlock"]


@BLOCKS.register("global_average_pooling")
class GlobalAveragePoolingBlock(ImageBlock):
    """The mean of each channel (Lin et al., 2013): ``(C, H, W)`` -> ``(C,)``; 1-d and 3-d likewise.

    >>> GlobalAveragePoolingBlock([(32, 7, 7)]).out_shapes
    [(32,)]
    """

    def __init__(self, in_shapes: Shapes) -> None:
        channels, *space = image_shape(in_shapes, "global_average_pooling")
        super().__init__(in_shapes, out_shapes=[(channels,)])
        self.dims = tuple(range(-len(space), 0))

    def forward(self, x: Tensor) -> Tensor:
        return pool(x, None, self.dims, "mean")


@BLOCKS.register("vgg_conv_gap")
class VggConvGapBlock(ImageBlock):
    """`vgg_conv`, then the mean of each channel: ``(C, H, W)`` -> ``(hidden_channels[-1],)``; 1-d and 3-d likewise.

    >>> VggConvGapBlock([(3, 64, 64)], hidden_channels=[8, 16, 32]).out_shapes
    [(32,)]
    """

    def __init__(
        self, in_shapes: Shapes, *, hidden_channels: Channels, activation: Activation = "relu"
    ) -> None:
        conv = VggConvBlock(in_shapes, hidden_channels=hidden_channels, activation=activation)
        super().__init__(in_shapes, out_shapes=[(hidden_channels[-1],)])
        self.conv = conv
        self.pooling = GlobalAveragePoolingBlock(conv.out_shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooling(self.conv(x))


@BLOCKS.register("masked_global_pooling")
class MaskedGlobalPoolingBlock(MaskedBlock):
    """Mean, sum or maximum over ``dims``, counted from the right: ``(N, F)``, mask ``(N,)`` -> ``(F,)``.

    The mask is optional, true where an element counts, and has the shape of the input or of its first axes, the pooled
    ones among them. Where nothing counts the result is zero.

    >>> MaskedGlobalPoolingBlock([(4, 6, 8), (4, 6)], dims=[-3, -2]).out_shapes
    [(8,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        pooling: Pooling = "mean",
        dims: NegativeInt | Sequence[NegativeInt] = -2,
    ) -> None:
        name = "masked_global_pooling"
        shapes = shapes_of(in_shapes, name, 1, 2, "a value and optionally its mask")
        dims = pooled_dims(shapes[0], dims)
        rank = len(shapes[0])
        kept = tuple(size for axis, size in enumerate(shapes[0], -rank) if axis not in dims)
        super().__init__(in_shapes, out_shapes=[kept])
        least = rank + max(dims) + 1  # the mask has all pooled axes
        check_mask(name, shapes, 1, [shapes[0][:axes] for axes in range(least, rank + 1)])
        self.pooling: Pooling = pooling
        self.dims = dims
        self.unmasked_axes = rank - len(shapes[1]) if len(shapes) == 2 else 0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            mask = as_bool(mask)[(..., *[None] * self.unmasked_axes)]
        return pool(x, mask, self.dims, self.pooling)


def pooled_dims(shape: Shape, dims: int | Sequence[int]) -> tuple[int, ...]:
    """``dims`` as a tuple. Raises ValueError where none is named, or one twice; InputShapeError for one not there."""
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    if not dims or len(set(dims)) < len(dims):
        raise ValueError(f"'dims' needs at least one axis, and each once, got {list(dims)}")
    if -min(dims) > len(shape):
        rule = f"masked_global_pooling over dim {min(dims)} needs {-min(dims)} axes or more"
        raise InputShapeError(rule, {0: shape}, "change 'dims'")
    return dims
