"""`composer import`: what is printed and written, and that wrong files and checkpoints are a line."""

import os
import sys
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

import composer
from composer.cli.commands import main

CARTPOLE = """\
params:
  algo: {name: a2c_discrete}
  network:
    name: actor_critic
    separate: True
    space: {discrete: }
    mlp:
      units: [8]
      activation: relu
      initializer: {name: default}
      regularizer: {name: None}
  config: {learning_rate: 3e-4}
"""
SPEC = """\
# From cartpole.yaml, a configuration of rl_games.
# not taken over: params.network.mlp.regularizer
# 2 keys of training not taken over
version: 1
distributions:
  - {action: action, distribution: categorical}

policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8], activation: relu, init: fan_in_uniform}
  heads: {in: latent, init: fan_in_uniform}

critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8], activation: relu, init: fan_in_uniform}
    value: {block: linear_output, in: latent, output_units: 1, init: fan_in_uniform}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("cartpole.yaml").write_text(CARTPOLE)
    return tmp_path


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of ``composer import``."""
    status = main(["import", *arguments])
    return status, *capsys.readouterr()


def checkpoint(path="cartpole.pth", width=8):
    """A checkpoint of rl_games' form."""
    sizes = {"actor_mlp.0": (4, width), "critic_mlp.0": (4, width)}
    sizes |= {"logits": (width, 2), "value": (width, 1)}
    weights = {
        f"a2c_network.{name}.{key}": tensor
        for name, (n, m) in sizes.items()
        for key, tensor in nn.Linear(n, m).state_dict().items()
    }
    torch.save({"model": weights, "epoch": 3}, path)
    return weights


def test_the_spec_is_printed_below_what_differs(capsys):
    assert run(capsys, "cartpole.yaml") == (0, SPEC, "")


def test_it_is_written_with_its_environment_and_reads_back(capsys):
    status, out, _ = run(capsys, "cartpole.yaml", "--env", "CartPole-v1", "-o", "spec.yaml")
    assert (status, out) == (
        0,
        "not taken over: params.network.mlp.regularizer\n"
        "2 keys of training not taken over\n"
        "wrote spec.yaml; next: composer check spec.yaml\n",
    )
    text = Path("spec.yaml").read_text()
    assert text == SPEC.replace("version: 1\n", "version: 1\nenvironment: CartPole-v1\n")
    assert main(["check", "spec.yaml"]) == 0


def test_keys_of_training_are_listed_when_asked_for(capsys):
    _, out, _ = run(capsys, "cartpole.yaml", "-v")
    assert out == SPEC.replace(
        "# 2 keys of training not taken over\n",
        "# 2 keys of training not taken over\n#   params.algo.name\n#   params.config.learning_rate\n",
    )


def test_with_a_checkpoint_it_is_a_model_of_equal_outputs(capsys):
    weights = checkpoint()
    status, out, _ = run(
        capsys, "cartpole.yaml", "--env", "CartPole-v1", "--weights", "cartpole.pth", "-o", "agent.safetensors"
    )  # fmt: skip
    assert (status, out) == (
        0,
        "not taken over: params.network.mlp.regularizer\n"
        "2 keys of training not taken over\n"
        "8 tensors loaded, 0 differences\n"
        "wrote agent.safetensors; next: composer show agent.safetensors\n",
    )
    model = composer.load("agent.safetensors")
    x = torch.randn(5, 4)
    hidden = torch.relu(nn.functional.linear(x, *_layer(weights, "critic_mlp.0")))
    expected = nn.functional.linear(hidden, *_layer(weights, "value")).squeeze(-1)
    torch.testing.assert_close(model.critic.value(x), expected)


def _layer(weights, name):
    return weights[f"a2c_network.{name}.weight"], weights[f"a2c_network.{name}.bias"]


