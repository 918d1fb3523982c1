"""The example that trains the tiny action model by PPO."""

import json

import action_ppo  # pyright: ignore[reportMissingImports]  (of configs/)
import pytest
import torch

import composer
from tests.helpers.paths import TESTS
from tests.helpers.processes import run_in_processes


def test_a_few_updates_raise_the_reward():
    model = action_ppo.make()
    rewards = action_ppo.train(model, 20)
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


@pytest.mark.parametrize("lora", [4])
def test_with_lora_only_adapters_and_the_value_head_move(lora):
    model = action_ppo.make(lora=lora)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    action_ppo.train(model, 2, batch=8)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in moved if "lora_" not in n} == {
        n for n in before if n.startswith("value_head.")
    }
    assert {n for n in before if "lora_" in n} <= moved


def test_without_matplotlib_it_ends_before_it_trains(monkeypatch, capsys):
    monkeypatch.setattr(action_ppo, "find_spec", lambda name: None)
    monkeypatch.setattr(action_ppo, "train", None)
    monkeypatch.setattr("sys.argv", ["action_ppo.py"])
    with pytest.raises(SystemExit):
        action_ppo.main()
    needs = "the learning curve needs 'matplotlib'; install it with: pip install \"perception-composer[train]\""
    assert capsys.readouterr().err.endswith(f"action_ppo.py: error: {needs}\n")


@pytest.mark.full
def test_it_learns_to_point_and_the_curve_is_drawn(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "curve.png"
    monkeypatch.setattr("sys.argv", ["action_ppo.py", "--out", str(picture)])
    action_ppo.main()
    out = capsys.readouterr().out
    assert picture.stat().st_size > 5000
    assert float(out.partition(" after")[0].rpartition(" ")[2]) > 0.65
    assert composer.compose(action_ppo.SPEC, allow=["environments", "networks"], seed=0)


@pytest.mark.full
def test_two_processes_have_the_rewards_of_one(tmp_path):
    script = TESTS / "helpers" / "sharded_action_model.py"
    first, second = (json.loads(said) for said in run_in_processes(2, script, tmp_path))
    alone = action_ppo.train(action_ppo.make(lora=2), 5, batch=16)
    assert first == second == pytest.approx(alone, abs=1e-5)
