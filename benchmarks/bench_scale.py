"""Composing networks of 10 to 10,000 blocks: from Python and from YAML text, against the same modules made by hand.

By hand, each block is an ``nn.Module`` that holds its layers, without names, shapes, checks or a forward. All end in a
head of two outputs, which composing from YAML brings along. Python's garbage collector is left as it is for a user.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

import composer
from harness import Row, main
from perception_blocks import Graph, InferenceBlock

WIDTH = 8
ACTIONS = 2
OBSERVATION_SPACE = gymnasium.spaces.Box(-1.0, 1.0, (WIDTH,), np.float32)
ACTION_SPACE = gymnasium.spaces.Discrete(ACTIONS)
SIZES = (10, 100, 1000, 10_000)
Reads = list[list[str]]  # what each block reads, in an order in which they can run


def chain(count: int) -> Reads:
    return [["observation"] if i == 0 else [f"n{i - 1}"] for i in range(count)]


def random_dag(count: int) -> Reads:
    """Each block reads one to three of those before it; the last one adds up all that nobody read."""
    draw = random.Random(0)
    reads: Reads = [["observation"]]
    unread = {"n0"}
    for i in range(1, count - 1):
        before = [
            f"n{j}" for j in draw.sample(range(max(0, i - 50), i), min(i, draw.randint(1, 3)))
        ]
        unread -= set(before)
        unread.add(f"n{i}")
        reads.append(before)
    return [*reads, sorted(unread)]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.activation = torch.relu


class GatedSum(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs * WIDTH, inputs * WIDTH)


class Add(nn.Module):
    pass


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, ACTIONS)


MODULES = {"dense": lambda inputs: Dense(), "gated_sum": GatedSum, "add": lambda inputs: Add()}


def block_of(names: list[str]) -> str:
    """One input goes into layers, a few are mixed by learned gates, many are added up."""
    return "dense" if len(names) == 1 else "gated_sum" if len(names) <= 3 else "add"


class ByHand(nn.Module):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        for i, names in enumerate(reads):
            setattr(self, f"n{i}", MODULES[block_of(names)](len(names)))
        self.head = Head()


def from_python(reads: Reads) -> InferenceBlock:
    graph = Graph({"observation": (WIDTH,)})
    for i, names in enumerate(reads):
        block = block_of(names)
        settings: dict[str, Any] = {"hidden_units": WIDTH} if block == "dense" else {}
        graph.add(f"n{i}", block, names, **settings)
    graph.add("head", "linear_output", f"n{len(reads) - 1}", output_units=ACTIONS)
    return InferenceBlock(graph, ["head"])


def text(reads: Reads) -> str:
    lines = ["version: 1", "policy:", "  graph:"]
    for i, names in enumerate(reads):
        block = block_of(names)
        settings = f", hidden_units: {WIDTH}" if block == "dense" else ""
        lines.append(f"    n{i}: {{block: {block}, in: [{', '.join(names)}]{settings}}}")
    lines.append(f"  heads: {{in: n{len(reads) - 1}}}")
    return "\n".join(lines) + "\n"


def from_yaml(yaml: str) -> composer.Model:
    return composer.compose(
        yaml, observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE, seed=0
    )


def timed(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each, measured in turns, each on a clean heap."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            gc.collect()
            start = time.process_time()
            made = call()
            own.append(time.process_time() - start)
            del made
    return [median(own) for own in times]


def rows() -> Iterator[Row]:
    for name, make in (("chain", chain), ("random DAG", random_dag)):
        per_block: dict[int, list[float]] = {}
        for size in SIZES:
            reads = make(size)
            yaml = text(reads)
            calls = [lambda: from_python(reads), lambda: from_yaml(yaml), lambda: ByHand(reads)]  # noqa: B023
            timed(calls, 1)
            python, composed, by_hand = timed(calls, min(50, max(3, 3000 // size)))
            per_block[size] = [python / size, composed / size]
            yield Row(f"{name} of {size:,}: Python", python, "by hand", by_hand, at_most=2.0)
            yield Row(f"{name} of {size:,}: YAML", composed, "by hand", by_hand, at_most=4.0)
        for index, how in enumerate(("Python", "YAML")):
            large, small = per_block[10_000][index], per_block[100][index]
            yield Row(f"{name}, a block of 10,000: {how}", large, "of 100", small, at_most=1.5)


if __name__ == "__main__":
    main("Composing at scale", rows)
