"""What layers and blocks compute, as rules for `Code`; all others run the forward of their class."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.activations import Function
from perception_blocks.base_block import MemoryBlock
from perception_blocks.blocks.combine import ConcatBlock
from perception_blocks.blocks.conv import (
    NatureCnnBlock,
    NatureCnnDenseBlock,
    StridedConvBlock,
    StridedConvDenseBlock,
    VggConvBlock,
    VggConvDenseBlock,
)
from perception_blocks.blocks.dense import DenseBlock, FlattenDenseBlock, LinearOutputBlock
from perception_blocks.blocks.embed import EmbeddingBlock
from perception_blocks.blocks.heads import (
    CategoricalValueBlock,
    DuelingBlock,
    QuantileValueBlock,
    ValueBlock,
)
from perception_blocks.blocks.noisy import NoisyDenseBlock
from perception_blocks.blocks.recurrent import GruBlock, LstmBlock, RecurrentBlock, RnnBlock
from perception_blocks.blocks.recurrent_layers import RecurrentLayer
from perception_blocks.blocks.reshape import FlattenBlock
from perception_blocks.blocks.residual_dense import BronetPair, ResidualDenseBlock, SimbaPair
from perception_blocks.lowering.code import Code, children, fresh, rule

__all__ = ["ANY_LEADING_AXES", "activated", "memory_call", "step_of"]

States: TypeAlias = dict[str, str]  # the block's own name of a part of the state -> its expression
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")

# Torch's layers that treat all leading axes alike; other modules are given exactly one batch axis.
ANY_LEADING_AXES = {nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.Dropout}
ANY_LEADING_AXES |= {nn.ELU, nn.GELU, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.SELU, nn.Sigmoid, nn.SiLU}
ANY_LEADING_AXES |= {nn.Softplus, nn.Tanh}

_LINEAR = torch._C._nn.linear  # type: ignore[attr-defined]
# The same without a Python function around it.
_SHORTER: dict[object, Callable[..., Tensor]] = {
    functional.elu: torch._C._nn.elu,  # type: ignore[attr-defined]
    functional.gelu: torch._C._nn.gelu,  # type: ignore[attr-defined]
    functional.leaky_relu: torch._C._nn.leaky_relu,  # type: ignore[attr-defined]
    functional.silu: torch._C._nn.silu,  # type: ignore[attr-defined]
}
_FULL = (torch.float32, torch.float64)  # where torch.addmv adds up as torch's linear does


def _takes_addmv(x: Tensor, bias: Tensor | None) -> bool:
    """Whether ``torch.addmv`` is a linear layer of the vector ``x``, in half the time."""
    return (
        type(x) is Tensor and x.dtype in _FULL and bias is not None
        and not torch.is_grad_enabled() and not torch._C._is_any_autocast_enabled()
    )  # fmt: skip


_IN_PLACE: dict[object, Callable[..., Tensor]] = {
    torch.relu: torch.relu_,
    torch.sigmoid: torch.sigmoid_,
    torch.tanh: torch.tanh_,
}


def activated(code: Code, activation: Function, x: str, may_overwrite: bool) -> str:
    """``activation`` (a function, or a module) of ``x``."""
    if isinstance(activation, nn.Module):
        return code.apply(activation, x)
    known = isinstance(activation, Hashable)
    if known and may_overwrite and activation in _IN_PLACE:
        return code.call(_IN_PLACE[activation], x)
    return code.call(_SHORTER.get(activation, activation) if known else activation, x)


@rule(nn.Linear, fresh=True)
def _linear(code: Code, layer: nn.Linear, x: str) -> str | None:
    if not _holds(layer, "weight", "bias"):
        return None
    x = code.variable(x)
    weight, bias = code.parameter(layer, "weight"), code.parameter(layer, "bias")
    vector = f"{x}.dim() == 1 and {code.call(_takes_addmv, x, bias)}"
    by_vector = code.call(torch.addmv, bias, weight, x)
    return f"({by_vector} if {vector} else {code.call(_LINEAR, x, weight, bias)})"


@rule(nn.LayerNorm, fresh=True)
def _layer_norm(code: Code, norm: nn.LayerNorm, x: str) -> str | None:
    if not _holds(norm, "weight", "bias"):
        return None
    affine = code.parameter(norm, "weight"), code.parameter(norm, "bias")
    shape, eps = code.attribute(norm, "normalized_shape"), code.attribute(norm, "eps")
    return code.call(torch.layer_norm, x, shape, *affine, eps)


@rule(nn.RMSNorm, fresh=True)
def _rms_norm(code: Code, norm: nn.RMSNorm, x: str) -> str | None:
    if not _holds(norm, "weight"):
        return None
    shape, eps = code.attribute(norm, "normalized_shape"), code.attribute(norm, "eps")
    return code.call(torch.rms_norm, x, shape, code.parameter(norm, "weight"), eps)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, fresh=True)
def _conv(code: Code, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: str) -> str | None:
    if not _holds(conv, "weight", "bias"):
        return None
    weights = code.parameter(conv, "weight"), code.parameter(conv, "bias")
    return code.call(conv._conv_forward, x, *weights)


@rule(nn.Sequential)
def _sequential(code: Code, sequence: nn.Sequential, x: str) -> str:
    code.guard.watch_children(sequence)
    for module in children(sequence):
        x = code.variable(code.apply(module, x))
    return x


@rule(DenseBlock, NoisyDenseBlock)
def _dense(code: Code, block: DenseBlock, x: str) -> str:
    norms = None if block.norms is None else code.list_of(block, "norms")
    activations = _activations(code, block)
    for index, layer in enumerate(code.list_of(block, "linears")):
        last = layer
        x = code.apply(layer, x)
        if norms is not None:
            last = norms[index]
            x = code.apply(last, x)
        x = activated(code, activations[index], x, fresh(last))
        if block.dropout:
            share, training = code.constant(block.dropout), code.training(block)
            x = code.call(torch.dropout, x, share, training)
        x = code.variable(x)
    return x


@rule(FlattenDenseBlock)
def _flatten_dense(code: Code, block: FlattenDenseBlock, x: str) -> str:
    flat = f"{x}.flatten({-block.rank})" if block.rank else f"{x}.unsqueeze(-1)"
    return code.apply(code.child(block, "dense"), flat)


@rule(LinearOutputBlock)
def _linear_output(code: Code, block: LinearOutputBlock, x: str) -> str:
    y = code.apply(code.child(block, "linear"), x)
    many = len(block.output_shape) != 1
    return f"{y}.unflatten(-1, {code.constant(block.output_shape)})" if many else y


@rule(ValueBlock, QuantileValueBlock, CategoricalValueBlock)
def _value(code: Code, block: ValueBlock, x: str) -> str:
    return code.apply(code.child(block, "head"), x)


@rule(DuelingBlock)
def _dueling(code: Code, block: DuelingBlock, x: str) -> str:
    advantage = code.variable(code.apply(code.child(block, "advantage"), x))
    value = code.apply(code.child(block, "value"), x)
    baseline = "mean" if block.from_mean else "amax"
    return f"{value} + {advantage} - {advantage}.{baseline}(-1, True)"


@rule(StridedConvBlock, VggConvBlock, NatureCnnBlock)
def _convolutions(code: Code, block: Any, x: str) -> str:
    rank = code.constant(len(block.in_shapes[0]))
    pads = getattr(block, "pads", None)
    norms = code.list_of(block, "norms") if getattr(block, "norms", None) else None
    activations = _activations(code, block)
    y = code.call(to_batch, x, rank)
    y = code.variable(f"{y}.movedim(-1, 1)" if block.channels_last else y)
    for index, conv in enumerate(code.list_of(block, "convs")):
        if pads is not None and pads[index] is not None:
            y = code.call(functional.pad, y, *map(code.constant, (pads[index], block.pad_mode)))
        last, y = conv, code.apply(conv, y)
        if norms is not None:
            last, y = norms[index], code.apply(norms[index], y)
        y = activated(code, activations[index], y, fresh(last))
        if isinstance(block, VggConvBlock) and index % 2:
            y = code.call(block.max_pool, y, "2")
        y = code.variable(y)
    return code.call(from_batch, y, x, rank)


@rule(StridedConvDenseBlock, VggConvDenseBlock, NatureCnnDenseBlock)
def _conv_dense(code: Code, block: nn.Module, x: str) -> str:
    y = code.variable(code.apply(code.child(block, "conv"), x))
    return code.apply(code.child(block, "flatten_dense"), y)


@rule(ResidualDenseBlock)
def _residual_dense(code: Code, block: ResidualDenseBlock, x: str) -> str:
    x = code.apply(code.child(block, "stem"), x)
    if block.stem_norm is not None:
        norm = code.child(block, "stem_norm")
        x = _activation_after(code, block, "stem_activation", norm, code.apply(norm, x))
    x = code.variable(x)
    for pair in code.list_of(block, "pairs"):
        x = code.variable(code.apply(pair, x))
    return x if block.last_norm is None else code.apply(code.child(block, "last_norm"), x)


@rule(SimbaPair)
def _simba_pair(code: Code, pair: SimbaPair, x: str) -> str:
    wide = code.child(pair, "wide")
    h = code.apply(wide, code.apply(code.child(pair, "norm"), x))
    h = _activation_after(code, pair, "activation", wide, h)
    return f"{x} + {code.apply(code.child(pair, 'narrow'), h)}"


@rule(BronetPair)
def _bronet_pair(code: Code, pair: BronetPair, x: str) -> str:
    norm = code.child(pair, "wide_norm")
    h = code.apply(norm, code.apply(code.child(pair, "wide"), x))
    h = code.apply(code.child(pair, "narrow"), _activation_after(code, pair, "activation", norm, h))
    return f"{x} + {code.apply(code.child(pair, 'narrow_norm'), h)}"


@rule(ConcatBlock)
def _concat(code: Code, block: ConcatBlock, *inputs: str) -> str:
    return code.call(torch.cat, f"({', '.join(inputs)},)", code.constant(block.dim))


@rule(FlattenBlock)
def _flatten(code: Code, block: FlattenBlock, x: str) -> str:
    return f"{x}.flatten({-block.num_dims})" if block.num_dims else f"{x}.unsqueeze(-1)"


@rule(EmbeddingBlock)
def _embedding(code: Code, block: EmbeddingBlock, x: str) -> str:
    x = x if block.starts is None else f"{x} + {code.buffer(block, 'starts')}"
    return code.apply(code.child(block, "table"), x)


def _activations(code: Code, block: nn.Module, name: str = "activations") -> list[Function]:
    """The activations of ``block``, functions or modules."""
    activations = getattr(block, name)
    return (
        code.list_of(block, name) if isinstance(activations, nn.ModuleList) else list(activations)
    )


def _activation_after(code: Code, block: nn.Module, name: str, last: nn.Module, x: str) -> str:
    (activation,) = _activations(code, block, name)
    return activated(code, activation, x, fresh(last))


def _holds(module: nn.Module, *names: str) -> bool:
    """Whether these are parameters of ``module`` (or None), and not computed or assigned as something else."""
    return all(name in module._parameters for name in names)


def to_batch(x: Tensor, rank: int) -> Tensor:
    """All leading axes as one; ``rank`` axes are features."""
    return x if x.dim() == rank + 1 else x.reshape(-1, *x.shape[-rank:])


def from_batch(y: Tensor, x: Tensor, rank: int) -> Tensor:
    """``y`` with the leading axes of ``x``."""
    return y if x.dim() == rank + 1 else y.reshape(*x.shape[:-rank], *y.shape[1:])


def step_of(code: Code, block: MemoryBlock, x: str, state: Mapping[str, str]) -> tuple[str, States]:
    """Output and state after one step; the code has a variable ``resets``."""
    if type(block) not in (LstmBlock, GruBlock, RnnBlock) or not code.runs(block):
        return memory_call(code, block, x, state, unroll=False)
    assert isinstance(block, RecurrentBlock)
    cleared = {}
    for name, part in state.items():
        rank = code.constant(len(block.state_shapes[name]))
        cleared[name] = code.variable(code.call(zeroed_part, part, "resets", rank))
    return _recurrent(code, block, x, cleared)


def memory_call(
    code: Code, block: MemoryBlock, x: str, state: Mapping[str, str], unroll: bool
) -> tuple[str, States]:
    """Output and state of the block's own forward."""
    call = code.forward_of if code.runs(block) else code.call_as_it_is
    output, after = code.variables(2)
    code.lines.append(
        f"{output}, {after} = {call(block, x, code.mapping(state), 'resets', str(unroll))}"
    )
    return output, {name: f"{after}[{code.constant(name)}]" for name in state}


