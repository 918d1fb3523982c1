"""Convolutions over (channels, ...) of one, two or three axes, and the same followed by dense layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import Function, make_activations
from perception_blocks.base_block import PerceptionBlock, block_name, one_input
from perception_blocks.blocks.conv_plan import (
    ConvPlan,
    Padding,
    PaddingMode,
    PerLayer,
    SpatialShape,
    plan_layers,
    pooled_shape,
)
from perception_blocks.blocks.dense import ChannelBatchNorm, FlattenDenseBlock, known_size
from perception_blocks.direct import convolution, layers
from perception_blocks.port import InputShapeError, Port, Shapes, as_shape
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, OneOrMany, PositiveInt

__all__ = ["ConvBlock", "NatureCnnBlock", "NatureCnnDenseBlock", "StridedConvBlock"]
__all__ += ["StridedConvDenseBlock", "VggConvBlock", "VggConvDenseBlock"]

Channels: TypeAlias = Sequence[PositiveInt]
ChannelAxis: TypeAlias = Literal["first", "last"]
ConvNorm: TypeAlias = Literal["none", "batch"]

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}


class ImageBlock(PerceptionBlock):
    """What blocks over images share: channels come first, unless a setting ``channels`` says otherwise."""

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        super().check_ports(in_ports)
        for index, port in enumerate(in_ports):
            if port.channels == "last" and "channels" not in cls.from_ports:
                rule = f"{block_name(cls)} takes channels first, and the space has them last"
                raise InputShapeError(rule, {index: port}, "put a scale_image block before it")


class ConvBlock(ImageBlock):
    """What convolutions share: all leading axes become torch's one batch axis and come back."""

    activations: Sequence[Function] | nn.ModuleList
    channels_last = False  # of the input; of the output they come first
    norms: nn.ModuleList | None  # after each convolution, before its activation

    def convolve(self, x_BC: Tensor) -> Tensor:
        """The layers over (B, channels, ...): here each of ``convs`` and its activation."""
        for conv, activation in zip(layers(self, "convs"), self.activations):
            # Two lines: the input of the convolution is free before the activation allocates.
            x_BC = convolution(conv, x_BC)
            x_BC = activation(x_BC)
        return x_BC

    def normed(self, index: int, x_BC: Tensor) -> Tensor:
        return x_BC if self.norms is None else self.norms[index](x_BC)

    def forward(self, x: Tensor) -> Tensor:
        rank = len(self.in_shapes[0])
        if torch.compiler.is_compiling():
            self._fix_sizes(x)
        leading = x.shape[:-rank]
        if x.dim() != rank + 1:
            x = x.reshape(-1, *x.shape[-rank:])
        y = self.convolve(x.movedim(-1, 1) if self.channels_last else x)
        return y if len(leading) == 1 else y.reshape(*leading, *y.shape[1:])

    def _fix_sizes(self, x: Tensor) -> None:
        """Tell the compiler the sizes that never vary: with unknown ones inductor cannot order a convolution's axes."""
        shape = self.in_shapes[0]
        for size, actual in zip(shape, x.shape[-len(shape) :], strict=True):
            if size is not None:
                torch._check(actual == size)


class ConvDenseBlock(ImageBlock):
    """A convolution block and dense layers over its flattened output."""

    def __init__(self, in_shapes: Shapes, conv: ConvBlock, **dense: Any) -> None:
        known_size(conv.in_shapes[0], block_name(self))
        flatten_dense = FlattenDenseBlock(conv.out_shapes, **dense)
        super().__init__(in_shapes, out_shapes=flatten_dense.out_shapes)
        self.conv = conv
        self.flatten_dense = flatten_dense

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten_dense(self.conv(x))


