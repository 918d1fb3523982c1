"""Convolutions with shortcuts around them: the residual networks of IMPALA and of ResNet."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import make_activations
from perception_blocks.blocks.conv import (
    POOLS,
    Channels,
    ConvBlock,
    batch_norms,
    image_shape,
    make_conv,
)
from perception_blocks.blocks.conv_plan import ConvPlan, PerLayer, plan_layers
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, Range

__all__ = ["ImpalaCnnBlock", "ResConvBlock"]


@BLOCKS.register("impala_cnn")
class ImpalaCnnBlock(ConvBlock):
    """The residual network of IMPALA (Espeholt et al., 2018): ``(C, H, W)`` -> ``(hidden_channels[-1], h, w)``.

    Each stage has a 3x3 convolution, a 3x3 max-pool that halves height and width (rounding up), and ``num_blocks``
    residual units of two 3x3 convolutions, each after its activation. 1-d and 3-d likewise.

    >>> ImpalaCnnBlock([(3, 64, 64)]).out_shapes
    [(32, 8, 8)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: Channels = (16, 32, 32),
        num_blocks: Annotated[int, Range(0, 1000)] = 2,
        activation: Activation = "relu",
    ) -> None:
        channels, *space = image_shape(in_shapes, "impala_cnn")
        if not hidden_channels:
            raise ValueError("impala_cnn needs at least one stage, got hidden_channels=[]")
        out_space = tuple(halved(size, len(hidden_channels)) for size in space)
        super().__init__(in_shapes, out_shapes=[(hidden_channels[-1], *out_space)])
        widths = itertools.pairwise([channels, *hidden_channels])
        self.stages = nn.ModuleList(
            ImpalaStage(n, m, len(space), num_blocks, activation) for n, m in widths
        )
        self.last_activations = make_activations(activation)

    def convolve(self, x_BC: Tensor) -> Tensor:
        for stage in self.stages:
            x_BC = stage(x_BC)
        return self.last_activations[0](x_BC)


class ImpalaStage(nn.Module):
    """A convolution, a max-pool and residual units over (B, channels, ...)."""

    def __init__(
        self, channels: int, hidden: int, dims: int, num_blocks: int, activation: Activation
    ) -> None:
        super().__init__()
        ones = (1,) * dims
        first = ConvPlan(channels, hidden, (3,) * dims, ones, ones, ((1, 1),) * dims, ())
        plan = dataclasses.replace(first, channels=hidden)
        self.conv = make_conv(first)
        self.convs = nn.ModuleList(make_conv(plan) for _ in range(2 * num_blocks))
        self.activations = make_activations(activation, len(self.convs))
        self.max_pool = POOLS[dims]

    def forward(self, x_BC: Tensor) -> Tensor:
        x_BC = self.max_pool(self.conv(x_BC), 3, 2, 1)
        shortcut = x_BC
        for index, (conv, activation) in enumerate(zip(self.convs, self.activations)):
            x_BC = conv(activation(x_BC))
            if index % 2:
                x_BC = shortcut = x_BC + shortcut
        return x_BC


@BLOCKS.register("res_conv")
class ResConvBlock(ConvBlock):
    """Residual units of two convolutions (ResNet, He et al., 2015): ``(C, H, W)`` -> ``(hidden_channels[-1], h, w)``.

    One unit per entry of ``hidden_channels``; its first convolution takes the stride, and an axis is padded so that
    only the stride makes it shorter. Where channels or sizes change, the shortcut is a 1x1 convolution. ``norm``
    "layer" puts a norm over channels and space after each convolution, "batch" one of each channel over the batch. 1-d
    and 3-d likewise.

    >>> ResConvBlock([(3, 64, 64)], hidden_channels=[16, 32], strides=[1, 2]).out_shapes
    [(32, 32, 32)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_channels: Channels,
        hidden_kernels: PerLayer = 3,
        strides: PerLayer = 1,
        activation: Activation = "relu",
        norm: Literal["none", "layer", "batch"] = "none",
    ) -> None:
        plans = plan_layers(
            "res_conv",
            image_shape(in_shapes, "res_conv"),
            hidden_channels,
            kernels=hidden_kernels,
            strides=strides,
            padding="same",
        )
        super().__init__(in_shapes, out_shapes=[(hidden_channels[-1], *plans[-1].out_space)])
        self.units = nn.ModuleList(ResidualUnit(plan, activation, norm) for plan in plans)

    def convolve(self, x_BC: Tensor) -> Tensor:
        for unit in self.units:
            x_BC = unit(x_BC)
        return x_BC


class ResidualUnit(nn.Module):
    """Two convolutions over (B, channels, ...) and a shortcut around them, added before the last activation."""

    def __init__(self, plan: ConvPlan, activation: Activation, norm: str) -> None:
        super().__init__()
        ones, no_padding = (1,) * len(plan.kernel), ((0, 0),) * len(plan.kernel)
        second = dataclasses.replace(plan, channels=plan.hidden, stride=ones)
        self.convs = nn.ModuleList([PaddedConv(plan), PaddedConv(second)])
        self.norms = batch_norms(norm, [plan.hidden] * 2)
        if norm == "layer":
            self.norms = nn.ModuleList(nn.GroupNorm(1, plan.hidden) for _ in range(2))
        self.shortcut = None
        if plan.channels != plan.hidden or plan.stride != ones:
            pointwise = dataclasses.replace(plan, kernel=ones, dilation=ones, padding=no_padding)
            self.shortcut = make_conv(pointwise)
        self.activations = make_activations(activation, 2)

    def forward(self, x_BC: Tensor) -> Tensor:
        shortcut = x_BC if self.shortcut is None else self.shortcut(x_BC)
        y_BC = self.activations[0](self._normed(0, self.convs[0](x_BC)))
        y_BC = self._normed(1, self.convs[1](y_BC))
        return self.activations[1](y_BC + shortcut)

    def _normed(self, index: int, x_BC: Tensor) -> Tensor:
        return x_BC if self.norms is None else self.norms[index](x_BC)


class PaddedConv(nn.Module):
    """The layer of ``plan``, padded before it where its two sides differ, as with a kernel of even size."""

    def __init__(self, plan: ConvPlan) -> None:
        super().__init__()
        self.conv = make_conv(plan)
        self.pad = None if plan.symmetric else plan.torch_pad

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.conv(x_BC if self.pad is None else functional.pad(x_BC, self.pad))


def halved(size: int | None, times: int) -> int | None:
    """What is left of an axis after it was halved, rounding up, so many times."""
    for _ in range(times):
        size = None if size is None else (size + 1) // 2
    return size
