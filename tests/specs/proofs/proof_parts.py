"""Environments with the spaces of the specs beside this file, and a network class: what `composer prove` is shown."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from torch import nn

from composer.adapters.tokens.gym_env import token_spaces


class Spaces(gymnasium.Env):
    """An environment that is only looked at."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


UNBOUNDED = Box(-np.inf, np.inf, (2,), np.float32)
SCREEN = Dict(screen=Box(0, 255, (16, 16, 3), np.uint8), goal=Box(-1, 1, (3,), np.float32))
SPACES = {
    "Tokens": token_spaces(24, 12),
    "Screens": (SCREEN, UNBOUNDED),
    "Numbers": (Box(-1, 1, (3,), np.float32), UNBOUNDED),
    "Masked": (Dict(seen=Box(-1, 1, (3,), np.float32), legal=MultiBinary(4)), Discrete(4)),
    "Choices": (MultiDiscrete([3, 4]), MultiDiscrete([2, 3])),
}
for name, spaces in SPACES.items():
    gymnasium.registry.pop(f"Proof{name}-v0", None)  # of an earlier import of this module
    gymnasium.register(
        f"Proof{name}-v0",
        lambda spaces=spaces: Spaces(*spaces),
        disable_env_checker=True,
        order_enforce=False,
    )


class Layer(nn.Module):
    """A unit that a spec names by its class."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """A policy of several layers."""

    def __init__(self, obs_shapes, action_logits_shapes, width=16, layers=2):
        super().__init__()
        (features,), (logits,) = obs_shapes["observation"], action_logits_shapes["action"]
        self.first = nn.Linear(features, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.last = nn.Linear(width, logits)

    def forward(self, inputs):
        x = self.first(inputs["observation"])
        for layer in self.layers:
            x = layer(x)
        return {"action": self.last(x)}


class Judge(nn.Module):
    """The value of an action in a state."""

    def __init__(self, obs_shapes, width=8):
        super().__init__()
        (state,), (action,) = obs_shapes["observation"], obs_shapes["action/action"]
        self.layers = nn.Sequential(
            nn.Linear(state + action, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, inputs):
        both = torch.cat([inputs["observation"], inputs["action/action"]], dim=-1)
        return {"q_value": self.layers(both)}
