"""`composer probe`: its table, its files, and what is given wrongly."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import composer
from composer.cli.commands import main
from tests.helpers.paths import CONFIGS

SPEC = """
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16, 8], activation: tanh}
  heads: {in: latent}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("agent.yaml").write_text(SPEC)


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of one command."""
    status = main(["probe", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def saturated():
    """A checkpoint whose first layer is at the bounds of tanh."""
    model = composer.compose(Path("agent.yaml"), seed=0)
    with torch.no_grad():
        layer = model.policy.network.module.get_submodule("latent").linears[0]
        layer.weight.mul_(0.01)
        layer.bias.copy_(torch.where(torch.arange(16) % 2 == 0, 10.0, -10.0))
    model.save("agent.safetensors")


def test_a_spec_is_probed_with_its_first_weights(capsys):
    status, out, err = run(capsys, "agent.yaml", "--steps", "40", "--no-baseline")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split() == (
        [
            "node",
            "units",
            "mean",
            "std",
            "min",
            "max",
            "dead",
            "dormant",
            "saturated",
            "srank",
            "|W|",
            "|grad|",
            "time",
        ]
    )
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["policy/latent", "8"],
        ["linears.0", "16"],
        ["policy/heads/action", "2"],
    ]
    assert lines[-2].startswith("40 steps, seed 0")
    assert lines[-1] == "agent.yaml is no checkpoint: its weights are initial ones, not trained"


def test_a_checkpoint_is_compared_with_its_spec_freshly_drawn_and_drawn(capsys):
    saturated()
    files = ("--json", "out.json", "--draw", "out.svg")
    status, out, _ = run(capsys, "agent.safetensors", "--steps", "40", *files)
    assert status == 0
    assert "100.0% (was 0.0%)" in out
    assert out.endswith("wrote out.json\nwrote out.svg\n")
    data = json.loads(Path("out.json").read_text())
    inner = next(node for node in data["nodes"] if node["layer"] == "linears.0")
    assert inner["saturated"] == 1.0
    assert "saturated" in inner["worse"]
    assert data["tau"] == 0.025
    assert "units that became dormant" in Path("out.svg").read_text()


def test_what_colors_a_picture_may_be_chosen(capsys):
    saturated()
    for color, words in {
        "rank": "rank lost",
        "gradient": "gradient lost, in powers of ten",
        "time": "share of the time of a step",
    }.items():
        options = ("--steps", "20", "--draw", "out.dot", "--color", color)
        assert run(capsys, "agent.safetensors", *options)[0] == 0
        assert f"deeper color: {words}" in Path("out.dot").read_text()


def test_the_folder_of_a_run_has_model_and_environment(capsys, monkeypatch):
    from composer.training import train

    critic = "critic: {kind: state, template: {}}\n"
    Path("agent.yaml").write_text(SPEC.replace("environment: CartPole-v1\n", "") + critic)
    train(
        Path("agent.yaml"), "run", env="CartPole-v1", steps=64, eval_episodes=1,
        settings={"n_steps": 64}, env_set={"max_episode_steps": 7},
    )  # fmt: skip
    capsys.readouterr()
    status, out, _ = run(capsys, "run", "--steps", "30")
    assert status == 0
    assert "mean return 7\n" in out
    assert "no checkpoint" not in out


def test_with_colors_what_is_worse_is_red(capsys, monkeypatch):
    saturated()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = run(capsys, "agent.safetensors", "--steps", "20")
    assert "\x1b[31m100.0% (was 0.0%)\x1b[0m" in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run(capsys, "agent.safetensors", "--steps", "20")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("agent.yaml --steps 0", "composer probe: --steps must be a positive integer, got 0\n"),
        ("agent.yaml --seed -1", "composer probe: --seed must be an integer of 0 or more, got -1\n"),
        ("agent.yaml --tau -1", "composer probe: --tau must be a number of 0 or more, got -1.0\n"),
        ("agent.yaml --tau nan", "composer probe: --tau must be a number of 0 or more, got nan\n"),
        (
            "agent.yaml --draw out.foo",
            "composer probe: --draw: 'foo' is not a format of diagrams; there is dot, html, mermaid, pdf, png, svg\n",
        ),
        (
            "agent.yaml --draw out.svg --json ./out.svg",
            "composer probe: --json and --draw are the same file, 'out.svg'\n",
        ),
        (
            "agent.yaml --steps 5 --json nowhere/out.json",
            "composer probe: 'nowhere/out.json' cannot be written: there is no folder 'nowhere'\n",
        ),
        (
            "bare.yaml",
            "composer probe: bare.yaml names no environment; give one with --env ID\n",
        ),
        (
            "elsewhere.yaml",
            "the environment 'my_envs:Maze-v0' would run code: 'my_envs' is outside the allowed modules (none); pass "
            "allow=['my_envs'] or --allow my_envs if you trust it\n",
        ),
        (
            "agent.safetensors --env Pendulum-v1",
            "composer probe: the model is for other spaces than those of the environment:\n"
            "  'observation': shape is (3,), expected (4,)\n  'action': is Box, expected Discrete\n",
        ),
    ],
)  # fmt: skip
def test_what_is_given_wrongly_is_told(capsys, arguments, message):
    saturated()
    Path("bare.yaml").write_text(SPEC.replace("environment: CartPole-v1\n", ""))
    Path("elsewhere.yaml").write_text(SPEC.replace("CartPole-v1", "my_envs:Maze-v0"))
    status, _, err = run(capsys, *arguments.split())
    assert status == 1
    assert err.startswith(message) or err.endswith(message)


def test_networks_and_experiments_and_action_models_are_no_models(capsys):
    Path("net.yaml").write_text(
        "version: 1\nnetwork: {graph: {y: {block: dense, in: x, hidden_units: 3}}, heads: {in: y}}\n"
    )
    status, _, err = run(capsys, "net.yaml", "--env", "CartPole-v1")
    assert status == 1
    assert "composer probe takes a model" in err
    os.chdir(CONFIGS.parent)
    allow = ("--allow", "environments", "--allow", "networks")
    status, _, err = run(capsys, "configs/tiny_vla.yaml", *allow)
    assert status == 1
    assert err == (
        "composer probe: configs/tiny_vla.yaml is an action model, and composer probe takes one whose networks are "
        "graphs; `composer show configs/tiny_vla.yaml` prints its parts\n"
    )
