"""Eager cost of a composed network against the same layers written by hand, interleaved in one process.

Prints one table: workload, microseconds of each (medians of this run), ratio of the medians.
"""

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from perception_blocks import Graph, InferenceBlock

ROUNDS, CALLS = 40, 200


class ByHand(nn.Module):
    """What one would write without this library: explicit attributes, functional activations, dict in, dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 64)
        self.second = nn.Linear(64, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.relu(self.first(inputs["observation"]))
        x = torch.relu(self.second(x))
        return {"action": self.head(x)}


def composed() -> InferenceBlock:
    graph = Graph({"observation": (4,)})
    graph.add("latent", "dense", "observation", hidden_units=[64, 64])
    graph.add("action", "linear_output", "latent", output_units=2)
    return InferenceBlock(graph, ["action"])


def ensemble(copies: int) -> InferenceBlock:
    inner = Graph({})
    inner.add("latent", "dense", "observation", hidden_units=[64, 64])
    inner.add("action", "linear_output", "latent", output_units=2)
    graph = Graph({"observation": (4,)})
    graph.add("all", inner, "observation", out=["action"], copies=copies)
    return InferenceBlock(graph, ["action"])


def medians(*calls: Callable[[], object], repeat: int) -> list[float]:
    """Median seconds of one call of each, measured in turns."""
    for call in calls:
        for _ in range(repeat):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, own in zip(calls, times):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            own.append((time.perf_counter() - start) / repeat)
    return [statistics.median(own) for own in times]


def row(name: str, ours: Callable, theirs: Callable, batch: int, repeat: int) -> tuple:
    inputs = {"observation": torch.randn(batch, 4)}
    one, other = medians(lambda: ours(inputs), lambda: theirs(inputs), repeat=repeat)
    return f"{name}, batch {batch}", one, other


def rows() -> list[tuple[str, float, float]]:
    networks = [ByHand() for _ in range(16)]
    found = [row("MLP 4-64-64-2", composed(), ByHand(), batch, CALLS) for batch in (1, 256)]
    loop = lambda inputs: [network(inputs) for network in networks]  # noqa: E731
    name = "16 MLPs as an ensemble"
    return found + [row(name, ensemble(16), loop, batch, CALLS // 10) for batch in (1, 256)]


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, 1 thread, no_grad")
    print(f"{'workload':<36}{'ours us':>10}{'by hand us':>12}{'ratio':>8}")
    with torch.no_grad():
        for name, ours, theirs in rows():
            print(f"{name:<36}{ours * 1e6:>10.1f}{theirs * 1e6:>12.1f}{ours / theirs:>8.2f}")


if __name__ == "__main__":
    main()
