"""`composer train --trainer skrl`."""

import copy
from pathlib import Path

import pytest
import torch

import composer
from composer.cli.commands import main
from composer.training import resume, train
from composer.training.trainer import TRAINERS, Task
from tests.helpers.paths import CONFIGS

SPEC = """
version: 1
environment: CartPole-v1
policy:
  graph: {latent: {block: LAYER, in: observation, hidden_units: 8}}
  heads: {in: latent}
critic:
  graph: {latent: {block: LAYER, in: observation, hidden_units: 8}}
"""


def made(layer="dense", algorithm="ppo", seed=0, envs=2, **settings):
    model = composer.compose(SPEC.replace("LAYER", layer), seed=seed)
    task = Task("", "CartPole-v1", "skrl", algorithm, 64, envs=envs, settings=settings)
    return TRAINERS.get("skrl")(task, model)


def test_a_run_trains_reports_and_goes_on(tmp_path):
    outcome = train(
        CONFIGS / "cartpole.yaml", tmp_path / "run", trainer="skrl", steps=512, envs=4,
        settings={"rollouts": 32}, eval_episodes=1,
    )  # fmt: skip
    assert outcome.steps == 512
    assert (tmp_path / "run" / "curve.csv").read_text().count("\n") > 1
    model = composer.load(tmp_path / "run" / "model.safetensors")
    fresh = composer.compose(CONFIGS / "cartpole.yaml", seed=0)
    assert all(
        not torch.equal(value, old)
        for value, old in zip(model.parameters(), fresh.parameters(), strict=True)
    )
    assert resume(tmp_path / "run", steps=640).steps == 640


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
@pytest.mark.parametrize("layer", ["dense", "gru"])
@pytest.mark.parametrize("envs", [1, 2])
def test_what_is_restored_is_all_that_was_learned(layer, algorithm, envs):
    first = made(layer, algorithm, envs=envs, entropy_loss_scale=0.01)
    second = made(layer, algorithm, seed=1, envs=envs)
    reports = []
    first.learn(64, lambda *report: reports.append(report) or True)
    assert [steps for steps, *_ in reports] == list(range(envs, 65, envs))
    metrics = [metrics for *_, metrics in reports if metrics]
    assert len(metrics) == 64 // envs // 16
    assert metrics[0].keys() == {"loss/policy", "loss/value", "entropy"}
    assert 0 < metrics[0]["entropy"] < 0.7
    kept = copy.deepcopy(first.state())
    second.restore(kept, 64)
    again = second.state()
    assert all(torch.equal(value, again["model"][name]) for name, value in kept["model"].items())
    second.learn(96, lambda *_: True)
    assert all(not torch.equal(v, second.state()["model"][n]) for n, v in kept["model"].items())
    for each in (first, second):
        each.close()


def test_it_stops_where_the_report_says_so():
    trainer = made("gru")
    trainer.learn(1000, lambda steps, *_: steps < 20)
    assert trainer._steps == 20
    trainer.learn(64, lambda *_: True)
    assert trainer._steps == 64
    trainer.close()


def test_wrong_settings_are_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer", "skrl", "--steps", "64", "-o", "run", "--envs", "2"]
    wrong = ["--set-algorithm", "rollout=9", "--set-algorithm", "gae_lambda=7"]
    assert main(["train", str(CONFIGS / "cartpole.yaml"), *options, *wrong]) == 1
    err = capsys.readouterr().err
    assert "'rollout' is not a setting of ppo; did you mean 'rollouts'?" in err
    assert "'gae_lambda' must be a number between 0 and 1" in err
    assert not Path("run").exists()


def test_processes_of_their_own(tmp_path):
    outcome = train(
        CONFIGS / "cartpole.yaml", tmp_path / "run", trainer="skrl", steps=64, envs=2,
        eval_episodes=1, subprocess=True,
    )  # fmt: skip
    assert outcome.steps == 64
