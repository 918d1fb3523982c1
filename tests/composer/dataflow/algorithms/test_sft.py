"""Supervised fine-tuning against sums of plain numbers."""

import math
import re

import pytest
import torch

from composer.dataflow.algorithms.interfaces import INTERFACES
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample, SampleError
from tests.helpers.experiment_models import ORIGINS, VOCABULARY, a_model

every_origin = pytest.mark.parametrize("origin", ORIGINS)
LENGTHS = [4, 2, 7]
PROMPTS = [2, 1, 3]


def context(**more):
    return Context(torch.Generator().manual_seed(0), call="train", **more)


def a_sample(prompts=PROMPTS):
    ids = torch.randint(VOCABULARY, (13,), generator=torch.Generator().manual_seed(2))
    mask = torch.cat([torch.arange(n) < p for n, p in zip(LENGTHS, prompts)])
    return Sample.from_default(list("abc"), LENGTHS, {"ids": ids, "prompt_mask": mask})


def logp_of_each(model, sample):
    """By item: log-probabilities of its tokens but the first, by one softmax a token."""
    rows = []
    for ids in sample.sequences("ids"):
        with torch.no_grad():
            logits = model.logits(ids, [len(ids)])
        rows.append(
            [
                (logits[t - 1].exp()[ids[t]] / logits[t - 1].exp().sum()).log().item()
                for t in range(1, len(ids))
            ]
        )
    return rows


def expected_loss(model, sample, prompts=PROMPTS):
    terms = [x for row, p in zip(logp_of_each(model, sample), prompts) for x in row[p - 1 :]]
    return -sum(terms) / len(terms)


@every_origin
@pytest.mark.parametrize("most", [1, 8, 100])
def test_the_loss_is_the_mean_over_tokens_of_answers(origin, most):
    model, sample, place = a_model(origin), a_sample(), context()
    sft = INTERFACES.get("sft")(max_tokens_per_mb=most)
    sft.evaluate(model, sample, place)
    expected = expected_loss(model, sample)
    assert place.numbers["loss"] == pytest.approx(expected, rel=1e-5)
    assert place.numbers["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_without_a_mask_every_token_but_the_first_counts():
    model, sample, place = a_model(), a_sample(), context()
    sample = Sample.gather([sample], ["ids"])
    INTERFACES.get("sft")().evaluate(model, sample, place)
    assert place.numbers["loss"] == pytest.approx(expected_loss(model, sample, [1, 1, 1]), rel=1e-5)


@every_origin
def test_inference_gives_logp_of_every_token_but_the_first(origin):
    model, sample = a_model(origin), a_sample()
    logp = INTERFACES.get("sft")(max_tokens_per_mb=5).inference(model, sample, context())["logp"]
    expected = torch.tensor([x for row in logp_of_each(model, sample) for x in row])
    torch.testing.assert_close(logp, expected, atol=1e-5, rtol=1e-5)


def test_steps_do_not_depend_on_micro_batches_and_lower_the_loss():
    models = [a_model(lr=0.01) for _ in range(2)]
    places = [context() for _ in models]
    for model, most, place in zip(models, (1, 100), places):
        sft = INTERFACES.get("sft")(max_tokens_per_mb=most)
        for _ in range(5):
            sft.train_step(model, a_sample(), place)
        assert place.numbers["loss"] < expected_loss(a_model(), a_sample())
    assert places[0].numbers == pytest.approx(places[1].numbers, rel=1e-3)
    for left, right in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


def test_items_without_answers_are_told():
    message = "call 'train' in iteration 3: no token follows a prompt: 'prompt_mask' is true for all of them"
    with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
        INTERFACES.get("sft")().train_step(a_model(lr=0.1), a_sample(LENGTHS), context(iteration=3))


def test_packed_tokens_are_all_real():
    """What layers of a decoder read has no padding at all."""
    model, seen = a_model(), []
    body = model.network.get_submodule("latent.layers.0.mlp")
    body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    INTERFACES.get("sft")(max_tokens_per_mb=8).evaluate(model, a_sample(), context())
    assert sum(seen) == sum(LENGTHS)
    assert len(seen) == 2
