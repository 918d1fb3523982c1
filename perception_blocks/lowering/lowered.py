"""A network of blocks as one straight-line function: what ``lower()`` returns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from perception_blocks.base_block import MemoryBlock
from perception_blocks.lowering.code import GLOBAL_HOOKS, Code, is_ordinary
from perception_blocks.lowering.program import Step, function_text, one_batch_axis
from perception_blocks.lowering.rules import ANY_LEADING_AXES, memory_call, step_of
from perception_blocks.port import tell_out_of_range

__all__ = ["LoweredNetwork", "write_function"]


@dataclass
class Memory:
    """States by the network's names as expressions: those that go in, and those that come out."""

    unroll: bool
    before: Mapping[str, str]
    after: dict[str, str] = field(default_factory=dict)


def write_network(
    code: Code, network: Any, inputs: Mapping[str, str], memory: Memory | None
) -> dict[str, str]:
    """Write what ``network`` (an InferenceBlock) makes of ``inputs``; returns its outputs, each a variable.

    Without ``memory``, blocks that have one start from zero.
    """
    values = dict(inputs)
    for node in network.nodes:
        step: Step = node.step
        module = network
        for name in step.module:
            module = code.child(module, name)
        given = [values[name] for name in step.inputs]
        if step.inner is not None:
            results = _nested(code, network, step, module, given, memory)
        elif memory is not None and step.state:
            results = _with_memory(code, step, module, given, memory)
        else:
            results = _results(code, step, _call(code, step, module, given))
        values |= {name: value for name, value in zip(step.outputs, results) if name is not None}
    return {name: values[value] for name, value in network.outputs.items()}


def _call(code: Code, step: Step, module: nn.Module, inputs: list[str]) -> str:
    if step.ranks is not None and not (
        type(module) in ANY_LEADING_AXES and step.arguments is None and code.runs(module)
    ):
        code.calls(module)
        arguments = map(code.constant, (module, step.ranks, step.arguments))
        return code.call(one_batch_axis, *arguments, *inputs)
    if step.arguments is None:
        return code.apply(module, *inputs)
    named = f"**{code.mapping(dict(zip(step.arguments, inputs)))}"
    if code.runs(module):
        return code.forward_of(module, named)
    return code.call_as_it_is(module, named)


def _results(code: Code, step: Step, call: str) -> list[str]:
    if step.single:
        return [code.variable(call)]
    names = code.variables(len(step.outputs))
    code.lines.append(f"{', '.join(names)}, = {call}")
    return names


def _with_memory(
    code: Code, step: Step, module: nn.Module, inputs: list[str], memory: Memory
) -> list[str]:
    assert isinstance(module, MemoryBlock)
    (x,) = inputs
    state = {part: memory.before[name] for part, name in step.state}
    if memory.unroll:
        output, after = memory_call(code, module, x, state, unroll=True)
    else:
        output, after = step_of(code, module, x, state)
    memory.after |= {name: after[part] for part, name in step.state}
    return [code.variable(output)]


def _nested(
    code: Code,
    network: nn.Module,
    step: Step,
    module: Any,
    inputs: list[str],
    memory: Memory | None,
) -> list[str]:
    assert step.inner is not None
    given = dict(zip(step.inner[0], inputs))
    inner = None
    if memory is not None and step.state:
        before = {part: memory.before[name] for part, name in step.state}
        inner = Memory(memory.unroll, before)
    if type(module) is type(network) and code.runs(module):
        outputs = write_network(code, module, given, inner)
    else:
        outputs = _called_network(code, module, given, inner)
    if memory is not None and inner is not None:
        memory.after |= {name: inner.after[part] for part, name in step.state}
    return [outputs[name] for name in step.inner[1]]


def _called_network(
    code: Code, module: Any, inputs: Mapping[str, str], memory: Memory | None
) -> dict[str, str]:
    """A nested network whose inside is not written out: an ensemble, or one with hooks."""
    call = code.forward_of if code.runs(module) else code.call_as_it_is
    given = code.mapping(inputs)
    if memory is None:
        outputs = code.variable(call(module, given))
    else:
        outputs, after = code.variables(2)
        state = code.mapping(memory.before)
        results = call(module, given, state, "resets", str(memory.unroll))
        code.lines.append(f"{outputs}, {after} = {results}")
        memory.after |= {name: f"{after}[{code.constant(name)}]" for name in memory.before}
    return {name: code.variable(f"{outputs}[{code.constant(name)}]") for name in module.out_ports}


def write_results(code: Code, network: Any, unroll: bool | None) -> str:
    """Write the network from its ``inputs``, ``state`` and ``resets``; the expression of what it returns.

    Without ``unroll``, which says whether it runs one step or all, there is no state.
    """
    given = {name: code.variable(f"inputs[{code.constant(name)}]") for name in network.in_ports}
    if unroll is None:
        return code.mapping(write_network(code, network, given, None))
    before = {name: code.variable(f"state[{code.constant(name)}]") for name in network.state_shapes}
    memory = Memory(unroll, before)
    outputs = write_network(code, network, given, memory)
    after = {name: memory.after[name] for name in network.state_shapes}
    return f"{code.mapping(outputs)}, {code.mapping(after)}"


