"""QR-DQN, TQC and CrossQ of sb3-contrib, and agents with state-dependent exploration, with their weights."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from sb3_contrib import QRDQN, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, PPO, SAC
from torch import nn

from composer.errors import SpecError
from composer.importing import import_config
from composer.importing.sb3_archive import Sb3Archive
from composer.importing.sb3_spaces import observations_of
from tests.composer.importing.test_sb3 import (
    CHOICE,
    IMAGE,
    MIXED,
    PUSH,
    VECTOR,
    adopted,
    close,
    samples,
    saved,
    theirs_of,
)

QUANTILES = {
    "default": ("MlpPolicy", VECTOR, {}),
    "sizes": ("MlpPolicy", VECTOR, {"net_arch": [7, 6], "n_quantiles": 5, "activation_fn": nn.Tanh}),
    "linear": ("MlpPolicy", VECTOR, {"net_arch": [], "n_quantiles": 3}),
    "image": ("CnnPolicy", IMAGE, {"n_quantiles": 4}),
    "mixed": ("MultiInputPolicy", MIXED, {"n_quantiles": 4, "net_arch": [8]}),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTILES)
def test_quantiles_of_a_qr_dqn(name, tmp_path):
    policy, observations, kwargs = QUANTILES[name]
    agent = saved(tmp_path, QRDQN, policy, observations, CHOICE, policy_kwargs=kwargs)
    imported, model, report = adopted(tmp_path, observations, CHOICE)
    seen = samples(observations)
    with torch.no_grad():
        x = theirs_of(agent, seen)
        for critic, net in (
            (model.critic, agent.quantile_net),
            (model.critic.target, agent.quantile_net_target),
        ):
            quantiles = net(x)  # (batch, quantiles, choices)
            outputs = critic(seen)
            close(outputs["action_q_values_quantiles"], quantiles.transpose(1, 2))
            close(outputs["action_q_values"], quantiles.mean(1))
        close(model.policy(seen)["action"], agent.quantile_net(x).mean(1))
        theirs, _ = agent.policy.predict(seen, deterministic=True)
        np.testing.assert_array_equal(model.policy.act(seen, deterministic=True), theirs)
    assert report.skipped == []
    assert imported.left == []
    assert imported.spec["critic"]["heads"]["num_quantiles"] == kwargs.get("n_quantiles", 200)


CRITICS = {
    "tqc": (TQC, "MlpPolicy", VECTOR, {"net_arch": {"pi": [8], "qf": [7, 6]}}),
    "tqc default": (TQC, "MlpPolicy", VECTOR, {}),
    "tqc three": (TQC, "MultiInputPolicy", MIXED, {"n_critics": 3, "n_quantiles": 4, "net_arch": []}),
    "tqc image": (TQC, "CnnPolicy", IMAGE, {"net_arch": [8], "n_critics": 1}),
    "crossq": (CrossQ, "MlpPolicy", VECTOR, {"net_arch": {"pi": [8, 5], "qf": [7, 6]}}),
    "crossq default": (CrossQ, "MlpPolicy", VECTOR, {}),
    "crossq linear": (CrossQ, "MlpPolicy", VECTOR, {"net_arch": [], "batch_norm_eps": 0.1}),
    "crossq alone": (CrossQ, "MlpPolicy", MultiDiscrete([3, 4]), {"n_critics": 1, "net_arch": [8]}),
    "crossq array": (CrossQ, "MlpPolicy", Box(-1, 1, (2, 3)), {"net_arch": [8], "share_features_extractor": True}),
    "crossq plain": (CrossQ, "MlpPolicy", VECTOR, {"net_arch": [8], "batch_norm": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", CRITICS)
def test_critics_of_tqc_and_crossq(name, tmp_path):
    algorithm, policy, observations, kwargs = CRITICS[name]
    agent = saved(
        tmp_path, algorithm, policy, observations, PUSH, policy_kwargs=kwargs, change=drawn
    )
    imported, model, report = adopted(tmp_path, observations, PUSH)
    model.eval()
    seen, actions = samples(observations), samples(PUSH)
    scaled = torch.as_tensor(agent.policy.scale_action(actions))
    with torch.no_grad():
        x = theirs_of(agent, seen)
        mean, log_std, _ = agent.actor.get_action_dist_params(x)
        raw = model.policy(seen)["action"]
        close(raw[..., :2], mean)
        close(raw[..., 2:].clamp(-20, 2), log_std)
        theirs = agent.critic(x, scaled)
        _, outputs = model(seen, action=torch.as_tensor(actions))
        if algorithm is TQC:
            close(outputs["q_value_quantiles"], theirs)
            close(outputs["q_value"], theirs.mean(-1, keepdim=True))
            close(model.critic.target(seen, torch.as_tensor(actions))["q_value_quantiles"],
                  agent.critic_target(x, scaled))  # fmt: skip
        else:
            close(outputs["q_value"], torch.stack(theirs, 1))
    assert report.skipped == []
    assert imported.left == []
    says = "critic: there are no target networks there; here they begin as copies"
    assert (says in imported.notes) == (algorithm is CrossQ)


def drawn(agent):
    """Running statistics that say something, also of actions that hardly vary."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in agent.policy.named_buffers():
        if name.endswith("ra_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator))
        elif name.endswith("ra_mean"):
            buffer.normal_(generator=generator)


def test_norms_of_unknown_observations_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crossq.yml").write_text("Hopper-v4: {policy: MlpPolicy, n_timesteps: 9}\n")
    with pytest.raises(SpecError) as caught:
        import_config("crossq.yml", name="Hopper-v4")
    assert str(caught.value) == (
        "crossq.yml:1:12: Hopper-v4.policy_kwargs: its observations are not known here, and norms need their number; "
        "import an agent that was saved"
    )


EXPLORERS = {
    "ppo": (PPO, "MlpPolicy", VECTOR, {"net_arch": [8]}),
    "a2c": (A2C, "MlpPolicy", VECTOR, {"net_arch": [8, 7], "activation_fn": nn.ReLU, "full_std": False}),
    "expln": (PPO, "MlpPolicy", VECTOR, {"net_arch": {"vf": [8]}, "use_expln": True}),
    "squashed": (PPO, "MlpPolicy", VECTOR, {"net_arch": [8], "squash_output": True}),
    "image": (PPO, "CnnPolicy", IMAGE, {"net_arch": [], "features_extractor_kwargs": {"features_dim": 9}}),
    "mixed": (PPO, "MultiInputPolicy", MIXED, {"net_arch": []}),
    "memory": (RecurrentPPO, "MlpLstmPolicy", VECTOR, {"net_arch": [], "lstm_hidden_size": 5}),
    "sac": (SAC, "MlpPolicy", VECTOR, {"net_arch": [8]}),
    "sac clip": (SAC, "MlpPolicy", VECTOR, {"net_arch": [8], "clip_mean": 0.0}),
    "tqc": (TQC, "MlpPolicy", VECTOR, {"net_arch": [8], "log_std_init": -2.0}),
    "crossq": (CrossQ, "MlpPolicy", VECTOR, {"net_arch": [8]}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLORERS)
def test_state_dependent_exploration(name, tmp_path):
    """Mean and standard deviation of every action, and its log-probability, are those of the library."""
    algorithm, policy, observations, kwargs = EXPLORERS[name]
    agent = saved(
        tmp_path, algorithm, policy, observations, PUSH, use_sde=True, policy_kwargs=kwargs
    )
    imported, model, report = adopted(tmp_path, observations, PUSH)
    model.eval()
    seen = samples(observations, 3)
    state = (model.initial_state(3),) if model.has_memory else ()
    with torch.no_grad():
        x = theirs_of(agent, seen)
        if hasattr(agent, "actor"):
            mean, log_std, more = agent.actor.get_action_dist_params(x)
            theirs = agent.actor.action_dist.proba_distribution(mean, log_std, **more)
        elif state:
            sizes = agent.policy.lstm_hidden_state_shape
            zeros = tuple(torch.zeros(sizes[0], 3, sizes[2]) for _ in range(2))
            theirs, _ = agent.policy.get_distribution(x, zeros, torch.ones(3))
        else:
            theirs = agent.policy.get_distribution(x)
        ours = model.policy.distribution(seen, *state)
        ours = ours[0] if isinstance(ours, tuple) else ours
        normal = getattr(ours, "base", ours)
        limit = kwargs.get("clip_mean", 2.0) if hasattr(agent, "actor") else 0.0
        means = normal.mean.clamp(-limit, limit) if limit else normal.mean
        close(means, theirs.distribution.mean)
        close(normal.stddev, theirs.distribution.stddev)
    is_squashed = hasattr(agent, "actor") or "squash_output" in kwargs
    assert (ours is not normal) == is_squashed
    assert report.skipped == []
    assert imported.left == []
    rule = imported.spec["distributions"][0]
    assert rule["feature_activation"] == "identity"
    assert rule.get("squash", True) == is_squashed


def test_the_noise_of_an_agent_is_held_here_too(tmp_path):
    """With one exploration matrix, both libraries give the same actions."""
    agent = saved(
        tmp_path, PPO, "MlpPolicy", VECTOR, PUSH, use_sde=True, policy_kwargs={"net_arch": [8]}
    )
    _, model, _ = adopted(tmp_path, VECTOR, PUSH)
    agent.policy.reset_noise(1)
    model.policy.resample_exploration(1)
    family = model.policy.distributions["action"]
    std = agent.policy.action_dist.get_std(agent.policy.log_std)
    family.exploration = (agent.policy.action_dist.exploration_mat / std)[None].detach()
    seen = samples(VECTOR, 3)
    theirs = agent.policy.get_distribution(theirs_of(agent, seen)).sample()
    close(model.policy.distribution(seen).sample(), theirs)


def test_features_whose_number_is_not_known_are_noted(tmp_path):
    (tmp_path / "ppo.yml").write_text(
        "A-v0: {policy: MlpPolicy, n_timesteps: 9, use_sde: true, policy_kwargs: 'dict(net_arch=[])'}\n"
    )
    imported = import_config(tmp_path / "ppo.yml")
    assert "latent_units" not in imported.spec["distributions"][0]
    assert imported.notes[0] == (
        "use_sde: set 'latent_units' of gsde to the number of features that the head reads"
    )


def test_sizes_of_observations_are_read(tmp_path):
    saved(
        tmp_path, CrossQ, "MlpPolicy", Discrete(4, start=1), PUSH, policy_kwargs={"net_arch": [6]}
    )
    graph = import_config(tmp_path / "agent.zip").spec["policy"]["graph"]
    assert graph["norm_0"]["num_features"] == 4
    saved(tmp_path, PPO, "MultiInputPolicy", MIXED, CHOICE)
    seen = observations_of(Sb3Archive(tmp_path / "agent.zip").data["observation_space"])
    sizes = {"camera": 36 * 36 * 3, "joints": 4, "map": 6, "mode": 3, "modes": 5, "flags": 4}
    assert {each.key: each.size for each in seen or ()} == sizes
