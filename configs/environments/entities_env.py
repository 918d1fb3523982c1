"""Sentry: intruders come from all sides, more or fewer at a time; turn to the nearest and stop it.

A sentry stands in the middle of a field. Of every intruder it sees the kind (walker, runner or decoy) and where it is,
and of itself the charge of its light. In each step it lights up one of eight sectors, or none (0): the nearest intruder
there is gone. Stopping one is worth 1, but a decoy nothing. Light costs charge, which comes back while it is off. An
episode ends, at a cost of 5, when an intruder reaches the sentry, and after 200 steps.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

SECTORS, MOST, COST, GAIN, ARRIVAL = 8, 10, 0.2, 0.1, 0.3
SPEEDS = np.array([0.02, 0.05, 0.0])  # of walker, runner and decoy
DECOY, REACH = 2, 0.05


class SentryEnv(gymnasium.Env):
    observation_space = spaces.Dict(
        intruders=spaces.Sequence(
            spaces.Dict(kind=spaces.Discrete(3), at=spaces.Box(-1.0, 1.0, (2,), np.float32))
        ),
        charge=spaces.Box(0.0, 1.0, (1,), np.float32),
    )
    action_space = spaces.Discrete(SECTORS + 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._kinds = np.zeros(0, np.int64)
        self._at = np.zeros((0, 2))
        self._charge = 1.0
        self._arrive()
        return self._observe(), {}

    def step(self, action):
        reward = 0.0
        if action > 0 and self._charge >= COST:
            self._charge -= COST
            reward = self._light(int(action) - 1)
        else:
            self._charge = min(1.0, self._charge + GAIN)
        distance = np.linalg.norm(self._at, axis=-1, keepdims=True)
        self._at -= self._at / np.maximum(distance, REACH) * SPEEDS[self._kinds][:, None]
        caught = bool((np.linalg.norm(self._at, axis=-1) < REACH).any())
        if self.np_random.random() < ARRIVAL:
            self._arrive()
        return self._observe(), reward - 5.0 * caught, caught, False, {}

    def _light(self, sector):
        """Remove the nearest intruder in the sector; returns what it is worth."""
        inside = np.flatnonzero(sectors(self._at) == sector)
        if not len(inside):
            return 0.0
        nearest = inside[np.linalg.norm(self._at[inside], axis=-1).argmin()]
        worth = float(self._kinds[nearest] != DECOY)
        self._kinds, self._at = np.delete(self._kinds, nearest), np.delete(self._at, nearest, 0)
        return worth

    def _arrive(self):
        if len(self._kinds) < MOST:
            angle = self.np_random.uniform(-np.pi, np.pi)
            self._kinds = np.append(self._kinds, self.np_random.integers(3))
            self._at = np.vstack([self._at, 0.9 * np.array([np.cos(angle), np.sin(angle)])])

    def _observe(self):
        at = self._at.astype(np.float32)
        intruders = tuple({"kind": kind, "at": place} for kind, place in zip(self._kinds, at))
        return {"intruders": intruders, "charge": np.array([self._charge], np.float32)}


def sectors(at):
    """The sector, 0 to 7, in which each of the places (n, 2) is."""
    turn = np.arctan2(at[:, 1], at[:, 0]) / (2 * np.pi) % 1.0
    return (turn * SECTORS).astype(int) % SECTORS


gymnasium.register("Sentry-v0", "environments.entities_env:SentryEnv", max_episode_steps=200)
