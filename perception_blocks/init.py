"""Initial weights by name, and from a seed: each depends only on the seed and on the parameter's own name.

An initialiser is a function ``(tensor, generator, **settings)`` that fills a weight in place; tensors of one axis
(biases, scales) are not its business. Numbers are drawn on the CPU in float32, so a weight is the same on every device.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from perception_blocks.random_states import random_states_kept
from perception_blocks.registry import INITIALIZERS
from perception_blocks.settings import SettingsError, check_settings

__all__ = ["Rule", "default", "derive_seed", "draw_in_a_copy", "draw_parameters", "initializer"]
__all__ += [
    "fan_in_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "local_generator",
    "normc",
    "orthogonal",
    "trunc_normal",
    "xavier_normal",
]
__all__ += ["stacked_linear", "xavier_uniform", "zeros"]

M = TypeVar("M", bound=nn.Module)
Rule = Callable[[Tensor, torch.Generator], object]
Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and nothing else.

    >>> derive_seed(0, "policy", "latent") == derive_seed(0, "policy", "latent")
    True
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def local_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator of its own for what ``parts`` name; torch's global one does not move."""
    generator = torch.Generator(device="cpu")
    generator.manual_seed(derive_seed(*parts))
    return generator


def orthogonal(tensor: Tensor, generator: torch.Generator, *, gain: float = 1.0) -> None:
    """Rows or columns orthonormal times ``gain`` (Saxe et al., 2013)."""
    nn.init.orthogonal_(tensor, gain, generator=generator)


def xavier_uniform(tensor: Tensor, generator: torch.Generator, *, gain: float = 1.0) -> None:
    """Uniform, variance by fan-in and fan-out (Glorot and Bengio, 2010)."""
    nn.init.xavier_uniform_(tensor, gain, generator=generator)


def xavier_normal(tensor: Tensor, generator: torch.Generator, *, gain: float = 1.0) -> None:
    """Normal, variance by fan-in and fan-out (Glorot and Bengio, 2010)."""
    nn.init.xavier_normal_(tensor, gain, generator=generator)


def kaiming_uniform(
    tensor: Tensor, generator: torch.Generator, *, nonlinearity: Nonlinearity = "relu"
) -> None:
    """Uniform, variance by fan-in and the non-linearity that follows (He et al., 2015)."""
    nn.init.kaiming_uniform_(tensor, nonlinearity=nonlinearity, generator=generator)  # type: ignore[arg-type]


def kaiming_normal(
    tensor: Tensor, generator: torch.Generator, *, nonlinearity: Nonlinearity = "relu"
) -> None:
    """Normal, variance by fan-in and the non-linearity that follows (He et al., 2015)."""
    nn.init.kaiming_normal_(tensor, nonlinearity=nonlinearity, generator=generator)  # type: ignore[arg-type]


def fan_in_uniform(tensor: Tensor, generator: torch.Generator, *, gain: float = 1.0) -> None:
    """Uniform within ``gain / sqrt(fan_in)``: what torch draws for weights; biases are zero, though."""
    _uniform(tensor, math.prod(tensor.shape[1:]) or 1, generator)
    tensor.mul_(gain)


def trunc_normal(tensor: Tensor, generator: torch.Generator, *, std: float = 0.02) -> None:
    """Normal of standard deviation ``std``, cut at two of them."""
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)


def normc(tensor: Tensor, generator: torch.Generator, *, norm: float = 1.0) -> None:
    """Normal, scaled so that each output unit's incoming weights have the given Euclidean ``norm``."""
    nn.init.normal_(tensor, generator=generator)
    flat = tensor.reshape(tensor.shape[0], -1)
    scale = norm / flat.norm(dim=1).clamp_min(torch.finfo(tensor.dtype).tiny)
    tensor.mul_(scale.reshape(-1, *[1] * (tensor.dim() - 1)))


def zeros(tensor: Tensor, generator: torch.Generator) -> None:
    """All zero."""
    tensor.zero_()


def default(tensor: Tensor, generator: torch.Generator) -> None:
    """Torch's own for a weight of a linear layer or convolution: uniform within 1 / sqrt(fan_in)."""
    _uniform(tensor, math.prod(tensor.shape[1:]) or 1, generator)


