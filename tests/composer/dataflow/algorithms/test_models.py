"""Models of experiments: packed sequences, generation, steps of training."""

import math
import re

import pytest
import torch
from gymnasium.spaces import Box

import composer
from composer.dataflow.algorithms.decoding import GenerationSettings
from composer.dataflow.algorithms.models import ExperimentModel, NotFiniteError
from composer.dataflow.context import Context
from composer.dataflow.running.model_building import build_model
from composer.policy.sequence_view import PackedView, SequenceView
from perception_blocks.settings import SettingsError
from tests.helpers.experiment_models import (
    GPT2,
    GRU,
    LENGTH,
    ORIGINS,
    VOCABULARY,
    Words,
    a_model,
    entry,
)

every_origin = pytest.mark.parametrize("origin", ORIGINS)
LENGTHS = [3, 1, 6]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(count=10):
    return torch.randint(VOCABULARY, (count,), generator=draw())


def spread(model):
    """Weights that tell tokens apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw(1)) * 0.2)
    return model


@every_origin
def test_packed_sequences_are_read_as_if_each_were_alone(origin):
    actor = spread(a_model(origin))
    critic = spread(a_model(origin, is_critic=True))
    with torch.no_grad():
        logits, scores = actor.logits(tokens(), LENGTHS), critic.scores(tokens(), LENGTHS)
        alone = [part.unsqueeze(0) for part in tokens().split(LENGTHS)]
        view = actor._sequence_view
        expected = torch.cat([view(part)["action"].squeeze(0) for part in alone])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert scores.shape == (10,)
    with torch.no_grad():
        values = torch.cat([critic.scores(part, [len(part)]) for part in tokens().split(LENGTHS)])
    torch.testing.assert_close(scores, values, atol=1e-5, rtol=1e-5)


def test_a_decoder_reads_without_padding_and_other_networks_padded():
    views = {origin: type(a_model(origin)._view) for origin in ORIGINS}
    assert views == {"decoder": PackedView, "gru": SequenceView, "gpt2": SequenceView}


def test_dropout_acts_with_gradients_alone():
    given = {**GPT2["policy"]["graph"]["latent"], "embd_pdrop": 0.5}
    spec = {**GPT2, "policy": {**GPT2["policy"], "graph": {"latent": given}}}
    wanted = entry("actor", {"spec": spec})
    model = build_model(wanted, {"actor": wanted}, tokenizer=Words())
    assert not torch.equal(model.logits(tokens(), LENGTHS), model.logits(tokens(), LENGTHS))
    with torch.no_grad():
        assert torch.equal(model.logits(tokens(), LENGTHS), model.logits(tokens(), LENGTHS))


@every_origin
def test_logp_is_of_every_token_but_the_first(origin):
    model = spread(a_model(origin))
    with torch.no_grad():
        logits = model.logits(tokens(), LENGTHS)
        logp = model.logp(tokens(), torch.tensor(LENGTHS), temperature=0.5)
    expected = []
    for part, rows in zip(tokens().split(LENGTHS), logits.split(LENGTHS)):
        for place in range(1, len(part)):
            expected.append(torch.log_softmax(rows[place - 1] / 0.5, -1)[part[place]])
    torch.testing.assert_close(logp, torch.stack(expected))


@every_origin
def test_generation_carries_what_reading_again_gives(origin):
    model = spread(a_model(origin))
    settings = GenerationSettings(max_new_tokens=9, greedy=True)
    out = model.generate(tokens(), LENGTHS, settings)
    assert out.seqlens == [12, 10, 15]
    assert out.lengths.tolist() == [9, 9, 9]
    assert out.no_eos.tolist() == [True] * 3
    for prompt, sequence, mask in zip(
        tokens().split(LENGTHS), out.ids.split(out.seqlens), out.prompt_mask.split(out.seqlens)
    ):
        said = prompt
        for _ in range(9):
            with torch.no_grad():
                said = torch.cat([said, model.logits(said, [len(said)])[-1:].argmax(-1)])
        assert sequence.tolist() == said.tolist()
        assert mask.tolist() == [True] * len(prompt) + [False] * 9


@every_origin
def test_logp_of_generation_is_computed_again_to_the_same(origin):
    model = spread(a_model(origin, end=3))
    settings = GenerationSettings(
        max_new_tokens=9, min_new_tokens=2, top_p=0.9, top_k=10, temperature=0.7
    )
    out = model.generate(tokens(), LENGTHS, settings, draw(4))
    with torch.no_grad():
        again = model.logp(out.ids, out.seqlens, 0.7)
    torch.testing.assert_close(out.logp, again, atol=1e-5, rtol=1e-5)
    repeated = model.generate(tokens(), LENGTHS, settings, draw(4))
    assert torch.equal(out.ids, repeated.ids)


def test_a_sequence_ends_with_the_end_token():
    model = spread(a_model(end=3))
    settings = GenerationSettings(max_new_tokens=15, min_new_tokens=3, temperature=4.0)
    out = model.generate(tokens(2).repeat(40), [2] * 40, settings, draw())
    sequences = [row.tolist()[2:] for row in out.ids.split(out.seqlens)]
    assert out.lengths.tolist() == [len(row) for row in sequences]
    assert min(out.lengths) == 4  # three others, and the end token
    assert len(set(out.lengths.tolist())) > 3
    for row, no_eos in zip(sequences, out.no_eos.tolist()):
        assert 3 not in row[:-1]
        assert (row[-1] == 3) is not no_eos
        assert len(row) == 15 or not no_eos


@every_origin
def test_a_sequence_is_the_same_whatever_becomes_of_the_others(origin):
    """Those that have ended are left out; what the others say does not depend on it."""
    settings = GenerationSettings(max_new_tokens=12, temperature=3.0)
    endless = spread(a_model(origin)).generate(tokens(), LENGTHS, settings, draw())
    out = spread(a_model(origin, end=3)).generate(tokens(), LENGTHS, settings, draw())
    assert len(set(out.lengths.tolist())) > 1
    for prompt, row, whole in zip(
        LENGTHS, out.ids.split(out.seqlens), endless.ids.split(endless.seqlens)
    ):
        said = whole.tolist()[prompt:]
        end = said.index(3) + 1 if 3 in said else 12
        assert row.tolist()[prompt:] == said[:end]


def test_greedy_tokens_are_those_of_hugging_face():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=None, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    llama = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw(1)) * 0.3)
    model = a_model(end=3)
    body = model.network.get_submodule("latent")
    body.load_state_dict(llama.model.state_dict())
    head = next(
        p
        for name, p in model.network.named_parameters()
        if name.startswith("heads") and p.dim() == 2
    )
    with torch.no_grad():
        head.copy_(llama.lm_head.weight)
        for name, parameter in model.network.named_parameters():
            if name.startswith("heads") and parameter.dim() == 1:
                parameter.zero_()
    settings = GenerationSettings(max_new_tokens=12, greedy=True)
    out = model.generate(tokens(), LENGTHS, settings)
    for prompt, sequence in zip(tokens().split(LENGTHS), out.ids.split(out.seqlens)):
        expected = llama.generate(
            prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=12,
            do_sample=False,
        )
        assert sequence.tolist() == expected[0].tolist()


def test_long_prompts_are_read_in_parts(monkeypatch):
    model = spread(a_model())
    settings = GenerationSettings(max_new_tokens=5, greedy=True)
    whole = model.generate(tokens(), LENGTHS, settings)
    monkeypatch.setattr("composer.dataflow.algorithms.decoding.MOST_LOGITS", 3 * VOCABULARY * 2)
    assert torch.equal(model.generate(tokens(), LENGTHS, settings).ids, whole.ids)


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.6}, {"temperature": 0.5}]
)
def test_tokens_are_drawn_as_often_as_they_are_probable(settings):
    logits = torch.tensor([0.3, 2.0, 1.1, -1.0, 1.2])
    how = GenerationSettings(**settings)
    chosen = how.choose(logits.repeat(20000, 1), how.draw(20000, draw()))
    counts = torch.bincount(chosen, minlength=5) / 20000
    probs = (logits / settings.get("temperature", 1.0)).softmax(-1)
    order = probs.argsort(descending=True).tolist()
    kept, total = [], 0.0
    renormalized = probs[order[: settings.get("top_k", 5)]].sum()
    for token in order[: settings.get("top_k", 5)]:
        if total < settings.get("top_p", 1.0) * (renormalized if "top_k" in settings else 1.0):
            kept.append(token)
        total += float(probs[token])
    expected = torch.zeros(5)
    expected[kept] = probs[kept] / probs[kept].sum()
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)
    assert (counts[expected == 0] == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "'max_new_tokens' must be a positive integer, got 0"),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, "'min_new_tokens' must be at most max_new_tokens=2, got 3"),
        ({"top_p": 0.0}, "'top_p' must be a number between 1e-06 and 1, got 0.0"),
        ({"top_k": 0, "temperature": 0.0}, "'top_k' must be a positive integer or null, got 0; 'temperature' must be a number between 1e-06 and 1e+06, got 0.0"),
        ({"temperature": 1e-300}, "'temperature' must be a number between 1e-06 and 1e+06, got 1e-300"),
        ({"greedy": True, "temperature": 0.5}, "'greedy' chooses the same token at any temperature; leave out 'temperature' or 'greedy'"),
    ],
)  # fmt: skip
def test_wrong_settings_of_generation(settings, message):
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        GenerationSettings(**settings)


def refused(message, call, error=ValueError):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_what_a_model_cannot_do_is_told():
    actor, critic = a_model(), a_model(is_critic=True, name="critic")
    refused(
        "the model 'critic' is a critic, and has scores but no logits",
        lambda: critic.logits(tokens(), LENGTHS),
    )
    refused(
        "the model 'actor' is an actor, and has no scores; write is_critic: true",
        lambda: actor.scores(tokens(), LENGTHS),
    )
    refused(
        "the model 'actor' reads packed sequences: lengths of at least 1 that add up to the number of tokens; got "
        "tokens of the shape (10,), and lengths [3, 1]",
        lambda: actor.logits(tokens(), [3, 1]),
    )
    refused(
        f"the model 'actor' reads sequences of at most {LENGTH} tokens, and a prompt of 6 with max_new_tokens=19 may "
        "be 25; raise its 'max_length', or lower 'max_new_tokens'",
        lambda: actor.generate(tokens(), LENGTHS, GenerationSettings(max_new_tokens=19)),
    )
    refused(
        "the model 'actor' has no optimiser; give it an 'lr'", lambda: actor.step(torch.tensor(0.0))
    )


@every_origin
def test_a_step_lowers_the_loss_and_micro_batches_add_up(origin):
    whole, parts = a_model(origin, lr=0.01), a_model(origin, lr=0.01)
    before = whole.logp(tokens(), LENGTHS).sum().detach()
    norm = whole.step(-whole.logp(tokens(), LENGTHS).sum())
    losses = (
        -parts.logp(part, [len(part)]).sum() for part in tokens().split(LENGTHS) if len(part) > 1
    )
    assert math.isclose(parts.step(losses), norm, rel_tol=1e-4)
    assert whole.logp(tokens(), LENGTHS).sum() > before
    for left, right in zip(whole.parameters(), parts.parameters()):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_gradients_are_clipped():
    sgd = a_model(lr=0.01)
    sgd.optimizer = torch.optim.SGD(sgd.parameters(), lr=1.0)
    before = [p.detach().clone() for p in sgd.parameters()]
    norm = sgd.step(100 * sgd.logp(tokens(), LENGTHS).sum())
    moved = torch.cat([(p - q).flatten() for p, q in zip(sgd.parameters(), before)]).norm()
    assert norm > 100
    assert math.isclose(moved.item(), 1.0, rel_tol=1e-3)


def test_the_learning_rate_follows_the_iterations():
    model = a_model(
        lr=0.1, iterations=4, optimizer={"lr_scheduler_type": "cosine", "min_lr_ratio": 0.1}
    )
    rates = []
    for iteration in range(4):
        model.step(-model.logp(tokens(), LENGTHS).mean(), Context(draw(), iteration))
        rates.append(model.optimizer.param_groups[0]["lr"])
    expected = [0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / 4)) / 2) for i in range(4)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("where", ["loss", "gradients"])
def test_a_loss_without_a_finite_value_changes_nothing(where):
    model = a_model(lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    loss = model.logp(tokens(), LENGTHS).sum()
    if where == "loss":
        losses, what = [loss, loss * torch.nan], "the loss is nan"
    else:
        losses, what = [(loss - loss.detach()).abs().sqrt()], "the norm of gradients is nan"
    message = f"call 'train' in iteration 7: {what}, of model 'actor'; its weights were not changed"
    context = Context(draw(), 7, call="train")
    refused(message, lambda: model.step(iter(losses), context), NotFiniteError)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("origin", ["decoder", "gru"])
def test_a_critic_that_reads_its_policy_trains_the_body_of_both(origin):
    body = {"block": "decoder", "in": "observation", "width": 16, "max_length": LENGTH}
    graph = GRU["policy"]["graph"] if origin == "gru" else {"latent": body}
    value = {"block": "linear_output", "in": "latent", "output_units": 1}
    spec = {
        "version": 1,
        "policy": {"graph": graph, "heads": {"in": "latent"}, "shares": ["latent"]},
        "critic": {"graph": {"value": value}},
    }
    wanted = entry("critic", {"spec": spec}, is_critic=True, optimizer={"lr": 0.1})
    model = build_model(wanted, {"critic": wanted}, tokenizer=Words())
    with torch.no_grad():
        scores = model.scores(tokens(), LENGTHS)
        alone = torch.cat([model.scores(part, [len(part)]) for part in tokens().split(LENGTHS)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)
    before = [p.detach().clone() for p in model.model.policy.get_submodule("latent").parameters()]
    model.step(model.scores(tokens(), LENGTHS).square().mean())
    after = model.model.policy.get_submodule("latent").parameters()
    assert not any(torch.equal(p, q) for p, q in zip(before, after))


def test_models_of_something_else_are_told():
    box = composer.compose(
        {"version": 1, "policy": {"template": {}}},
        observation_space=Box(-1, 1, (3,)),
        action_space=Box(-1, 1, (2,)),
    )
    message = "the model 'a' must choose a token, of a Discrete action space; it has Box(-1.0, 1.0, (2,), float32)"
    refused(message, lambda: ExperimentModel("a", box))
    actor = a_model().model
    message = "the model 'a' is_critic, but its spec has no 'critic' of states"
    refused(message, lambda: ExperimentModel("a", actor, is_critic=True))


def test_what_a_call_keeps_is_kept_by_the_optimiser():
    model = a_model(lr=0.1)
    assert model.recall("weight", 3.0) == 3.0
    model.remember("weight", 4)
    assert model.recall("weight", 3.0) == 4.0
    again = a_model(lr=0.1)
    again.optimizer.load_state_dict(model.optimizer.state_dict())
    assert again.recall("weight", 3.0) == 4.0
    refused(
        "the model 'actor' has no optimiser; give it an 'lr'",
        lambda: a_model().remember("weight", 1.0),
    )


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_model_whose_logits_are_no_numbers_generates_nothing(origin, greedy):
    actor = a_model(origin)
    with torch.no_grad():
        actor.parameters()[0].fill_(torch.nan)
    refused(
        "the logits of model 'actor' are no numbers, so it cannot choose a token",
        lambda: actor.generate(
            tokens(), LENGTHS, GenerationSettings(max_new_tokens=3, greedy=greedy)
        ),
        NotFiniteError,
    )


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_log_probabilities_are_numbers_at_any_temperature(temperature):
    out = a_model().generate(
        tokens(), LENGTHS, GenerationSettings(max_new_tokens=3, temperature=temperature)
    )
    assert out.logp.isfinite().all()
