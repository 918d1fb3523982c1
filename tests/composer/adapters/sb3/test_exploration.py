"""Stable-Baselines3 holds the noise of the distribution gsde for several steps, as its own policies do."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC

from composer.training.session import train
from tests.helpers.sb3_agents import ACTOR, TWINS, VALUES, agent

PENDULUM = (
    "environment: Pendulum-v1\ndistributions: [{space: box, distribution: gsde, latent_units: 8}]\n"
)
ON_POLICY = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}


def held(monkeypatch, made) -> list[int]:
    """The numbers of environments with which noise is drawn, from now on."""
    drawn: list[int] = []
    family = made.policy.policy.distributions["action"]
    hold = family.hold_noise

    def counted(batch_size, generator=None):
        drawn.append(batch_size)
        hold(batch_size, generator)

    monkeypatch.setattr(family, "hold_noise", counted)
    return drawn


def test_ppo_holds_noise_for_as_many_steps_as_it_is_told(monkeypatch):
    made = agent(PPO, PENDULUM + ACTOR + VALUES, use_sde=True, sde_sample_freq=4, **ON_POLICY)
    drawn = held(monkeypatch, made)
    before = made.policy.policy.distributions["action"].log_std.clone()
    made.learn(16)
    assert drawn == 2 * [1, 1, 1]  # at the start of a rollout, and at its steps 0 and 4
    assert not torch.equal(before, made.policy.policy.distributions["action"].log_std)
    observation = np.zeros((1, 3), np.float32)
    actions = [made.predict(observation)[0] for _ in range(2)]
    assert np.array_equal(*actions)
    many, _ = made.predict(np.zeros((3, 3), np.float32))
    assert len(np.unique(many)) == 1  # by the first matrix


def test_sac_holds_noise_and_learns_its_size(monkeypatch, tmp_path):
    made = agent(
        SAC, PENDULUM + ACTOR + TWINS, use_sde=True, sde_sample_freq=2, use_sde_at_warmup=True,
        train_freq=4, gradient_steps=1, learning_starts=4, buffer_size=100, batch_size=8,
    )  # fmt: skip
    drawn = held(monkeypatch, made)
    before = made.policy.policy.distributions["action"].log_std.clone()
    made.learn(12)
    assert len(drawn) > 6
    assert set(drawn) == {1}
    assert not torch.equal(before, made.policy.policy.distributions["action"].log_std)
    assert made.actor.get_std().shape == (8,)
    monkeypatch.undo()
    made.save(tmp_path / "agent.zip")
    again = SAC.load(tmp_path / "agent.zip", env=made.env)
    again.learn(4, reset_num_timesteps=False)


def test_policies_with_memory_hold_noise_too(monkeypatch):
    memory = "    memory: {block: gru, in: observation, hidden_units: 4}\n  heads: {in: memory}\n"
    spec = PENDULUM + "version: 1\npolicy:\n  graph:\n" + memory + VALUES
    made = agent(RecurrentPPO, spec, use_sde=True, sde_sample_freq=4, **ON_POLICY)
    drawn = held(monkeypatch, made)
    made.learn(8)
    assert drawn == [1, 1, 1]


def test_without_use_sde_noise_is_fresh_at_every_step():
    made = agent(PPO, PENDULUM + ACTOR + VALUES, **ON_POLICY)
    made.learn(8)
    observation = np.zeros((1, 3), np.float32)
    assert not np.array_equal(*(made.predict(observation)[0] for _ in range(2)))


def run(tmp_path, algorithm, critic, **settings: Any):
    spec = {
        "version": 1,
        "environment": "Pendulum-v1",
        "policy": {"template": {}},
        "critic": critic,
        "distributions": [{"space": "box", "distribution": "gsde"}],
    }
    options = {"algorithm": algorithm, "settings": settings, "envs": 2, "eval_episodes": 1}
    return train(spec, tmp_path / "run", trainer="sb3", steps=32, **options)


def test_the_command_line_trains_with_it(tmp_path):
    settings = {"use_sde": True, "sde_sample_freq": 4, "n_steps": 16, "batch_size": 16}
    run(tmp_path, "ppo", {"template": {}}, **settings)
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sde_sample_freq": 4},
            "'sde_sample_freq' has no effect without use_sde; set use_sde=true too",
        ),
        ({"use_sde": True, "sde_sample_freq": 0}, "'sde_sample_freq' must be"),
        ({"use_sde": "yes"}, "'use_sde' must be true or false, got 'yes'"),
        (
            {"use_sde_at_warmup": True},
            "'use_sde_at_warmup' is not a setting of ppo",
        ),
    ],
)
def test_wrong_settings_are_told_before_training(settings, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(tmp_path, "ppo", {"template": {}}, **settings)
