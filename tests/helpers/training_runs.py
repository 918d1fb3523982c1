"""Specs, settings and short runs for the tests of training."""

import pytest

from composer.cli.commands import main
from composer.training.session import train
from tests.helpers.paths import CONFIGS

CARTPOLE = CONFIGS / "cartpole.yaml"
FILES = {
    "run.json", "trainer.pt", "model.safetensors", "curve.csv", "curve.png", "progress.csv", "evaluation.json",
}  # fmt: skip
SORT = """
version: 1
environment: training_envs:Sort-v0
policy:
  graph:
    numbers: {block: concat, in: [pair, third]}
    latent: {block: dense, in: numbers, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
critic: {template: {trunk: {block: dense, hidden_units: [64, 64], activation: tanh}}}
"""
FORGETFUL = """
version: 1
environment: training_envs:StrictRecall-v0
policy:
  graph:
    code: {block: one_hot, in: sign}
    seen: {block: concat, in: [code, place]}
    latent: {block: dense, in: seen, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
  action_mask: {action: legal}
critic:
  graph:
    code: {block: one_hot, in: sign}
    seen: {block: concat, in: [code, place]}
    latent: {block: dense, in: seen, hidden_units: [64, 64], activation: tanh}
"""
ALLOW = ["training_envs", "environments"]
SHORT = {
    "sb3": {"n_steps": 64, "batch_size": 128, "learning_rate": 3e-3, "gamma": 0.9},
    "torchrl": {
        "frames_per_batch": 512, "minibatch_size": 128, "learning_rate": 3e-3, "gamma": 0.9,
    },
}  # fmt: skip
both = pytest.mark.parametrize("trainer", ["sb3", "torchrl"])


def learn(spec, trainer, steps, out="run", **options):
    options = {"envs": 8, "settings": SHORT[trainer], "allow": ALLOW, **options}
    return train(spec, out, trainer=trainer, steps=steps, **options)


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of `composer train`."""
    status = main(["train", *map(str, arguments)])
    return status, *capsys.readouterr()
