"""Layers whose weights are stacks of several copies' weights, and what it takes to stack a whole network.

A block treats all leading axes alike. So a network runs for n copies at once if its values have one more leading axis,
the axis of the copies, and its layers with weights know which rows belong to which weights. The axis of the copies is
the first, also where a block has joined it with the axes that follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.base_block import block_label, is_built_in, is_traced
from perception_blocks.blocks.custom import FunctionalBlock
from perception_blocks.blocks.dense import FeatureBatchNorm
from perception_blocks.blocks.recurrent_layers import (
    Carry,
    GruLayer,
    LstmLayer,
    RecurrentLayer,
    RnnLayer,
    Weights,
)
from perception_blocks.lowering.code import Code, rule
from perception_blocks.lowering.rules import ANY_LEADING_AXES

__all__ = ["has_norms", "names_across", "stack_layers", "stacked_linear"]
__all__ += ["why_not_alike", "why_not_stacked"]


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(n, ..., F) -> (n, ..., units) by weights (n, units, F) and biases (n, units)."""
    copies = weight.shape[0]
    rows = x if x.dim() == 3 and x.shape[0] == copies else by_copy(x, copies, 1)
    across = weight.mT
    y = torch.bmm(rows, across) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, across)
    return y if rows is x else y.reshape(*x.shape[:-1], y.shape[-1])


def by_copy(x: Tensor, copies: int, rank: int) -> Tensor:
    """``x`` as (n, rows) + its last ``rank`` axes."""
    split = x.dim() - rank
    return x.reshape(copies, math.prod(x.shape[:split]) // copies, *x.shape[split:])


def scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, rank: int) -> Tensor:
    """``weight * y + bias``, both (n, ...) of ``rank`` axes more than the copies'."""
    if weight is None:
        return y
    rows = by_copy(y, weight.shape[0], rank)
    weight = weight.unsqueeze(1)
    rows = rows * weight if bias is None else torch.addcmul(bias.unsqueeze(1), rows, weight)
    return rows.reshape(y.shape)


class StackedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return stacked_linear(input, self.weight, self.bias)


class StackedLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return stacked_layer_norm(input, self.weight, self.bias, self.normalized_shape, self.eps)


def stacked_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float
) -> Tensor:
    return scaled(torch.layer_norm(x, shape, eps=eps), weight, bias, len(shape))


class StackedRMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return stacked_rms_norm(x, self.weight, self.normalized_shape, self.eps)


def stacked_rms_norm(
    x: Tensor, weight: Tensor | None, shape: tuple[int, ...], eps: float | None
) -> Tensor:
    return scaled(torch.rms_norm(x, shape, eps=eps), weight, None, len(shape))


class StackedPReLU(nn.PReLU):
    """With one slope for all features."""

    def forward(self, input: Tensor) -> Tensor:
        x = by_copy(input, self.weight.shape[0], 0)
        return torch.where(x >= 0, x, x * self.weight).reshape(input.shape)


class StackedEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        copies, size, _ = self.weight.shape
        first = torch.arange(copies, device=input.device) * size  # row of each copy
        places = by_copy(input, copies, 0) + first.unsqueeze(1)
        vectors = functional.embedding(places, self.weight.flatten(0, 1))
        return vectors.reshape(*input.shape, vectors.shape[-1])


class StackedBatchNorm(FeatureBatchNorm):
    """Each copy has the statistics of its own rows."""

    def forward(self, input: Tensor) -> Tensor:
        copies = self.weight.shape[0]
        rows = by_copy(input, copies, 1).transpose(0, 1).flatten(1)  # (rows, n * F)
        learns = self.training and rows.shape[0] > 1
        if learns:
            self.num_batches_tracked.add_(1)  # type: ignore[operator]
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        flat = [tensor.flatten() for tensor in tensors]  # type: ignore[union-attr]
        y = functional.batch_norm(rows, *flat, learns, self.momentum, self.eps)  # type: ignore[arg-type]
        return y.unflatten(1, (copies, -1)).transpose(0, 1).reshape(input.shape)


class StackedRecurrentLayer(RecurrentLayer):
    """One step of all copies at once; many steps copy by copy, by torch's fused kernels."""

    def step_with(self, x_F: Tensor, carry: Carry, weights: Weights) -> Carry:
        return self.cell(x_F, carry, weights, stacked_linear)

    def forward(self, x_TF: Tensor, carry: Carry | None) -> tuple[Tensor, Carry]:
        if is_traced():
            return self._stepwise(x_TF, carry)
        outputs, ends = [], []
        weights = zip(*(tensor.unbind(0) for tensor in self.all_weights_flat()))
        for place, copy_weights in enumerate(weights):
            start = None if carry is None else tuple(part[place] for part in carry)
            y_TF, end = self.over(x_TF[place], start, copy_weights)
            outputs.append(y_TF)
            ends.append(end)
        return torch.stack(outputs), tuple(map(torch.stack, zip(*ends)))


class StackedLstmLayer(StackedRecurrentLayer, LstmLayer):
    pass


