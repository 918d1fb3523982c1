"""PPO's actor and critic against an implementation in loops, one sequence after the other."""

import math
import re

import pytest
import torch

from composer.dataflow.context import Context
from composer.dataflow.decoding import GenerationSettings
from composer.dataflow.interfaces import INTERFACES, misfit
from composer.dataflow.samples import Sample, SampleError
from perception_blocks.settings import SettingsError
from tests.helpers.experiment_models import ORIGINS, VOCABULARY, a_model

every_origin = pytest.mark.parametrize("origin", ORIGINS)
LENGTHS, PROMPTS = [6, 4, 9, 3], [2, 3, 1, 1]
ACTIONS = sum(LENGTHS) - len(LENGTHS)
NO_EOS = [True, False, False, True]


def context(**more):
    return Context(torch.Generator().manual_seed(0), call="train", **more)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_sample(no_eos=True, **values):
    """Old log-probabilities near to those of ``model``, and everything else at random."""
    count = sum(LENGTHS)
    data = {
        "ids": torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(2)),
        "logp": -2.77 + 0.2 * draw(ACTIONS, seed=3),
        "ref_logp": -2.77 + 0.2 * draw(ACTIONS, seed=4),
        "rewards": torch.tensor([1.0, -9.0, 0.5, 2.0]),
        "values": draw(count, seed=5),
        "prompt_mask": torch.cat([torch.arange(n) < p for n, p in zip(LENGTHS, PROMPTS)]),
        **({"no_eos": torch.tensor(NO_EOS)} if no_eos else {}),
        **values,
    }
    return Sample.from_default(list("abcd"), LENGTHS, data)


SETTINGS = {"kl_ctl": 0.3, "discount": 0.97, "gae_lambda": 0.9, "max_reward_clip": 4.0}
SETTINGS |= {"reward_output_scaling": 1.5, "reward_output_bias": 0.25}


def estimates(sample, *, mask_no_eos=False, has_no_eos=True):
    """By sequence: advantages, returns and old values of its actions, from the last to the first."""
    result = []
    for i, item in enumerate(sample.unpack()):
        values = item.values("values").tolist()
        logp, ref_logp = item.values("logp").tolist(), item.values("ref_logp").tolist()
        goes_on = has_no_eos and NO_EOS[i]
        score = (item.values("rewards").item() - 0.25) * 1.5
        if mask_no_eos and goes_on:
            score = 0.0
        score = min(max(score, -4.0), 4.0)
        if not goes_on:
            values[-1] = 0.0
        following, rows = 0.0, []
        for t in reversed(range(len(logp))):
            is_action = t + 1 >= PROMPTS[i]
            reward = -0.3 * (logp[t] - ref_logp[t]) if is_action else 0.0
            reward += score if t == len(logp) - 1 else 0.0
            following = reward + 0.97 * values[t + 1] - values[t] + 0.97 * 0.9 * following
            rows.insert(0, (is_action, following, following + values[t], values[t]))
        result.append([row[1:] for row in rows if row[0]])
    return result


def actor_loss(model, sample, temperature, **how):
    rows = estimates(sample, **how)
    flat = [row[0] for rows_of in rows for row in rows_of]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat) + 1e-5)
    terms, ratios = [], []
    for i, item in enumerate(sample.unpack()):
        ids, old = item.values("ids"), item.values("logp")
        logits = model.logits(ids, [len(ids)]) / temperature
        for (advantage, _, _), t in zip(rows[i], range(PROMPTS[i] - 1, len(ids) - 1), strict=True):
            ratio = (logits[t].log_softmax(-1)[ids[t + 1]] - old[t]).exp()
            scaled = (advantage - mean) / std
            terms.append(-torch.minimum(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled))
            ratios.append(ratio.item())
    return torch.stack(terms).mean(), sum(ratios) / len(ratios)


def critic_loss(model, sample, mean=0.0, std=1.0, old=(0.0, 1.0), **how):
    rows, terms = estimates(sample, **how), []
    for i, item in enumerate(sample.unpack()):
        ids = item.values("ids")
        values = model.scores(ids, [len(ids)])
        for (_, target, before), t in zip(
            rows[i], range(PROMPTS[i] - 1, len(ids) - 1), strict=True
        ):
            target, before = (target - mean) / std, (before - old[0]) / old[1]
            near = before + (values[t] - before).clamp(-0.2, 0.2)
            terms.append(0.5 * torch.maximum((values[t] - target) ** 2, (near - target) ** 2))
    return torch.stack(terms).mean()


def stepped(model, loss):
    """Gradients of ``loss``, and the weights after a step of plain descent along them."""
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.optimization = None
    model.step(loss)
    return [p.detach().clone() for p in model.parameters()]


def descending(model):
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.optimization = None
    return model


