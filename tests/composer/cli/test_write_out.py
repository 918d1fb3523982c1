"""`composer init --from` writes templates out as graphs, which compose the very same model."""

from pathlib import Path

import pytest
import torch
from gymnasium import spaces

import composer
from composer.cli.commands import main
from composer.cli.write_out import written_out

SPEC = """\
version: 1
environment: CartPole-v1
params: {width: 16}
normalize: [observation]
policy:
  template:
    vector: {block: dense, hidden_units: "${params.width}", init: orthogonal}
    memory: {block: gru, hidden_units: 8}
  heads: {in: memory, init_scale: 0.01}
  shares: [trunk]
critic:
  template: {}
"""
GRAPHS = """\
version: 1
environment: CartPole-v1
normalize: [observation]

policy:
  graph:
    features: {block: dense, in: observation, init: orthogonal, hidden_units: 16}
    latent: {block: dense, in: features, hidden_units: [64, 64], activation: tanh}
    memory: {block: gru, in: latent, hidden_units: 8}
  heads: {in: memory, init_scale: 0.01}
  shares: [latent]

critic:
  graph: {}
  heads: {in: latent}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments):
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def same_weights(first, second):
    names = first.state_dict().keys()
    assert names == second.state_dict().keys()
    assert all(torch.equal(first.state_dict()[name], second.state_dict()[name]) for name in names)


def test_the_templates_of_a_spec_are_written_out_as_graphs(capsys):
    Path("agent.yaml").write_text(SPEC)
    wrote = "wrote graphs.yaml and spec.schema.json; next: composer check graphs.yaml\n"
    assert run(capsys, "init", "--from", "agent.yaml", "-o", "graphs.yaml") == (0, wrote, "")
    modeline = "# yaml-language-server: $schema=spec.schema.json\n"
    assert Path("graphs.yaml").read_text() == modeline + GRAPHS
    same_weights(composer.compose("agent.yaml", seed=3), composer.compose("graphs.yaml", seed=3))
    assert run(capsys, "init", "--from", "agent.yaml") == (0, GRAPHS, "")


def test_an_environment_may_be_named_beside_the_spec(capsys):
    Path("agent.yaml").write_text("version: 1\npolicy:\n  template: {}\n")
    status, text, _ = run(capsys, "init", "Pendulum-v1", "--from", "agent.yaml")
    assert status == 0
    composer.compose(text, env="Pendulum-v1")


ODD = spaces.Dict(
    {
        "a b": spaces.Sequence(spaces.Dict(kind=spaces.Discrete(3), at=spaces.Box(-1, 1, (2,)))),
        "": spaces.Box(0, 255, (2, 16, 16, 3), "uint8"),
        "text": spaces.Text(5),
        "${x}": spaces.MultiDiscrete([3, 90]),
    }
)


def test_every_kind_of_observation_is_written_out():
    text = "version: 1\npolicy:\n  template: {memory: {block: lstm, hidden_units: 4}}\ncritic:\n  template: {}\n"
    keywords = {"observation_space": ODD, "action_space": spaces.Discrete(2), "seed": 0}
    model = composer.compose(text, **keywords)
    same_weights(model, composer.compose(written_out(model), **keywords))


def test_what_cannot_be_written_out_is_said(capsys):
    Path("agent.yaml").write_text(GRAPHS)
    message = "composer init: agent.yaml: the spec has no template to write out\n"
    assert run(capsys, "init", "--from", "agent.yaml") == (1, "", message)
    with pytest.raises(SystemExit) as caught:
        main(["init"])
    assert caught.value.code == 2
    assert "give an environment, or a spec with --from" in capsys.readouterr().err


def test_a_network_may_be_its_head_alone():
    model = composer.compose(
        "version: 1\nenvironment: CartPole-v1\npolicy:\n  graph: {}\n  heads: {in: observation}\n"
    )
    assert [p.shape for p in model.policy.parameters()] == [(2, 4), (2,)]
