"""Seek: find a goal in the plane by smell alone; where the goal and the wind are is known to the critic only.

A walker sees where it is and how strong it smells the goal, with noise; the wind pushes it about. The critic of a
training run may know more than the agent will ever see: ``goal`` and ``wind`` are the simulator's own. Each step is
worth minus the distance to the goal. An episode takes 40 steps.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

REACH, STEP, NOISE, WIND = 2.0, 0.2, 0.05, 0.1


def plane(size, number=2):
    return spaces.Box(-size, size, (number,), np.float32)


class SeekEnv(gymnasium.Env):
    observation_space = spaces.Dict(
        place=plane(REACH), smell=plane(1.0, 1), goal=plane(REACH), wind=plane(WIND)
    )
    action_space = plane(1.0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._goal = self.np_random.uniform(-1, 1, (2, 2))
        self._wind = self.np_random.uniform(-WIND, WIND, 2)
        return self._observe(), {}

    def step(self, action):
        moved = self._place + STEP * np.asarray(action) + self._wind
        self._place = moved.clip(-REACH, REACH)
        return self._observe(), -self._distance(), False, False, {}

    def _distance(self):
        return float(np.linalg.norm(self._goal - self._place))

    def _observe(self):
        smell = np.exp(-self._distance()) + self.np_random.normal(0, NOISE)
        seen = {
            "place": self._place,
            "smell": np.clip([smell], -1, 1),
            "goal": self._goal,
            "wind": self._wind,
        }
        return {name: np.asarray(value, np.float32) for name, value in seen.items()}


gymnasium.register("Seek-v0", "environments.seek_env:SeekEnv", max_episode_steps=40)