class StackedGruLayer(StackedRecurrentLayer, GruLayer):
    pass


class StackedRnnLayer(StackedRecurrentLayer, RnnLayer):
    pass


_STACKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
    nn.RMSNorm: StackedRMSNorm,
    nn.PReLU: StackedPReLU,
    nn.Embedding: StackedEmbedding,
    FeatureBatchNorm: StackedBatchNorm,
    LstmLayer: StackedLstmLayer,
    GruLayer: StackedGruLayer,
    RnnLayer: StackedRnnLayer,
}
NARROW = 16  # units of a layer whose weights are best left as they are
_CONTAINERS = (nn.Module, nn.ModuleList, nn.ModuleDict, nn.Sequential)


def stack_layers(network: nn.Module) -> None:
    """Make every layer of ``network`` the stacked one of its kind; its tensors are then put in call by call."""
    for module in network.modules():
        module.__class__ = _STACKED.get(type(module), type(module))


def has_norms(network: nn.Module) -> bool:
    norms = (nn.LayerNorm, nn.RMSNorm, FeatureBatchNorm)
    return any(isinstance(module, norms) for module in network.modules())


def names_across(network: nn.Module) -> set[str]:
    """The weights of ``network`` that `stacked_linear` reads faster if they lie in memory as it multiplies them."""
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if isinstance(module, (nn.Linear, RecurrentLayer))
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 2 and len(parameter) >= NARROW
    }


def why_not_stacked(network: nn.Module) -> str | None:
    """What keeps copies of ``network`` from running as one; None where nothing does."""
    for name, module in network.named_modules():
        reason = _why_not(module)
        if reason is not None:
            return f"{block_label(module)} at {name!r} {reason}" if name else f"it {reason}"
    return None


def why_not_alike(networks: Sequence[nn.Module]) -> str | None:
    """What keeps ``networks`` from being copies of the first; None where they differ in the values of tensors alone."""
    first = _form(networks[0])
    for index, network in enumerate(networks[1:], start=1):
        for what, form in _form(network).items():
            if form != first[what]:
                return f"copy {index} has {what} than copy 0"
    return None


def _form(network: nn.Module) -> dict[str, list[object]]:
    """What copies have in common, by the words for a copy that differs in it."""
    modules = list(network.modules())
    registries = [tensors for m in modules for tensors in (m._parameters, m._buffers) if tensors]
    tensors = [tensor for some in registries for tensor in some.values() if tensor is not None]
    nodes = [node for m in modules for node in m.__dict__.get("nodes", ())]
    return {
        "other blocks": [*map(type, modules)],
        "other settings": [(node.step, node.settings) for node in nodes],
        "other hooks": [bool(m._forward_hooks or m._forward_pre_hooks) for m in modules],
        "another mode (train or eval)": [module.training for module in modules],
        "weights of other names": [[*some] for some in registries],
        "weights of other shapes": [tensor.shape for tensor in tensors],
        "weights of another dtype or device": [(t.dtype, t.device) for t in tensors],
        "other frozen weights": [tensor.requires_grad for tensor in tensors],
    }


def _why_not(module: nn.Module) -> str | None:
    if any(map(len, (module._forward_hooks, module._forward_pre_hooks))):
        return "has hooks"
    if type(module) in _STACKED:
        return None if _is_usual(module) else "has settings that are not stacked"
    if type(module) in _CONTAINERS or type(module) in ANY_LEADING_AXES:
        return None
    if not is_built_in(module) or hasattr(module, "copies"):
        return "has no stacked form"
    if isinstance(module, FunctionalBlock) and not _is_ours(module.function):
        return "may look at the batch axis"
    kept = [n for n in module._buffers if n not in module._non_persistent_buffers_set]
    return "has weights of its own" if module._parameters or kept else None


def _is_usual(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Embedding):
        return layer.padding_idx is None and layer.max_norm is None
    return not isinstance(layer, nn.PReLU) or layer.num_parameters == 1


def _is_ours(function: Callable) -> bool:
    return getattr(function, "__module__", "").startswith("perception_blocks.")


@rule(StackedLinear, fresh=True)
def _linear(code: Code, layer: StackedLinear, x: str) -> str:
    return code.call(
        stacked_linear, x, code.parameter(layer, "weight"), code.parameter(layer, "bias")
    )


@rule(StackedLayerNorm, fresh=True)
def _layer_norm(code: Code, norm: StackedLayerNorm, x: str) -> str:
    affine = code.parameter(norm, "weight"), code.parameter(norm, "bias")
    settings = map(code.constant, (norm.normalized_shape, norm.eps))
    return code.call(stacked_layer_norm, x, *affine, *settings)


@rule(StackedRMSNorm, fresh=True)
def _rms_norm(code: Code, norm: StackedRMSNorm, x: str) -> str:
    settings = map(code.constant, (norm.normalized_shape, norm.eps))
    return code.call(stacked_rms_norm, x, code.parameter(norm, "weight"), *settings)
