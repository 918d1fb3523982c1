"""Stable-Baselines3 trains heads that read what other heads have drawn, by the distribution that the model makes."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, PPO, SAC

import composer
from composer.adapters import sb3
from tests.helpers.sb3_agents import Walk, agent

SEEN = spaces.Box(-1, 1, (3,))
PAIR = spaces.Dict(first=spaces.Discrete(2), second=spaces.Discrete(2))
AFTER = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16]}
    both: {block: concat, in: [latent, action/first]}
    guess: {block: dense, in: both, hidden_units: [16]}
  heads:
    first: {in: latent}
    second: {in: guess}
critic:
  graph:
    values: {block: dense, in: observation, hidden_units: [16]}
"""
ALONE = AFTER.replace("in: [latent, action/first]", "in: [latent, latent]")
REMEMBERS = AFTER.replace(
    "latent: {block: dense, in: observation, hidden_units: [16]}",
    "latent: {block: gru, in: observation, hidden_units: 16}",
)
BOXES = spaces.Dict(first=spaces.Box(-1, 1, (2,)), second=spaces.Box(-2, 2, (1,)))
TWINS = """
critic:
  kind: state_action
  ensemble: 2
  graph:
    all: {block: concat, in: [observation, action/first, action/second]}
    q: {block: dense, in: all, hidden_units: [16]}
"""


@pytest.mark.parametrize("actions", [PAIR, BOXES], ids=["choices", "boxes"])
def test_the_first_ratio_of_ppo_is_one(actions):
    made = agent(PPO, AFTER, Walk(SEEN, actions), n_steps=32, batch_size=32, n_epochs=1)
    made.learn(32)
    assert made.logger.name_to_value["train/clip_fraction"] == 0
    assert abs(made.logger.name_to_value["train/approx_kl"]) < 1e-6


@pytest.mark.parametrize(
    ("algorithm", "spec"), [(PPO, AFTER), (A2C, AFTER), (RecurrentPPO, REMEMBERS)]
)
def test_every_head_learns(algorithm, spec):
    made = agent(algorithm, spec, Walk(SEEN, PAIR))
    before = {n: p.detach().clone() for n, p in made.policy.model.named_parameters()}
    made.learn(64)
    after = dict(made.policy.model.named_parameters())
    assert [n for n in before if torch.equal(before[n], after[n])] == []
    observation = SEEN.sample()
    action, _ = made.predict(observation, deterministic=True)
    assert made.action_space.contains(action)


def test_sac_learns_through_the_action_that_a_later_head_reads():
    made = agent(SAC, AFTER.partition("critic:")[0] + TWINS, Walk(SEEN, BOXES))
    before = {n: p.detach().clone() for n, p in made.policy.model.policy.named_parameters()}
    made.learn(32)
    after = dict(made.policy.model.policy.named_parameters())
    assert [n for n in before if torch.equal(before[n], after[n])] == []


class Guessed(gymnasium.Env):
    """A reward of 1 where the second action equals the first, and -1 where an opponent guesses the first.

    The opponent guesses the more frequent of the last 30. Heads that draw apart get at most 0 on average: with chances
    p >= 1/2 of the first action and q of the second, pq + (1 - p)(1 - q) <= p. A second head that reads what was drawn
    always gets the 1, and with p = 1/2 an average of 1/2.
    """

    observation_space, action_space = spaces.Box(-1, 1, (1,)), PAIR

    def __init__(self):
        self._past = [0, 1]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        guess = int(sum(self._past) * 2 > len(self._past))
        first, second = int(action["first"]), int(action["second"])
        self._past = [*self._past, first][-30:]
        self._steps += 1
        reward = float(first == second) - float(first == guess)
        return np.ones(1, np.float32), reward, False, self._steps == 32, {}


@pytest.mark.full
def test_a_head_that_reads_the_drawn_action_reaches_what_separate_heads_cannot():
    means = {}
    for name, spec in (("after", AFTER), ("alone", ALONE)):
        env = Guessed()
        made = sb3.agent(
            PPO, spec, env, seed=0, n_steps=256, batch_size=64, n_epochs=4, learning_rate=3e-3,
            ent_coef=0.02, gamma=0.0,
        )  # fmt: skip
        made.learn(10_000)
        policy, judge = made.policy.model.policy, Guessed()
        torch.manual_seed(0)
        observation, _ = judge.reset(seed=0)
        rewards = [judge.step(policy.act(observation))[1] for _ in range(2000)]
        means[name] = np.mean(rewards)
    assert means["after"] > 0.35
    assert means["alone"] < 0.1


def test_a_model_that_was_trained_is_saved_and_loaded(tmp_path):
    made = agent(PPO, AFTER, Walk(SEEN, PAIR))
    made.learn(32)
    made.policy.model.save(tmp_path / "trained.safetensors")
    loaded = composer.load(tmp_path / "trained.safetensors")
    seen = torch.rand(5, 3)
    action = loaded.policy.distribution(seen).sample()
    ours, theirs = (
        m.policy.distribution(seen).log_prob(action) for m in (made.policy.model, loaded)
    )
    assert torch.equal(ours, theirs)
