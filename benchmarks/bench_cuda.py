"""On a CUDA device: a step of a policy eager, compiled, and as a CUDA graph, batch 1 to 65,536.

Without a CUDA device it says so, and measures nothing.
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import composer
from bench_eager import CONFIGS
from harness import Row, main, medians

BATCHES = (1, 16, 256, 4096, 65536)
SPECS = {"cartpole": [], "complex": ["environments"]}
LARGEST = {"cartpole": 65536, "complex": 4096}  # images of more do not fit into every device


def arguments_of(model: Any, batch: int) -> tuple:
    """Random observations on the device, and the memory's state."""
    policy = model.policy
    tree = policy.observer.tree
    observations = {
        key: torch.rand(batch, *leaf.port.shape, device="cuda").to(leaf.port.dtype)
        for key, leaf in tree.leaves.items()
    }
    return (observations, policy.initial_state(batch)) if policy.has_memory else (observations,)


def captured(call: Callable[..., Any], arguments: tuple) -> Callable[[], None]:
    """``call`` as a CUDA graph that is replayed over the same memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(*arguments)
    return graph.replay


def waited_for(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def on_device(call: Callable[..., Any], arguments: tuple) -> Callable[[], None]:
    return waited_for(lambda: call(*arguments))


def spec_rows(name: str, allow: list[str]) -> Iterator[Row]:
    model = composer.compose(CONFIGS / f"{name}.yaml", allow=allow, device="cuda", seed=0).eval()
    compiled = torch.compile(model.policy, fullgraph=True)
    for batch in (size for size in BATCHES if size <= LARGEST[name]):
        arguments = composer.any_batch(arguments_of(model, batch))
        calls = [on_device(call, arguments) for call in (model.policy, compiled)]
        calls.append(waited_for(captured(model.policy, arguments)))
        eager, fused, graph = medians(*calls, clock=time.perf_counter)
        yield Row(f"{name}, batch {batch}: compiled", fused, "eager", eager)
        yield Row(f"{name}, batch {batch}: CUDA graph", graph, "eager", eager)


def rows() -> Iterator[Row]:
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing measured")
        return
    sys.path.insert(0, str(CONFIGS))
    with torch.no_grad():
        for name, allow in SPECS.items():
            yield from spec_rows(name, allow)


if __name__ == "__main__":
    main("CUDA", rows)
