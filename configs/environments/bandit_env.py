"""Bandit: two arms, one of which pays far more often than the other. Which one is new in each episode, and not seen.

An episode has 20 steps. The better arm pays 1 with a chance of 0.9, the other with a chance of 0.1. The observation
says only how much of the episode is left: what the arms are like can be learned from actions and rewards alone.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

STEPS, CHANCES = 20, (0.1, 0.9)


class BanditEnv(gymnasium.Env):
    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._better = int(self.np_random.integers(2))
        self._left = STEPS
        return self._observation(), {}

    def step(self, action):
        self._left -= 1
        pays = self.np_random.random() < CHANCES[int(action == self._better)]
        return self._observation(), float(pays), self._left == 0, False, {}

    def _observation(self):
        return np.array([self._left / STEPS], np.float32)


gymnasium.register("Bandit-v0", "environments.bandit_env:BanditEnv")
