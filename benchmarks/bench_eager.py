"""Eager cost of a composed network against the same layers in a hand-written module."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from harness import Row, main, medians
from perception_blocks import Graph, InferenceBlock


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


def rows() -> Iterator[Row]:
    ours, by_hand = composed(), ByHand()
    with torch.no_grad():
        for batch in (1, 256):
            inputs = {"observation": torch.randn(batch, 4)}
            one, other = medians(lambda: ours(inputs), lambda: by_hand(inputs))  # noqa: B023
            yield Row(f"MLP 4-64-64-2, batch {batch}: forward", one, "by hand", other, at_most=1.05)


if __name__ == "__main__":
    main("Eager execution", rows)