@every_origin
@pytest.mark.parametrize("most", [1, 1000])
@pytest.mark.parametrize("how", [{}, {"mask_no_eos": True}, {"has_no_eos": False}])
def test_a_step_of_the_actor(origin, most, how):
    sample, place = a_sample(no_eos=how.get("has_no_eos", True)), context()
    actor = INTERFACES.get("ppo_actor")(
        n_minibatches=1, temperature=0.8, max_tokens_per_mb=most,
        mask_no_eos_with_zero=how.get("mask_no_eos", False), **SETTINGS,
    )  # fmt: skip
    model, slow = descending(a_model(origin, lr=0.1)), a_model(origin, lr=0.1)
    actor.train_step(model, sample, place)
    loss, ratio = actor_loss(slow, sample, 0.8, **how)
    assert place.numbers["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert place.numbers["importance_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert place.numbers["reward"] == pytest.approx(-1.375)
    for left, right in zip(model.parameters(), stepped(slow, loss)):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


@every_origin
@pytest.mark.parametrize("most", [1, 1000])
@pytest.mark.parametrize("how", [{}, {"mask_no_eos": True}, {"has_no_eos": False}])
def test_a_step_of_the_critic(origin, most, how):
    sample, place = a_sample(no_eos=how.get("has_no_eos", True)), context()
    critic = INTERFACES.get("ppo_critic")(
        n_minibatches=1, max_tokens_per_mb=most, mask_no_eos_with_zero=how.get("mask_no_eos", False), **SETTINGS
    )  # fmt: skip
    model, slow = (a_model(origin, lr=0.1, is_critic=True) for _ in range(2))
    critic.train_step(descending(model), sample, place)
    loss = critic_loss(slow, sample, **how)
    assert place.numbers["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for left, right in zip(model.parameters(), stepped(slow, loss)):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_values_in_units_of_returns():
    sample = a_sample()
    critic = INTERFACES.get("ppo_critic")(
        n_minibatches=1, value_norm=True, value_norm_type="ma", **SETTINGS
    )
    model, slow = (a_model(lr=0.1, is_critic=True) for _ in range(2))
    place = context()
    critic.train_step(descending(model), sample, place)
    returns = torch.tensor([row[1] for rows in estimates(sample) for row in rows])
    mean, std = returns.mean().item(), (returns.var(unbiased=False) + 1e-5).sqrt().item()
    loss = critic_loss(slow, sample, mean, std)
    assert place.numbers["loss"] == pytest.approx(loss.item(), rel=1e-4)
    values = critic.inference(model, sample, place)["values"]
    with torch.no_grad():
        raw = model.scores(sample.values("ids"), LENGTHS)
    torch.testing.assert_close(values, raw * std + mean, atol=1e-4, rtol=1e-4)


def test_minibatches_are_steps_of_their_own():
    sample = a_sample()
    model, slow = (descending(a_model(lr=0.1)) for _ in range(2))
    INTERFACES.get("ppo_actor")(
        n_minibatches=2, adv_norm=False, kl_ctl=0.0, gae_lambda=0.5
    ).train_step(model, sample, context())
    one = INTERFACES.get("ppo_actor")(n_minibatches=1, adv_norm=False, kl_ctl=0.0, gae_lambda=0.5)
    for part in sample.split(2, "ids"):
        one.train_step(slow, part, context())
    for left, right in zip(model.parameters(), slow.parameters()):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("settings", [{"early_stop_imp_ratio": 0.5}, {"early_stop_kl": 0.001}])
def test_a_policy_that_is_too_far_from_the_old_one_takes_no_step(settings):
    model = a_model(lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    sample = a_sample(logp=torch.full((ACTIONS,), -1.0))
    if "early_stop_imp_ratio" in settings:
        sample = a_sample(logp=torch.full((ACTIONS,), -4.0))
    place = context()
    INTERFACES.get("ppo_actor")(n_minibatches=2, **settings).train_step(model, sample, place)
    assert place.numbers["early_stop"] == 1.0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())


def test_the_penalty_adapts_and_is_saved_with_the_model():
    settings = {
        "adaptive_kl_ctl": True,
        "adaptive_kl_target": 0.01,
        "adaptive_kl_horizon": 100,
        "kl_ctl": 0.1,
    }
    actor, critic = (
        INTERFACES.get("ppo_actor")(**settings),
        INTERFACES.get("ppo_critic")(**settings),
    )
    policy, judge = a_model(lr=0.1), a_model(lr=0.1, is_critic=True)
    sample = a_sample(ref_logp=torch.full((ACTIONS,), -4.0))
    seen = []
    for _ in range(3):
        place, other = context(), context()
        actor.train_step(policy, sample, place)
        critic.train_step(judge, sample, other)
        assert place.numbers["kl_ctl"] == other.numbers["kl_ctl"]
        seen.append(place.numbers["kl_ctl"])
    assert seen == pytest.approx([0.1, 0.1 * 1.008, 0.1 * 1.008**2])
    again = a_model(lr=0.1)
    again.optimizer.load_state_dict(policy.optimizer.state_dict())
    place = context()
    actor.train_step(again, sample, place)
    assert place.numbers["kl_ctl"] == pytest.approx(0.1 * 1.008**3)


@every_origin
def test_what_generation_writes_is_what_inference_gives(origin):
    model = a_model(origin, end=3)
    actor = INTERFACES.get("ppo_actor")(max_new_tokens=8, temperature=2.0, top_k=12)
    prompts = Sample.from_default(["a", "b"], [3, 1], {"prompts": torch.tensor([4, 5, 6, 7])})
    place = context()
    written = actor.generate(model, prompts, place)
    seqlens = [len(row) for row in written["ids"]]
    assert [len(row) for row in written["logp"]] == [n - 1 for n in seqlens]
    assert [len(row) for row in written["prompt_mask"]] == seqlens
    assert written["lengths"].tolist() == [n - p for n, p in zip(seqlens, [3, 1])]
    assert [row[0].item() for row in written["ids"]] == [4, 7]
    assert [int(row.sum()) for row in written["prompt_mask"]] == [3, 1]
    sample = Sample.from_default(["a", "b"], seqlens, {"ids": torch.cat(written["ids"])})
    logp = actor.inference(model, sample, context())["logp"]
    torch.testing.assert_close(torch.cat(written["logp"]), logp, atol=1e-5, rtol=1e-5)
    assert place.numbers["generated_tokens"] == written["lengths"].float().mean()
    alone = INTERFACES.get("generation")(max_new_tokens=8, temperature=2.0, top_k=12)
    again = alone.generate(model, prompts, context())
    assert [row.tolist() for row in again["ids"]] == [row.tolist() for row in written["ids"]]


@pytest.mark.parametrize("name", ["ppo_actor", "ppo_critic"])
def test_what_cannot_be_trained_is_told(name):
    model = a_model(lr=0.1, is_critic=name == "ppo_critic")
    before = [p.detach().clone() for p in model.parameters()]

    def refused(message, sample, **settings):
        with pytest.raises(SampleError, match=f"^{re.escape(message)}$"):
            INTERFACES.get(name)(**settings).train_step(model, sample, context(iteration=5))

    where = "call 'train' in iteration 5: "
    rewards = torch.tensor([1.0, 2.0, torch.nan, 0.0])
    refused(f"{where}'rewards' of item 'c' has nan; nothing was trained", a_sample(rewards=rewards))
    values = torch.zeros(sum(LENGTHS))
    values[0] = -torch.inf
    refused(f"{where}'values' of item 'a' has -inf; nothing was trained", a_sample(values=values))
    refused(
        f"{where}n_minibatches=5 parts of a batch of 4 items; lower 'n_minibatches', or raise the 'batch_size' of the data",
        a_sample(),
        n_minibatches=5,
    )
    short = {
        "ids": torch.tensor([1]),
        "logp": torch.zeros(0),
        "ref_logp": torch.zeros(0),
        "rewards": torch.zeros(1),
    }
    short |= {"values": torch.zeros(1), "prompt_mask": torch.zeros(1, dtype=torch.bool)}
    refused(
        f"{where}a sequence of one token has no action; generate at least one",
        Sample.from_default(["a"], [1], short),
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))


def test_wrong_settings_of_generation_are_told_with_the_interface():
    with pytest.raises(
        SettingsError, match=r"^'min_new_tokens' must be at most max_new_tokens=2, got 3$"
    ):
        INTERFACES.get("ppo_actor")(max_new_tokens=2, min_new_tokens=3)
    assert INTERFACES.get("ppo_actor")(
        top_p=0.5, max_new_tokens=3
    ).generation == GenerationSettings(3, top_p=0.5)


@pytest.mark.parametrize(
    "name", ["sft", "paired_rw", "dpo", "generation", "ppo_actor", "ppo_critic"]
)
def test_models_that_do_not_fit_are_told_before_anything_is_built(name):
    interface = INTERFACES.get(name)
    takes_critic = name in ("paired_rw", "ppo_critic")
    for verb in interface.reads:
        assert misfit(interface, verb, "m", is_critic=takes_critic) is None
        wanted, given, way_out = (
            ("a critic", "an actor", "with")
            if takes_critic
            else ("an actor", "a critic", "without")
        )
        message = f"{verb!r} takes {wanted}, and the model 'm' is {given}; name a model {way_out} is_critic: true"
        assert misfit(interface, verb, "m", is_critic=not takes_critic) == message
