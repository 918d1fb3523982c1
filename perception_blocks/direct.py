"""A plain layer applied without the call of a module, which on a small batch costs as much as the layer itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import (  # hooks on every module; torch fills these in place
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

__all__ = ["convolution", "is_plain", "layers", "linear"]

_is_compiling = torch.compiler.is_compiling


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling ``module`` does nothing but run the forward of ``cls``.

    Not so with hooks, another class (a parametrization, FSDP2 and adapters change it), a forward of its own (as tools
    that offload set it), or a compiled one.
    """
    attributes = module.__dict__  # not by attribute: nn.Module has a slow lookup
    return type(module) is cls and not (
        attributes["_forward_pre_hooks"]
        or attributes["_forward_hooks"]
        or attributes["_backward_pre_hooks"]
        or attributes["_backward_hooks"]
        or _global_forward_pre_hooks
        or _global_forward_hooks
        or _global_backward_pre_hooks
        or _global_backward_hooks
        or "forward" in attributes
        or "_compiled_call_impl" in attributes
    )


# What is known to be computed; a class may be given another forward.
_FORWARDS = {cls: cls.forward for cls in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``; of a plain ``nn.Linear`` that holds its weight (a pruned one computes it) without the call."""
    if _is_compiling():  # a call costs nothing there, and each look at the layer would be looked at again in each run
        return layer(x)
    if is_plain(layer, nn.Linear) and nn.Linear.forward is _FORWARDS[nn.Linear]:
        parameters = layer._parameters
        if "weight" in parameters and "bias" in parameters:
            return functional.linear(x, parameters["weight"], parameters["bias"])  # type: ignore[arg-type]
    return layer(x)


def convolution(layer: Any, x: Tensor) -> Tensor:
    """``layer(x)``; of a plain convolution of torch that holds its weight without the call."""
    cls = type(layer)
    if _is_compiling() or cls.forward is not _FORWARDS.get(cls) or not is_plain(layer, cls):
        return layer(x)
    parameters = layer._parameters
    if "weight" in parameters and "bias" in parameters:
        return layer._conv_forward(x, parameters["weight"], parameters["bias"])
    return layer(x)


def layers(module: nn.Module, name: str) -> Iterable[nn.Module]:
    """What the ModuleList ``module.name`` holds, looked up where torch keeps it: ``module.name`` is slow to find."""
    return module._modules[name]._modules.values()  # type: ignore[union-attr, return-value]
