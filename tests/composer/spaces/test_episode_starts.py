"""composer.first_steps is right in every autoreset mode, against an environment that counts its own steps."""

import re
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import composer

STEPS = 2000
MODES = list(AutoresetMode)
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)


class Counting(gymnasium.Env):
    """Observes (step within its episode, episode); episodes have random lengths, one step among them."""

    observation_space = spaces.Box(0, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.count = 0
        self.length = self.np_random.integers(1, 8)
        return self._observation(), {}

    def step(self, action):
        assert self.count < self.length, "stepped after the end"
        self.count += 1
        over = self.count == self.length
        terminated = over and self.length % 2 == 0
        return self._observation(), 1.0, terminated, over and not terminated, {}

    def _observation(self):
        return np.array([self.count, self.episode], np.float32)


def make(mode, kind=SyncVectorEnv, num_envs=5, **keywords):
    return kind([Counting] * num_envs, autoreset_mode=mode, **keywords)


def seen(envs, steps):
    """(observation, resets) of every step, as a policy sees them."""
    starts = composer.first_steps(envs)
    observations, _ = envs.reset(seed=3)
    for _ in range(steps):
        yield observations, starts.resets
        observations, _, terminated, truncated, _ = envs.step(np.zeros(envs.num_envs, np.int64))
        starts.update(terminated, truncated)
        over = terminated | truncated
        if starts.mode is AutoresetMode.DISABLED and over.any():
            observations, _ = envs.reset(options={"reset_mask": over})
            starts.reset(over)


@every_mode
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_resets_are_true_exactly_where_an_episode_has_its_first_observation(kind, mode):
    envs = make(mode, kind)
    episodes = 0
    for observations, resets in seen(envs, STEPS if kind is SyncVectorEnv else STEPS // 4):
        assert resets.dtype == np.bool_
        assert resets.tolist() == (observations[:, 0] == 0).tolist()
        episodes = max(episodes, observations[:, 1].max())
    assert episodes > 50
    envs.close()


@every_mode
def test_the_policy_sees_the_last_observation_of_an_episode_only_where_it_comes_before_the_next(
    mode,
):
    envs = make(mode, num_envs=1)
    lasts = []
    history = [(o[0, 0], o[0, 1]) for o, _ in seen(envs, 100)]
    for (count, episode), (_, after) in pairwise(history):
        if after != episode:
            lasts.append(count)
    # Episodes last 1 to 7 steps: the observation after the seventh is seen in NextStep mode alone.
    assert max(lasts) == (7 if mode is AutoresetMode.NEXT_STEP else 6)
    envs.close()


@every_mode
def test_a_reset_of_all_by_hand_begins_new_episodes(mode):
    envs = make(mode)
    starts = composer.first_steps(envs)
    generator = np.random.default_rng(0)
    observations, _ = envs.reset(seed=0)
    for step in range(300):
        assert starts.resets.tolist() == (observations[:, 0] == 0).tolist()
        observations, _, terminated, truncated, _ = envs.step(np.zeros(5, np.int64))
        starts.update(terminated, truncated)
        over = terminated | truncated
        if generator.random() < 0.2 or (mode is AutoresetMode.DISABLED and over.any()):
            mask = None if step % 3 == 0 else over | (generator.random(5) < 0.3)
            if mask is None or mask.any():
                options = {} if mask is None else {"options": {"reset_mask": mask}}
                observations, _ = envs.reset(**options)
                starts.reset(mask)
    envs.close()


def test_a_vector_environment_of_its_own_and_wrapped_ones_say_their_mode():
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point")
    starts = composer.first_steps(gymnasium.wrappers.vector.RecordEpisodeStatistics(envs))
    assert starts.mode is AutoresetMode.NEXT_STEP
    assert starts.resets.tolist() == [True] * 3
    envs.close()


def test_arrays_that_were_stored_stay_as_they_were_and_tensors_will_do():
    starts = composer.first_steps(make("SameStep", num_envs=2))
    first = starts.resets
    starts.update(torch.tensor([True, False]), torch.tensor([False, False]))
    second = starts.resets
    starts.reset(torch.tensor([False, True]))
    assert [a.tolist() for a in (first, second, starts.resets)] == [[1, 1], [1, 0], [1, 1]]


class Silent:
    num_envs = 2
    metadata: dict = {}


def test_a_mode_can_be_said_for_an_environment_that_does_not():
    assert composer.first_steps(Silent(), "SameStep").mode is AutoresetMode.SAME_STEP
    assert composer.first_steps(Silent(), AutoresetMode.DISABLED).mode is AutoresetMode.DISABLED


def refuse(message, call, *arguments):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(*arguments)


def test_what_cannot_be_tracked_is_refused_in_words():
    refuse(
        "first_steps takes a vector environment, got a Counting; "
        "of one environment, the observation that reset() returns is the first",
        composer.first_steps,
        Counting(),
    )
    refuse(
        "the vector environment, a Silent, has no 'autoreset_mode' in its metadata; "
        "give first_steps(vector_env, autoreset_mode=...), one of 'NextStep', 'SameStep', 'Disabled'",
        composer.first_steps,
        Silent(),
    )
    refuse(
        "autoreset_mode must be one of 'NextStep', 'SameStep', 'Disabled', got 'next'",
        composer.first_steps,
        Silent(),
        "next",
    )


def test_a_forgotten_reset_and_arrays_of_another_size_are_refused_and_change_nothing():
    starts = composer.first_steps(make("Disabled", num_envs=3))
    starts.update([False, True, False], [False, False, True])
    before = starts.resets
    refuse(
        "the episodes of environments [1, 2] ended, and this environment does not reset itself: after "
        'vector_env.reset(options={"reset_mask": mask}) call reset(mask)',
        starts.update,
        *[[False] * 3] * 2,
    )
    refuse("terminations must have the shape (3,), got (2,)", starts.update, [0, 0], [0, 0, 0])
    refuse("mask must have the shape (3,), got ()", starts.reset, True)
    assert starts.resets is before
    starts.reset([False, True, True])
    starts.update([False] * 3, [False] * 3)
    assert not starts.resets.any()
