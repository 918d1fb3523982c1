"""The value head of an action model: a network over the features of a token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perception_blocks.init import local_generator
from perception_blocks.words import did_you_mean, listing

__all__ = ["ValueHead"]

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}


class ValueHead(nn.Module):
    """Linear layers with ``activation`` between them: ``(F,)`` -> ``(output_dim,)``.

    Hidden weights are drawn as kaiming_normal has it by fan-out (gelu as relu), the last ones with a standard deviation
    of 0.02, biases are zero.

    >>> ValueHead(8, hidden_sizes=[4])(torch.zeros(2, 8)).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_sizes: Sequence[int] = (512, 128),
        output_dim: int = 1,
        activation: str = "gelu",
        bias_last: bool = False,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            near = did_you_mean(str(activation), _ACTIVATIONS)
            raise ValueError(
                f"'activation' must be one of {listing(_ACTIVATIONS)}, got {activation!r}{near}"
            )
        self.activation = activation
        sizes = [input_dim, *hidden_sizes]
        layers: list[nn.Module] = []
        for size, next_size in itertools.pairwise(sizes):
            layers += [nn.Linear(size, next_size), _ACTIVATIONS[activation]()]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], output_dim, bias=bias_last))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, seed: int | None = None) -> None:
        """Draw the weights: each by ``seed`` and its name, or from torch's global generator."""
        layers = [(n, m) for n, m in self.mlp.named_children() if isinstance(m, nn.Linear)]
        gain = nn.init.calculate_gain("tanh" if self.activation == "tanh" else "relu")
        for name, layer in layers:
            is_last = layer is layers[-1][1]
            std = 0.02 if is_last else gain / layer.out_features**0.5
            if not layer.weight.is_meta:
                generator = None if seed is None else local_generator(seed, f"mlp.{name}.weight")
                drawn = torch.empty(layer.weight.shape).normal_(0.0, std, generator=generator)
                layer.weight.copy_(drawn)
            if layer.bias is not None and not layer.bias.is_meta:
                layer.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features.to(self.mlp[-1].weight.dtype))  # type: ignore[arg-type]
