"""Networks of our own for CartPole: once made of perception blocks, once in plain PyTorch."""

import itertools

import torch
from torch import nn

from perception_blocks import Graph, InferenceBlock


class BlocksPolicy(nn.Module):
    """Blocks wired in Python: shapes are inferred, and the diagram shows what is inside."""

    def __init__(self, obs_shapes, action_logits_shapes, hidden_units):
        super().__init__()
        graph = Graph(obs_shapes)
        graph.add("latent", "dense", "observation", hidden_units=hidden_units, activation="tanh")
        for action, (width,) in action_logits_shapes.items():
            graph.add(action, "linear_output", "latent", output_units=width)
        self.net = InferenceBlock(graph, outputs=list(action_logits_shapes))

    def forward(self, inputs):
        return self.net(inputs)


class BlocksCritic(nn.Module):
    def __init__(self, obs_shapes, hidden_units):
        super().__init__()
        graph = Graph(obs_shapes)
        graph.add("latent", "dense", "observation", hidden_units=hidden_units, activation="tanh")
        graph.add("value", "linear_output", "latent", output_units=1)
        self.net = InferenceBlock(graph, outputs=["value"])

    def forward(self, inputs):
        return self.net(inputs)


class TorchPolicy(nn.Module):
    """Any nn.Module will do: from a dict of observations, each with one batch axis, to a dict of logits."""

    def __init__(self, obs_shapes, action_logits_shapes, hidden_units):
        super().__init__()
        (features,) = obs_shapes["observation"]
        (logits,) = action_logits_shapes["action"]
        self.net = make_mlp([features, *hidden_units, logits])

    def forward(self, inputs):
        return {"action": self.net(inputs["observation"])}


class TorchCritic(nn.Module):
    def __init__(self, obs_shapes, hidden_units):
        super().__init__()
        (features,) = obs_shapes["observation"]
        self.net = make_mlp([features, *hidden_units, 1])

    def forward(self, inputs):
        return {"value": self.net(inputs["observation"])}


def make_mlp(sizes: list[int]) -> nn.Sequential:
    """Linear layers with tanh between them; the last one starts small, as an untrained policy should not lean."""
    layers: list[nn.Module] = []
    for size, next_size in itertools.pairwise(sizes):
        layers += [nn.Linear(size, next_size), nn.Tanh()]
    del layers[-1]
    with torch.no_grad():
        layers[-1].weight.mul_(0.01)  # type: ignore[operator]
    return nn.Sequential(*layers)
