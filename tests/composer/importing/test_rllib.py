"""Settings of RLlib's default networks as specs, of both API stacks: YAML, JSON, and Python that is not executed."""

import os

import pytest
import torch
from gymnasium.spaces import Box, Discrete

import composer
from tests.helpers.foreign import imported, refusal

VECTOR, IMAGE = Box(-9, 9, (5,)), Box(0, 1, (42, 42, 3))
GAUSSIAN = {
    "space": "box",
    "distribution": "gaussian",
    "log_std": "state",
    "log_std_range": [-20.0, 20.0],
    "optional": True,
}


def composed(result, observations=VECTOR, actions=None):
    return composer.compose(
        result.spec, observation_space=observations, action_space=actions or Discrete(3), seed=0
    )


OLD = """
cartpole-ppo:
  env: CartPole-v1
  run: PPO
  stop: {timesteps_total: 100000}
  config:
    gamma: 0.99
    observation_filter: MeanStdFilter
    model:
      fcnet_hiddens: [32, 16]
      fcnet_activation: swish
      post_fcnet_hiddens: [8]
      vf_share_layers: false
      fcnet_weights_initializer: orthogonal_
      vf_depth: 3
"""


def test_an_experiment_of_the_old_stack(tmp_path):
    result = imported(tmp_path, OLD)
    node = {
        "block": "dense",
        "in": "observation",
        "hidden_units": [32, 16, 8],
        "activation": "silu",
    }
    network = {
        "graph": {"latent": {**node, "init": "normc"}},
        "heads": {"in": "latent", "init": {"normc": {"norm": 0.01}}},
    }
    assert result.kind == "rllib"
    assert result.spec == {
        "version": 1,
        "policy": network,
        "critic": network,
        "distributions": [GAUSSIAN],
        "normalize": ["observation"],
    }
    model = "cartpole-ppo.config.model"
    assert result.left == [f"{model}.fcnet_weights_initializer", f"{model}.vf_depth"]
    assert "cartpole-ppo.config.gamma" in result.training
    assert result.notes == [
        f"{model}.post_fcnet_activation: not used there, where {model}.fcnet_hiddens has layers",
        "cartpole-ppo.config.observation_filter: the model itself normalises, and clips at 10 deviations",
    ]
    policy = composed(result).policy
    torch.testing.assert_close(
        policy.get_parameter("heads.action.linear.weight").norm(dim=1), torch.full((3,), 0.01)
    )


def test_a_memory_reads_the_last_action_and_reward(tmp_path):
    text = """
    model:
      use_lstm: true
      lstm_cell_size: 24
      lstm_use_prev_action: true
      lstm_use_prev_reward: true
      vf_share_layers: false
      max_seq_len: 20
    """
    result = imported(tmp_path, text)
    assert result.spec["previous"] == ["action", "reward"]
    assert result.spec["policy"]["shares"] == ["memory"]
    assert result.notes == [
        "model.vf_share_layers: the value reads the memory there, whatever it says"
    ]
    assert result.left == []
    assert composed(result).policy.get_parameter("memory.layers.0.weight_ih_l0").shape == (
        96,
        256 + 3 + 1,
    )


def test_heads_that_do_not_share_the_units_equally_are_refused(tmp_path):
    text = "model: {use_attention: true, attention_dim: 32, attention_num_heads: 5}\n"
    assert refusal(tmp_path, text) == (
        "config.yaml:1:49: model.attention_num_heads: 5 heads cannot share 32 units equally, which they do here"
    )


def test_attention(tmp_path):
    text = """
    {"model": {"fcnet_hiddens": [64], "use_attention": true, "attention_num_transformer_units": 2,
     "attention_dim": 32, "attention_num_heads": 2, "attention_head_dim": 32, "attention_memory_inference": 10,
     "attention_memory_training": 10, "attention_position_wise_mlp_dim": 48, "attention_init_gru_gate_bias": 1.5}}
    """
    result = imported(tmp_path, text, "params.json")
    assert result.spec["policy"]["graph"]["memory"] == {
        "block": "gtrxl", "in": "latent", "hidden_units": 32, "num_layers": 2, "num_heads": 2, "memory_length": 10,
        "feedforward_units": 48, "gate_bias": 1.5,
    }  # fmt: skip
    assert result.notes == ["model.attention_head_dim: 32 for each of 2 heads there, 16 here"]
    assert result.left == []
    assert composed(result).has_memory


CONVS = "[[16, [4, 4], 2], [32, 4, 2], [256, [11, 11], 1]]"


def test_convolutions_of_the_old_stack(tmp_path):
    text = (
        f"model: {{conv_filters: {CONVS}, post_fcnet_hiddens: [64, 32], dim: 42, grayscale: true}}"
    )
    result = imported(tmp_path, text)
    graph = result.spec["policy"]["graph"]
    assert graph["conv"] == {
        "block": "strided_conv", "in": "image", "hidden_channels": [16, 32, 256],
        "hidden_kernels": [[4, 4], 4, [11, 11]], "strides": [2, 2, 1], "padding": ["same", "same", 0],
        "activation": "relu", "init": "xavier_uniform",
    }  # fmt: skip
    assert graph["latent"]["last_activation"] == "identity"
    assert result.left == ["model.dim", "model.grayscale"]
    model = composed(result, IMAGE)
    assert model.policy.get_submodule("conv.convs.2").out_channels == 256