@BLOCKS.register("strided_conv")
class StridedConvBlock(ConvBlock):
    """Convolutions, each with its activation: ``(C, H, W)`` -> ``(hidden_channels[-1], h, w)``; 1-d and 3-d likewise.

    With ``channels: last`` it reads ``(H, W, C)``, or for a convolution over time ``(T, F)``; the output has channels
    first in any case.

    ``hidden_channels`` has one entry per layer. The other lists too, or one number serves all layers; an entry that is
    itself a list has one number per axis. An axis is padded by a number on both sides, by ``[before, after]``, or by
    ``same`` so that only the stride makes it shorter.

    >>> StridedConvBlock([(3, 64, 64)], hidden_channels=[8, 16], hidden_kernels=[8, 4], strides=[4, 2]).out_shapes
    [(16, 6, 6)]
    """

    from_ports = ("channels",)

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: Channels,
        hidden_kernels: PerLayer = 3,
        strides: PerLayer = 1,
        dilations: PerLayer = 1,
        padding: Padding = 0,
        padding_mode: PaddingMode = "zeros",
        activation: Activation = "relu",
        bias: bool = True,
        channels: ChannelAxis = "first",
        norm: ConvNorm = "none",
    ) -> None:
        plans = plan_layers(
            "strided_conv",
            image_shape(in_shapes, "strided_conv", channels=channels),
            hidden_channels,
            kernels=hidden_kernels,
            strides=strides,
            dilations=dilations,
            padding=padding,
            padding_mode=padding_mode,
            got=as_shape(in_shapes[0]),
        )
        super().__init__(in_shapes, out_shapes=[(hidden_channels[-1], *plans[-1].out_space)])
        self.channels_last = channels == "last"
        self.convs = nn.ModuleList(make_conv(plan, padding_mode, bias) for plan in plans)
        self.norms = batch_norms(norm, hidden_channels)
        # Torch's own layers pad both sides alike; other padding is done before them.
        self.pads = [None if plan.symmetric else plan.torch_pad for plan in plans]
        self.pad_mode = "constant" if padding_mode == "zeros" else padding_mode
        self.activations = make_activations(activation, len(plans))

    def convolve(self, x_BC: Tensor) -> Tensor:
        steps = zip(layers(self, "convs"), self.pads, self.activations)
        for index, (conv, pad, activation) in enumerate(steps):
            if pad is not None:
                x_BC = functional.pad(x_BC, pad, mode=self.pad_mode)
            x_BC = self.normed(index, convolution(conv, x_BC))
            x_BC = activation(x_BC)
        return x_BC


@BLOCKS.register("strided_conv_dense")
class StridedConvDenseBlock(ConvDenseBlock):
    """`strided_conv`, flattened, then `dense`: ``(C, H, W)`` -> ``(hidden_units[-1],)``; 1-d and 3-d likewise.

    With ``channels: last`` it reads ``(H, W, C)``, or for a convolution over time ``(T, F)``.

    >>> block = StridedConvDenseBlock([(3, 16)], hidden_channels=[8], hidden_kernels=4, hidden_units=32)
    >>> block.out_shapes
    [(32,)]
    """

    from_ports = ("channels",)

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: Channels,
        hidden_units: OneOrMany,
        hidden_kernels: PerLayer = 3,
        strides: PerLayer = 1,
        dilations: PerLayer = 1,
        padding: Padding = 0,
        padding_mode: PaddingMode = "zeros",
        activation: Activation = "relu",
        last_activation: Activation | None = None,
        bias: bool = True,
        channels: ChannelAxis = "first",
        norm: ConvNorm = "none",
    ) -> None:
        conv = StridedConvBlock(
            in_shapes,
            hidden_channels=hidden_channels,
            hidden_kernels=hidden_kernels,
            strides=strides,
            dilations=dilations,
            padding=padding,
            padding_mode=padding_mode,
            activation=activation,
            bias=bias,
            channels=channels,
            norm=norm,
        )
        super().__init__(
            in_shapes,
            conv,
            hidden_units=hidden_units,
            activation=activation,
            last_activation=last_activation,
            bias=bias,
        )


