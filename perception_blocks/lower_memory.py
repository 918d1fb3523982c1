"""One step of blocks with memory as straight-line code; those without a rule here run the forward of their class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from perception_blocks.block import MemoryBlock
from perception_blocks.lower_code import Code
from perception_blocks.recurrent import GruBlock, LstmBlock, RecurrentBlock, RnnBlock
from perception_blocks.recurrent_layers import RecurrentLayer

__all__ = ["memory_call", "step_of"]

States: TypeAlias = dict[str, str]  # the block's own name of a part of the state -> its expression

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


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
    given = f"{{{', '.join(f'{code.constant(name)}: {part}' for name, part in state.items())}}}"
    call = code.forward_of if code.runs(block) else code.call_as_it_is
    output, after = code.variables(2)
    code.lines.append(f"{output}, {after} = {call(block, x, given, 'resets', str(unroll))}")
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
