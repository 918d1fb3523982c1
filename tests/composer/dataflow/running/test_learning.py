"""Every algorithm learns a toy task on one core; the short versions only show that it runs and stays finite."""

import math

import pytest
import torch

from composer.dataflow.algorithms.interfaces import INTERFACES, Interface
from composer.dataflow.context import Context, call_generator
from composer.dataflow.data.samples import Sample
from composer.dataflow.running.model_building import build_model
from composer.dataflow.running.session import run
from tests.helpers.experiment_models import Words, entry
from tests.helpers.experiments import registered

VOCABULARY, LENGTH, END = 16, 24, 0
DECODER = {"width": 32, "num_layers": 2, "num_heads": 4, "max_length": LENGTH}
SMOOTH = {"weight_decay": 0.0, "beta2": 0.99}
LUCKY = 3  # the token that PPO is rewarded for
LONG = pytest.param(True, marks=pytest.mark.full)
short_and_long = pytest.mark.parametrize("whole", [pytest.param(False), LONG])


def models_of(lr, **entries):
    """Models by name; a trained one gets the learning rate."""
    named = {
        name: entry(name, {} if "like" in given else {"decoder": DECODER}, **given)
        if given.pop("frozen", False)
        else entry(
            name,
            {} if "like" in given else {"decoder": DECODER},
            optimizer={"lr": lr, **SMOOTH},
            **given,
        )
        for name, given in entries.items()
    }
    return [
        build_model(each, named, 0, tokenizer=Words(VOCABULARY, END)) for each in named.values()
    ]


def context(iteration, call):
    return Context(call_generator(0, iteration, call), iteration, call=call)


def packed(sequences, **values):
    """One sequence an item."""
    return Sample.from_default(
        range(len(sequences)), list(map(len, sequences)), {"ids": torch.cat(sequences), **values}
    )


def walks(count, generator, faithful=0.9):
    """Sequences in which, mostly, a token t is followed by 1 + (3 * t) % 15."""
    sequences = []
    for length in torch.randint(6, LENGTH, (count,), generator=generator).tolist():
        tokens = [int(torch.randint(1, VOCABULARY, (1,), generator=generator))]
        draws = torch.rand(length, generator=generator).tolist()
        others = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        for draw, other in zip(draws, others):
            tokens.append(1 + 3 * tokens[-1] % 15 if draw < faithful else other)
        sequences.append(torch.tensor(tokens))
    return sequences


@short_and_long
def test_sft_learns_a_grammar(whole):
    (actor,) = models_of(3e-3, actor={})
    sft, losses = INTERFACES.get("sft")(), []
    for iteration in range(200 if whole else 10):
        place = context(iteration, "train")
        sft.train_step(actor, packed(walks(16, place.generator)), place)
        losses.append(place.numbers["loss"])
    place = context(0, "evaluate")
    sft.evaluate(actor, packed(walks(64, place.generator)), place)
    assert losses[0] > 0.9 * math.log(VOCABULARY)
    assert losses[-1] < losses[0]
    if whole:  # a token is as expected, or one of 15
        p = 0.9 + 0.1 / 15
        entropy = -p * math.log(p) - 14 * (0.1 / 15) * math.log(0.1 / 15)
        assert place.numbers["loss"] < entropy + 0.15


def pairs(count, generator):
    """A prompt of two tokens, and two answers to each: the better one has more tokens below 8."""
    items = []
    for _ in range(count):
        prompt = torch.randint(1, VOCABULARY, (2,), generator=generator)
        while True:
            answers = torch.randint(1, VOCABULARY, (2, 8), generator=generator)
            counts = (answers < 8).sum(-1)
            if counts[0] != counts[1]:
                break
        order = counts.argsort(descending=True)
        items += [torch.cat([prompt, answers[i]]) for i in order]
    ids, lengths = torch.cat(items), [[len(items[0])] * 2] * count
    prompt_lens = torch.full((count,), 2)
    return Sample.of(
        range(count),
        {"ids": lengths, "prompt_lens": [[1]] * count},
        {"ids": ids, "prompt_lens": prompt_lens},
    )


@short_and_long
def test_a_reward_model_orders_pairs(whole):
    (reward,) = models_of(3e-3, reward={"is_critic": True})
    interface = INTERFACES.get("paired_rw")()
    for iteration in range(150 if whole else 10):
        place = context(iteration, "train")
        interface.train_step(reward, pairs(16, place.generator), place)
        assert math.isfinite(place.numbers["loss"])
    place = context(0, "evaluate")
    interface.evaluate(reward, pairs(200, place.generator), place)
    assert place.numbers["accuracy"] > (0.9 if whole else 0.4)


