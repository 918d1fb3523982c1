"""Point at a square: an image with three squares, a task in words, and a point on it as the action."""

from string import ascii_lowercase

import gymnasium
import numpy as np
from gymnasium import spaces

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZE, HALF = 8, 4  # each square fills a quarter of the image


class PointEnv(gymnasium.Env):
    """One action is an episode: a point (x, y), worth 1 in the middle of the square and less further away."""

    observation_space = spaces.Dict(
        main_images=spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
        task_descriptions=spaces.Text(40, min_length=1, charset=ascii_lowercase + " "),
    )
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        places = self.np_random.permutation(4)[: len(COLOURS)]
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        for place, colour in zip(places, COLOURS.values()):
            top, left = HALF * (place // 2), HALF * (place % 2)
            image[top : top + HALF, left : left + HALF] = colour
        chosen = int(self.np_random.integers(len(COLOURS)))
        self._target = np.array([places[chosen] % 2, places[chosen] // 2]) - 0.5  # its middle
        colour = list(COLOURS)[chosen]
        polite = "point at the" if self.np_random.random() < 0.5 else "point at"
        self._image, self._task = image, f"{polite} {colour} square"
        return self._seen(), {}

    def step(self, action):
        distance = float(np.linalg.norm(np.asarray(action) - self._target))
        return self._seen(), 1.0 - distance, True, False, {}

    def _seen(self):
        return {"main_images": self._image.copy(), "task_descriptions": self._task}


gymnasium.register("PointAt-v0", "environments.point_env:PointEnv")
