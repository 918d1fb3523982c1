"""From ordered steps to straight-line Python: the forward of a network without a loop over its nodes.

The text contains only identifiers that are numbered here (``v0``, ``k3``); names from a spec stay in the constants, so
no text of a spec is ever executed.
"""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

__all__ = ["Program", "Step", "function_text", "one_batch_axis", "write_program"]


@dataclass(slots=True)  # not frozen: there is one for each node
class Step:
    """One call. ``module`` is the path of module names below the network; values are names of the graph."""

    module: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]  # None: dropped
    arguments: tuple[str, ...] | None = None  # forward's argument names, where not positional
    # The numbers of the inputs' feature axes, for a module that wants exactly one batch axis.
    ranks: tuple[int, ...] | None = None
    # A nested network's own names of its inputs and outputs.
    inner: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    single: bool = True  # the module returns a bare tensor
    state: tuple[tuple[str, str], ...] = ()  # (name in the module, name in the network)


@dataclass(frozen=True)
class Program:
    """A function and its source text."""

    source: str
    function: Callable[..., Any]


def write_program(steps: Sequence[Step], outputs: Mapping[str, str], *, memory: bool) -> Program:
    """The function ``run(modules, inputs)`` or, with ``memory``, ``run(modules, inputs, state, resets, unroll)``.

    ``outputs`` maps output names to values. The latter also returns the state after the last step.
    """
    last_read = {name: index for index, step in enumerate(steps) for name in step.inputs}
    kept = set(outputs.values())
    writer = _Writer(memory)
    for index, step in enumerate(steps):
        writer.write(step, {n for n in step.inputs if last_read[n] == index and n not in kept})
    writer.finish(outputs)
    arguments = "modules, inputs, state, resets, unroll" if memory else "modules, inputs"
    source = function_text(arguments, writer.lines)
    namespace: dict[str, object] = {**writer.constants, "one_batch_axis": one_batch_axis}
    namespace["__builtins__"] = builtins  # torch.compile looks for them
    # A copy: Python notes beside the code where it found a function's globals the last time.
    return Program(source, FunctionType(_code_of(source).replace(), namespace))


def function_text(arguments: str, lines: Sequence[str]) -> str:
    return f"def run({arguments}):\n" + "".join(f"    {line}\n" for line in lines)


@functools.lru_cache(maxsize=64)
def _code_of(source: str) -> CodeType:
    """The code of the only function in ``source``, compiled once for networks of one form: they are written alike."""
    constants = compile(source, "<network>", "exec").co_consts
    return next(code for code in constants if isinstance(code, CodeType))


