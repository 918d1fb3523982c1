"""A function as a block."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from perception_blocks.base_block import PerceptionBlock
from perception_blocks.port import Shapes
from perception_blocks.registry import BLOCKS, FUNCTIONS
from perception_blocks.settings import Function, SettingProblem, SettingsError, check_settings

__all__ = ["FunctionalBlock", "add", "function_label", "identity", "mean", "multiply"]


@BLOCKS.register("functional")
class FunctionalBlock(PerceptionBlock):
    """A function of one or more tensors: ``(...,)`` each -> the shapes of what it returns.

    It receives tensors with one batch axis and returns a tensor or a tuple of them. ``function`` is a name registered
    in FUNCTIONS or, from Python, any callable; further settings are passed to it. The shapes are found by running
    it once on tensors without data.

    >>> FunctionalBlock([(3,), (3,)], function="add").out_shapes
    [(3,)]
    """

    takes = "any"

    def __init__(self, in_shapes: Shapes, *, function: Function, **settings: object) -> None:
        super().__init__(in_shapes)
        self.name = function if isinstance(function, str) else FUNCTIONS.name_of(function)
        self.function = FUNCTIONS.get(function) if isinstance(function, str) else function
        self.settings = settings
        label = f"function {self.name or function_label(self.function)!r}"
        problems = check_call(self.function, len(self.in_shapes), settings, label)
        if problems:
            raise SettingsError(problems)
        try:
            self._out_shapes = self._measured_shapes()
        except Exception as error:
            error.add_note(f"in {label}, called with a batch of {self.in_shapes}")
            raise

    def forward(self, *inputs: Tensor) -> Any:
        rank = len(self.in_shapes[0])
        if inputs[0].dim() == rank + 1:
            return self.function(*inputs, **self.settings)
        leading = inputs[0].shape[: inputs[0].dim() - rank]
        batch = math.prod(leading)
        rows = [x.reshape(batch, *x.shape[len(leading) :]) for x in inputs]
        result = self.function(*rows, **self.settings)
        if isinstance(result, Tensor):
            return result.reshape(*leading, *result.shape[1:])
        return tuple(part.reshape(*leading, *part.shape[1:]) for part in result)

    def extra_repr(self) -> str:
        settings = [f"{name}={value!r}" for name, value in self.settings.items()]
        label = self.name or function_label(self.function)
        return ", ".join([f"in_shapes={self.in_shapes}", f"function={label}", *settings])


def add(*inputs: Tensor) -> Tensor:
    """The sum of inputs of one shape."""
    return functools.reduce(lambda x, y: x + y, _alike("add", inputs))


def multiply(*inputs: Tensor) -> Tensor:
    """The product of inputs of one shape."""
    return functools.reduce(lambda x, y: x * y, _alike("multiply", inputs))


def mean(*inputs: Tensor) -> Tensor:
    """The mean of inputs of one shape."""
    return add(*inputs) / len(inputs)


def identity(x: Tensor) -> Tensor:
    """The input itself."""
    return x


def _alike(name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Broadcasting would mistake a batch axis for a feature axis."""
    shapes = [tuple(x.shape[1:]) for x in inputs]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name} needs inputs of one shape, got {' and '.join(map(str, shapes))}")
    return inputs


def function_label(function: Callable[..., object]) -> str:
    """A callable in a few words: its name, a lambda's place, a partial with its arguments.

    >>> function_label(functools.partial(math.pow, 2))
    'partial(pow, 2)'
    """
    if isinstance(function, functools.partial):
        given = [repr(value) for value in function.args]
        given += [f"{name}={value!r}" for name, value in function.keywords.items()]
        return f"partial({', '.join([function_label(function.func), *given])})"
    code = getattr(function, "__code__", None)
    if code is not None and code.co_name == "<lambda>":
        return f"lambda at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
    if isinstance(function, nn.Module):
        return type(function).__name__
    return getattr(function, "__name__", type(function).__name__)


def check_call(
    function: Callable[..., object], inputs: int, settings: Mapping[str, object], label: str
) -> list[SettingProblem]:
    """What is wrong with the settings; ValueError where the function takes another number of inputs.

    Nothing is checked of functions written in C that do not tell their arguments.
    """
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (ValueError, TypeError):
        return []
    if not inputs:
        raise ValueError(f"{label} takes one input or more, got none")
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if inputs > len(positional) and not takes_more:
        most = "one input" if len(positional) == 1 else f"{len(positional)} inputs"
        raise ValueError(f"{label} takes {most} at most, got {inputs}")
    skip = min(inputs, len(positional)) + takes_more
    try:
        return check_settings(target, settings, label, skip=skip)
    except TypeError:  # a callable that cannot be hashed
        return []
