"""`composer why`: what is printed, and that what is wrong is a line and the status 1."""

import sys
from pathlib import Path

import pytest

import composer
from composer.cli.commands import main

SPEC = """\
version: 1
environment: CartPole-v1
params: {width: 8}
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: ["${params.width}"]}
  heads: {in: latent}
"""
ANSWER = """\
latent (8,)  dense, 40 parameters  {place}:6
  hidden_units = [params.width] = [8]  {place}:6
    params.width = 8  {place}:3
  observation (4,)  an observation of CartPole-v1
"""


@pytest.fixture
def spec(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "agent.yaml"
    path.write_text(SPEC)
    return path


def test_the_shapes_of_a_node_are_explained(spec, capsys):
    assert main(["why", "agent.yaml", "latent"]) == 0
    assert capsys.readouterr().out == ANSWER.format(place="agent.yaml")
    assert main(["why", "agent.yaml", "6", "--set", "params.width=3"]) == 0
    assert "    params.width = 3  --set params.width=3\n" in capsys.readouterr().out


def test_checkpoints_and_runs_are_explained_too(spec, capsys):
    composer.compose(spec).save(spec.parent / "agent.safetensors")
    assert main(["why", "agent.safetensors", "latent"]) == 0
    place = "agent.safetensors, its spec"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("latent (8,)  dense, 40 parameters  " + place)
    assert lines[-1] == "  observation (4,)  an observation of CartPole-v1"


def test_a_spec_without_an_environment_is_explained_without_shapes(spec, capsys):
    spec.write_text(SPEC.replace("environment: CartPole-v1\n", ""))
    assert main(["why", "agent.yaml", "latent"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "latent ?  dense  agent.yaml:5"
    assert lines[-1] == "shapes are not known without an environment: give one with --env ID"
    assert main(["why", "agent.yaml", "latent", "--env", "CartPole-v1"]) == 0
    assert "observation (4,)  an observation of CartPole-v1" in capsys.readouterr().out


def failed(arguments, capsys) -> tuple[str, str]:
    assert main(["why", *arguments]) == 1
    done = capsys.readouterr()
    return done.out, done.err


def test_an_unknown_node_and_an_empty_line_are_answered(spec, capsys):
    assert failed(["agent.yaml", "latnet"], capsys) == (
        "",
        "composer why: there is no node 'latnet'; did you mean 'latent'?\n",
    )
    assert failed(["agent.yaml", "1"], capsys) == (
        "",
        "composer why: agent.yaml:1 is in no node; the nearest is 'policy/latent' at line 6\n",
    )


def test_the_problems_of_a_spec_follow_what_is_known_of_it(spec, capsys):
    spec.write_text(SPEC.replace("{in: latent}", "{in: latnet}"))
    problem = (
        "agent.yaml:7:15: 'heads/action' reads 'latnet', which is neither an input nor a node's output; "
        "did you mean 'latent'?\n"
    )
    assert failed(["agent.yaml", "latent"], capsys) == (ANSWER.format(place="agent.yaml"), problem)
    unknown = "there is no node 'lat'; did you mean 'latent'?\n"
    assert failed(["agent.yaml", "lat"], capsys) == ("", problem + unknown)


def test_an_environment_that_is_not_allowed_is_not_made(spec, capsys):
    (spec.parent / "hostile_env.py").write_text("raise SystemExit('it ran')\n")
    spec.write_text(SPEC.replace("CartPole-v1", "hostile_env:X-v0"))
    out, err = failed(["agent.yaml", "latent"], capsys)
    assert out.startswith("latent ?  dense  agent.yaml:6\n")
    assert err == (
        "agent.yaml:2:14: the environment 'hostile_env:X-v0' would run code: 'hostile_env' is outside the allowed "
        "modules (none); pass allow=['hostile_env'] or --allow hostile_env if you trust it\n"
    )
    assert "hostile_env" not in sys.modules


def test_what_has_no_nodes_of_a_model_is_refused(spec, capsys):
    spec.write_text("version: 1\nmodels: {policy: {spec: a.yaml}}\ncalls: {}\n")
    assert failed(["agent.yaml", "x"], capsys) == (
        "",
        "composer why: agent.yaml describes an experiment of several models, and composer why takes a model; "
        "`composer run agent.yaml` runs it\n",
    )
    spec.write_text(
        "version: 1\nnetwork:\n  inputs: {x: 4}\n  outputs: {y: 3}\n"
        "  graph:\n    y: {block: dense, in: x, hidden_units: [3]}\n"
    )
    assert failed(["agent.yaml", "y", "--env", "CartPole-v1"], capsys) == (
        "",
        "composer why: agent.yaml describes a network without actions, which has no environment; leave out --env\n",
    )
    assert main(["why", "agent.yaml", "y"]) == 0
    assert capsys.readouterr().out == (
        "y (3,)  dense, 15 parameters  agent.yaml:6\n"
        "  hidden_units = [3]  agent.yaml:6\n"
        "  x (4,)  an input of the network\n"
    )
