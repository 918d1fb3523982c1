"""`composer train --trainer rsl_rl`."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

import composer
from composer.cli.commands import main
from composer.training import TrainingError, resume, train
from composer.training.trainer import TRAINERS, Task
from tests.helpers.paths import CONFIGS

SPEC = """
version: 1
environment: Pendulum-v1
normalize: [observation]
policy:
  graph: {latent: {block: LAYER, in: observation, hidden_units: 8}}
  heads: {in: latent}
critic:
  graph: {latent: {block: LAYER, in: observation, hidden_units: 8}}
"""
SETTINGS = {"num_steps_per_env": 16, "num_mini_batches": 2, "num_learning_epochs": 2}
TASK = Task("", "Pendulum-v1", "rsl_rl", "ppo", 64, envs=2, settings=SETTINGS)


def made(layer="dense", seed=0, task=TASK):
    model = composer.compose(SPEC.replace("LAYER", layer), seed=seed)
    return TRAINERS.get("rsl_rl")(task, model)


def test_a_run_trains_reports_and_goes_on(tmp_path):
    settings = {"num_steps_per_env": 64}
    outcome = train(
        CONFIGS / "continuous.yaml", tmp_path / "run", trainer="rsl_rl", steps=1024, envs=2,
        settings=settings, eval_episodes=1,
    )  # fmt: skip
    assert outcome.steps == 1024
    assert (tmp_path / "run" / "curve.csv").read_text().count("\n") > 1
    model = composer.load(tmp_path / "run" / "model.safetensors")
    fresh = composer.compose(CONFIGS / "continuous.yaml", seed=0)
    assert all(
        not torch.equal(value, old)
        for value, old in zip(model.parameters(), fresh.parameters(), strict=True)
    )
    assert resume(tmp_path / "run", steps=1152).steps == 1152


@pytest.mark.parametrize("layer", ["dense", "gru"])
def test_what_is_restored_is_all_that_was_learned(layer):
    first, second = made(layer), made(layer, seed=1)
    reports = []
    first.learn(64, lambda *report: reports.append(report) or True)
    assert [steps for steps, *_ in reports if steps % 32 == 0][:2] == [32, 64]
    metrics = [metrics for *_, metrics in reports if metrics]
    assert len(metrics) == 2
    assert {"loss/policy", "loss/value", "entropy", "learning_rate"} <= metrics[0].keys()
    kept = copy.deepcopy(first.state())
    second.restore(kept, 64)
    again = second.state()
    assert all(torch.equal(value, again["model"][name]) for name, value in kept["model"].items())
    assert again["learning_rate"] == kept["learning_rate"]
    second.learn(96, lambda *_: True)
    assert any(not torch.equal(v, second.state()["model"][n]) for n, v in kept["model"].items())
    with pytest.raises(ValueError, match="its learning rate is -1"):
        second.restore({**kept, "learning_rate": -1.0}, 64)
    for each in (first, second):
        each.close()


def test_it_stops_where_the_report_says_so():
    trainer = made("gru")
    trainer.learn(1000, lambda steps, *_: steps < 20)
    assert trainer._steps == 20
    trainer.learn(64, lambda *_: True)
    trainer.close()


def test_episodes_are_those_of_the_environment():
    episodes = []
    trainer = made()
    trainer.learn(500, lambda _, ended, *rest: episodes.extend(ended) or True)
    assert [each.length for each in episodes] == [200, 200]
    assert all(each.total < -100 for each in episodes)
    trainer.close()


def refused(message, **changes):
    with pytest.raises((ValueError, TrainingError), match=f"^{re.escape(message)}$"):
        changes.pop("make", made)(**changes)


def test_mini_batches_without_environments():
    message = (
        "ppo of rsl_rl cannot train this model:\n  with memory, the environments are divided into mini-batches, but "
        "num_mini_batches is 4 and there are 2; give --envs 4, or num_mini_batches=2"
    )
    refused(message, layer="gru", task=Task("", "Pendulum-v1", "rsl_rl", envs=2))
    made("gru", task=Task("", "Pendulum-v1", "rsl_rl", envs=4)).close()
    message = "ppo of rsl_rl cannot train this model:\n  a rollout has 2 steps, but num_mini_batches is 4; make it at most that"
    refused(message, task=Task("", "Pendulum-v1", "rsl_rl", settings={"num_steps_per_env": 2}))


def test_wrong_settings_and_actions_are_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer", "rsl_rl", "--steps", "64", "-o", "run"]
    wrong = ["--set-algorithm", "gama=0.9", "--set-algorithm", "lam=7"]
    assert main(["train", str(CONFIGS / "continuous.yaml"), *options, *wrong]) == 1
    err = capsys.readouterr().err
    assert "'gama' is not a setting of ppo; did you mean 'gamma'?" in err
    assert "'lam' must be a number between 0 and 1" in err
    assert main(["train", str(CONFIGS / "cartpole.yaml"), *options]) == 1
    assert (
        "its actions are one vector of numbers, a Box, got Discrete(2)" in capsys.readouterr().err
    )
    assert not Path("run").exists()


def test_processes_of_their_own(tmp_path):
    outcome = train(
        CONFIGS / "continuous.yaml", tmp_path / "run", trainer="rsl_rl", steps=64, envs=2,
        settings=SETTINGS, eval_episodes=1, subprocess=True,
    )  # fmt: skip
    assert outcome.steps == 64
    assert json.loads((tmp_path / "run" / "run.json").read_text())["trainer"] == "rsl_rl"
