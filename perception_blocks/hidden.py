"""The values inside of a module after its activations, layer by layer, as they are computed.

Activations are functions or modules that a block holds, so nothing of them can be seen from outside. A `HiddenRecorder`
changes the module that it is given so that it tells: record on a copy (`perception_blocks.trial_copy`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import activation as activation_modules
from torch.overrides import TorchFunctionMode

__all__ = ["HiddenRecorder", "HiddenValue", "bounds_of"]

Bounds = tuple[float, float]

# By the name of the function, of torch.nn.functional, torch or Tensor.
_BOUNDS: dict[str, Bounds] = {
    "hardsigmoid": (0.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "softsign": (-1.0, 1.0),
    "tanh": (-1.0, 1.0),
}
_UNBOUNDED = (
    "celu elu gelu hardshrink hardswish leaky_relu logsigmoid mish prelu relu relu6 rrelu selu silu softplus "
    "softshrink tanhshrink threshold"
)
_NAMES = {*_BOUNDS, *_UNBOUNDED.split()}
_FUNCTIONS = {
    getattr(place, form): name
    for name in _NAMES
    for form in (name, f"{name}_")
    for place in (functional, torch, Tensor)
    if callable(getattr(place, form, None))
}
_MODULES = tuple(
    cls
    for name in activation_modules.__all__
    if issubclass(cls := getattr(activation_modules, name), nn.Module)
    if cls not in (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
)
_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class HiddenValue:
    """What one layer gives after its activation; ``axis`` is that of its units, ``bounds`` are the activation's."""

    layer: str
    value: Tensor
    axis: int = -1
    bounds: Bounds | None = None


def bounds_of(activation: object) -> Bounds | None:
    """The bounds of an activation, a function or a module; None where it has none or they are not known.

    >>> bounds_of(torch.tanh), bounds_of(nn.ReLU())
    ((-1.0, 1.0), None)
    """
    if isinstance(activation, nn.Hardtanh):  # ReLU6 is one
        return None if activation.min_val == 0 else (activation.min_val, activation.max_val)
    if isinstance(activation, nn.Module):
        activation = getattr(activation, "function", type(activation).__name__.lower())
    name = activation if isinstance(activation, str) else _FUNCTIONS.get(activation, "")  # type: ignore[arg-type]
    return _BOUNDS.get(name)


class HiddenRecorder:
    """Changes ``module`` so that each of its calls leaves its hidden values, which `take` returns.

    A layer is called as its path in the module: ``linears.0``. An activation belongs to the layer that ended last
    before it. What is seen: the activations that blocks hold, modules that are activations, and in classes from
    elsewhere the activation functions of torch that they call.
    """

    def __init__(self, module: nn.Module) -> None:
        self._values: list[HiddenValue] = []
        self._layer, self._axis = "", -1
        foreign = _calls_functions(module)
        for path, inner in module.named_modules():
            if path and inner._parameters and not isinstance(inner, _NORMS):
                inner.register_forward_hook(self._ends(path))
            if foreign:
                continue
            if isinstance(inner, _MODULES) or _is_held_activation(path):
                inner.register_forward_hook(self._activated)
            for held in vars(inner).values():
                if isinstance(held, list) and held and all(map(_is_function, held)):
                    held[:] = map(self._telling, held)
        if foreign:
            self._watch_functions(module)

    def take(self, output: Tensor | None = None) -> list[HiddenValue]:
        """The hidden values since the last time, without one that is the ``output`` of the module itself.

        A layer that ran several times, as over several episodes, has several.
        """
        values, self._values = self._values, []
        self._layer, self._axis = "", -1
        return [value for value in values if value.value is not output]

    def last_bounds(self, output: Tensor) -> Bounds | None:
        """The bounds of the activation that gave ``output``; asked before `take`."""
        matching = (v.bounds for v in reversed(self._values) if v.value is output)
        return next(matching, None)

    def _note(self, value: object, bounds: Bounds | None) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            name = self._layer or "input"
            self._values.append(HiddenValue(name, value, self._axis, bounds))

    def _ends(self, path: str) -> Callable[..., None]:
        def after(layer: nn.Module, arguments: object, output: Any) -> None:
            self._layer = path
            self._axis = -1 - _CONVOLUTIONS.get(type(layer), 0)
            if getattr(layer, "gives_hidden", False):
                self._note(output[0] if isinstance(output, tuple) else output, None)

        return after

    def _activated(self, module: nn.Module, arguments: object, output: object) -> None:
        self._note(output, bounds_of(module))

    def _telling(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        bounds = bounds_of(function)

        def tell(x: Tensor) -> Tensor:
            y = function(x)
            self._note(y, bounds)
            return y

        return tell

    def _watch_functions(self, module: nn.Module) -> None:
        forward = module.forward

        def watched(*arguments: Any, **keywords: Any) -> Any:
            with _Watch(self._note):
                return forward(*arguments, **keywords)

        module.forward = watched


class _Watch(TorchFunctionMode):
    """Tells of the activation functions that are called in it."""

    def __init__(self, note: Callable[[object, Bounds | None], None]) -> None:
        super().__init__()
        self._tell = note

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = _FUNCTIONS.get(func) if callable(func) else None
        if name is not None:
            self._tell(result, _BOUNDS.get(name))
        return result


def _calls_functions(module: nn.Module) -> bool:
    """Whether code from elsewhere is in ``module``, which may call activation functions itself."""
    return any(
        not type(inner).__module__.startswith(("perception_blocks.", "torch."))
        or type(inner).__module__ == "perception_blocks.blocks.custom"
        or type(inner).__module__.startswith("torch.nn.modules.transformer")
        for inner in module.modules()
    )


def _is_held_activation(path: str) -> bool:
    """Whether the module at ``path`` is one of a block's list of activations that are modules."""
    holder, _, index = path.rpartition(".")
    return index.isdigit() and "activation" in holder.rpartition(".")[2]


def _is_function(value: object) -> bool:
    return isinstance(value, FunctionType | BuiltinFunctionType | MethodType | functools.partial)
