"""Layers of a causal transformer: norms, attention with shared keys and values, linear layers.

A layer knows no cache: which keys a query sees is an `Attending`'s work. Modules have llama's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import make_activations
from perception_blocks.blocks.key_value_cache import Attending
from perception_blocks.blocks.rotary import rotated
from perception_blocks.init import linear_layer
from perception_blocks.settings import Activation

__all__ = ["DecoderLayer", "LayerForm", "NormName", "make_norm"]

NormName: TypeAlias = Literal["rms", "rms_plus_one", "layer"]
Angles: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerForm:
    """What all layers of a decoder have in common."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_units: int
    gated: bool
    activation: Activation
    norm: NormName
    eps: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool


class DecoderLayer(nn.Module):
    """Norm and attention, norm and two linear layers (three if gated), over (n, T, width); names as in llama."""

    def __init__(self, form: LayerForm, index: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(form)
        self.self_attn = GroupedAttention(form, index)
        self.post_attention_layernorm = make_norm(form)
        self.mlp = Feedforward(form)

    def forward(self, x: Tensor, angles: Angles | None, attending: Attending) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, attending)
        return x + self.mlp(self.post_attention_layernorm(x))


class GroupedAttention(nn.Module):
    """Attention in which ``num_heads / num_kv_heads`` heads share keys and values (Ainslie et al., 2023)."""

    def __init__(self, form: LayerForm, index: int) -> None:
        super().__init__()
        queries, keys = form.num_heads * form.head_dim, form.num_kv_heads * form.head_dim
        self.q_proj = linear_layer(form.width, queries, bias=form.qkv_bias)
        self.k_proj = linear_layer(form.width, keys, bias=form.qkv_bias)
        self.v_proj = linear_layer(form.width, keys, bias=form.qkv_bias)
        self.o_proj = linear_layer(queries, form.width, bias=form.out_bias)
        self.head_dim = form.head_dim
        self.index = index

    def forward(self, x: Tensor, angles: Angles | None, attending: Attending) -> Tensor:
        queries, keys = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        if angles is not None:
            queries, keys = rotated(queries, *angles), rotated(keys, *angles)
        y = attending.attend(self.index, queries, keys, self._heads(self.v_proj(x)))
        return self.o_proj(y.transpose(-3, -2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        """(n, T, heads * D) -> (n, heads, T, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)


class Feedforward(nn.Module):
    """``down(activation(up(x)))``, or gated ``down(activation(gate(x)) * up(x))``."""

    def __init__(self, form: LayerForm) -> None:
        super().__init__()
        gate = linear_layer(form.width, form.mlp_units, bias=form.mlp_bias) if form.gated else None
        self.gate_proj = gate
        self.up_proj = linear_layer(form.width, form.mlp_units, bias=form.mlp_bias)
        self.down_proj = linear_layer(form.mlp_units, form.width, bias=form.mlp_bias)
        self.activations = make_activations(form.activation)

    def forward(self, x: Tensor) -> Tensor:
        activation = self.activations[0]
        if self.gate_proj is None:
            return self.down_proj(activation(self.up_proj(x)))
        return self.down_proj(activation(self.gate_proj(x)) * self.up_proj(x))


class PlusOneNorm(nn.Module):
    """RMS norm whose weight is the distance to one, as in gemma."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps)
        return y.to(x.dtype)


def make_norm(form: LayerForm) -> nn.Module:
    if form.norm == "layer":
        return nn.LayerNorm(form.width, eps=form.eps)
    kind = nn.RMSNorm if form.norm == "rms" else PlusOneNorm
    return kind(form.width, eps=form.eps)
