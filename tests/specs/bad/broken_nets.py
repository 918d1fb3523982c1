"""What the broken specs name with ``# allow: broken_nets``: classes that are good, and classes that are not."""

import os  # noqa: F401 - a spec tries to reach it through this module

import torch
from torch import nn

from perception_blocks import PerceptionBlock


class Double(PerceptionBlock):
    """The input times ``factor``."""

    def __init__(self, in_shapes, *, factor: int = 2):
        super().__init__(in_shapes)
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Scaled(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


class Picky(PerceptionBlock):
    def __init__(self, in_shapes):
        raise ValueError("picky takes an even number of features, got 4.5")


class Plain:
    """No nn.Module."""


def function(x):
    return x


class Policy(nn.Module):
    """One linear layer for each action, over all observations side by side."""

    def __init__(self, obs_shapes, action_logits_shapes, width: int = 8):
        super().__init__()
        features = sum(shape[0] for shape in obs_shapes.values())
        self.body = nn.Linear(features, width)
        self.action = nn.Linear(width, sum(k for (k,) in action_logits_shapes.values()))

    def forward(self, inputs):
        return {"action": self.action(self.body(torch.cat(list(inputs.values()), -1)))}


class NeedsWidth(Policy):
    def __init__(self, obs_shapes, action_logits_shapes, width):
        super().__init__(obs_shapes, action_logits_shapes, width)


class NoShapes(nn.Module):
    def __init__(self, width=8):
        super().__init__()


class ReturnsTensor(Policy):
    def forward(self, inputs):
        return super().forward(inputs)["action"]


class ReturnsMisspelt(Policy):
    def forward(self, inputs):
        return {"acton": super().forward(inputs)["action"]}


class ReturnsWide(Policy):
    def forward(self, inputs):
        logits = super().forward(inputs)["action"]
        return {"action": torch.cat([logits, logits], -1)}


class ReturnsMore(Policy):
    def forward(self, inputs):
        return {**super().forward(inputs), "features": inputs["observation"]}


class ReturnsText(Policy):
    def forward(self, inputs):
        return {"action": "left"}


class DropsBatch(Policy):
    def forward(self, inputs):
        return {"action": super().forward(inputs)["action"].sum(0)}


class TakenName(Policy):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__(obs_shapes, action_logits_shapes)
        self.distributions = nn.Linear(2, 2)


class ReturnsMisspeltValue(nn.Module):
    def __init__(self, obs_shapes):
        super().__init__()
        self.value = nn.Linear(4, 1)

    def forward(self, inputs):
        return {"vlaue": self.value(inputs["observation"])}