@BLOCKS.register("vgg_conv")
class VggConvBlock(ConvBlock):
    """Stages of two 3x3 convolutions and a 2x2 max-pool (VGG, 2014): ``(C, H, W)`` -> ``(hidden_channels[-1], h, w)``.

    Each stage halves height and width, rounding down; 1-d and 3-d likewise.

    >>> VggConvBlock([(3, 64, 64)], hidden_channels=[8, 16, 32]).out_shapes
    [(32, 8, 8)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: Channels,
        activation: Activation = "relu",
        norm: ConvNorm = "none",
    ) -> None:
        shape = image_shape(in_shapes, "vgg_conv")
        out_space = pooled_shape("vgg_conv", shape, hidden_channels)
        super().__init__(in_shapes, out_shapes=[(hidden_channels[-1], *out_space)])
        make = _CONVS[len(out_space)]
        sizes = [shape[0], *(width for width in hidden_channels for _ in range(2))]
        self.convs = nn.ModuleList(make(n, m, 3, padding=1) for n, m in itertools.pairwise(sizes))
        self.norms = batch_norms(norm, sizes[1:])
        self.activations = make_activations(activation, len(self.convs))
        self.max_pool = POOLS[len(out_space)]

    def convolve(self, x_BC: Tensor) -> Tensor:
        for index, (conv, activation) in enumerate(zip(layers(self, "convs"), self.activations)):
            x_BC = self.normed(index, convolution(conv, x_BC))
            x_BC = activation(x_BC)
            if index % 2:
                x_BC = self.max_pool(x_BC, 2)
        return x_BC


@BLOCKS.register("vgg_conv_dense")
class VggConvDenseBlock(ConvDenseBlock):
    """`vgg_conv`, flattened, then `dense`: ``(C, H, W)`` -> ``(hidden_units[-1],)``.

    >>> VggConvDenseBlock([(3, 64, 64)], hidden_channels=[8, 16], hidden_units=[32]).out_shapes
    [(32,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: Channels,
        hidden_units: OneOrMany,
        activation: Activation = "relu",
        last_activation: Activation | None = None,
        norm: ConvNorm = "none",
    ) -> None:
        conv = VggConvBlock(
            in_shapes, hidden_channels=hidden_channels, activation=activation, norm=norm
        )
        super().__init__(
            in_shapes,
            conv,
            hidden_units=hidden_units,
            activation=activation,
            last_activation=last_activation,
        )


@BLOCKS.register("nature_cnn")
class NatureCnnBlock(ConvBlock):
    """The three convolutions of the Atari agent (Mnih et al., 2015): ``(C, H, W)`` -> ``(64, h, w)``.

    Kernels 8, 4, 3 with strides 4, 2, 1; an image needs 36 x 36 pixels at least.

    >>> NatureCnnBlock([(4, 84, 84)]).out_shapes
    [(64, 7, 7)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 64, 64),
        activation: Activation = "relu",
    ) -> None:
        plans = plan_layers(
            "nature_cnn",
            image_shape(in_shapes, "nature_cnn", dims=(2,)),
            hidden_channels,
            kernels=[8, 4, 3],
            strides=[4, 2, 1],
            advice="use a larger image, or strided_conv",
        )
        super().__init__(in_shapes, out_shapes=[(hidden_channels[-1], *plans[-1].out_space)])
        self.convs = nn.ModuleList(map(make_conv, plans))
        self.activations = make_activations(activation, 3)


@BLOCKS.register("nature_cnn_dense")
class NatureCnnDenseBlock(ConvDenseBlock):
    """`nature_cnn`, flattened, then `dense`: ``(C, H, W)`` -> ``(hidden_units[-1],)``.

    >>> NatureCnnDenseBlock([(4, 84, 84)]).out_shapes
    [(512,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 64, 64),
        hidden_units: OneOrMany = (512,),
        activation: Activation = "relu",
        last_activation: Activation | None = None,
    ) -> None:
        conv = NatureCnnBlock(in_shapes, hidden_channels=hidden_channels, activation=activation)
        super().__init__(
            in_shapes,
            conv,
            hidden_units=hidden_units,
            activation=activation,
            last_activation=last_activation,
        )


def image_shape(
    in_shapes: Shapes,
    name: str,
    dims: Sequence[int] = (1, 2, 3),
    channels: ChannelAxis = "first",
) -> tuple[int, *SpatialShape]:
    """The shape of the only input, brought to channels first. Raises InputShapeError where it is no image."""
    shape = one_input(in_shapes, name)
    first = channels == "first"
    if len(shape) - 1 not in dims:
        advice = "a vector goes into a dense block" if len(shape) == 1 else ""
        axes = "(channels, height, width)" if first else "(height, width, channels)"
        raise InputShapeError(f"{name} takes {axes}", {0: shape}, advice)
    count, space = (shape[0], shape[1:]) if first else (shape[-1], shape[:-1])
    if count is None:
        raise InputShapeError(f"{name} needs to know how many channels it reads", {0: shape})
    if count == 0:
        raise InputShapeError(f"{name} needs at least one channel", {0: shape})
    return (count, *space)


def batch_norms(norm: str, channels: Sequence[int]) -> nn.ModuleList | None:
    """A batch norm for each layer's channels, or None for ``norm`` "none"."""
    return None if norm == "none" else nn.ModuleList(map(ChannelBatchNorm, channels))


def make_conv(plan: ConvPlan, padding_mode: PaddingMode = "zeros", bias: bool = True) -> nn.Module:
    """The torch layer of ``plan``; it pads only where both sides of each axis are padded alike."""
    padding = tuple(before for before, _ in plan.padding) if plan.symmetric else 0
    return _CONVS[len(plan.kernel)](
        plan.channels,
        plan.hidden,
        plan.kernel,
        stride=plan.stride,
        dilation=plan.dilation,
        padding=padding,
        padding_mode=padding_mode if plan.symmetric else "zeros",
        bias=bias,
    )