class _Writer:
    """Collects lines, and numbers values (v), constants (k), nested modules (m) and states (s).

    The number of a value that nothing reads any more is given to the next one, so that its memory is free for others.
    """

    def __init__(self, memory: bool) -> None:
        self.memory = memory
        self.lines: list[str] = []
        self.constants: dict[str, object] = {}
        self._values: dict[str, str] = {}
        self._free: list[str] = []
        self._names: dict[str | tuple, str] = {}  # of constants
        self._containers: dict[tuple[str, ...], str] = {(): "modules"}
        self._states: list[tuple[str, str]] = []  # (network's name, expression)
        self._count = 0

    def write(self, step: Step, done: set[str]) -> None:
        """A line for ``step``, the last one that reads the values ``done``."""
        inputs = [self._value(name) for name in step.inputs]
        module = self._module(step.module)
        with_state = bool(step.state) and self.memory
        call = self._call(step, module, inputs, with_state)
        self._free += sorted(self._values[name] for name in done)
        self._assign(step, call, with_state)

    def finish(self, outputs: Mapping[str, str]) -> None:
        results = self._mapping((name, self._value(value)) for name, value in outputs.items())
        if self.memory:
            results += f", {self._mapping(self._states)}"
        self.lines.append(f"return {results}")

    def _call(self, step: Step, module: str, inputs: list[str], with_state: bool) -> str:
        if step.ranks is not None:
            names = self._constant(step.arguments) if step.arguments is not None else "None"
            values = "".join(f", {value}" for value in inputs)
            return f"one_batch_axis({module}, {self._constant(step.ranks)}, {names}{values})"
        if step.inner is not None:
            pairs = zip(step.inner[0], inputs, strict=True)
            arguments = self._mapping(pairs)
        elif step.arguments is not None:
            pairs = zip(step.arguments, inputs, strict=True)
            arguments = f"**{self._mapping(pairs)}"
        else:
            arguments = ", ".join(inputs)
        if with_state:
            state = self._mapping(
                (part, f"state[{self._constant(name)}]") for part, name in step.state
            )
            arguments += f", {state}, resets, unroll"
        return f"{module}({arguments})"

    def _assign(self, step: Step, call: str, with_state: bool) -> None:
        """``call``'s outputs become values, and the state that it returns is kept."""
        if step.inner is not None:
            results = self._number("o")
        elif step.single:
            results = self._new_value(step.outputs[0])
        else:
            results = ", ".join(self._new_value(name) for name in step.outputs)
            results = f"({results},)" if with_state else f"{results},"
        if with_state:
            after = self._number("s")
            self._states += [
                (name, f"{after}[{self._constant(part)}]") for part, name in step.state
            ]
            results += f", {after}"
        self.lines.append(f"{results} = {call}")
        if step.inner is not None:
            source = results.partition(",")[0]
            for inner, name in zip(step.inner[1], step.outputs):
                self.lines.append(f"{self._new_value(name)} = {source}[{self._constant(inner)}]")

    def _module(self, path: tuple[str, ...]) -> str:
        return f"{self._container(path[:-1])}[{self._constant(path[-1])}]"

    def _container(self, path: tuple[str, ...]) -> str:
        if path not in self._containers:
            parent = self._module(path)
            self._containers[path] = self._number("m")
            self.lines.append(f"{self._containers[path]} = {parent}._modules")
        return self._containers[path]

    def _mapping(self, pairs: Iterable[tuple[str, str]]) -> str:
        """A dict display from (key, expression) pairs."""
        return "{" + ", ".join(f"{self._constant(key)}: {text}" for key, text in pairs) + "}"

    def _value(self, name: str) -> str:
        if name not in self._values:  # not written by any step yet: an input
            self.lines.append(f"{self._new_value(name)} = inputs[{self._constant(name)}]")
        return self._values[name]

    def _new_value(self, name: str | None) -> str:
        number = self._free.pop() if self._free else self._number("v")
        if name is not None:
            self._values[name] = number
        return number

    def _constant(self, value: str | tuple) -> str:
        if value not in self._names:
            self._names[value] = f"k{len(self.constants)}"
            self.constants[self._names[value]] = value
        return self._names[value]

    def _number(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"


def one_batch_axis(
    module: nn.Module, ranks: tuple[int, ...], names: tuple[str, ...] | None, *tensors: Tensor
) -> Any:
    """Call a module that is not ours with exactly one leading batch axis, and restore the others.

    ``ranks`` are the tensors' numbers of feature axes; ``names`` are keyword names, or None for positional arguments.
    """
    leading = tensors[0].shape[: tensors[0].dim() - ranks[0]]
    has_one_axis = len(leading) == 1
    if not has_one_axis:
        size = math.prod(leading)
        tensors = tuple(
            t.reshape(size, *t.shape[t.dim() - rank :])
            for t, rank in zip(tensors, ranks, strict=True)
        )
    result = module(*tensors) if names is None else module(**dict(zip(names, tensors, strict=True)))
    if has_one_axis:
        return result
    if isinstance(result, Tensor):
        return result.reshape(*leading, *result.shape[1:])
    return tuple(t.reshape(*leading, *t.shape[1:]) for t in result)
