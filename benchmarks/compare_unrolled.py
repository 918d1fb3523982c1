"""Ways to compile a memory over many steps: the loop of cells that blocks use, and a custom operator.

Against eager, which calls torch's fused kernels between resets. `docs/compiling.md` says what came of it. Both ways
compile anew each time, on one thread, and their seconds are of all processes that take part, not of the clock.

    python benchmarks/compare_unrolled.py --steps 4 8 32
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from recurrent_operator import unroll

from harness import STEADY, medians
from perception_blocks.blocks.recurrent import GruBlock, LstmBlock

ALONE = {
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "PYTHONWARNINGS": "ignore",  # of the compiler's own
}
WIDTH, BATCH, BEGINS = 64, 32, 0.05
KINDS = {"LSTM": LstmBlock, "GRU": GruBlock}


def computed() -> float:
    """Seconds that this process and the compilers it started have computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def forward(call: Callable[..., Any], arguments: tuple) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call(*arguments)

    return run


def and_backward(call: Callable[..., Any], arguments: tuple) -> Callable[[], Any]:
    def run() -> Any:
        y, after = call(*arguments)
        (y.square().sum() + sum(part.square().sum() for part in after.values())).backward()
        return y, after

    return run


def check_gradients(block: Any, x: torch.Tensor, resets: torch.Tensor | None) -> None:
    """The operator is right: outputs, ends and all gradients are those of eager."""
    found = []
    for call in (block.unroll, lambda *given: unroll(block, *given)):
        block.zero_grad()
        given = x.clone().requires_grad_()
        state = {
            name: torch.full((BATCH, *shape), 0.1, requires_grad=True)
            for name, shape in block.state_shapes.items()
        }
        y, after = and_backward(call, (given, state, resets))()
        weights = [weight.grad.clone() for weight in block.parameters()]
        found.append([y, after, given.grad, [part.grad for part in state.values()], weights])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def compare(kind: str, steps: int, with_resets: bool) -> None:
    block: Any = KINDS[kind]([(WIDTH,)], hidden_units=WIDTH)
    x = torch.randn(BATCH, steps, WIDTH)
    resets = torch.rand(BATCH, steps) < BEGINS if with_resets else None
    check_gradients(block, x, resets)
    ways = {"cells": block.unroll, "operator": lambda *given: unroll(block, *given)}
    for what in (forward, and_backward):
        calls = [what(block.unroll, (x, block.initial_state(BATCH), resets))]
        took = []
        for way in ways.values():
            torch.compiler.reset()
            compiled = torch.compile(way, fullgraph=True)
            calls.append(what(compiled, (x, block.initial_state(BATCH), resets)))
            start = computed()
            calls[-1]()
            took.append(computed() - start)
        eager, *times = medians(*calls, rounds=40)
        shown = [
            f"{way} {time / eager:.2f}, compiled in {seconds:.1f} s"
            for way, time, seconds in zip(ways, times, took, strict=True)
        ]
        begins = "resets" if with_resets else "no resets"
        name = f"{kind}, {steps} steps, {begins}, {what.__name__}"
        print(f"{name}: eager {eager * 1e6:.0f} us; {'; '.join(shown)}", flush=True)


def main() -> None:
    wanted = {**STEADY, **ALONE}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    parser = argparse.ArgumentParser(description="Ways to compile a memory over many steps")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    load_inductor = forward(torch.compile(torch.nn.Linear(2, 2)), (torch.ones(2, 2),))
    load_inductor()
    for kind in arguments.kinds:
        for steps in arguments.steps:
            for with_resets in (False, True):
                compare(kind, steps, with_resets)


if __name__ == "__main__":
    main()
