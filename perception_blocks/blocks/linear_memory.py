"""Memory that is linear in its state, so that all steps are computed in log2(T) rounds in place of T.

``h_t = a_t * h_(t-1) + b_t`` where a and b depend on the input alone; at an episode's first step a is zero.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import make_activations
from perception_blocks.base_block import State, one_vector
from perception_blocks.blocks.recurrent_layers import check_dropout
from perception_blocks.blocks.windows import ParallelMemoryBlock
from perception_blocks.init import linear_layer, stacked_linear
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import LayerCount, PositiveInt, Probability, Range

__all__ = ["LruBlock", "MinGruBlock", "complex_scan", "real_scan"]

Phase = Annotated[float, Range(0.0, 2 * math.pi)]


@BLOCKS.register("min_gru")
class MinGruBlock(ParallelMemoryBlock):
    """Minimal gated recurrent unit (Feng et al., 2024): ``(F,)`` -> ``(hidden_units,)``, carrying ``h``.

    ``h_t = (1 - z_t) * h_(t-1) + z_t * c_t``, where gate z and candidate c depend on the input only. ``positive`` keeps
    candidates above zero, as in the paper's log-space form. ``dropout`` acts between layers, ``layer_norm`` on each
    layer's output.

    >>> MinGruBlock([(3,)], hidden_units=4, num_layers=2).state_shapes
    {'h': (2, 4)}
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_layers: LayerCount = 1,
        dropout: Probability = 0.0,
        layer_norm: bool = False,
        positive: bool = False,
    ) -> None:
        features = one_vector(in_shapes, "min_gru")
        check_dropout("min_gru", dropout, num_layers)
        super().__init__(in_shapes, out_shapes=[(hidden_units,)])
        sizes = [features, *[hidden_units] * (num_layers - 1)]
        self.layers = nn.ModuleList(stacked_linear(size, hidden_units, 2) for size in sizes)
        norms = (nn.LayerNorm(hidden_units) for _ in sizes)
        self.norms = nn.ModuleList(norms) if layer_norm else None
        self.passed_on = make_activations("identity", num_layers - 1)  # seen as hidden values
        self.dropout = dropout
        self.positive = positive
        self.state_shapes = {"h": (num_layers, hidden_units)}

    def scan(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        ends = []
        for index, layer in enumerate(self.layers):
            if index:
                x = functional.dropout(self.passed_on[index - 1](x), self.dropout, self.training)
            gate, candidate = layer(x).chunk(2, dim=-1)
            write = torch.sigmoid(gate)
            if self.positive:
                candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
            keep = forgotten(1 - write, resets)
            h = real_scan(keep, write * candidate, state["h"].select(-2, index))
            ends.append(h[..., -1, :])
            x = h if self.norms is None else self.norms[index](h)
        return x, {"h": torch.stack(ends, dim=-2)}


@BLOCKS.register("lru")
class LruBlock(ParallelMemoryBlock):
    """Linear recurrent unit (Orvieto et al., 2023): ``(F,)`` -> ``(hidden_units,)``, carrying ``real`` and ``imag``.

    ``h_t = a * h_(t-1) + g * B x_t`` with complex a and h, all in real arithmetic, and ``y_t = Re(C h_t) + D x_t``. The
    ``state_units`` (``hidden_units`` unless given) numbers a start in a ring: ``min_radius`` to ``max_radius`` wide
    (near 1 is long memory), up to ``max_phase`` radians around. It has no activation: put dense blocks between several.

    >>> LruBlock([(3,)], hidden_units=4, state_units=8).state_shapes
    {'real': (8,), 'imag': (8,)}
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        state_units: PositiveInt | None = None,
        min_radius: Probability = 0.0,
        max_radius: Probability = 1.0,
        max_phase: Phase = 2 * math.pi,
    ) -> None:
        features = one_vector(in_shapes, "lru")
        if min_radius > max_radius:
            raise ValueError(f"'min_radius' is {min_radius}, above 'max_radius' {max_radius}")
        super().__init__(in_shapes, out_shapes=[(hidden_units,)])
        units = state_units or hidden_units
        self.ring = (min_radius, max_radius, max_phase)
        # The paper's B (real parts, imaginary), C (the imaginary part negated) and D.
        self.inward = stacked_linear(features, units, 2, bias=False)
        self.outward = linear_layer(2 * units, hidden_units, bias=False)
        self.skip = linear_layer(features, hidden_units)
        self.log_decay = nn.Parameter(torch.zeros(units))  # |a| = exp(-exp(log_decay)) is below 1
        self.log_phase = nn.Parameter(torch.zeros(units))
        self.log_gain = nn.Parameter(torch.zeros(units))
        self.state_shapes = {"real": (units,), "imag": (units,)}
        self.reset_parameters()

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        low, high, phase = self.ring
        uniform = torch.rand(tensor.shape, generator=generator, device=generator.device)
        if name == "log_decay":  # uniform over the ring's area
            area = (low**2 + uniform * (high**2 - low**2)).clamp(1e-6, 1 - 1e-6)
            tensor.copy_(torch.log(-0.5 * torch.log(area)))
        elif name == "log_phase":
            tensor.copy_(torch.log((phase * uniform).clamp_min(1e-6)))

    def adjust_parameters(self) -> None:
        """The gain starts where white noise as input gives a state of the same size whatever the decay."""
        square = torch.exp(-2 * torch.exp(self.log_decay))
        self.log_gain.copy_(0.5 * torch.log1p(-square))

    def scan(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        radius, phase = torch.exp(-torch.exp(self.log_decay)), torch.exp(self.log_phase)
        a = (radius * torch.cos(phase), radius * torch.sin(phase))
        steps = x.shape[-2]
        a = tuple(forgotten(part.expand(steps, -1), resets) for part in a)
        b = (self.inward(x) * torch.exp(self.log_gain).repeat(2)).chunk(2, dim=-1)
        real, imag = complex_scan(a, b, (state["real"], state["imag"]))
        y = self.outward(torch.cat([real, imag], dim=-1)) + self.skip(x)
        return y, {"real": real[..., -1, :], "imag": imag[..., -1, :]}


def forgotten(keep: Tensor, resets: Tensor | None) -> Tensor:
    """``keep`` (..., T, N), zero where an episode begins."""
    return keep if resets is None else torch.where(resets.unsqueeze(-1), 0.0, keep)


def real_scan(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """``h_t = a_t * h_(t-1) + b_t`` for all t of (..., T, N), from ``start`` (..., N).

    Each round joins every step with the result that ends ``reach`` steps before it, which doubles its reach.
    """
    first = b[..., :1, :] + a[..., :1, :] * start.unsqueeze(-2)
    b = torch.cat([first, b[..., 1:, :]], dim=-2)
    reach, steps = 1, b.shape[-2]
    while reach < steps:
        now, before = a[..., reach:, :], a[..., :-reach, :]
        b = torch.cat([b[..., :reach, :], b[..., reach:, :] + now * b[..., :-reach, :]], dim=-2)
        a = torch.cat([a[..., :reach, :], now * before], dim=-2)
        reach *= 2
    return b


Complex = tuple[Tensor, ...]  # (real, imaginary)


def complex_scan(a: Complex, b: Complex, start: Complex) -> Complex:
    """`real_scan` of complex numbers as pairs of real and imaginary parts."""
    before = tuple(part.unsqueeze(-2) for part in start)
    begun = _plus_product(_steps(b, 0, 1), _steps(a, 0, 1), before)
    b = _joined(begun, _steps(b, 1, None))
    reach, steps = 1, b[0].shape[-2]
    while reach < steps:
        now = _steps(a, reach, None)
        more = _plus_product(_steps(b, reach, None), now, _steps(b, 0, -reach))
        b = _joined(_steps(b, 0, reach), more)
        a = _joined(_steps(a, 0, reach), _product(now, _steps(a, 0, -reach)))
        reach *= 2
    return b


def _steps(value: Complex, start: int, end: int | None) -> Complex:
    return tuple(part[..., start:end, :] for part in value)


def _joined(first: Complex, rest: Complex) -> Complex:
    return tuple(torch.cat(parts, dim=-2) for parts in zip(first, rest))


def _product(x: Complex, y: Complex) -> Complex:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def _plus_product(value: Complex, x: Complex, y: Complex) -> Complex:
    real, imag = _product(x, y)
    return value[0] + real, value[1] + imag