def zeroed_part(value: Tensor, resets: Tensor | None, rank: int) -> Tensor:
    """``value`` (...) + its ``rank`` axes with zeros where ``resets`` (...) is true."""
    if resets is None:
        return value
    return torch.where(resets.reshape(*resets.shape, *[1] * rank), 0.0, value)


def _recurrent(code: Code, block: RecurrentBlock, x: str, state: States) -> tuple[str, States]:
    norms = None if block.norms is None else code.list_of(block, "norms")
    ends: list[list[str]] = []
    for index, layer in enumerate(code.list_of(block, "layers")):
        assert isinstance(layer, RecurrentLayer)
        if index:
            training, share = code.training(block), code.constant(block.dropout)
            x = code.variable(code.call(torch.dropout, x, share, training))
        carry = [f"{state[name]}.select(-2, {index})" for name in block.carried]
        ends.append(code.variables(len(carry)))
        code.lines.append(f"{', '.join(ends[-1])}, = {_layer_step(code, layer, x, carry)}")
        x = ends[-1][0] if norms is None else code.variable(code.apply(norms[index], ends[-1][0]))
    after = {}
    for name, parts in zip(block.carried, zip(*ends)):
        stacked = code.call(torch.stack, f"({', '.join(parts)})", "-2")
        after[name] = f"{parts[0]}.unsqueeze(-2)" if len(parts) == 1 else stacked
    return x, after


def _layer_step(code: Code, layer: RecurrentLayer, x: str, carry: list[str]) -> str:
    carried = f"({', '.join(carry)},)"
    if not code.runs(layer):
        code.calls(layer)
        return f"{code.constant(layer)}.step({x}, {carried})"
    weights = ", ".join(code.parameter(layer, name) for name in WEIGHTS)
    return code.call(layer.step_with, x, carried, f"({weights})")
