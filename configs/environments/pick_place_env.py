"""Sorting: pick a thing, then place it. Two steps in turn, each with observations and actions of its own.

Six things of three kinds lie in slots. The step "pick" sees what lies where and says which slot to take from; the step
"place" sees which kind it holds and where on the table the mark of each kind is, and says where to put it. Placing is
worth up to 1, the nearer to the mark of its kind the better; reaching into an empty slot costs 0.1 and is tried again.
An episode ends when all slots are empty, or after 30 steps.

Observations and actions come by step: ``reset`` gives ``{"pick": {...}}``, ``step`` takes ``{"pick": {"where": 3}}``.
Both actions are called `where`: it is the number of a slot in one step, and a point on the table in the other.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

SLOTS, KINDS, LONGEST = 6, 3, 30


class PickPlaceEnv(gymnasium.Env):
    observation_spaces = {
        "pick": spaces.Dict(things=spaces.Box(0.0, 1.0, (SLOTS, KINDS), np.float32)),
        "place": spaces.Dict(
            held=spaces.Discrete(KINDS),
            marks=spaces.Box(-1.0, 1.0, (KINDS, 2), np.float32),
        ),
    }
    action_spaces = {
        "pick": spaces.Dict(where=spaces.Discrete(SLOTS)),
        "place": spaces.Dict(where=spaces.Box(-1.0, 1.0, (2,), np.float32)),
    }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._slots = self.np_random.integers(KINDS, size=SLOTS)  # -1: empty
        self._marks = self.np_random.uniform(-1, 1, (KINDS, 2)).astype(np.float32)
        self._held, self._steps = None, 0
        return self._observation(), {}

    def step(self, action):
        self._steps += 1
        reward = self._pick(action["pick"]) if self._held is None else self._place(action["place"])
        done = self._held is None and bool((self._slots < 0).all())
        return self._observation(), reward, done, self._steps >= LONGEST, {}

    def _pick(self, action):
        slot = int(action["where"])
        if self._slots[slot] < 0:
            return -0.1
        self._held, self._slots[slot] = int(self._slots[slot]), -1
        return 0.0

    def _place(self, action):
        distance = float(np.linalg.norm(action["where"] - self._marks[self._held]))
        self._held = None
        return max(0.0, 1.0 - distance)

    def _observation(self):
        if self._held is not None:
            return {"place": {"held": np.int64(self._held), "marks": self._marks.copy()}}
        things = np.zeros((SLOTS, KINDS), np.float32)
        there = self._slots >= 0
        things[np.flatnonzero(there), self._slots[there]] = 1.0
        return {"pick": {"things": things}}


gymnasium.register(
    "PickPlace-v0", entry_point="environments.pick_place_env:PickPlaceEnv", disable_env_checker=True
)
