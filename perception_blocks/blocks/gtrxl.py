"""A transformer that remembers: attention over what each layer read in the last steps, with gates in place of sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import make_activations
from perception_blocks.base_block import State, one_vector
from perception_blocks.blocks.features import sinusoids
from perception_blocks.blocks.precision import wide_product
from perception_blocks.blocks.windows import ParallelMemoryBlock, episodes, last_of_episode
from perception_blocks.init import linear_layer, stacked_linear
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import LayerCount, PositiveInt

__all__ = ["GtrxlBlock"]


@BLOCKS.register("gtrxl")
class GtrxlBlock(ParallelMemoryBlock):
    """Gated transformer-XL (Parisotto et al., 2019): ``(F,)`` -> ``(hidden_units,)``.

    Each layer attends to what it read at this step and at the ``memory_length`` steps before, as far as they belong to
    the episode; positions are distances. The state holds them per layer (``memory``) and which of them exist
    (``filled``). Gates start almost closed by ``gate_bias``, so that at first the network reacts rather than remembers.
    ``feedforward_units`` is ``4 * hidden_units`` unless given.

    >>> GtrxlBlock([(3,)], hidden_units=8, num_heads=2, memory_length=16).state_shapes
    {'memory': (2, 16, 8), 'filled': (16,)}
    """

    distances: Tensor

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_layers: LayerCount = 2,
        num_heads: PositiveInt = 4,
        memory_length: PositiveInt = 32,
        feedforward_units: PositiveInt | None = None,
        gate_bias: float = 2.0,
    ) -> None:
        features = one_vector(in_shapes, "gtrxl")
        if hidden_units % num_heads:
            raise ValueError(
                f"gtrxl with hidden_units={hidden_units} cannot have num_heads={num_heads}: "
                "each head takes an equal share of the units"
            )
        super().__init__(in_shapes, out_shapes=[(hidden_units,)])
        inner = feedforward_units or 4 * hidden_units
        self.stem = linear_layer(features, hidden_units)
        self.layers = nn.ModuleList(
            GtrxlLayer(hidden_units, num_heads, inner, gate_bias) for _ in range(num_layers)
        )
        self.memory_length = memory_length
        distances = torch.zeros(memory_length + 1, hidden_units)
        self.register_buffer("distances", distances, persistent=False)
        self.fill_constants()
        memory = (num_layers, memory_length, hidden_units)
        self.state_shapes = {"memory": memory, "filled": (memory_length,)}

    def fill_constants(self) -> None:
        if not self.distances.is_meta:
            table = sinusoids(*self.distances.shape, device=torch.device("cpu"))
            self.distances.copy_(table.flip(0))  # the farthest first, as the memory has them

    def scan(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        past, steps = self.memory_length, x.shape[-2]
        filled = torch.cat([state["filled"], x.new_ones(x.shape[:-1])], dim=-1)
        visible = (filled > 0.5).unsqueeze(-2) & band(steps, past, x.device)
        kept = None
        if resets is not None:
            episode = episodes(resets, past)
            visible = visible & (episode[..., past:].unsqueeze(-1) == episode.unsqueeze(-2))
            kept = last_of_episode(episode, past)
        h, memories = self.stem(x), []
        for index, layer in enumerate(self.layers):
            read = torch.cat([state["memory"].select(-3, index), h], dim=-2)
            memories.append(read[..., steps:, :])
            h = layer(read, visible, self.distances)
        memory, filled = torch.stack(memories, dim=-3), filled[..., steps:]
        if kept is not None:
            memory = torch.where(kept.unsqueeze(-2).unsqueeze(-1), memory, 0.0)
            filled = torch.where(kept, filled, 0.0)
        return h, {"memory": memory, "filled": filled}


class GtrxlLayer(nn.Module):
    """Norm, attention, gate; norm, two linear layers, gate."""

    def __init__(self, units: int, heads: int, inner: int, gate_bias: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(units)
        self.attention = RelativeAttention(units, heads)
        self.attention_gate = Gate(units, gate_bias)
        self.feedforward_norm = nn.LayerNorm(units)
        self.wide = linear_layer(units, inner)
        self.narrow = linear_layer(inner, units)
        self.feedforward_gate = Gate(units, gate_bias)
        self.activations = make_activations("relu", 3)

    def forward(self, read: Tensor, visible: Tensor, distances: Tensor) -> Tensor:
        """``read`` (..., past + T, F), ``visible`` (..., T, past + T) -> (..., T, F)."""
        h = read[..., read.shape[-2] - visible.shape[-2] :, :]
        seen = self.attention(self.attention_norm(read), visible, distances)
        after_attention, after_wide, after_narrow = self.activations
        h = self.attention_gate(h, after_attention(seen))
        thought = self.narrow(after_wide(self.wide(self.feedforward_norm(h))))
        return self.feedforward_gate(h, after_narrow(thought))


class RelativeAttention(nn.Module):
    """Attention whose scores depend on contents and on the distance in time (transformer-XL, Dai et al., 2019).

    Written out: torch's fused kernels take no scores that are trained.
    """

    def __init__(self, units: int, heads: int) -> None:
        super().__init__()
        self.shares = (heads, units // heads)
        self.queries = linear_layer(units, units, bias=False)
        self.keys_values = stacked_linear(units, units, 2, bias=False)
        self.positions = linear_layer(units, units, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, 1, units // heads))
        self.position_bias = nn.Parameter(torch.zeros(heads, 1, units // heads))
        self.last = linear_layer(units, units)

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.zero_()

    def forward(self, read: Tensor, visible: Tensor, distances: Tensor) -> Tensor:
        steps = visible.shape[-2]
        queries = self._heads(self.queries(read[..., read.shape[-2] - steps :, :]))
        keys, values = map(self._heads, self.keys_values(read).chunk(2, dim=-1))
        positions = self._heads(self.positions(distances))
        by_content = wide_product(queries + self.content_bias, keys.transpose(-2, -1))
        by_distance = wide_product(queries + self.position_bias, positions.transpose(-2, -1))
        scores = (by_content + shifted(by_distance)) / math.sqrt(self.shares[1])
        weights = scores.masked_fill(~visible.unsqueeze(-3), -math.inf).softmax(dim=-1)
        weights = weights.to(values.dtype)
        return self.last((weights @ values).transpose(-3, -2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        """(..., T, F) -> (..., heads, T, share)."""
        return x.unflatten(-1, self.shares).transpose(-3, -2)


class Gate(nn.Module):
    """How much of ``new`` enters ``old``, as in a gated recurrent unit; the higher ``bias``, the less at first."""

    def __init__(self, units: int, bias: float) -> None:
        super().__init__()
        self.start = bias
        self.of_new = stacked_linear(units, units, 3, bias=False)
        self.of_old = stacked_linear(units, units, 2, bias=False)
        self.of_kept = linear_layer(units, units, bias=False)
        self.bias = nn.Parameter(torch.full((units,), bias))

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.fill_(self.start)

    def forward(self, old: Tensor, new: Tensor) -> Tensor:
        new_keep, new_write, new_content = self.of_new(new).chunk(3, dim=-1)
        old_keep, old_write = self.of_old(old).chunk(2, dim=-1)
        kept = torch.sigmoid(new_keep + old_keep) * old
        write = torch.sigmoid(new_write + old_write - self.bias)
        content = torch.tanh(new_content + self.of_kept(kept))
        return old + write * (content - old)


def band(steps: int, past: int, device: torch.device) -> Tensor:
    """(T, past + T), true where a step looks: at itself and at the ``past`` places before it."""
    places = torch.arange(past + steps, device=device)
    ahead = places - torch.arange(steps, device=device).unsqueeze(-1)
    return (ahead >= 0) & (ahead <= past)


def shifted(x: Tensor) -> Tensor:
    """(..., T, past + 1) -> (..., T, past + T): row t moved t places to the right, zeros beside it."""
    steps, width = x.shape[-2:]
    total = steps + width - 1
    # Each row is padded to one more than the result's width, so that reading on by that width moves it one further.
    flat = functional.pad(x, (0, steps)).flatten(-2)
    return flat[..., : steps * total].unflatten(-1, (steps, total))
