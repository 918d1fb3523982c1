"""A network for many copies of its weights at once: which of them run together, and how."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from perception_blocks.base_block import is_traced
from perception_blocks.ensemble.layers import has_norms, names_across, stack_layers, why_not_stacked
from perception_blocks.lowering.lowered import write_function
from perception_blocks.measure import probing_tensors, still, with_length
from perception_blocks.trial_copy import trial_copy

__all__ = ["StackedNetwork", "meta_copy"]

# Numbers that a layer makes at once: with more they leave the processor's cache, and all gets slower. Sooner with
# norms, which take one operation more where weights are stacked.
MOST_NUMBERS, MOST_NORMED = 2**18, 2**16

# functional_call swaps the tensors of a module that threads share.
_SWAPPING = threading.RLock()

Tensors: TypeAlias = Sequence[Tensor]
# Inputs, state, resets and whether to unroll, as a network takes them.
Call: TypeAlias = tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None, Tensor | None, bool]


class StackedNetwork:
    """What copies of ``network`` (an InferenceBlock) compute, without their weights.

    ``names`` lists its tensors; all are stacked but the ``common`` ones, which no checkpoint holds and all copies
    share. ``why_not`` says why copies cannot run as one; None where they can.
    """

    def __init__(self, network: Any) -> None:
        self.alone = meta_copy(network)
        self.stacked = copy.deepcopy(self.alone)
        self.names = [name for name, _ in _named_tensors(network)]
        kept = dict(network.named_parameters()).keys() | network.state_dict().keys()
        self.common = {name for name in self.names if name not in kept}
        self._places = _places(network)
        self.across = names_across(network)  # weights that are best stacked as they are multiplied
        self.why_not = why_not_stacked(network)
        if self.why_not is None:
            stack_layers(self.stacked)
            self.why_not = self._why_not_run()
        self._first = next(iter(network.in_ports))
        port = with_length(network.in_ports[self._first])
        self._in_size = max(1, math.prod(port.shape))  # type: ignore[arg-type]
        self._width = max((p.shape[0] for p in network.parameters() if p.dim()), default=1)
        self._has_norms = has_norms(network)
        self._functions: dict[tuple[bool, bool | None], Callable[..., Any] | None] = {}

    def train(self, mode: bool) -> None:
        if self.alone.training != mode:
            self.alone.train(mode)
            self.stacked.train(mode)

    def __call__(self, tensors: Tensors, *call: Any) -> Any:
        """Outputs, or outputs and state, of the copies with ``tensors``, which are in the order of ``names``.

        ``call`` is a `Call`; all in it, and in what is returned, has the axis of the copies first.
        """
        inputs, state, resets, unroll = call
        first = inputs[self._first]
        size = self._together(first)
        if size >= first.shape[0]:
            return self._run(True, tensors, call)
        join = torch.cat if size > 1 else torch.stack
        results = []
        pieces = self._pieces(tensors, first.shape[0], size)
        for place, weights in enumerate(zip(*pieces)):
            part = slice(place * size, (place + 1) * size) if size > 1 else place
            part_state = state and _parts(state, part)
            part_resets = None if resets is None else resets[part]
            part_call = (_parts(inputs, part), part_state, part_resets, unroll)
            results.append(self._run(size > 1, weights, part_call))
        return _joined(results, join, state is None)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_functions": {}}  # generated, and anew when needed

    def _together(self, first: Tensor) -> int:
        """How many copies to run at once, by the size of the first input."""
        count = first.shape[0]
        if is_traced():  # where sizes may be anything
            return count
        numbers = max(1, first.numel() // (count * self._in_size) * self._width)  # of one copy
        if self._has_norms:
            return count if count * numbers <= MOST_NORMED else 1
        return max(1, MOST_NUMBERS // numbers)

    def _pieces(self, tensors: Tensors, count: int, size: int) -> list[Sequence[Tensor]]:
        """Each stacked tensor split into parts of ``size`` copies; for 1, into the tensors of single copies."""
        return [
            [tensor] * count
            if name in self.common
            else (tensor.split(size) if size > 1 else tensor.unbind(0))
            for name, tensor in zip(self.names, tensors)
        ]

    def _run(self, stacked: bool, tensors: Tensors, call: Call) -> Any:
        """Copies by stacked layers; or one of them, by its own layers and without an axis of copies."""
        inputs, state, resets, unroll = call
        function = self._function(stacked, None if state is None else unroll)
        if function is not None:
            return function(tensors, inputs, state, resets)
        network = self.stacked if stacked else self.alone
        arguments = (inputs,) if state is None else call
        named = {name: tensors[place] for name, place in self._places}
        with contextlib.nullcontext() if torch.compiler.is_compiling() else _SWAPPING:
            return torch.func.functional_call(network, named, arguments, tie_weights=False)

    def _function(self, stacked: bool, unroll: bool | None) -> Callable[..., Any] | None:
        """The network as code; None where not all of it can be written, and where it is traced."""
        if is_traced():
            return None
        key = (stacked, unroll)
        if key not in self._functions:
            network = self.stacked if stacked else self.alone
            self._functions[key] = write_function(network, unroll, self.names)
        return self._functions[key]

    def _why_not_run(self) -> str | None:
        """Why the stacked network cannot run after all. Nothing is allocated."""
        probes = probing_tensors(list(self.stacked.in_ports.values()), "meta")
        inputs = {n: x.expand(2, *x.shape) for n, x in zip(self.stacked.in_ports, probes)}
        common = {id(t) for name, t in _named_tensors(self.stacked) if name in self.common}
        trial = trial_copy(
            self.stacked, lambda t: t if id(t) in common else t.detach().expand(2, *t.shape)
        )
        try:
            with still(), torch.device("meta"):
                trial.eval()(inputs)
        except Exception as error:
            return re.split(r"[.\n](?:\s|$)", str(error).strip())[0] or type(error).__name__
        return None


def meta_copy(network: Any) -> Any:
    """A copy of ``network`` on the meta device; no weight is copied on the way."""
    memo: dict[int, Any] = {}
    for _, tensor in _named_tensors(network):
        empty = tensor.detach().to("meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(network, memo)


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _places(network: nn.Module) -> list[tuple[str, int]]:
    """Where each tensor is held, and its place among all of them; each module is named once.

    By itself, functional_call visits a module that has two names twice, and does not put back what it replaced.
    """
    place = {id(tensor): index for index, (_, tensor) in enumerate(_named_tensors(network))}
    return [
        (f"{path}.{name}" if path else name, place[id(tensor)])
        for path, module in network.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]


def _parts(values: Mapping[str, Tensor], place: int | slice) -> dict[str, Tensor]:
    return {name: value[place] for name, value in values.items()}


def _joined(results: Sequence[Any], join: Callable[..., Tensor], outputs_alone: bool) -> Any:
    """Outputs, or outputs and states, of some copies each, joined along the axis of the copies."""
    if outputs_alone:
        return {name: join([part[name] for part in results]) for name in results[0]}
    return tuple(_joined(parts, join, True) for parts in zip(*results))
