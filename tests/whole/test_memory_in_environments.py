"""Policies and critics with memory in real vector environments: the same numbers as one environment at a time.

The model is configs/masked_recurrent.yaml: masks, a dict of observations, a shared embedding and two memories.
"""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import composer
from tests.helpers.paths import CONFIGS

ENVS, STEPS, SEED = 4, 600, 7
CLOSE: Any = {"atol": 1e-5, "rtol": 1e-5}
every_mode = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)


@pytest.fixture(autouse=True)
def _the_environment_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)


@pytest.fixture
def model():
    overrides = [("policy.heads.init_scale", 5.0)]  # so that it does not do the same all the time
    spec = CONFIGS / "masked_recurrent.yaml"
    return composer.compose(spec, allow=["environments"], overrides=overrides, seed=0).eval()


def make_env():
    return gymnasium.make("environments.recall_env:Recall-v0")


class Record:
    """What was seen and done, step by step."""

    def __init__(self):
        self.steps: list[dict[str, Any]] = []

    def note(self, **values):
        self.steps.append(values)

    def stacked(self, name, axis):
        return torch.stack([torch.as_tensor(step[name]) for step in self.steps], axis)


@torch.no_grad()
def step(model, observations, state, policy_state, resets, record):
    """One step of the model and, by itself, of the policy, which decides."""
    logits, values, state = model(observations, state, resets)
    actions, policy_state = model.policy.act(observations, policy_state, resets, deterministic=True)
    record.note(
        **{f"observation/{key}": np.copy(value) for key, value in observations.items()},
        logits=logits["action"], value=values["value"], action=actions, resets=np.copy(resets),
    )  # fmt: skip
    return actions, state, policy_state


def play_together(model, envs, steps):
    """All environments at once, reset as the vector environment does it."""
    record, starts = Record(), composer.first_steps(envs)
    observations, _ = envs.reset(seed=SEED)
    state, policy_state = model.initial_state(ENVS), model.policy.initial_state(ENVS)
    for _ in range(steps):
        actions, state, policy_state = step(
            model, observations, state, policy_state, starts.resets, record
        )
        assert all(observations["legal"][range(ENVS), actions])
        observations, _, terminated, truncated, _ = envs.step(actions)
        starts.update(terminated, truncated)
        over = terminated | truncated
        if starts.mode is AutoresetMode.DISABLED and over.any():
            observations, _ = envs.reset(options={"reset_mask": over})
            starts.reset(over)
    envs.close()
    return record


def play_alone(model, seed, steps, shows_the_end):
    """One environment, and a state that begins anew with each episode."""
    record, env = Record(), make_env()
    observation, _ = env.reset(seed=seed)
    state, policy_state = model.initial_state(), model.policy.initial_state()
    first, over = True, False
    for _ in range(steps):
        action, state, policy_state = step(model, observation, state, policy_state, first, record)
        if not over:
            observation, _, terminated, truncated, _ = env.step(action)
            over, first = terminated or truncated, False
            if shows_the_end:
                continue
        if over:
            observation, _ = env.reset()
            state, policy_state = model.initial_state(), model.policy.initial_state()
            over, first = False, True
    env.close()
    return record


@every_mode
def test_a_vector_environment_gives_what_its_environments_give_one_by_one(model, mode):
    envs = SyncVectorEnv([make_env] * ENVS, autoreset_mode=mode)
    together = play_together(model, envs, STEPS)
    assert sum(int(step["resets"].sum()) for step in together.steps) > 200
    assert set(together.stacked("action", 0).flatten().tolist()) == set(range(5))
    for index in range(ENVS):
        alone = play_alone(model, SEED + index, STEPS, mode is AutoresetMode.NEXT_STEP)
        for name in together.steps[0]:
            ours, theirs = together.stacked(name, 0)[:, index], alone.stacked(name, 0)
            if ours.is_floating_point():
                torch.testing.assert_close(ours, theirs, **CLOSE)
            else:
                assert torch.equal(ours, theirs.to(ours.dtype)), name


@every_mode
def test_step_by_step_is_the_unroll_of_the_same_observations_with_their_resets(model, mode):
    record = play_together(model, SyncVectorEnv([make_env] * ENVS, autoreset_mode=mode), STEPS)
    keys = [name for name in record.steps[0] if name.startswith("observation/")]
    observations = {key.partition("/")[2]: record.stacked(key, 1) for key in keys}
    resets = record.stacked("resets", 1)
    logits, _ = model.policy.unroll(observations, model.policy.initial_state(ENVS), resets)
    values, _ = model.critic.unroll(
        observations, model.critic.initial_state(ENVS), resets, shared=logits
    )
    torch.testing.assert_close(logits["action"], record.stacked("logits", 1), **CLOSE)
    torch.testing.assert_close(values["value"], record.stacked("value", 1), **CLOSE)
    distribution, _ = model.policy.distribution(
        observations, model.policy.initial_state(ENVS), resets, unroll=True
    )
    assert torch.equal(distribution.mode(), record.stacked("action", 1))
    assert torch.isfinite(distribution.log_prob(record.stacked("action", 1))).all()


@every_mode
def test_environments_in_processes_of_their_own_give_the_same(model, mode, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS))
    one, other = (
        play_together(model, kind([make_env] * ENVS, autoreset_mode=mode), 60)
        for kind in (SyncVectorEnv, AsyncVectorEnv)
    )
    for name in one.steps[0]:
        assert torch.equal(one.stacked(name, 0), other.stacked(name, 0)), name


def test_resets_that_are_a_step_early_would_not_be_the_same(model):
    """What `terminated | truncated` says where the last observation of an episode is seen before the next."""
    envs = SyncVectorEnv([make_env] * ENVS, autoreset_mode=AutoresetMode.NEXT_STEP)
    record = play_together(model, envs, 100)
    observations = {
        name.partition("/")[2]: record.stacked(name, 1)
        for name in record.steps[0]
        if name.startswith("observation/")
    }
    early = record.stacked("resets", 1).roll(-1, 1)
    logits, _ = model.policy.unroll(observations, model.policy.initial_state(ENVS), early)
    assert (logits["action"] - record.stacked("logits", 1)).abs().max() > 0.01