def test_weights_of_another_network_are_named_and_nothing_is_written(capsys):
    checkpoint(width=9)
    status, _, error = run(
        capsys, "cartpole.yaml", "--env", "CartPole-v1", "--weights", "cartpole.pth", "-o", "agent.safetensors"
    )  # fmt: skip
    assert status == 1
    assert error.startswith(
        "composer import: nothing of the weights fits: they are of another network\n"
    )
    assert "policy.latent.linears.0.weight" in error
    assert not os.path.exists("agent.safetensors")


def test_weights_that_do_not_fill_the_model_are_an_error(capsys):
    weights = {name: t for name, t in checkpoint().items() if "value" not in name}
    torch.save({"model": {**weights, "a2c_network.extra": torch.zeros(1)}}, "cartpole.pth")
    status, _, error = run(
        capsys, "cartpole.yaml", "--env", "CartPole-v1", "--weights", "cartpole.pth", "-o", "agent.safetensors"
    )  # fmt: skip
    assert (status, error) == (
        1,
        "composer import: 'cartpole.pth' does not fill the model of 'cartpole.yaml'; give the configuration that it was "
        "trained with\n"
        "  critic.value.linear.weight (1, 8) is not in the file, as 'model.a2c_network.value.weight'\n"
        "  critic.value.linear.bias (1,) is not in the file, as 'model.a2c_network.value.bias'\n",
    )
    assert not os.path.exists("agent.safetensors")


def test_an_agent_of_stable_baselines3_brings_its_weights(capsys):
    PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu", seed=0).save("agent.zip")
    status, out, _ = run(capsys, "agent.zip", "--env", "CartPole-v1", "-o", "agent.safetensors")
    assert status == 0
    assert "12 tensors loaded, 0 differences\n" in out
    agent = PPO.load("agent.zip", device="cpu")
    x = torch.randn(5, 4)
    model = composer.load("agent.safetensors")
    torch.testing.assert_close(model.critic.value(x), agent.policy.predict_values(x).squeeze(-1))


def test_a_file_that_is_there_is_not_overwritten(capsys):
    Path("spec.yaml").write_text("mine")
    assert run(capsys, "cartpole.yaml", "-o", "spec.yaml") == (
        1,
        "",
        "composer import: 'spec.yaml' is there already; remove it or choose another name\n",
    )
    assert Path("spec.yaml").read_text() == "mine"


def test_an_environment_of_other_actions_is_an_error_with_a_place(capsys):
    status, out, error = run(capsys, "cartpole.yaml", "--env", "Pendulum-v1", "-o", "spec.yaml")
    assert (status, out) == (1, "")
    assert error == (
        "<spec>:7:36: distribution 'categorical' needs a Discrete action, got Box(-2.0, 2.0, (1,), float32) for 'action'; "
        "use 'squashed_gaussian'\n"
    )
    assert not os.path.exists("spec.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.safetensors"], "a .safetensors file holds weights: give --weights CKPT as well"),
        (
            ["--weights", "c.pth", "-o", "a.safetensors"],
            "--weights needs --env ID: a model is made for the spaces of an environment",
        ),
        (
            ["--weights", "c.pth", "--env", "CartPole-v1"],
            "--weights needs -o FILE.safetensors: spec and weights in one file",
        ),
    ],
)
def test_options_that_need_others_say_so(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["import", "cartpole.yaml", *arguments])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"composer import: error: {message}\n")


def test_a_file_of_no_known_kind_is_told_what_there_is(capsys):
    Path("mine.yaml").write_text("layers: [64, 64]\n")
    status, _, error = run(capsys, "mine.yaml")
    assert status == 1
    assert error.startswith(
        "mine.yaml:1:1: this is no configuration of a known kind; say which with --from, or kind=:\n"
        "  rl_games: YAML with 'params:' and a 'network:' in it\n"
    )


def test_a_kind_that_is_misspelt_is_told_the_near_one(capsys):
    status, _, error = run(capsys, "cartpole.yaml", "--from", "rl_game")
    assert (status, error) == (
        1,
        "unknown kind of configuration 'rl_game'; did you mean 'rl_games'?\n",
    )
