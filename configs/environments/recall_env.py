"""Recall: a sign at the entrance tells which door hides the treasure; at the end of a corridor one has to remember it.

An agent walks a corridor of unknown length. The sign (one of three) is seen in the first step alone. At the end are
three doors, of which one or two are locked, never the one with the treasure: opening that is worth 1, another one -1,
and the episode ends. Waiting is always legal, walking only in the corridor, and a door only where it is and is not
locked: that is what ``legal`` says. Each step costs 0.01. An episode is cut off after 12 steps.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

DOORS, SHORTEST, LONGEST, COST = 3, 2, 6, 0.01
WAIT, WALK = 0, 1  # and then the doors


class RecallEnv(gymnasium.Env):
    observation_space = spaces.Dict(
        sign=spaces.Discrete(DOORS + 1),  # 0: there is none
        place=spaces.Box(
            0.0, 1.0, (2,), np.float32
        ),  # how far the agent sees ahead, whether there are doors
        legal=spaces.MultiBinary(2 + DOORS),
    )
    action_space = spaces.Discrete(2 + DOORS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._ahead = int(self.np_random.integers(SHORTEST, LONGEST + 1))
        self._treasure = int(self.np_random.integers(DOORS))
        others = [door for door in range(DOORS) if door != self._treasure]
        locked = self.np_random.choice(others, self.np_random.integers(1, DOORS), replace=False)
        self._open = [door not in locked for door in range(DOORS)]
        return self._observe(sign=1 + self._treasure), {}

    def step(self, action):
        opened = action >= 2
        if action == WALK:
            self._ahead -= 1
        worth = (1.0 if action - 2 == self._treasure else -1.0) if opened else 0.0
        return self._observe(), worth - COST, bool(opened), False, {}

    def _observe(self, sign=0):
        doors = self._ahead == 0
        legal = [True, not doors, *(doors and is_open for is_open in self._open)]
        return {
            "sign": sign,
            "place": np.array([min(self._ahead, 2) / 2, doors], np.float32),
            "legal": np.array(legal, np.int8),
        }


gymnasium.register("Recall-v0", "environments.recall_env:RecallEnv", max_episode_steps=12)
