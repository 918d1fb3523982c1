"""Models of every kind that summaries and diagrams are tested with."""

import os

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from torch import nn

import composer
from perception_blocks import Graph, InferenceBlock
from tests.helpers.paths import TESTS

GOLDEN = TESTS / "golden"
CARTPOLE = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}

MLP = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64], activation: tanh}
"""

COMPLEX = """
version: 1
policy:
  observations: [screen, inventory]
  action_mask: {move: legal}
  graph:
    scaled: {block: scale_image, in: screen}
    latent_screen: {block: vgg_conv_dense, in: scaled, hidden_channels: [8, 16, 32], hidden_units: [32]}
    latent_inventory: {block: dense, in: inventory, hidden_units: [128]}
    both: {block: concat, in: [latent_inventory, latent_screen]}
    latent: {block: dense, in: both, hidden_units: [64]}
    memory: {block: lstm, in: latent, hidden_units: 64}
  heads: {in: memory}
  shares: [latent_screen]
critic:
  observations: [inventory, secret]
  graph:
    both: {block: concat, in: [inventory, secret, latent_screen]}
    latent: {block: dense, in: both, hidden_units: [64]}
"""

CUSTOM = """
version: 1
policy: {_target_: tests.helpers.example_models.BlocksInside}
critic: {_target_: tests.helpers.example_models.Plain, hidden_units: 16}
"""


class Plain(nn.Module):
    """A critic in plain PyTorch, with a parameter of its own."""

    def __init__(self, obs_shapes, hidden_units=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, hidden_units), nn.Tanh())
        self.out = nn.Linear(hidden_units, 1)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, inputs):
        return {"value": self.out(self.body(inputs["observation"])) * self.scale.mean()}


class BlocksInside(nn.Module):
    """A policy whose body is made of blocks."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        graph = Graph(obs_shapes)
        graph.add("latent", "dense", "observation", hidden_units=[32])
        self.body = InferenceBlock(graph, ["latent"])
        self.head = nn.Linear(32, *action_logits_shapes["action"])

    def forward(self, inputs):
        return {"action": self.head(self.body(inputs)["latent"])}


def mlp():
    return composer.compose(MLP, **CARTPOLE, seed=0)


def complex_model():
    observations = Dict(
        screen=Box(0, 255, (3, 64, 64), np.uint8),
        inventory=Box(-1, 1, (16,)),
        legal=MultiBinary(4),
        secret=Box(-1, 1, (5,)),
    )
    actions = Dict(move=Discrete(4), use=MultiBinary(16))
    return composer.compose(COMPLEX, observation_space=observations, action_space=actions, seed=0)


def custom():
    return composer.compose(CUSTOM, **CARTPOLE, allow=["tests.helpers.example_models"], seed=0)


def nested():
    """A graph in a graph, a module used twice, and one of torch's own."""
    inner = Graph({})
    inner.add("first", "dense", "x", hidden_units=[8])
    inner.add("second", "dense", "first", hidden_units=[8])
    graph = Graph({"left": (16,), "right": (16,)})
    graph.add("encoder", inner, {"x": "left"})
    graph.add("a", "dense", "left", hidden_units=[8])
    graph.add("b", inputs="right", same_as="a")
    graph.add("all", "concat", ["encoder", "a", "b"])
    graph.add("norm", nn.LayerNorm, "all", normalized_shape=24)
    graph.add("out", "linear_output", "norm", output_units=2)
    return InferenceBlock(graph, ["out", "a"])


def chain(length=100):
    graph = Graph({"observation": (4,)})
    last = "observation"
    for index in range(length):
        last = graph.add(f"layer_{index}", "dense", last, hidden_units=[64])
    return InferenceBlock(graph, [last])


def branches(count=64):
    graph = Graph({f"sensor_{index}": (16,) for index in range(count)})
    for index in range(count):
        graph.add(f"branch_{index}", "dense", f"sensor_{index}", hidden_units=[8])
    graph.add("all", "concat", [f"branch_{index}" for index in range(count)])
    return InferenceBlock(graph, ["all"])


def repeats():
    """Pairs of steps in a row, and nested graphs in a row."""
    graph = Graph({"x": (32,)})
    last = "x"
    for index in range(10):
        last = graph.add(f"dense_{index}", "dense", last, hidden_units=[32])
        last = graph.add(f"norm_{index}", nn.LayerNorm, last, normalized_shape=32)
    for index in range(6):
        inner = Graph({})
        inner.add("hidden", "dense", "x", hidden_units=[32])
        inner.add("both", "concat", ["x", "hidden"])
        inner.add("out", "dense", "both", hidden_units=[32])
        last = graph.add(f"residual_{index}", inner, {"x": last})
    return InferenceBlock(graph, [last])


EXAMPLES = {
    "mlp": mlp,
    "complex": complex_model,
    "custom": custom,
    "nested": nested,
    "chain": chain,
    "branches": branches,
    "repeats": repeats,
}


def expect_golden(name: str, text: str) -> None:
    """Compare with the file of that name; WRITE_GOLDEN=1 writes it instead."""
    if os.environ.get("WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8")
