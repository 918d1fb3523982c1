"""Eager cost of a composed network against the same layers in a hand-written module, with equal weights.

By hand means: explicit attributes (a ModuleList where there are many of a kind), functional activations, dict in, dict
out. The complex example takes one step of its memory.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import composer
from composer.policy.structured import one_policy
from harness import Row, main, medians
from perception_blocks import Graph, InferenceBlock

CONFIGS = Path(__file__).parent.parent / "configs"
Tensors = dict[str, Tensor]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 64)
        self.second = nn.Linear(64, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, inputs: Tensors) -> Tensors:
        x = torch.relu(self.first(inputs["observation"]))
        x = torch.relu(self.second(x))
        return {"action": self.head(x)}


def composed_mlp() -> InferenceBlock:
    graph = Graph({"observation": (4,)})
    graph.add("latent", "dense", "observation", hidden_units=[64, 64])
    graph.add("action", "linear_output", "latent", output_units=2)
    return InferenceBlock(graph, ["action"])


class Complex(nn.Module):
    """The policy of configs/complex.yaml."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv_2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv_3 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv_4 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv_5 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv_6 = nn.Conv2d(32, 32, 3, padding=1)
        self.screen = nn.Linear(2048, 128)
        self.inventory = nn.Linear(16, 128)
        self.latent = nn.Linear(256, 128)
        self.memory = nn.LSTMCell(128, 64)
        self.move = nn.Linear(64, 4)
        self.use = nn.Linear(64, 16)

    def forward(self, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        x = (inputs["screen"].float() / 255.0).permute(0, 3, 1, 2)
        x = torch.relu(self.conv_2(torch.relu(self.conv_1(x))))
        x = torch.max_pool2d(x, 2)
        x = torch.relu(self.conv_4(torch.relu(self.conv_3(x))))
        x = torch.max_pool2d(x, 2)
        x = torch.relu(self.conv_6(torch.relu(self.conv_5(x))))
        x = torch.max_pool2d(x, 2)
        screen = torch.relu(self.screen(x.flatten(1)))
        inventory = torch.relu(self.inventory(inputs["inventory"]))
        latent = torch.relu(self.latent(torch.cat([screen, inventory], dim=-1)))
        h, c = self.memory(latent, (state["h"], state["c"]))
        return {"move": self.move(h), "use": self.use(h)}, {"h": h, "c": c}


def composed_complex() -> nn.Module:
    sys.path.insert(0, str(CONFIGS))
    model = composer.compose(CONFIGS / "complex.yaml", allow=["environments"])
    return one_policy(model.policy).network.module


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(64))
        self.head = nn.Linear(64 * 16, 4)

    def forward(self, inputs: Tensors) -> Tensors:
        x = inputs["observation"]
        joined = torch.cat([torch.relu(branch(x)) for branch in self.branches], dim=-1)
        return {"action": self.head(joined)}


def composed_branches() -> InferenceBlock:
    graph = Graph({"observation": (16,)})
    names = [graph.add(f"branch_{i}", "dense", "observation", hidden_units=16) for i in range(64)]
    graph.add("joined", "concat", names)
    graph.add("action", "linear_output", "joined", output_units=4)
    return InferenceBlock(graph, ["action"])


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(100))

    def forward(self, inputs: Tensors) -> Tensors:
        x = inputs["observation"]
        for layer in self.layers:
            x = torch.relu(layer(x))
        return {"latent": x}


def composed_chain() -> InferenceBlock:
    graph = Graph({"observation": (64,)})
    name = "observation"
    for index in range(100):
        name = graph.add(f"latent_{index}", "dense", name, hidden_units=64)
    return InferenceBlock(graph, {"latent": name})


def same_weights(ours: nn.Module, by_hand: nn.Module) -> None:
    with torch.no_grad():
        for one, other in zip(ours.parameters(), by_hand.parameters(), strict=True):
            other.copy_(one)


def outputs_of(result: Any) -> Tensors:
    """Without the state."""
    return result[0] if isinstance(result, tuple) else result


def training(net: nn.Module, *arguments: Tensors) -> Callable[[], None]:
    """Forward, backward and a step of Adam."""
    optimizer = torch.optim.Adam(net.parameters())

    def step() -> None:
        loss = sum(value.square().mean() for value in outputs_of(net(*arguments)).values())
        optimizer.zero_grad()
        torch.autograd.backward(loss)  # type: ignore[arg-type]
        optimizer.step()

    return step


def compared(
    name: str, ours: nn.Module, by_hand: nn.Module, for_us: tuple, for_them: tuple
) -> Iterator[Row]:
    """One row for the forward, one for a training step; ``for_...`` are the arguments."""
    same_weights(ours, by_hand)
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(ours(*for_us)), outputs_of(by_hand(*for_them)))
        one, other = medians(lambda: ours(*for_us), lambda: by_hand(*for_them))
    yield Row(f"{name}: forward", one, "by hand", other, at_most=1.05)
    one, other = medians(training(ours, *for_us), training(by_hand, *for_them))
    yield Row(f"{name}: training step", one, "by hand", other, at_most=1.05)


def vectors(name: str, ours: nn.Module, by_hand: nn.Module, size: int, batch: int) -> Iterator[Row]:
    inputs = {"observation": torch.randn(batch, size)}
    return compared(f"{name}, batch {batch}", ours, by_hand, (inputs,), (inputs,))


def complex_case(batch: int) -> tuple[str, nn.Module, nn.Module, tuple, tuple]:
    """What is compared: a name, ours, the one by hand, and the arguments of each."""
    inputs = {
        "screen": torch.randint(256, (batch, 64, 64, 3), dtype=torch.uint8),
        "inventory": torch.randn(batch, 16),
    }
    ours, by_hand = composed_complex(), Complex()
    theirs = {name: torch.zeros(batch, 64) for name in ("h", "c")}
    name = f"configs/complex.yaml, batch {batch}"
    return name, ours, by_hand, (inputs, ours.initial_state(batch)), (inputs, theirs)  # type: ignore[operator]


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for batch in (1, 256):
        yield from vectors("MLP 4-64-64-2", composed_mlp(), Mlp(), 4, batch)
    for batch in (1, 32):
        yield from compared(*complex_case(batch))
    yield from vectors("64 branches and concat", composed_branches(), Branches(), 16, 1)
    yield from vectors("chain of 100 dense", composed_chain(), Chain(), 64, 1)


if __name__ == "__main__":
    main("Eager execution", rows)
