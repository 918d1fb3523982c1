"""The example of token policies learns: the mean score rises, and the curve is drawn."""

import importlib
import sys

import pytest

from tests.helpers.paths import CONFIGS

MODELS = ["token_gru", "token_gpt2"]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    monkeypatch.delitem(sys.modules, "token_reinforce", raising=False)  # it registers its models
    return importlib.import_module("token_reinforce")


def mean(scores):
    return sum(scores) / len(scores)


SHORT = {"batch": 32, "rate": 3e-3}


def test_a_token_policy_learns_in_a_few_steps(example):
    scores = example.train("token_gru", 40, **SHORT)
    assert mean(scores[:5]) < 0.35
    assert mean(scores[-5:]) > mean(scores[:5]) + 0.25


@pytest.mark.parametrize("model", MODELS)
def test_the_seed_says_all(example, model):
    assert example.train(model, 3, **SHORT) == example.train(model, 3, **SHORT)


@pytest.mark.full
@pytest.mark.parametrize("model", MODELS)
def test_a_token_policy_learns_nearly_all_there_is(example, model):
    scores = example.train(model, 200)
    assert mean(scores[:5]) < 0.4
    assert mean(scores[-20:]) > 0.9


def test_without_matplotlib_it_ends_before_it_trains(example, monkeypatch, capsys):
    monkeypatch.setattr(example, "find_spec", lambda name: None)
    monkeypatch.setattr(example, "train", None)
    monkeypatch.setattr("sys.argv", ["token_reinforce.py"])
    with pytest.raises(SystemExit):
        example.main()
    needs = "the learning curve needs 'matplotlib'; install it with: pip install \"perception-composer[train]\""
    assert capsys.readouterr().err.endswith(f"token_reinforce.py: error: {needs}\n")


def test_the_curve_is_drawn(example, tmp_path, monkeypatch, capsys):
    path = tmp_path / "out" / "curve.png"
    monkeypatch.setattr(
        sys,
        "argv",
        ["token_reinforce.py", "--model", "token_gru", "--steps", "2", "--out", str(path)],
    )
    example.main()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "token_gru: mean score 0." in capsys.readouterr().out
