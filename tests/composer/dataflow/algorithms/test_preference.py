"""Reward models and DPO against sums of plain numbers."""

import math
import re

import pytest
import torch

from composer.dataflow.algorithms.interfaces import INTERFACES
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample, SampleError
from tests.helpers.experiment_models import ORIGINS, VOCABULARY, a_model

every_origin = pytest.mark.parametrize("origin", ORIGINS)
LENGTHS = [[4, 2], [7, 3, 5, 6], [2, 2]]
PROMPTS = [2, 3, 1]


def context(**more):
    return Context(torch.Generator().manual_seed(0), call="train", **more)


def a_sample(**values):
    count = sum(map(sum, LENGTHS))
    ids = torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(2))
    lengths = {"ids": LENGTHS, "prompt_lens": [[1]] * 3}
    lengths |= {key: [[n - 1 for n in item] for item in LENGTHS] for key in values}
    return Sample.of(
        list("abc"), lengths, {"ids": ids, "prompt_lens": torch.tensor(PROMPTS), **values}
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def mean_over_items(sample, number_of):
    """The mean over items of the mean over their pairs of ``number_of(better, worse, prompt length)``."""
    total = 0.0
    for item, prompt in zip(sample.unpack(), PROMPTS):
        rows = list(range(len(item.seqlens["ids"][0])))
        pairs = [number_of(item, a, b, prompt) for a, b in zip(rows[::2], rows[1::2])]
        total += sum(pairs) / len(pairs)
    return total / sample.bs


def score(model, ids):
    with torch.no_grad():
        return model.scores(ids, [len(ids)])[-1].item()


@every_origin
@pytest.mark.parametrize("most", [1, 9, 100])
def test_the_loss_of_a_reward_model(origin, most):
    model, sample, place = a_model(origin, is_critic=True), a_sample(), context()
    INTERFACES.get("paired_rw")(max_tokens_per_mb=most).evaluate(model, sample, place)

    def margin(item, better, worse, prompt):
        ids = item.sequences("ids")
        return score(model, ids[better]) - score(model, ids[worse])

    loss = mean_over_items(sample, lambda *pair: -math.log(sigmoid(margin(*pair))))
    accuracy = mean_over_items(sample, lambda *pair: float(margin(*pair) > 0))
    better = mean_over_items(sample, lambda item, b, w, p: score(model, item.sequences("ids")[b]))
    assert place.numbers["loss"] == pytest.approx(loss, rel=1e-4)
    assert place.numbers["accuracy"] == pytest.approx(accuracy)
    assert place.numbers["better_score"] == pytest.approx(better, rel=1e-4, abs=1e-6)


def test_rewards_are_scaled_scores():
    model, sample = a_model(is_critic=True), a_sample()
    interface = INTERFACES.get("paired_rw")(
        output_scaling=3.0, output_bias=0.5, max_tokens_per_mb=9
    )
    rewards = interface.inference(model, sample, context())["rewards"]
    expected = [(score(model, ids) - 0.5) * 3.0 for ids in sample.sequences("ids")]
    assert rewards.tolist() == pytest.approx(expected, rel=1e-4)


@every_origin
@pytest.mark.parametrize("most", [1, 9, 100])
def test_the_loss_of_dpo(origin, most):
    model, reference = a_model(origin), a_model(origin, seed=1)
    dpo = INTERFACES.get("dpo")(beta=0.3, max_tokens_per_mb=most)
    ref_logp = dpo.inference(reference, a_sample(), context())["logp"]
    sample, place = a_sample(ref_logp=ref_logp), context()
    dpo.evaluate(model, sample, place)

    def logp(which, ids, prompt):
        with torch.no_grad():
            logits = which.logits(ids, [len(ids)]).double()
        return sum(logits[t - 1].log_softmax(-1)[ids[t]].item() for t in range(prompt, len(ids)))

    def margin(item, better, worse, prompt):
        ids = item.sequences("ids")
        ratios = [
            logp(model, ids[i], prompt) - logp(reference, ids[i], prompt) for i in (better, worse)
        ]
        return 0.3 * (ratios[0] - ratios[1])

    loss = mean_over_items(sample, lambda *pair: -math.log(sigmoid(margin(*pair))))
    accuracy = mean_over_items(sample, lambda *pair: float(margin(*pair) > 0))
    assert place.numbers["loss"] == pytest.approx(loss, rel=1e-4)
    assert place.numbers["accuracy"] == pytest.approx(accuracy)


def test_dpo_begins_at_log_2():
    """A model that is its own reference prefers nothing."""
    model = a_model(lr=0.01)
    dpo, place = INTERFACES.get("dpo")(), context()
    sample = a_sample(ref_logp=dpo.inference(model, a_sample(), context())["logp"])
    dpo.train_step(model, sample, place)
    assert place.numbers["loss"] == pytest.approx(math.log(2), rel=1e-5)
    for _ in range(5):
        dpo.train_step(model, sample, place)
    assert place.numbers["loss"] < math.log(2) - 0.01
    assert place.numbers["accuracy"] == 1.0


@pytest.mark.parametrize("name", ["paired_rw", "dpo"])
def test_steps_do_not_depend_on_micro_batches(name):
    models = [a_model(lr=0.01, is_critic=name == "paired_rw") for _ in range(2)]
    values = {} if name == "paired_rw" else {"ref_logp": torch.zeros(23)}
    for model, most in zip(models, (1, 100)):
        INTERFACES.get(name)(max_tokens_per_mb=most).train_step(
            model, a_sample(**values), context()
        )
    for left, right in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


def test_what_is_no_pair_is_told():
    sample = Sample.from_default(["a"], [3], {"ids": torch.tensor([1, 2, 3])})
    message = "call 'train' in iteration 2: pairs have two sequences, the better one first, and item 'a' has 1"
    with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
        INTERFACES.get("paired_rw")().train_step(
            a_model(is_critic=True, lr=0.1), sample, context(iteration=2)
        )


@pytest.mark.parametrize("verb", ["train_step", "evaluate"])
def test_a_reference_without_numbers_is_told(verb):
    logp = torch.zeros(23)
    logp[7] = torch.nan
    message = "call 'train' in iteration 2: 'ref_logp' of item 'b' has nan; nothing was trained"
    with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
        getattr(INTERFACES.get("dpo")(), verb)(
            a_model(lr=0.1), a_sample(ref_logp=logp), context(iteration=2)
        )
