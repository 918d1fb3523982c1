"""Activations from what a user writes: a name, a name with settings, a torch.nn class, a ready module, a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.port import format_shape
from perception_blocks.registry import ACTIVATIONS
from perception_blocks.settings import Activation, SettingsError, check_settings
from perception_blocks.words import did_you_mean, suggest

__all__ = ["make_activation", "make_activations"]

Function = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    return x


# With default settings these are called as functions: a module's call costs more than a small activation.
_FUNCTIONS: dict[type[nn.Module], Function] = {
    nn.ELU: functional.elu,
    nn.GELU: functional.gelu,
    nn.Identity: identity,
    nn.LeakyReLU: functional.leaky_relu,
    nn.Mish: functional.mish,
    nn.ReLU: torch.relu,
    nn.SELU: functional.selu,
    nn.Sigmoid: torch.sigmoid,
    nn.SiLU: functional.silu,
    nn.Softplus: functional.softplus,
    nn.Tanh: torch.tanh,
}


def make_activations(
    activation: Activation, count: int = 1, last: Activation | None = None
) -> list[Function] | nn.ModuleList:
    """One callable for each of ``count`` layers; ``last`` replaces the activation of the last layer.

    They are functions where all are plain ones, else modules, so that parameters are registered.
    """
    wanted = [activation] * count
    if last is not None:
        wanted[-1] = last
    functions = list(map(make_activation, wanted))
    if not any(isinstance(activation, nn.Module) for activation in functions):
        return functions
    return nn.ModuleList(a if isinstance(a, nn.Module) else _Applied(a) for a in functions)


def make_activation(activation: Activation) -> Function:
    """The callable for one activation; each call gives a module of its own.

    Raises UnknownNameError for an unknown name, SettingsError for unknown settings, ValueError for what is no
    activation.

    >>> make_activation({"leaky_relu": {"negative_slope": 0.1}})
    LeakyReLU(negative_slope=0.1)
    """
    settings: Mapping[str, Any] = {}
    if isinstance(activation, Mapping):
        ((activation, settings),) = activation.items()
    if isinstance(activation, nn.Module):
        return _checked(copy.deepcopy(activation), repr(activation))
    if not isinstance(activation, (str, type)):
        return activation
    cls = _class_of(activation)
    if not settings and cls in _FUNCTIONS:
        return _FUNCTIONS[cls]
    label = f"activation {activation if isinstance(activation, str) else activation.__name__!r}"
    problems = check_settings(cls, settings, label, skip=0)
    if problems:
        raise SettingsError(problems)
    module = cls(**settings)
    is_known = cls in map(ACTIVATIONS.get, ACTIVATIONS)
    return module if is_known else _checked(module, label)


class _Applied(nn.Module):
    """A function among activations that are modules."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def _class_of(activation: str | type) -> type[nn.Module]:
    if isinstance(activation, type):
        if not issubclass(activation, nn.Module):
            raise ValueError(f"an activation class is an nn.Module, got {activation.__name__}")
        return activation
    if "." not in activation:
        return ACTIVATIONS.get(activation)
    package, _, name = activation.rpartition(".")
    if package == "nn" and hasattr(nn, name):
        message = f"{activation!r} is not a full path"
        raise ValueError(message + suggest(activation, f"torch.{activation}"))
    if package != "torch.nn":
        raise ValueError(
            f"an activation is named like 'relu' or 'torch.nn.ReLU', got {activation!r}; "
            "register other classes in perception_blocks.registry.ACTIVATIONS"
        )
    cls = getattr(nn, name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        near = did_you_mean(
            activation, [f"torch.nn.{n}" for n, v in vars(nn).items() if isinstance(v, type)]
        )
        raise ValueError(f"there is no module class {activation!r}" + near)
    return cls


def _checked(module: nn.Module, label: str) -> nn.Module:
    """``module`` itself. Raises ValueError where it changes a shape."""
    shape = (3, 6)
    try:
        with torch.no_grad():
            out_shape = tuple(module(torch.zeros(shape)).shape)
    except Exception as error:
        raise ValueError(f"{label} cannot be applied to {format_shape(shape)}: {error}") from error
    if out_shape != shape:
        raise ValueError(
            f"{label} turns {format_shape(shape)} into {format_shape(out_shape)}; "
            "an activation keeps the shape"
        )
    return module
