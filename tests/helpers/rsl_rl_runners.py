"""Environments, specs and configs for rsl_rl's runner."""

import contextlib
import io

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from rsl_rl.runners import OnPolicyRunner

from composer.adapters.rsl_rl import vector_env

__all__ = ["ASYMMETRIC", "MEMORY", "PLAIN", "Reach", "SHARED", "config", "runner"]


class Reach(gymnasium.Env):
    """Episodes of three to eight steps; the reward tells how near the action is to the place."""

    observation_space = spaces.Dict(
        place=spaces.Box(-1, 1, (3,)), privileged=spaces.Box(-1, 1, (2,))
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 9))
        return self._seen(), {}

    def step(self, action):
        reward = -float(np.square(action - self.place[:2]).sum())
        self.left -= 1
        return self._seen(), reward, self.left == 0, False, {}

    def _seen(self):
        self.place = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"place": self.place, "privileged": self.place[:2] * 0.5}


gymnasium.register("RslReach-v0", Reach, max_episode_steps=7)

PLAIN = """
version: 1
policy:
  observations: [place]
  graph:
    latent: {block: dense, in: place, hidden_units: [16, 16], activation: elu}
  heads: {in: latent}
critic:
  observations: [place]
  graph:
    latent: {block: dense, in: place, hidden_units: [16, 16], activation: elu}
"""
ASYMMETRIC = """
version: 1
normalize: [place, privileged]
policy:
  observations: [place]
  graph:
    latent: {block: dense, in: place, hidden_units: [16], activation: elu}
  heads: {in: latent}
critic:
  observations: [privileged]
  graph:
    latent: {block: dense, in: privileged, hidden_units: [16], activation: elu}
"""
SHARED = """
version: 1
policy:
  observations: [place]
  graph:
    trunk: {block: BLOCK, in: place, hidden_units: 16}
  heads: {in: trunk}
  shares: [trunk]
critic:
  observations: [privileged]
  graph:
    both: {block: concat, in: [trunk, privileged]}
    value: {block: linear_output, in: both, output_units: 1}
"""
MEMORY = """
version: 1
policy:
  observations: [place]
  graph:
    memory: {block: POLICY, in: place, hidden_units: 8}
  heads: {in: memory}
critic:
  observations: [privileged]
  graph:
    memory: {block: CRITIC, in: privileged, hidden_units: 8}
"""


def config(spec=PLAIN, *, actor=None, critic=None, algorithm=None, **settings):
    """The config of a runner that learns nothing, at learning rate 0, unless ``algorithm`` says otherwise."""
    seen = ["privileged"] if "[privileged]" in spec else ["place"]
    return {
        "num_steps_per_env": 12,
        "save_interval": 100,
        "obs_groups": {"actor": ["place"], "critic": seen},
        "algorithm": {
            "class_name": "PPO", "learning_rate": 0.0, "schedule": "fixed", "num_mini_batches": 2,
            "num_learning_epochs": 1, **(algorithm or {}),
        },
        "actor": {"class_name": "composer.adapters.rsl_rl:Actor", "spec": spec, "seed": 0, **(actor or {})},
        "critic": {"class_name": "composer.adapters.rsl_rl:Critic", **(critic or {})},
        **settings,
    }  # fmt: skip


def runner(cfg, *, envs=4, seed=0, cls=OnPolicyRunner, env=None):
    """A runner, whose messages are not printed."""
    torch.manual_seed(seed)
    env = env or vector_env("RslReach-v0", envs, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        return cls(env, cfg, log_dir=None, device="cpu")
