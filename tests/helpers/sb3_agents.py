"""What the tests of Stable-Baselines3 share: small environments, specs for them, and agents that learn in few steps."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from composer.adapters import sb3
from tests.helpers.paths import CONFIGS

SETTINGS = {
    PPO: {"n_steps": 32, "batch_size": 16, "n_epochs": 2},
    A2C: {"n_steps": 8},
    MaskablePPO: {"n_steps": 32, "batch_size": 16, "n_epochs": 2},
    RecurrentPPO: {"n_steps": 32, "batch_size": 24, "n_epochs": 2},
    DQN: {"learning_starts": 8, "buffer_size": 200, "batch_size": 8, "target_update_interval": 10},
    SAC: {"learning_starts": 8, "buffer_size": 200, "batch_size": 8},
    TD3: {"learning_starts": 8, "buffer_size": 200, "batch_size": 8},
}
CARTPOLE = CONFIGS / "cartpole.yaml"
VALUES = """
critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16]}
"""
CHOICES = """
critic:
  kind: state_action
  graph:
    latent: {block: dense, in: observation, hidden_units: [16]}
"""
TWINS = """
critic:
  kind: state_action
  ensemble: 2
  graph:
    both: {block: concat, in: [observation, action/action]}
    latent: {block: dense, in: both, hidden_units: [16]}
"""
ACTOR = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16]}
  heads: {in: latent}
"""
DETERMINISTIC = "distributions: [{action: action, distribution: deterministic}]\n"


def agent(algorithm, spec, env=None, **settings):
    """An agent with settings under which it learns after few steps."""
    return sb3.agent(algorithm, spec, env, **{"seed": 0, **SETTINGS[algorithm], **settings})


class Walk(gymnasium.Env):
    """A walk of four steps with random observations; the spaces are given. ``seen`` are the actions that were taken."""

    def __init__(self, observation_space, action_space, length=4):
        self.observation_space = observation_space
        self.action_space = action_space
        self.seen = []
        self._length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._step = 0
        return self.observed(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.seen.append(action)
        self._step += 1
        return self.observed(), 1.0, self._step == self._length, False, {}

    def observed(self):
        return self.observation_space.sample()


NESTED = spaces.Dict(
    body=spaces.Dict(
        joints=spaces.Box(-1, 1, (2,)),
        hands=spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiBinary(2)]),
    ),
    board=spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    hint=spaces.Text(5, charset="ab"),
    note=spaces.Text(5),
)
NESTED_ACTIONS = spaces.Dict(
    grip=spaces.Discrete(3, start=1),
    arm=spaces.Tuple([spaces.Box(-2, 4, (2, 1)), spaces.MultiBinary(2)]),
    push=spaces.Box(-np.inf, np.inf, ()),
    count=spaces.Box(-3, 3, (1,), np.int32),
)
NESTED_SPEC = """
version: 1
ignore: [note]
policy:
  template: {}
critic:
  template: {}
"""


class Preprocessing(torch.nn.Module):
    """Reads nested observations, doubled."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.layer = torch.nn.Linear(
            obs_shapes["body/joints"][0], action_logits_shapes["action"][0]
        )

    def preprocess(self, observation):
        return {"body": {"joints": 2 * observation["body"]["joints"]}}

    def forward(self, inputs):
        return {"action": self.layer(inputs["body/joints"])}
