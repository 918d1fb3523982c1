"""Parallel environments, with PettingZoo's interface, for the tests of training several actors."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Signs(ParallelEnv):
    """Agents that come and go; each is told a sign in the first step of a life, and paid for choosing it later.

    ``a_0`` and ``a_1`` choose one of three, never the one that is masked; ``b_0`` has a Box. Each of them may leave
    after any step (terminated) and come again, ``at_once`` in the same step; after ``steps`` steps all are truncated.
    """

    metadata = {"name": "signs"}
    possible_agents = ["a_0", "a_1", "b_0"]
    LEAVE, JOIN = 0.15, 0.4

    def __init__(self, steps=9, leaves=True, at_once=False):
        self.steps, self.leaves, self.at_once = steps, leaves, at_once
        self.agents = []
        self.log = []  # of every step: rewards, who left, who was truncated, what is seen after

    def observation_space(self, agent):
        if agent == "b_0":
            return spaces.Box(-2, 2, (2,), np.float64)
        return spaces.Dict(
            sign=spaces.Discrete(4, start=1),
            legal=spaces.MultiBinary(3),
            noise=spaces.Box(0, 1, (2,)),
        )

    def action_space(self, agent):
        return spaces.Box(-1, 1, (1,)) if agent == "b_0" else spaces.Discrete(3, start=5)

    def reset(self, seed=None, options=None):
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._step = 0
        self.agents = ["a_0", "b_0"] if self.leaves else list(self.possible_agents)
        self._signs = {agent: int(self._rng.integers(3)) for agent in self.agents}
        self._new = set(self.agents)
        return self._observe(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions):
        assert list(actions) == self.agents, (list(actions), self.agents)
        self._step += 1
        acting = list(self.agents)
        rewards = {agent: self._reward(agent, actions[agent]) for agent in acting}
        is_last = self._step == self.steps
        gone = {a for a in acting if self.leaves and self._rng.random() < self.LEAVE}
        self.agents = [a for a in acting if a not in gone and not is_last]
        self._new = set()
        observations = self._observe(acting)
        if not is_last and self.agents:
            for agent in self.possible_agents:
                may_join = agent not in (self.agents if self.at_once else {*acting, *self.agents})
                if may_join and self._rng.random() < self.JOIN:
                    self.agents.append(agent)
                    self._new.add(agent)
                    self._signs[agent] = int(self._rng.integers(3))
                    observations |= self._observe([agent])
            self.agents.sort()
        cut = {agent for agent in acting if is_last and agent not in gone}
        after = {agent: observations[agent] for agent in (*self.agents, *sorted(cut))}
        self.log.append((rewards, gone, cut, after))
        terminations = {agent: agent in gone for agent in acting}
        truncations = {agent: agent in cut for agent in acting}
        return observations, rewards, terminations, truncations, {agent: {} for agent in acting}

    def close(self):
        pass

    def _reward(self, agent, action):
        if agent == "b_0":
            assert self.action_space(agent).contains(action)
            return float(1 - abs(action[0] - (self._signs[agent] - 1)))
        assert self.action_space(agent).contains(action), action
        assert action - 5 != self._illegal(agent), "an illegal action"
        return float(action - 5 == self._signs[agent])

    def _illegal(self, agent):
        return (self._signs[agent] + 1) % 3

    def _observe(self, agents):
        return {agent: self._seen(agent) for agent in agents}

    def _seen(self, agent):
        sign = self._signs[agent] + 1 if agent in self._new else 0
        if agent == "b_0":
            return np.array([sign - 1, self._step / self.steps])
        legal = np.ones(3, np.int8)
        legal[self._illegal(agent)] = 0
        return {
            "sign": np.int64(sign + 1),
            "legal": legal,
            "noise": self._rng.random(2, np.float32),
        }


class Balance(ParallelEnv):
    """A cooperation of two: each sees one number, both are paid when their choices sum to the sum of the numbers."""

    metadata = {"name": "balance"}
    possible_agents = ["left_0", "right_0"]

    def __init__(self, steps=8, numbers=3):
        self._steps, self._numbers = steps, numbers
        self.agents = []

    def observation_space(self, agent):
        return spaces.Box(0, 1, (self._numbers,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(self._numbers)

    def reset(self, seed=None, options=None):
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._step, self.agents = 0, list(self.possible_agents)
        return self._draw(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self._step += 1
        reward = float(sum(map(int, actions.values())) == int(self._drawn.sum()))
        acting, is_last = self.agents, self._step == self._steps
        if is_last:
            self.agents = []
        return (
            self._draw(),
            dict.fromkeys(acting, reward),
            dict.fromkeys(acting, False),
            dict.fromkeys(acting, is_last),
            {agent: {} for agent in acting},
        )

    def close(self):
        pass

    def _draw(self):
        self._drawn = self._rng.integers(self._numbers, size=2)
        rows = np.eye(self._numbers, dtype=np.float32)[self._drawn]
        return dict(zip(self.possible_agents, rows, strict=True))
