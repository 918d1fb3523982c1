"""PPO over texts whose reward is one word: a reward model, a function by its path, a registered one, a classifier."""

import json
import re

import pytest
import torch

from composer.dataflow import (
    INTERFACES,
    DatasetUtil,
    RewardError,
    batches,
    make_dataset,
    read_experiment,
    reward_function,
)
from composer.dataflow.local import LocalRunner
from composer.dataflow.schedule import run_iterations
from composer.dataflow.written import values_of
from tests.composer.dataflow.test_classifier import saved
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
    rows = [{"prompt": prompt, "label": "c"} for prompt in ("a", "ab", "c b", "cc", "b ") * 2]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "ppo.yaml").write_text(SPEC)


def run(overrides, allow=()):
    """The numbers of each iteration."""
    experiment = read_experiment("ppo.yaml", overrides, allow=allow)
    runner = LocalRunner(experiment, allow)
    data = experiment.data
    util = DatasetUtil(experiment.run.seed, tokenizer=runner.tokenizers.of_data())
    dataset = make_dataset(data.dataset, data.settings, util)

    def batch(iteration):
        sample = batches(dataset, data.batch_size, experiment.run.seed, iteration)
        return values_of(sample, sample.keys)

    return list(run_iterations(experiment, runner, batch))


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
        rows = run([f"calls.rew_inf.with={name}", *more], ALLOW)
        assert all(torch.tensor([*row.values()]).isfinite().all() for row in rows)
        seen[name] = [tuple(row.values()) for row in rows]
    assert len({tuple(numbers) for numbers in seen.values()}) == len(rewards)


def test_a_function_in_another_process_gives_the_same_run():
    word = "calls.rew_inf.with=tests.helpers.reward_functions.matches"
    assert run([word, ("calls.rew_inf.settings", {"timeout": 60})], ALLOW) == run([word], ALLOW)


def test_a_reward_that_fails_is_told_with_the_call_the_item_and_the_text():
    with pytest.raises(RewardError) as error:
        run(["calls.rew_inf.with=tests.helpers.reward_functions.fails_at_c"], ALLOW)
    message = (
        r"call 'rew_inf' in iteration \d: 'tests\.helpers\.reward_functions\.fails_at_c' raises "
        r"ZeroDivisionError: division by zero, for item \d, the text '[abc ]*c[abc ]*'"
    )
    assert re.fullmatch(message, str(error.value))
    assert error.value.__notes__[0].startswith("in ppo.yaml:16:12: call 'rew_inf' in iteration")
