"""Entries of rl-zoo3 as specs: YAML whose policy_kwargs are Python in a text, which is not executed."""

import os

import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

import composer
from composer.errors import SpecError
from composer.importing import import_config

PPO = """
defaults: &mujoco
  normalize: true
  n_envs: 1
  policy: 'MlpPolicy'
  n_timesteps: !!float 1e6
CartPole-v1:
  n_timesteps: 1e5
  policy: 'MlpPolicy'
  learning_rate: lin_0.001
Hopper-v4:
  <<: *mujoco
  batch_size: 32
  policy_kwargs: "dict(
                    log_std_init=-2,
                    ortho_init=False,
                    activation_fn=nn.ReLU,
                    net_arch=dict(pi=[256, 256], vf=[256])
                  )"
Walker-v4:
  <<: *mujoco
  normalize: "{'norm_obs': False, 'norm_reward': True}"
  use_sde: True
  policy_kwargs: "dict(net_arch=[dict(pi=[64], vf=[32])], squash_output=True)"
atari:
  env_wrapper: [stable_baselines3.common.atari_wrappers.AtariWrapper]
  frame_stack: 4
  policy: 'CnnPolicy'
  n_timesteps: 1e7
Fetch:
  policy: 'MultiInputPolicy'
  n_timesteps: 1e6
  normalize: true
  policy_kwargs: "dict(net_arch=[64, 32], optimizer_kwargs=dict(eps=1e-5), depth=3)"
"""


def imported(folder, name, text=PPO, file="ppo.yml"):
    (folder / file).write_text(text.replace("!!float ", ""))
    return import_config(folder / file, name=name)


def composed(spec, observations, actions):
    return composer.compose(spec, observation_space=observations, action_space=actions)


def test_an_entry_with_policy_kwargs_in_a_text(tmp_path):
    out = imported(tmp_path, "Hopper-v4")
    node = {"block": "dense", "in": "observation", "activation": "relu"}
    gaussian = {
        "space": "box",
        "distribution": "gaussian",
        "log_std": "learned",
        "init_log_std": -2.0,
    }
    assert out.kind == "sb3"
    assert out.spec == {
        "version": 1,
        "distributions": [{**gaussian, "optional": True}],
        "normalize": ["observation"],
        "policy": {
            "graph": {"latent": {**node, "hidden_units": [256, 256]}},
            "heads": {"in": "latent"},
        },
        "critic": {"graph": {"latent": {**node, "hidden_units": [256]}}, "heads": {"in": "latent"}},
    }
    assert out.left == []
    assert sorted(out.training) == [
        "Hopper-v4.batch_size",
        "Hopper-v4.n_envs",
        "Hopper-v4.n_timesteps",
    ]
    composed(out.spec, Box(-1, 1, (4,)), Box(-1, 1, (2,)))
    composed(out.spec, Box(-1, 1, (4,)), Discrete(2))


def test_the_defaults_of_an_algorithm(tmp_path):
    spec = imported(tmp_path, "CartPole-v1").spec
    assert spec["policy"]["graph"]["latent"]["hidden_units"] == [64, 64]
    assert spec["policy"]["init"]["heads"] == {"orthogonal": {"gain": 0.01}}
    text = "CartPole-v1: {policy: MlpPolicy, n_timesteps: 5, policy_kwargs: 'dict(net_arch=[256, 256])'}"
    spec = imported(tmp_path, None, text, "dqn.yml").spec
    assert spec["policy"]["graph"]["latent"]["activation"] == "relu"
    assert "critic" not in spec


@pytest.mark.parametrize(
    ("file", "count", "distribution"),
    [("sac.yml", 2, None), ("td3.yml", 2, "deterministic"), ("ddpg.yml", 1, "deterministic")],
)
def test_q_functions(file, count, distribution, tmp_path):
    text = "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 5, policy_kwargs: 'dict(net_arch=[8])'}"
    spec = imported(tmp_path, None, text, file).spec
    assert spec["critic"].get("ensemble", 1) == count
    assert spec.get("distributions", [{}])[0].get("distribution") == distribution
    model = composed(spec, Box(-1, 1, (4,)), Box(-1, 1, (2,)))
    assert model.policy.get_submodule("latent.linears.0").out_features == 8


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
@pytest.mark.parametrize(
    ("file", "actions"), [("qrdqn.yml", Discrete(3)), ("tqc.yml", Box(-1, 1, (2,)))]
)
def test_quantiles(file, actions, policy, tmp_path):
    kwargs = "policy_kwargs: 'dict(net_arch=[8], n_quantiles=7)'"
    text = f"A-v1: {{policy: {policy}, n_timesteps: 5, {kwargs}}}"
    out = imported(tmp_path, None, text, file)
    space = Box(-1, 1, (4,))
    is_dict = policy == "MultiInputPolicy"
    critic = composed(out.spec, Dict(goal=space) if is_dict else space, actions).critic
    seen = {"goal": torch.zeros(2, 4)} if is_dict else torch.zeros(2, 4)
    values = critic(seen) if file == "qrdqn.yml" else critic(seen, torch.zeros(2, 2))
    shapes = {"action_q_values_quantiles": (2, 3, 7), "q_value_quantiles": (2, 2, 7)}
    (name,) = shapes.keys() & values.keys()
    assert values[name].shape == shapes[name]
    assert out.left == []


def test_quantiles_of_a_template_read_a_layer(tmp_path):
    kwargs = "policy_kwargs: 'dict(net_arch=[])'"
    text = f"A-v1: {{policy: MultiInputPolicy, n_timesteps: 5, {kwargs}}}"
    with pytest.raises(SpecError) as caught:
        imported(tmp_path, None, text, "tqc.yml")
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "tqc.yml:1:50: A-v1.policy_kwargs: its observations are not known here, and the quantiles of a template read a "
        "layer before them"
    )


