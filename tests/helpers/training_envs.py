"""Environments for the tests of training: what may not be done raises, and one sends its process a signal."""

import signal

import gymnasium
import numpy as np
from environments.recall_env import RecallEnv  # pyright: ignore[reportMissingImports]  (of configs/)
from gymnasium import spaces


class StrictRecall(RecallEnv):
    """Recall where an illegal action is an error; with ``told`` the sign is seen in every step, so nobody need remember."""

    def __init__(self, told=False):
        self._told = told

    def step(self, action):
        if not self.action_masks()[action]:
            raise AssertionError(f"the action {action} is not legal")
        return super().step(action)

    def action_masks(self):
        return self._observe()["legal"].astype(bool)

    def _observe(self, sign=0):
        return super()._observe(1 + self._treasure if self._told else sign)


class Unnamed(StrictRecall):
    """The same with the mask under the name by which trainers know it."""

    observation_space = spaces.Dict(
        {**RecallEnv.observation_space.spaces, "action_mask": spaces.MultiBinary(5)}
    )

    def _observe(self, sign=0):
        observation = super()._observe(sign)
        return {**observation, "action_mask": observation["legal"]}


class Sort(gymnasium.Env):
    """Say which of three numbers is the largest: ten times, for 1 each. The numbers are two observations."""

    observation_space = spaces.Dict(
        pair=spaces.Box(-1, 1, (2,), np.float32), third=spaces.Box(-1, 1, (1,), np.float32)
    )
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        reward = float(action == self._numbers.argmax())
        return self._draw(), reward, False, False, {}

    def _draw(self):
        self._numbers = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"pair": self._numbers[:2], "third": self._numbers[2:]}


class Broken(Sort):
    """Sort that goes wrong in its fifth step: in what is legal, seen or paid, or in the form of it all."""

    observation_space = spaces.Dict(
        {**Sort.observation_space.spaces, "legal": spaces.MultiBinary(3)}
    )

    def __init__(self, how):
        self._how, self._steps = how, 0

    def step(self, action):
        self._steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self._is("reward"):
            reward = float("nan")
        if self._is("reward-array"):
            reward = np.ones(1)
        if self._is("four"):
            return observation, reward, terminated, info
        return observation, reward, terminated, truncated, info

    def _draw(self):
        observation = super()._draw()
        if self._is("none"):
            return None
        if self._is("shape"):
            observation["pair"] = np.zeros(3, np.float32)
        if self._is("text"):
            observation["pair"] = "left"
        if self._is("observation"):
            observation["pair"] = np.full(2, np.nan, np.float32)
        return {**observation, "legal": np.full(3, not self._is("mask"), np.int8)}

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        return result[0] if self._how == "reset" else result

    def _is(self, how):
        return self._how == how and self._steps >= 5


class Aim(gymnasium.Env):
    """Say a number that is seen, ten times: each costs how far off it was. Actions are thrice as large."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-3, 3, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        cost = abs(float(action[0]) / 3 - float(self._number[0]))
        return self._draw(), -cost, False, False, {}

    def _draw(self):
        self._number = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self._number


class Sign(gymnasium.Env):
    """Say at the fifth step which of four signs was seen at the first, for 1; all other answers count for nothing."""

    observation_space = spaces.Box(0, 1, (5,), np.float32)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._sign, self._steps = int(self.np_random.integers(4)), 0
        return np.eye(5, dtype=np.float32)[self._sign], {}

    def step(self, action):
        self._steps += 1
        blank = np.eye(5, dtype=np.float32)[4]
        ends = self._steps == 5
        return blank, float(ends and action == self._sign), ends, False, {}


class Target(Aim):
    """Aim at a number that is seen at the first of five steps alone."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        self._number = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return np.append(self._number, np.float32(1)), {}

    def _draw(self):
        return np.zeros(2, np.float32)


class Interrupting(Sort):
    """Sends a signal to its own process at its 300th step, the first time that it gets there."""

    steps = 0
    number = signal.SIGINT

    def step(self, action):
        Interrupting.steps += 1
        if Interrupting.steps == 300:
            signal.raise_signal(self.number)
        return super().step(action)


gymnasium.register("StrictRecall-v0", "training_envs:StrictRecall", max_episode_steps=12)
gymnasium.register("Sort-v0", "training_envs:Sort", max_episode_steps=10)
gymnasium.register("Sign-v0", "training_envs:Sign", max_episode_steps=5)
gymnasium.register("Target-v0", "training_envs:Target", max_episode_steps=5)
for how in (
    "mask", "observation", "reward", "shape", "text", "none", "reward-array", "four", "reset",
):  # fmt: skip
    gymnasium.register(
        f"Broken-{how}-v0", "training_envs:Broken", max_episode_steps=10, kwargs={"how": how},
        disable_env_checker=True,
    )  # fmt: skip
gymnasium.register("Aim-v0", "training_envs:Aim", max_episode_steps=10)
gymnasium.register("Interrupting-v0", "training_envs:Interrupting", max_episode_steps=10)
gymnasium.register(
    "ToldRecall-v0", "training_envs:StrictRecall", max_episode_steps=12, kwargs={"told": True}
)
gymnasium.register(
    "Unnamed-v0", "training_envs:Unnamed", max_episode_steps=12, kwargs={"told": True}
)
