"""Networks of one form as one call, against a loop over as many hand-written modules."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench_eager import Mlp
from harness import Row, main, medians
from perception_blocks import Graph, InferenceBlock

Tensors = dict[str, Tensor]


class Normed(nn.Module):
    """Two layers with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Linear(8, 64), nn.LayerNorm(64)
        self.second, self.second_norm = nn.Linear(64, 64), nn.LayerNorm(64)
        self.head = nn.Linear(64, 2)

    def forward(self, inputs: Tensors) -> Tensors:
        x = torch.relu(self.first_norm(self.first(inputs["observation"])))
        x = torch.relu(self.second_norm(self.second(x)))
        return {"action": self.head(x)}


class Seeing(nn.Module):
    """Two convolutions and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(3, 8, 4, 2), nn.Conv2d(8, 16, 3, 2)
        self.latent, self.head = nn.Linear(16 * 7 * 7, 64), nn.Linear(64, 2)

    def forward(self, inputs: Tensors) -> Tensors:
        x = torch.relu(self.conv_1(inputs["observation"]))
        x = torch.relu(self.conv_2(x))
        x = torch.relu(self.latent(x.flatten(1)))
        return {"action": self.head(x)}


def ensemble(copies: int, block: str, shape: tuple[int, ...], **settings: Any) -> InferenceBlock:
    inner = Graph({})
    inner.add("latent", block, "observation", **settings)
    inner.add("action", "linear_output", "latent", output_units=2)
    graph = Graph({"observation": shape})
    graph.add("all", inner, "observation", out=["action"], copies=copies)
    return InferenceBlock(graph, ["action"])


def forward_and_backward(run: Callable[[], list[Tensors]]) -> Callable[[], None]:
    def both() -> None:
        torch.stack([outputs["action"].square().mean() for outputs in run()]).sum().backward()

    return both


def compared(
    name: str, net: InferenceBlock, by_hand: list[nn.Module], inputs: Tensors, at_most: float
) -> Iterator[Row]:
    ours, theirs = lambda: [net(inputs)], lambda: [module(inputs) for module in by_hand]
    with torch.no_grad():
        times = medians(ours, theirs)
    yield Row(f"{name}, forward", times[0], "loop", times[1], at_most)
    times = medians(forward_and_backward(ours), forward_and_backward(theirs))
    yield Row(f"{name}, and backward", times[0], "loop", times[1], 1.0)


def rows() -> Iterator[Row]:
    net = ensemble(16, "dense", (4,), hidden_units=[64, 64])
    by_hand: list[nn.Module] = [Mlp() for _ in range(16)]
    for batch, at_most in ((1, 0.1), (64, 1.0), (256, 1.0), (1024, 1.0)):
        inputs = {"observation": torch.randn(batch, 4)}
        yield from compared(f"16 MLPs 4-64-64-2, batch {batch}", net, by_hand, inputs, at_most)
    net = ensemble(5, "dense", (8,), hidden_units=[64, 64], norm="layer")
    by_hand = [Normed() for _ in range(5)]
    for batch in (1, 256):
        inputs = {"observation": torch.randn(batch, 8)}
        yield from compared(f"5 MLPs with norms, batch {batch}", net, by_hand, inputs, 1.0)
    settings = {"hidden_channels": [8, 16], "hidden_kernels": [4, 3], "strides": 2}
    net = ensemble(5, "strided_conv_dense", (3, 32, 32), **settings, hidden_units=64)
    by_hand = [Seeing() for _ in range(5)]
    for batch in (1, 32):
        inputs = {"observation": torch.randn(batch, 3, 32, 32)}
        yield from compared(f"5 convolutional, batch {batch}", net, by_hand, inputs, 1.0)


if __name__ == "__main__":
    main("Ensembles", rows)