@short_and_long
def test_dpo_prefers(whole):
    actor, ref = models_of(1e-3, actor={}, ref={"like": "actor", "frozen": True})
    dpo = INTERFACES.get("dpo")(beta=0.1)

    def with_reference(sample):
        logp = dpo.inference(ref, sample, context(0, "ref"))["logp"]
        lengths = [[n - 1 for n in item] for item in sample.seqlens["ids"]]
        sample.update_(Sample.of(sample.ids, {"ref_logp": lengths}, {"ref_logp": logp}))
        return sample

    for iteration in range(150 if whole else 10):
        place = context(iteration, "train")
        dpo.train_step(actor, with_reference(pairs(16, place.generator)), place)
        assert math.isfinite(place.numbers["loss"])
    place = context(0, "evaluate")
    dpo.evaluate(actor, with_reference(pairs(200, place.generator)), place)
    assert place.numbers["accuracy"] > (0.9 if whole else 0.4)


@short_and_long
def test_ppo_raises_a_reward(whole):
    """The reward is the share of generated tokens that are the lucky one: one of 16 at first."""
    actor, ref, critic = models_of(
        2e-3,
        actor={},
        ref={"like": "actor", "frozen": True},
        critic={"like": "actor", "is_critic": True},
    )
    ppo = INTERFACES.get("ppo_actor")(
        max_new_tokens=10, min_new_tokens=4, kl_ctl=0.02, gae_lambda=0.95, n_minibatches=4
    )
    judge = INTERFACES.get("ppo_critic")(kl_ctl=0.02, gae_lambda=0.95, n_minibatches=4)
    rewards = []
    for iteration in range(60 if whole else 4):
        place = context(iteration, "gen")
        prompts = torch.randint(1, VOCABULARY, (64,), generator=place.generator)
        starts = Sample.from_default(range(32), [2] * 32, {"prompts": prompts})
        out = ppo.generate(actor, starts, place)
        sample = packed(
            out["ids"], logp=torch.cat(out["logp"]), prompt_mask=torch.cat(out["prompt_mask"])
        )
        sample.update_(Sample.from_default(sample.ids, [2] * 32, {"no_eos": out["no_eos"]}))
        said = [ids[~mask] for ids, mask in zip(out["ids"], out["prompt_mask"])]
        scores = torch.stack([(tokens == LUCKY).float().mean() for tokens in said])
        place = context(iteration, "train")
        lengths = list(map(len, out["ids"]))
        ref_logp = ppo.inference(ref, sample, place)["logp"]
        values = judge.inference(critic, sample, place)["values"]
        sample.update_(
            Sample.from_default(
                sample.ids, lengths, {"ref_logp": ref_logp, "values": values, "rewards": scores}
            )
        )
        ppo.train_step(actor, sample, place)
        judge.train_step(critic, sample, context(iteration, "critic"))
        rewards.append(scores.mean().item())
        assert all(map(math.isfinite, place.numbers.values()))
    assert rewards[0] < 0.15
    if whole:
        assert sum(rewards[-5:]) / 5 > 0.5


@pytest.mark.full
@pytest.mark.parametrize(("name", "number"), [("rw", "train/accuracy"), ("dpo", "train/accuracy")])
def test_the_quickstarts_order_pairs(name, number):
    assert run(name, ["run.iterations=30"]).numbers(number)[-1] > 0.9


@pytest.mark.full
def test_the_quickstart_of_sft_lowers_its_loss():
    losses = run("sft").numbers("train/loss")
    assert losses[-1] < 0.5 * losses[0]


class Lucky(Interface):
    """The share of generated tokens that are number 5."""

    needs_model = False
    reads, writes = {"inference": ("ids", "prompt_mask")}, {"inference": ("rewards",)}

    def inference(self, model, sample, context):
        said = [ids[~mask] for ids, mask in zip(*map(sample.sequences, ("ids", "prompt_mask")))]
        return {"rewards": torch.stack([(tokens == 5).float().mean() for tokens in said])}


@pytest.mark.full
def test_the_quickstart_of_ppo_raises_a_reward_of_ones_own():
    rates = [
        "models.actor.lr=0.003",
        "models.critic.lr=0.003",
        "ppo.kl_ctl=0.02",
        "run.iterations=60",
    ]
    swapped = ["calls.rew_inf.with=lucky", ("calls.rew_inf.reads", ["ids", "prompt_mask"])]
    with registered(INTERFACES, {"lucky": Lucky}):
        rewards = run("ppo", [*swapped, *rates]).numbers("actor_train/reward")
    assert rewards[0] < 0.1
    assert sum(rewards[-5:]) / 5 > 0.5