def write_function(
    network: Any, unroll: bool | None, names: Sequence[str]
) -> Callable[..., Any] | None:
    """The function (tensors, inputs, state, resets) that is ``network`` with other ``tensors`` in place of its own.

    They are in the order of ``names``. None where the code would still read tensors of the network itself. There is no
    guard: nobody else may change the network.
    """
    code = TensorCode(network, names)
    results = write_results(code, network, unroll)
    if not code.complete:
        return None
    lines = [f"[{', '.join(code.expected)}] = tensors", *code.lines, f"return {results}"]
    return code.function(function_text("tensors, inputs, state, resets", lines))


class TensorCode(Code):
    """Code whose parameters and buffers are given to it, as variables ``t`` by their place in ``names``."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.expected = [f"t{index}" for index in range(len(names))]
        self.complete = True
        self._places = dict(zip(names, self.expected))
        self._paths = {module: path for path, module in network.named_modules()}

    def parameter(self, module: nn.Module, name: str) -> str:
        if module._parameters[name] is None:
            return "None"
        path = self._paths[module]
        return self._places[f"{path}.{name}" if path else name]

    def buffer(self, module: nn.Module, name: str) -> str:
        path = self._paths[module]
        return self._places[f"{path}.{name}" if path else name]

    def forward_of(self, module: nn.Module, *arguments: str) -> str:
        self._look_into(module)
        return super().forward_of(module, *arguments)

    def calls(self, module: nn.Module) -> None:
        self._look_into(module)

    def _look_into(self, module: nn.Module) -> None:
        """A module that is called as it is reads its own tensors: the code is not complete then."""
        if any(True for _ in itertools.chain(module.parameters(), module.buffers())):
            self.complete = False


class LoweredNetwork:
    """``network`` (an InferenceBlock) as straight-line functional code over its live parameters.

    Called like the network, it computes the same and gradients flow. Parameters and ``train`` / ``eval`` are read at
    every call; where a hook, a parametrization, another module or another forward was put into the network, the code is
    written anew before it runs. What has hooks, and what is not known, is called as it is: `called` names it. A setting
    of a block that is changed by assignment is seen after the next `lower()`.

    Copies and unpickled ones write their code anew.
    """

    def __init__(self, network: Any, cls: type[nn.Module]) -> None:
        self.network = network
        self._class = cls
        self._lower()

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor] | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Any:
        """Outputs alone without a ``state`` (memory then starts from zero), else (outputs, state)."""
        if is_dynamo_compiling():  # which makes code of its own, and cannot trace the guard
            return self.network(inputs, state, resets, unroll)
        try:
            if state is None:
                return self._forward(inputs, None, None)
            return (self._unroll if unroll else self._step)(inputs, state, resets)
        except IndexError as error:
            tell_out_of_range(error, inputs, self.network.in_ports, self.network.nodes)
            raise

    def step(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        resets: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step: inputs (...) + shapes, state (...) + shapes, resets (...), true at an episode's first step."""
        return self(inputs, state, resets)

    def unroll(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        resets: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All steps: inputs (..., T) + shapes with T >= 1, state (...) + shapes, resets (..., T)."""
        return self(inputs, state, resets, unroll=True)

    def initial_state(self, *arguments: object, **keywords: object) -> dict[str, Tensor]:
        return self.network.initial_state(*arguments, **keywords)

    @property
    def called(self) -> list[str]:
        """The paths of the modules that run through their own call."""
        names = {module: name for name, module in self.network.named_modules()}
        return [names[module] for module in self._called if module in names]

    def source(self) -> str:
        """The code of one call: ``k`` are constants, ``v`` values."""
        return "".join(self._sources[1 if self.network.state_shapes else 0 :][:1])

    def __repr__(self) -> str:
        return f"LoweredNetwork({self.network.in_shapes} -> {self.network.out_shapes})"

    def __getstate__(self) -> dict[str, object]:
        return {"network": self.network, "_class": self._class}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lower()

    def _lower(self) -> None:
        """Write the code for the network as it is now; one with hooks of its own is called as it is."""
        self._sources: list[str] = []
        self._called: dict[nn.Module, None] = {}
        self._is_code = not any(GLOBAL_HOOKS) and is_ordinary(self.network, self._class)
        self._forward, self._step, self._unroll = map(self._function, (None, False, True))

    def _function(self, unroll: bool | None) -> Callable[..., Any]:
        """A function (inputs, state, resets); without ``unroll`` it has no state."""
        if not self._is_code:
            self._called[self.network] = None
            return functools.partial(self._again, unroll)
        if unroll is not None and not self.network.state_shapes:
            return lambda inputs, state, resets: (self._forward(inputs, None, None), {})
        code = Code()
        code.guard.watch(self.network)
        results = write_results(code, self.network, unroll)
        again = code.constant(functools.partial(self._again, unroll))
        stale = f"if {code.guard.write(code)}: return {again}(inputs, state, resets)"
        lines = [stale, *code.lines, f"return {results}"]
        self._sources.append(function_text("inputs, state, resets", lines))
        self._called |= code.called
        return code.function(self._sources[-1])

    def _again(
        self,
        unroll: bool | None,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor] | None,
        resets: Tensor | None,
    ) -> Any:
        """Lower the network again after a change, and repeat the call."""
        self._lower()
        if not self._is_code:
            arguments = (inputs,) if state is None else (inputs, state, resets, unroll)
            return self.network(*arguments)
        function = self._forward if unroll is None else self._unroll if unroll else self._step
        return function(inputs, state, resets)
