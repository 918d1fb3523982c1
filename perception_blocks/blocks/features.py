"""Blocks that tell a network what plain numbers hide: frequencies of a value, places in a sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from perception_blocks.base_block import PerceptionBlock, one_input, one_vector
from perception_blocks.blocks.precision import wide_product
from perception_blocks.port import InputShapeError, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveFloat, PositiveInt

__all__ = ["FourierFeaturesBlock", "PositionalEncodingBlock", "sinusoids"]


@BLOCKS.register("fourier_features")
class FourierFeaturesBlock(PerceptionBlock):
    """Cosines and sines of random projections: ``(F,)`` -> ``(2 * num_frequencies,)``.

    The frequencies are normal with standard deviation ``scale``, in turns per unit of the input (random Fourier
    features, Rahimi and Recht, 2007; Tancik et al., 2020). They are drawn once with the weights and fixed, or trained
    with ``learned`` (Li and Pathak, 2021). ``include_input`` puts the input itself in front.

    >>> FourierFeaturesBlock([(3,)], num_frequencies=8, include_input=True).out_shapes
    [(19,)]
    """

    drawn_buffers = ("frequencies",)
    frequencies: Tensor

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_frequencies: PositiveInt = 64,
        scale: PositiveFloat = 1.0,
        learned: bool = False,
        include_input: bool = False,
    ) -> None:
        features = one_vector(in_shapes, "fourier_features")
        extra = features if include_input else 0
        super().__init__(in_shapes, out_shapes=[(2 * num_frequencies + extra,)])
        self.scale = scale
        self.include_input = include_input
        frequencies = torch.zeros(num_frequencies, features)
        if learned:
            self.frequencies = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies)
        self.reset_parameters()

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        nn.init.normal_(tensor, std=self.scale, generator=generator)

    def forward(self, x_F: Tensor) -> Tensor:
        angles = wide_product(x_F, self.frequencies.transpose(0, 1)) * (2 * math.pi)
        parts = [torch.cos(angles).to(x_F.dtype), torch.sin(angles).to(x_F.dtype)]
        return torch.cat([x_F, *parts] if self.include_input else parts, dim=-1)


@BLOCKS.register("positional_encoding")
class PositionalEncodingBlock(PerceptionBlock):
    """A sequence plus a vector for each position: ``(T, F)`` -> ``(T, F)``.

    The vectors are sines and cosines of falling frequency (Vaswani et al., 2017), or with ``learned`` they are trained.
    Learned vectors exist for ``max_length`` positions, by default the length of the sequence.

    >>> PositionalEncodingBlock([(None, 6)]).out_shapes
    [(None, 6)]
    """

    keeps_mask = True
    places: Tensor | None

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        learned: bool = False,
        max_length: PositiveInt | None = None,
    ) -> None:
        shape = one_input(in_shapes, "positional_encoding")
        length, features = shape if len(shape) == 2 else (None, None)
        if features is None:
            rule = "positional_encoding takes a sequence (time, features) of known features"
            raise InputShapeError(rule, {0: shape})
        super().__init__(in_shapes, out_shapes=[shape])
        if learned:
            self.places = nn.Parameter(torch.zeros(_longest(length, max_length), features))
            self.reset_parameters()
            return
        if max_length is not None:
            raise ValueError("'max_length' is for learned places; set learned or leave it out")
        table = None if length is None else torch.zeros(length, features)
        self.register_buffer("places", table, persistent=False)
        self.fill_constants()

    def fill_constants(self) -> None:
        if self.places is None or isinstance(self.places, nn.Parameter):
            return
        if not self.places.is_meta:
            self.places.copy_(sinusoids(*self.places.shape, device=torch.device("cpu")))

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        nn.init.normal_(tensor, std=0.02, generator=generator)

    def forward(self, x_TF: Tensor) -> Tensor:
        if self.places is None:
            places = sinusoids(*x_TF.shape[-2:], device=x_TF.device)
            return x_TF + places.to(x_TF.dtype)
        return x_TF + self.places[: x_TF.shape[-2]]


def sinusoids(length: int, features: int, *, device: torch.device) -> Tensor:
    """(length, features): feature 2i is ``sin(place / 10000^(2i / features))``, feature 2i + 1 its cosine."""
    place = torch.arange(length, dtype=torch.float32, device=device).unsqueeze(-1)
    even = torch.arange(0, features, 2, dtype=torch.float32, device=device)
    angles = place * torch.exp(even * (-math.log(10000.0) / features))
    both = torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1)
    return both.flatten(-2)[..., :features]


def _longest(length: int | None, max_length: int | None) -> int:
    """The number of places to learn."""
    if length is None and max_length is None:
        raise ValueError(
            "positional_encoding with learned places needs 'max_length' where the length varies"
        )
    if length is not None and max_length is not None and max_length < length:
        raise ValueError(f"'max_length' is {max_length}, the sequence has {length} steps")
    return max_length or length  # type: ignore[return-value]