def _uniform(tensor: Tensor, fan_in: int, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(fan_in)
    tensor.uniform_(-bound, bound, generator=generator)


def initializer(rule: object) -> Rule | None:
    """The function for a spec's ``init``: a name, ``{name: {setting: value}}``, a function; None for torch's own.

    Raises UnknownNameError for an unknown name and SettingsError for a setting that the initialiser does not take.
    """
    if rule is None or rule == "default":
        return None
    if callable(rule):
        return rule
    name, settings = rule, {}
    if isinstance(rule, Mapping) and len(rule) == 1:
        ((name, settings),) = rule.items()
    if not isinstance(name, str) or not isinstance(settings, Mapping):
        raise ValueError(f"an initialiser is a name or {{name: {{setting: value}}}}, got {rule!r}")
    function = INITIALIZERS.get(name)
    problems = check_settings(function, settings, f"initialiser {name!r}", skip=2)
    if problems:
        raise SettingsError(problems)
    return None if function is default else functools.partial(function, **settings)


def draw_parameters(module: nn.Module, seed: int, rule: Rule | None = None) -> None:
    """Draw every parameter of the torch layers in ``module`` anew, and clear their running statistics.

    Weights follow ``rule`` (biases are then zero) or, without one, torch's own initialisation. Each parameter has a
    generator of its own, seeded by ``seed`` and its name. Parameters on the meta device are left alone. A block's
    ``draw_parameter`` fills those it holds itself, its ``adjust_parameters`` has the last word.
    """
    with torch.no_grad():
        layers = list(module.named_modules())
        generator = torch.Generator(device="cpu")
        for prefix, layer in layers:
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                mean = layer.running_mean
                if mean is not None and not mean.is_meta:
                    layer.reset_running_stats()
            for name, tensor in _own_tensors(layer):
                generator.manual_seed(derive_seed(seed, f"{prefix}.{name}" if prefix else name))
                _draw(layer, name, tensor, generator, rule)
        for _, layer in reversed(layers):  # inner blocks before those that hold them
            adjust = getattr(type(layer), "adjust_parameters", None)  # a module is slow to say no
            if adjust is not None:
                adjust(layer)


def draw_in_a_copy(module: M, seed: int, draw: Callable[[M], None]) -> None:
    """Draw weights by ``draw``, a library's function that draws in place and from global random states.

    ``draw`` gets a copy on the CPU in float32, so that a weight is the same on every device; the states follow ``seed``
    and are restored. A module on the meta device is left alone.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if any(tensor.is_meta for tensor in tensors.values()):
        return
    twin = copy.deepcopy(module).to("cpu", torch.float32)
    with random_states_kept(seed), torch.no_grad():
        draw(twin)
        drawn = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        for name, tensor in tensors.items():
            tensor.copy_(drawn[name])


def _own_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The layer's parameters and the buffers that its ``drawn_buffers`` names."""
    if _family(type(layer)) is None:
        return
    names = getattr(type(layer), "drawn_buffers", ())
    drawn = {name: layer._buffers.get(name) for name in names}
    for name, tensor in {**drawn, **layer._parameters}.items():
        if tensor is not None and not tensor.is_meta:
            yield name, tensor


def _draw(
    layer: nn.Module, name: str, tensor: Tensor, generator: torch.Generator, rule: Rule | None
) -> None:
    family = _family(type(layer))
    assert family is not None
    target = tensor
    if not _takes_draws(tensor):
        target = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
    if rule is not None and family in (_fan_in, _hidden, _embedding):
        if tensor.dim() > 1:
            for gate in target.chunk(_gates(layer)):
                rule(gate, generator)
        else:
            target.zero_()
    else:
        family(layer, name, target, generator)
    if target is not tensor:
        tensor.copy_(target)


def _takes_draws(tensor: Tensor) -> bool:
    """Whether numbers can be drawn into ``tensor`` itself: a plain one on the CPU, as generators are, in float32."""
    plain = type(tensor) is nn.Parameter or type(tensor) is Tensor
    return plain and tensor.dtype == torch.float32 and tensor.is_cpu and tensor.is_contiguous()


def linear_layer(features: int, units: int, *, bias: bool = True) -> nn.Linear:
    """What ``nn.Linear(features, units, bias)`` is, weights included, in half the time that its constructor takes."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    vars(layer).update(in_features=features, out_features=units)
    bound = 1 / math.sqrt(features or 1)
    layer.register_parameter("weight", _within(bound, units, features))
    layer.register_parameter("bias", _within(bound, units) if bias else None)
    return layer


def _within(bound: float, *shape: int) -> nn.Parameter:
    """Uniform between ``-bound`` and ``bound``."""
    tensor = torch.empty(shape)
    return nn.Parameter(tensor if tensor.is_meta else tensor.uniform_(-bound, bound))


def stacked_linear(features: int, units: int, count: int, *, bias: bool = True) -> nn.Linear:
    """``count`` linear layers as one with ``count * units`` outputs, each of which an initialiser draws by itself."""
    linear = linear_layer(features, count * units, bias=bias)
    linear.gates = count  # type: ignore[assignment]
    return linear


def _gates(layer: nn.Module) -> int:
    """The number of gates whose matrices are stacked in a layer's weight."""
    if isinstance(layer, nn.Linear):
        return getattr(layer, "gates", 1)
    if isinstance(layer, nn.RNNBase):
        return {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    return {nn.LSTMCell: 4, nn.GRUCell: 3}.get(type(layer), 1)


def _fan_in(layer: nn.Linear, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Linear layers and convolutions, weight and bias alike: uniform within 1 / sqrt(fan_in)."""
    _uniform(tensor, math.prod(layer.weight.shape[1:]) or 1, generator)


def _hidden(layer: nn.RNNBase, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    _uniform(tensor, layer.hidden_size, generator)


def _embedding(layer: nn.Embedding, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    nn.init.normal_(tensor, generator=generator)
    if layer.padding_idx is not None:
        tensor[layer.padding_idx] = 0


def _norm(layer: nn.Module, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    tensor.fill_(0.0 if name == "bias" else 1.0)


def _slope(layer: nn.PReLU, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    tensor.fill_(layer.init)


_FAMILIES: dict[type, Callable[..., None]] = {
    nn.Linear: _fan_in,
    nn.modules.conv._ConvNd: _fan_in,
    nn.Embedding: _embedding,
    nn.RNNBase: _hidden,
    nn.RNNCellBase: _hidden,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
    nn.GroupNorm: _norm,
    nn.modules.batchnorm._NormBase: _norm,
    nn.PReLU: _slope,
}


def _own(layer: Any, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    tensor.copy_(getattr(layer, name))  # unless the block says otherwise, it stays as built
    layer.draw_parameter(name, tensor, generator)


@functools.cache
def _family(cls: type[nn.Module]) -> Callable[..., None] | None:
    """The function that draws the parameters of layers of class ``cls``; None where only its constructor does."""
    if hasattr(cls, "draw_parameter"):
        return _own
    return next((draw for kind, draw in _FAMILIES.items() if issubclass(cls, kind)), None)
