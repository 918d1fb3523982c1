"""Catch: a ball falls, a paddle moves, and all there is to see is four grey frames, as an Atari agent gets them."""

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE, FRAMES, BALL, PADDLE = 84, 4, 4, 14


class CatchEnv(gymnasium.Env):
    """Actions: stay, left, right. Catching the ball is worth 1, missing it -1; five balls are an episode."""

    observation_space = spaces.Box(0, 255, (FRAMES, SIZE, SIZE), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._paddle = (SIZE - PADDLE) // 2
        self._balls = 5
        self._drop()
        self._frames = np.stack([self._frame()] * FRAMES)
        return self._frames.copy(), {}

    def step(self, action):
        self._paddle = int(np.clip(self._paddle + 3 * (0, -1, 1)[action], 0, SIZE - PADDLE))
        self._height += 3
        self._column = int(np.clip(self._column + self._drift, 0, SIZE - BALL))
        reward = 0.0
        if self._height + BALL >= SIZE:
            caught = self._paddle - BALL < self._column < self._paddle + PADDLE
            reward = 1.0 if caught else -1.0
            self._balls -= 1
            self._drop()
        self._frames = np.concatenate([self._frames[1:], self._frame()[None]])
        return self._frames.copy(), reward, self._balls == 0, False, {}

    def _drop(self):
        self._height = 0
        self._column = int(self.np_random.integers(SIZE - BALL))
        self._drift = int(self.np_random.integers(-1, 2))

    def _frame(self):
        frame = np.zeros((SIZE, SIZE), np.uint8)
        frame[self._height : self._height + BALL, self._column : self._column + BALL] = 255
        frame[-2:, self._paddle : self._paddle + PADDLE] = 160
        return frame


class StrideCatchEnv(CatchEnv):
    """Catch where a move has a length: how far the paddle goes to the left or right."""

    action_space = spaces.Dict(move=spaces.Discrete(3), stride=spaces.Box(1.0, 8.0, (1,)))

    def step(self, action):
        side = (0, -1, 1)[action["move"]]
        paddle = self._paddle + round(side * float(action["stride"][0]))
        self._paddle = int(np.clip(paddle, 0, SIZE - PADDLE))
        return super().step(0)


gymnasium.register("Catch-v0", "environments.pixels_env:CatchEnv", max_episode_steps=500)
gymnasium.register(
    "StrideCatch-v0", "environments.pixels_env:StrideCatchEnv", max_episode_steps=500
)
