"""PPO over texts whose reward is one word: a reward model, a function by its path, a registered one, a classifier."""

import json
import re

import pytest
import torch

from composer.dataflow import INTERFACES, RewardError, RunError, reward_function, run
from tests.composer.dataflow.algorithms.test_classifier import saved
from tests.helpers import reward_functions

SPEC = """\
version: 1
models:
  actor: {decoder: {width: 8, num_layers: 1, num_heads: 2}, vocabulary: tokens.txt, lr: 0.01}
  critic: {like: actor, is_critic: true, lr: 0.01}
  ref: {like: actor}
  reward: {like: actor, is_critic: true}
data: {dataset: prompt, path: prompts.jsonl, batch_size: 8}
calls:
  actor_gen:
    model: actor
    do: generate
    with: ppo_actor
    reads: [prompts]
    writes: [ids, logp, prompt_mask]
    settings: {max_new_tokens: 3, min_new_tokens: 2}
  rew_inf: {model: reward, do: inference, with: paired_rw, reads: [ids, prompt_mask], writes: [rewards]}
  ref_inf: {model: ref, do: inference, with: ppo_actor, reads: [ids], writes: {logp: ref_logp}}
  critic_inf: {model: critic, do: inference, with: ppo_critic, reads: [ids], writes: [values]}
  actor_train:
    model: actor
    do: train_step
    with: ppo_actor
    reads: [ids, logp, ref_logp, rewards, values, prompt_mask]
  critic_train:
    model: critic
    do: train_step
    with: ppo_critic
    reads: [ids, logp, ref_logp, rewards, values, prompt_mask]
run: {iterations: 2}
"""
ALLOW = ["tests.helpers"]


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens.txt").write_text("a\nb\nc\n \n")
    prompts = [{"prompt": prompt, "label": "c"} for prompt in ("a", "ab", "c b", "cc", "b ") * 2]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
    (tmp_path / "ppo.yaml").write_text(SPEC)


def rows(overrides, allow=(), spec="ppo.yaml"):
    """The numbers of each iteration."""
    return run(spec, overrides, allow).rows


@pytest.mark.usefixtures("registries")
def test_the_reward_is_one_word(tmp_path, letters):
    saved(tmp_path / "classifier", letters)
    INTERFACES.register("my-brevity", reward_function(reward_functions.brevity))
    rewards = {
        "paired_rw": [],
        "my-brevity": [],
        "tests.helpers.reward_functions.matches": [],
        "classifier": [("calls.rew_inf.settings", {"path": str(tmp_path / "classifier")})],
    }
    seen = {}
    for name, more in rewards.items():
        table = rows([f"calls.rew_inf.with={name}", *more], ALLOW)
        assert all(torch.tensor([*row.values()]).isfinite().all() for row in table)
        seen[name] = [tuple(row.values()) for row in table]
    assert len({tuple(numbers) for numbers in seen.values()}) == len(rewards)


def test_a_function_in_another_process_gives_the_same_run():
    word = "calls.rew_inf.with=tests.helpers.reward_functions.matches"
    assert rows([word, ("calls.rew_inf.settings", {"timeout": 60})], ALLOW) == rows([word], ALLOW)


def test_a_reward_that_fails_is_told_with_the_call_the_item_and_the_text():
    with pytest.raises(RewardError) as error:
        rows(["calls.rew_inf.with=tests.helpers.reward_functions.fails_at_c"], ALLOW)
    message = (
        r"call 'rew_inf' in iteration \d: 'tests\.helpers\.reward_functions\.fails_at_c' raises "
        r"ZeroDivisionError: division by zero, for item \d, the text '[abc ]*c[abc ]*'"
    )
    assert re.fullmatch(message, str(error.value))
    assert error.value.__notes__[0].startswith("in ppo.yaml:16:12: call 'rew_inf' in iteration")


def test_files_are_found_beside_the_experiment(tmp_path, letters, monkeypatch):
    """Its tokens, its prompts and its classifier, wherever it is run; a classifier elsewhere has to be allowed."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("ppo.yaml", "tokens.txt", "prompts.jsonl"):
        (tmp_path / name).rename(folder / name)
    saved(folder / "sentiment", letters)
    saved(tmp_path / "other", letters)
    words = ["calls.rew_inf.with=classifier", "run.iterations=1"]
    beside = ("calls.rew_inf.settings", {"path": "sentiment", "label": "positive"})
    assert len(rows([*words, beside], spec="here/ppo.yaml")) == 1
    outside = ("calls.rew_inf.settings", {"path": "../other"})
    with pytest.raises(RunError, match=r"is neither beside nor below the spec; pass allow="):
        rows([*words, outside], spec="here/ppo.yaml")
    assert len(rows([*words, outside], [f"{tmp_path}/other/"], spec="here/ppo.yaml")) == 1


def test_the_quickstart_takes_another_reward_in_one_word():
    small = ["run.iterations=1", "models.actor.decoder.width=8", "data.batch_size=4"]
    word = "calls.rew_inf.with=tests.helpers.reward_functions.brevity"
    (row,) = rows([word, *small], ALLOW, "ppo")
    assert row != rows(small, (), "ppo")[0]
