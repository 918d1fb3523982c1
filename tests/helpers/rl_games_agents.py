"""What the tests of rl_games share: configs that learn in few steps, agents of them, and an asymmetric environment."""

import contextlib
import copy
import io

import gymnasium
import numpy as np
from gymnasium import spaces
from rl_games.torch_runner import Runner

from composer.adapters.rl_games import register

ACTOR_CRITIC = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16], activation: tanh}
  heads: {in: latent}
critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16], activation: tanh}
"""
REMEMBERS = """
version: 1
policy:
  graph:
    seen: {block: dense, in: observation, hidden_units: [16]}
    memory: {block: %s, in: seen, hidden_units: 8}
  heads: {in: memory}
  shares: [memory]
critic:
  graph:
    value: {block: linear_output, in: memory, output_units: 1}
"""
ASYMMETRIC = """
version: 1
policy:
  observations: [observation]
  graph:
    latent: {block: dense, in: observation, hidden_units: [16]}
  heads: {in: latent}
critic:
  observations: [states]
  graph:
    latent: {block: dense, in: states, hidden_units: [16]}
"""
CENTRAL = {
    "model": {"name": "composer"},
    "network": {"name": "composer"},
    "normalize_input": False,
    "learning_rate": 1e-2,
    "mini_epochs": 2,
    "minibatch_size": 32,
    "clip_value": False,
}
NUMBERS = {"clip_actions": False, "bounds_loss_coef": 0.0}


class Place(gymnasium.Env):
    """Numbers near a hidden place, which only ``state()`` tells; six steps, the last of them cut off."""

    observation_space = spaces.Box(-2, 2, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    state_space = spaces.Box(-2, 2, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self._steps = 0
        return self._observed(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self._steps += 1
        near = -float(np.abs(action - self._place).sum())
        return self._observed(), near, False, self._steps == 6, {}

    def state(self):
        return np.array([*self._place, self._steps / 6], np.float32)

    def _observed(self):
        return (self._place + self.np_random.normal(0, 0.1, 2)).clip(-2, 2).astype(np.float32)


gymnasium.register("Place-v0", "tests.helpers.rl_games_agents:Place")


def config(spec, env="CartPole-v1", algorithm="a2c_discrete", network=(), **settings):
    """A config of rl_games that makes two updates of 4 environments and 32 steps."""
    return {
        "params": {
            "seed": 3,
            "torch_threads": 0,  # as they are
            "algo": {"name": algorithm},
            "model": {"name": "composer"},
            "network": {"name": "composer", "spec": spec, "seed": 0, **dict(network)},
            "config": {
                "name": "run", "env_name": "composer", "env_config": {"id": env},
                "num_actors": 4, "horizon_length": 32, "minibatch_size": 32, "mini_epochs": 2,
                "max_epochs": 2, "seq_length": 8, "learning_rate": 1e-2, "lr_schedule": None,
                "gamma": 0.99, "tau": 0.95, "e_clip": 0.2, "clip_value": False, "critic_coef": 1.0,
                "entropy_coef": 0.01, "grad_norm": 0.5, "truncate_grads": True,
                "normalize_advantage": True, "normalize_input": False,
                "reward_shaper": {"scale_value": 1.0}, "torch_compile": False, "print_stats": False,
                "device": "cpu", "device_name": "cpu", "train_dir": "runs",
                "full_experiment_name": "run",
                **(NUMBERS if algorithm == "a2c_continuous" else {}),
                **settings,
            },
        }
    }  # fmt: skip


def runner(params):
    """rl_games' Runner with a config."""
    register()
    made = Runner()
    with contextlib.redirect_stdout(io.StringIO()):
        made.load(copy.deepcopy(params))
    return made


def agent(params):
    """The agent of a config, as the Runner makes it."""
    made = runner(params)
    with contextlib.redirect_stdout(io.StringIO()):
        return made.algo_factory.create(made.algo_name, base_name="run", params=made.params)


def trained(params):
    """The agent of a config after training."""
    made = agent(params)
    with contextlib.redirect_stdout(io.StringIO()):
        made.train()
    return made


def player(params):
    with contextlib.redirect_stdout(io.StringIO()):
        return runner(params).create_player()


def of_environments(make, **settings):
    """Settings with which an agent steps environments that ``make`` gives."""
    return {"env_config": {"make": make}, **settings}