def test_noise_of_the_state(tmp_path):
    out = imported(tmp_path, "Walker-v4")
    rule = {
        "space": "box",
        "distribution": "gsde",
        "init_log_std": 0.0,
        "latent_units": 64,
        "feature_activation": "identity",
        "optional": True,
    }
    assert out.spec["distributions"] == [rule]
    assert "normalize" not in out.spec
    composed(out.spec, Box(-1, 1, (4,)), Box(-1, 1, (2,)))


def test_images_and_what_wraps_their_environment(tmp_path):
    out = imported(tmp_path, "atari")
    assert out.left == ["atari.env_wrapper", "atari.frame_stack"]
    assert out.spec["policy"]["shares"] == ["features"]
    composed(out.spec, Box(0, 255, (4, 84, 84), "uint8"), Discrete(4))


def test_observations_that_the_file_does_not_name(tmp_path):
    out = imported(tmp_path, "Fetch")
    trunk = {"block": "dense", "hidden_units": [64, 32], "activation": "tanh"}
    assert out.spec["policy"] == {"template": {"trunk": trunk}, "shares": ["features"]}
    assert out.left == ["Fetch.policy_kwargs.depth"]
    assert "Fetch.policy_kwargs.optimizer_kwargs.eps" in out.training
    assert out.notes == [
        "MultiInputPolicy: a template; an image has 512 features here, and 256 there",
        "normalize: name the observations under 'normalize:'",
    ]
    seen = Dict(observation=Box(-1, 1, (4,)), desired_goal=Box(-1, 1, (3,)))
    composed(out.spec, seen, Box(-1, 1, (2,)))
    sac = imported(tmp_path, "Fetch", file="sac.yml").spec
    composed(sac, seen, Box(-1, 1, (2,)))


def test_a_memory(tmp_path):
    text = """
    CartPole-v1:
      policy: MlpLstmPolicy
      n_timesteps: 5
      policy_kwargs: "dict(enable_critic_lstm=False, lstm_hidden_size=64, lstm_kwargs=dict(dropout=0.1), net_arch=[8])"
    """
    out = imported(tmp_path, None, text, "ppo_lstm.yml")
    assert out.left == ["CartPole-v1.policy_kwargs.lstm_kwargs"]
    assert out.spec["policy"]["graph"]["memory"] == {
        "block": "lstm", "in": "observation", "hidden_units": 64, "init": "default",
    }  # fmt: skip
    assert composed(out.spec, Box(-1, 1, (4,)), Discrete(2)).has_memory


CART = "CartPole-v1: {policy: MlpPolicy, n_timesteps: 5, policy_kwargs: %s}"
REFUSED = {
    "code": (
        CART % "'dict(net_arch=[2**9, 4])'",
        "ppo.yml:1:50: CartPole-v1.policy_kwargs.net_arch: must be a list of sizes, or {pi: [...], vf: [...]}, got a list",
    ),
    "no mapping": (
        CART % '\'__import__("os").system("touch here")\'',
        "ppo.yml:1:50: CartPole-v1.policy_kwargs: must be a mapping such as dict(net_arch=[64, 64]), got "
        '\'__import__("os").system("touch here")\'',
    ),
    "no Python": (
        CART % "'dict(net_arch='",
        "ppo.yml:1:50: CartPole-v1.policy_kwargs: this is not valid Python: '(' was never closed",
    ),
    "two things": (
        CART % "'1); import os; (2'",
        "ppo.yml:1:50: CartPole-v1.policy_kwargs: must be a mapping such as dict(net_arch=[64, 64]), got '1); import os; (2'",
    ),
    "activation": (
        CART % "'dict(activation_fn=nn.Relu)'",
        "ppo.yml:1:50: CartPole-v1.policy_kwargs.activation_fn: there is no activation 'Relu'; did you mean 'ReLU'?",
    ),
    "policy": (
        "CartPole-v1: {policy: MlpPolicies, n_timesteps: 5}",
        "ppo.yml:1:15: CartPole-v1.policy: there is no policy 'MlpPolicies'; did you mean 'MlpPolicy'?",
    ),
    "memory": (
        "CartPole-v1: {policy: MlpLstmPolicy, n_timesteps: 5}",
        "ppo.yml:1:15: CartPole-v1.policy: 'MlpLstmPolicy' has a memory; such entries are in ppo_lstm.yml",
    ),
    "several": (
        "a: {policy: MlpPolicy, n_timesteps: 5}\nb: {policy: MlpPolicy, n_timesteps: 5}",
        "ppo.yml:1:1: it has 2 entries; say which with --class, or name=: 'a', 'b'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_entries_that_cannot_be_read(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, message = REFUSED[case]
    (tmp_path / "ppo.yml").write_text(text)
    with pytest.raises(SpecError) as caught:
        import_config("ppo.yml")
    assert str(caught.value) == message
    assert os.listdir() == ["ppo.yml"]


def test_an_entry_and_an_algorithm_that_are_not_there(tmp_path):
    with pytest.raises(SpecError, match="there is no entry 'Hoper-v4'; did you mean 'Hopper-v4'"):
        imported(tmp_path, "Hoper-v4")
    with pytest.raises(SpecError) as caught:
        imported(tmp_path, "Hopper-v4", file="ars.yml")
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "ars.yml:11:1: Hopper-v4: the name of the file says the algorithm, such as ppo.yml; there is no 'ars'; there is "
        "'ppo', 'a2c', 'trpo', 'ppo_lstm', 'ppo_mask', 'dqn', 'qrdqn', 'sac', 'tqc', 'crossq', 'td3', 'ddpg'"
    )