NEW = """
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
import os; os.system("touch here")

SIZES = [64, 32]
config = (
    PPOConfig()
    .environment("CartPole-v1")
    .training(lr=3e-4)
    .rl_module(
        model_config=DefaultModelConfig(
            fcnet_hiddens=SIZES,
            fcnet_activation=None,
            fcnet_use_layernorm=True,
            fcnet_kernel_initializer="orthogonal_",
            fcnet_kernel_initializer_kwargs={"gain": 1.5},
            fcnet_bias_initializer="zeros_",
            head_fcnet_hiddens=[16],
            head_fcnet_activation="relu",
            vf_share_layers=True,
            free_log_std=True,
            log_std_clip_param=float("inf"),
            use_lstm=True,
            lstm_cell_size=8,
        )
    )
)
"""


def test_the_new_stack_in_python_that_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = imported(tmp_path, NEW, "train.py")
    assert result.spec["policy"] == {
        "graph": {
            "latent": {
                "block": "dense", "in": "observation", "hidden_units": [64, 32], "activation": "identity",
                "norm": "layer", "init": {"orthogonal": {"gain": 1.5}},
            },
            "memory": {"block": "lstm", "in": "latent", "hidden_units": 8},
            "head": {"block": "dense", "in": "memory", "hidden_units": [16], "activation": "relu"},
        },
        "heads": {"in": "head"},
        "shares": ["memory"],
    }  # fmt: skip
    assert result.spec["critic"]["graph"]["head"]["in"] == "memory"
    assert result.spec["distributions"][0]["log_std"] == "learned"
    assert result.spec["distributions"][0]["log_std_range"] == [-80.0, 80.0]
    assert result.left == ["fcnet_bias_initializer"]
    composed(result, actions=Box(-1, 1, (2,)))
    assert os.listdir() == ["train.py"]


def test_settings_alone_and_several_of_them(tmp_path):
    result = imported(
        tmp_path, "fcnet_hiddens: [8]\nhead_fcnet_hiddens: [4]\nvf_share_layers: false\n"
    )
    assert result.spec["critic"]["graph"]["head"]["hidden_units"] == [4]
    assert composed(result).critic.get_submodule("latent.linears.0").out_features == 8
    two = """
    small: {run: PPO, env: A, config: {model: {fcnet_hiddens: [8]}}}
    large: {run: PPO, env: A, config: {model: {fcnet_hiddens: [64]}}}
    """
    assert refusal(tmp_path, two) == (
        "config.yaml:2:5: it has the settings of 2 models; say which with --class, or name=: 'small', 'large'"
    )
    assert refusal(tmp_path, two, name="lage") == (
        "config.yaml:2:5: there are no settings 'lage'; did you mean 'large'?"
    )
    result = imported(tmp_path, two, name="large")
    assert result.spec["policy"]["graph"]["latent"]["hidden_units"] == [64]
    assert result.training == ["large.env"]
    python = "SMALL = DefaultModelConfig(fcnet_hiddens=[8])\nf(model={'fcnet_hiddens': [9]}, model_config=SMALL)"
    assert refusal(tmp_path, python, "train.py") == (
        "it has the settings of 2 models; say which with --class, or name=: 'SMALL', 'model:2'"
    )
    assert imported(tmp_path, python, "train.py", name="model:2").spec["policy"]["heads"]["init"]
    assert (
        "init" not in imported(tmp_path, python, "train.py", name="SMALL").spec["policy"]["heads"]
    )


REFUSED = {
    "custom_model: mine": "custom_model: it is registered in code, which is not read",
    "no_final_linear: true": "no_final_linear: a head is linear here",
    "use_lstm: true, use_attention: true": "use_attention: with 'use_lstm' there are two memories",
    "fcnet_activation: swisch": "fcnet_activation: there is no activation 'swisch'; did you mean 'swish'?",
    "conv_filters: [[16, 4]]": "conv_filters: must be a list of [channels, kernel, stride], got a list at 0",
    "conv_filters: [[16, 4, 0]]": "conv_filters: must be a list of [channels, kernel, stride], got a list at 0",
    "use_lstm: true, lstm_use_prev_action: 3": "lstm_use_prev_action: 3 steps back; only the last one can be read",
    "fcnet_hiddens: 64": "fcnet_hiddens: must be a list of whole numbers of at least 1, got the number 64",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_settings_that_cannot_be_said(settings, tmp_path):
    text = f"model: {{vf_share_layers: true, {settings}}}"
    assert refusal(tmp_path, text).partition(": ")[2] == f"model.{REFUSED[settings]}"


def test_algorithms_without_a_state_value(tmp_path):
    text = "x: {run: SAC, env: A, config: {model: {fcnet_hiddens: [8]}}}"
    assert refusal(tmp_path, text) == (
        "config.yaml:1:5: x.run: 'SAC' has no actor with a state value; those that have are 'PPO', 'APPO', 'IMPALA', "
        "'MARWIL', 'BC', 'A2C', 'A3C', 'PG'"
    )
    assert refusal(tmp_path, "gamma: 0.9\n", kind="rllib") == (
        "config.yaml:1:1: it has no 'model' or 'model_config' of RLlib"
    )
    new = "model_config: {fcnet_hiddens: [8], fcnet_kernel_initializer: orthogonal}"
    assert refusal(tmp_path, new) == (
        "config.yaml:1:36: model_config.fcnet_kernel_initializer: there is no initialiser 'orthogonal'; did you mean "
        "'orthogonal_'?"
    )
