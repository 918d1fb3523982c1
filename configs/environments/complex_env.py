"""Larder: gather what lies about, then use it. A small environment with the spaces of a large one.

Six things of sixteen kinds lie on an 8 x 8 floor. An agent sees the floor as a picture of 64 x 64 pixels and what it
carries as 16 counts. In each step it walks one field (move: up, right, down, left) and says of every kind whether to
use one (use: 16 switches). Using a thing that it carries is worth 1, trying one that it does not carry costs 0.1.
An episode ends when everything has been used, or after 100 steps.
"""

import colorsys

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation

FIELDS, PIXELS, KINDS, THINGS = 8, 8, 16, 6
STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left
WINDOW = 4
COLOURS = np.array(
    [
        [round(255 * part) for part in colorsys.hsv_to_rgb(k / KINDS, 1.0, 0.8)]
        for k in range(KINDS)
    ],
    dtype=np.uint8,
)


class ComplexEnv(gymnasium.Env):
    observation_space = spaces.Dict(
        screen=spaces.Box(0, 255, (FIELDS * PIXELS, FIELDS * PIXELS, 3), np.uint8),
        inventory=spaces.Box(0.0, THINGS, (KINDS,), np.float32),
    )
    action_space = spaces.Dict(move=spaces.Discrete(4), use=spaces.MultiBinary(KINDS))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        places = self.np_random.choice(FIELDS * FIELDS, THINGS + 1, replace=False)
        self._agent = np.array(divmod(int(places[0]), FIELDS))
        self._floor = {
            divmod(int(place), FIELDS): int(self.np_random.integers(KINDS)) for place in places[1:]
        }
        self._carried = np.zeros(KINDS, np.float32)
        return self._observe(), {}

    def step(self, action):
        wanted = np.asarray(action["use"]) == 1
        used = wanted & (self._carried > 0)
        self._carried[used] -= 1
        reward = float(used.sum()) - 0.1 * float((wanted & ~used).sum())
        self._agent = np.clip(self._agent + STEPS[action["move"]], 0, FIELDS - 1)
        kind = self._floor.pop((int(self._agent[0]), int(self._agent[1])), None)
        if kind is not None:
            self._carried[kind] += 1
        done = not self._floor and not self._carried.any()
        return self._observe(), reward, done, False, {}

    def _observe(self):
        fields = np.zeros((FIELDS, FIELDS, 3), np.uint8)
        for place, kind in self._floor.items():
            fields[place] = COLOURS[kind]
        fields[tuple(self._agent)] = 255
        screen = fields.repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
        return {"screen": screen, "inventory": self._carried.copy()}


def make_window_env(**settings):
    """The same, but an observation holds the last four, oldest first: screens (4, 64, 64, 3), inventories (4, 16)."""
    return FrameStackObservation(ComplexEnv(**settings), WINDOW)


gymnasium.register("Complex-v0", "environments.complex_env:ComplexEnv", max_episode_steps=100)
gymnasium.register(
    "ComplexWindow-v0", "environments.complex_env:make_window_env", max_episode_steps=100
)
