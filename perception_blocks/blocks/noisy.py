"""Linear layers with learned noise on their weights, which explore in place of random actions."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.blocks.dense import DenseBlock, NormName
from perception_blocks.init import linear_layer
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Activation, OneOrMany, PositiveFloat, Probability

__all__ = ["NoisyDenseBlock", "NoisyLinear"]


class NoisyLinear(nn.Module):
    """A linear layer whose weights are ``mean + sigma * noise`` in train mode and ``mean`` in eval mode.

    The noise is factorised: one number per input and one per output, whose products give each weight its own. It is
    drawn anew at every forward, from torch's global generator, and is the same for the whole batch; nothing of it is
    kept. ``sigma`` (learned, per weight) starts at ``sigma / sqrt(features)``.
    """

    def __init__(self, features: int, units: int, bias: bool, sigma: float) -> None:
        super().__init__()
        self.mean = linear_layer(features, units, bias=bias)
        self.start = sigma / math.sqrt(features)
        self.weight_sigma = nn.Parameter(torch.full((units, features), self.start))
        self.bias_sigma = nn.Parameter(torch.full((units,), self.start)) if bias else None

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.fill_(self.start)

    def forward(self, x_F: Tensor) -> Tensor:
        if not self.training:
            return self.mean(x_F)
        sigma = self.weight_sigma
        noise_in, noise_out = _noise(sigma.shape[1], sigma), _noise(sigma.shape[0], sigma)
        weight = self.mean.weight + sigma * torch.outer(noise_out, noise_in)
        bias = self.mean.bias
        if self.bias_sigma is not None:
            bias = bias + self.bias_sigma * noise_out
        return functional.linear(x_F, weight, bias)


def _noise(size: int, like: Tensor) -> Tensor:
    """Normal numbers, each replaced by the root of its size with its sign kept."""
    normal = torch.randn(size, dtype=like.dtype, device=like.device)
    return normal.sign() * normal.abs().sqrt()


@BLOCKS.register("noisy_dense")
class NoisyDenseBlock(DenseBlock):
    """`DenseBlock` of noisy linear layers (NoisyNet, Fortunato et al., 2017): ``(F,)`` -> ``(hidden_units[-1],)``.

    In train mode every forward draws fresh noise from torch's global generator, the same for the whole batch (vmap
    then wants ``randomness="different"``); in eval mode there is none. ``sigma`` is the noise's initial strength, which
    is learned per weight. As a head it is ``{block: noisy_dense, hidden_units: n, last_activation: identity}``.

    >>> NoisyDenseBlock([(3,)], hidden_units=[8, 4]).out_shapes
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
        sigma: PositiveFloat = 0.5,
    ) -> None:
        self.layer = functools.partial(NoisyLinear, sigma=sigma)
        super().__init__(
            in_shapes,
            hidden_units=hidden_units,
            activation=activation,
            norm=norm,
            dropout=dropout,
            bias=bias,
            last_activation=last_activation,
        )
