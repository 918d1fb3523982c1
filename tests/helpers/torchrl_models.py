"""Models, environments and rollouts for the tests of the adapter to TorchRL."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer

DENSE = {
    "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [16]}},
    "heads": {"in": "latent"},
}
VALUES = {"graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [16]}}}
ACTION_VALUES = {
    "kind": "state_action",
    "graph": {
        "both": {"block": "concat", "in": ["observation", "action/action"]},
        "latent": {"block": "dense", "in": "both", "hidden_units": [16]},
    },
}


def remembering(block="lstm", critic="gru"):
    return {
        "environment": "CartPole-v1",
        "policy": {
            "graph": {"memory": {"block": block, "in": "observation", "hidden_units": 8}},
            "heads": {"in": "memory"},
        },
        "critic": {"graph": {"memory": {"block": critic, "in": "observation", "hidden_units": 8}}},
    }


def compose(spec, **keywords):
    return composer.compose({"version": 1, **spec}, seed=0, **keywords)


def rollout(env, policy, steps=30):
    torch.manual_seed(0)
    env.set_seed(0)
    with torch.no_grad():
        return env.rollout(steps, policy, break_when_any_done=False)


class Playground(gymnasium.Env):
    """Samples of its observation space, for any action that its action space contains; episodes of 8 steps."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Dict(
            a=spaces.Discrete(3),
            b=spaces.Dict(c=spaces.Box(-1, 1, (2,)), d=spaces.MultiDiscrete([2, 3])),
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        action = np.int64(action) if isinstance(self.action_space, spaces.Discrete) else action
        assert self.action_space.contains(action), action
        self.steps += 1
        return self._observation(), 1.0, self.steps > 7, False, {}

    def _observation(self):
        observation = self.observation_space.sample()
        if isinstance(observation, dict) and "action_mask" in observation:
            observation["action_mask"][:] = [1, 0, 1]
        return observation


MASKED = spaces.Dict(near=spaces.Box(-1, 1, (2,)), action_mask=spaces.MultiBinary(3))
TEMPLATES = {"policy": {"template": {}}, "critic": {"template": {}}}


def refusal(function, *arguments, **keywords):
    """The message of the ValueError that the call raises."""
    with pytest.raises(ValueError, match=r".") as error:
        function(*arguments, **keywords)
    return str(error.value)
