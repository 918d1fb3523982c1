"""The example of pretraining and fine-tuning: both stages learn."""

import importlib

import pytest

from tests.helpers.paths import CONFIGS


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    return importlib.import_module("token_pretrain")


def test_pretraining_learns_the_sequences_and_fine_tuning_goes_on_from_there(example):
    *_, losses, scores = example.run(60, 2, batch=32)
    assert losses[0] > 1.2
    assert losses[-1] < 0.7
    *_, without = example.run(0, 1, batch=32)
    assert scores[0] > without[0] + 0.1


@pytest.mark.full
def test_fine_tuning_raises_the_score(example):
    *_, scores = example.run(200, 80)
    assert sum(scores[-5:]) / 5 > scores[0] + 0.1


def test_what_it_prints(example, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["token_pretrain.py", "--pretraining", "2", "--steps", "1"])
    example.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("pretraining: loss 1.")
    assert second.startswith("fine-tuning: mean score 0.")
