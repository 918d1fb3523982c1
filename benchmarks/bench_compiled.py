"""Compiled networks against the hand-written module compiled, and what a memory costs that is compiled over time.

Both sides are compiled by inductor with a batch that may vary, and warm.
"""

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import composer
from bench_eager import Mlp, complex_case, composed_mlp, outputs_of, same_weights
from harness import Row, main, medians
from perception_blocks import Graph, InferenceBlock

STEPS = (4, 8)
COPIES = 4  # of each side; torch compiles no more than eight modules of one class


def compiled(module: Any) -> Any:
    return torch.compile(module, fullgraph=True)


def without_gradients(call: Callable[..., Any], arguments: tuple) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            call(*arguments)

    return run


def with_gradients(call: Callable[..., Any], arguments: tuple) -> Callable[[], None]:
    def run() -> None:
        losses = [value.square().sum() for value in outputs_of(call(*arguments)).values()]
        torch.autograd.backward(losses)

    return run


def compared(
    name: str, ours: nn.Module, by_hand: nn.Module, for_us: tuple, for_them: tuple
) -> Iterator[Row]:
    """One row for the forward, one for forward and backward; ``for_...`` are the arguments.

    Both sides run the same kernels. Where their weights lie in memory makes one of them up to a quarter slower, so the
    times are medians over copies, compiled in turns.
    """
    same_weights(ours, by_hand)
    composer.any_batch((for_us, for_them))
    torch.compiler.reset()
    sides = [(ours, for_us), (by_hand, for_them)]
    times: dict[str, list[list[float]]] = {"forward": [], "and backward": []}
    for turn in range(COPIES):
        copies = [(compiled(copy.deepcopy(module)), given) for module, given in sides]
        order = 1 if turn % 2 == 0 else -1
        for what, wrap in (("forward", without_gradients), ("and backward", with_gradients)):
            calls = [wrap(module, given) for module, given in copies][::order]
            times[what].append(medians(*calls, rounds=50)[::order])
    for what, found in times.items():
        one, other = map(statistics.median, zip(*found, strict=True))
        yield Row(f"{name}: {what}", one, "by hand, compiled", other, at_most=1.05)


def mlp_rows(batch: int) -> Iterator[Row]:
    inputs = {"observation": torch.randn(batch, 4)}
    return compared(f"MLP 4-64-64-2, batch {batch}", composed_mlp(), Mlp(), (inputs,), (inputs,))


def unrolled_rows(steps: int) -> Iterator[Row]:
    """A loop over time inside the graph, against the fused kernel that eager code calls."""
    graph = Graph({"x": (64,)})
    graph.add("memory", "lstm", "x", hidden_units=64)
    net = InferenceBlock(graph, ["memory"])
    torch.compiler.reset()
    unroll = compiled(net.unroll)
    arguments = ({"x": torch.randn(32, steps, 64)}, net.initial_state(32))
    ours, theirs = with_gradients(unroll, arguments), with_gradients(net.unroll, arguments)
    name = f"LSTM, {steps} steps, batch 32"
    one, other = medians(ours, theirs)
    yield Row(f"{name}: forward and backward", one, "eager, fused kernel", other)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for batch in (2, 256):
        yield from mlp_rows(batch)
    yield from compared(*complex_case(32))
    for steps in STEPS:
        yield from unrolled_rows(steps)


if __name__ == "__main__":
    main("Compiled execution", rows)
