"""Views of token networks: acting step by step and reading whole sequences give the same numbers, by the same weights."""

import re

import pytest
import torch
from gymnasium.spaces import Box, Dict

import composer
from composer.adapters.tokens.gym_env import token_spaces
from composer.policy.sequence_view import PackedView, SequenceView, token_views, writing_states

SIZE, LENGTH = 8, 9
CELL = {"in": "token", "hidden_units": 16, "num_layers": 2}
BODY = {"block": "transformer", "in": ["sequence", "sequence_mask"]}
LLAMA = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
MEMORIES = {
    "gru": {"block": "gru", **CELL},
    "lstm": {"block": "lstm", **CELL, "layer_norm": True},
    "decoder": {"block": "decoder", "in": "observation", "width": 16, "max_length": LENGTH},
    "gpt2": {**BODY, "family": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16},
    "llama": {**BODY, "family": "llama", "num_hidden_layers": 2, **LLAMA},
    "mamba": {**BODY, "family": "mamba", "num_hidden_layers": 2, "hidden_size": 16},
}
READS = {True: {"sequence", "sequence_mask"}, False: {"observation"}}
every_memory = pytest.mark.parametrize("name", MEMORIES)


def spec_of(name, **nodes):
    """A policy and its critic on the memory called ``name``, which they share."""
    body = MEMORIES[name]["block"] == "transformer"
    token = {"token": {"block": "embedding", "in": "observation", "embedding_dim": 8}}
    graph = {
        **(token if MEMORIES[name]["in"] == "token" else {}),
        "latent": MEMORIES[name],
        "hidden": {"block": "dense", "in": "latent", "hidden_units": 12},
        **nodes,
    }
    value = {"block": "linear_output", "in": "latent", "output_units": 1}
    return {
        "version": 1,
        "ignore": ["action_mask", *sorted(READS[not body])],
        "policy": {"graph": graph, "heads": {"in": list(graph)[-1]}, "shares": ["latent"]},
        "critic": {"graph": {"value": value}},
    }


def compose(spec):
    observation_space, action_space = token_spaces(SIZE, LENGTH)
    model = composer.compose(
        spec, observation_space=observation_space, action_space=action_space, seed=0
    )
    return model.eval()


def tokens(*leading):
    return torch.randint(SIZE, (*leading, LENGTH), generator=torch.Generator().manual_seed(0))


def first(counts):
    return torch.arange(LENGTH) < torch.as_tensor(counts).unsqueeze(-1)


def step_by_step(policy, critic, sequence):
    """Logits and values of every step, as a policy meets them in its environment."""
    rows, logits, values = len(sequence), [], []
    state, critic_state = policy.initial_state(rows), critic.initial_state(rows)
    for k in range(1, LENGTH + 1):
        seen = {
            "observation": sequence[:, k - 1],
            "sequence": sequence * first(k),
            "sequence_mask": first([k] * rows),
            "action_mask": torch.ones(rows, SIZE),
        }
        if policy.has_memory:
            outputs, state = policy(seen, state)
        else:
            outputs = policy(seen)
        judged = critic(seen, shared=outputs)
        logits.append(outputs["action"])
        values.append(judged["value"])
    assert not critic_state
    return torch.stack(logits, 1), torch.stack(values, 1)


@every_memory
def test_inference_at_length_k_is_training_at_place_k_minus_1(name):
    model = compose(spec_of(name))
    actor, policy, judge, critic = token_views(model.policy, model.critic)
    assert (policy, critic) == (model.policy, model.critic)
    sequence = tokens(3)
    logits, values = step_by_step(policy, critic, sequence)
    whole = first([LENGTH] * 3)
    torch.testing.assert_close(actor(sequence, whole)["action"], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(judge(sequence, whole)["value"], values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actor(sequence)["action"], logits, atol=1e-5, rtol=1e-5)


def test_hooks_on_a_view_run_in_its_distribution():
    actor, _ = token_views(compose(spec_of("gru")).policy)
    before = actor.distribution(tokens(2)).log_prob(tokens(2))
    actor.register_forward_hook(lambda module, inputs, logits: {"action": -logits["action"]})
    assert not torch.equal(actor.distribution(tokens(2)).log_prob(tokens(2)), before)


@every_memory
def test_views_share_their_weights(name):
    model = compose(spec_of(name))
    training, inference = token_views(model.policy)
    assert {id(p) for p in training.parameters()} == {id(p) for p in inference.parameters()}
    before = training(tokens(2))["action"]
    with torch.no_grad():
        next(inference.parameters()).normal_()
    assert not torch.equal(training(tokens(2))["action"], before)
    training.distribution(tokens(2)).log_prob(tokens(2)).sum().backward()
    assert all(p.grad is not None for p in inference.parameters())
    inference.double()
    assert training(tokens(2))["action"].dtype == torch.float64


def test_what_comes_later_changes_nothing():
    model = compose(spec_of("gpt2"))
    training, _ = token_views(model.policy)
    sequence = tokens(2)
    other = sequence.clone()
    other[:, 5:] = 0
    whole = training(sequence)["action"]
    torch.testing.assert_close(training(other)["action"][:, :5], whole[:, :5])
    short = training(sequence, first([5, 5]))["action"]
    torch.testing.assert_close(short[:, :5], whole[:, :5])


def test_a_mask_of_actions_is_taken_when_it_is_given():
    training, _ = token_views(compose(spec_of("gru")).policy)
    mask = torch.ones(2, LENGTH, SIZE, dtype=torch.bool)
    mask[..., 3:] = False
    distribution = training.distribution(tokens(2), action_mask=mask)
    assert distribution.sample().max() < 3
    message = "the mask of action 'action' ('action_mask') leaves no legal choice at index (1, 2); each row needs a nonzero element"
    mask[1, 2, :] = False
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training.distribution(tokens(2), action_mask=mask)


def refused(message, network, actor=None):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SequenceView(network, actor)


def test_networks_that_cannot_read_a_sequence_are_refused():
    model = compose(spec_of("gpt2"))
    refused(
        "this critic reads 'latent' of its policy; make the views of both: token_views(policy, critic), or the "
        "factory 'actor_critic' of a model",
        model.critic,
    )
    with pytest.raises(
        ValueError, match=r"^a critic has no distribution; this is the view of one$"
    ):
        token_views(model.policy, model.critic)[2].distribution(tokens(2))
    plain = {
        "version": 1,
        "policy": {
            "graph": {"latent": {"block": "dense", "in": "x", "hidden_units": 4}},
            "heads": {"in": "latent"},
        },
    }
    _, action_space = token_spaces(SIZE, LENGTH)
    space = Dict(x=Box(-1, 1, (3,)))
    model = composer.compose(plain, observation_space=space, action_space=action_space)
    refused(
        "the network cannot read a whole sequence at once: dense 'latent' reads 'x'", model.policy
    )


def test_memory_beside_something_else_is_refused():
    spec = spec_of("gru", both={"block": "concat", "in": ["hidden", "x"]})
    spec["policy"]["graph"]["x"] = {"block": "one_hot", "in": "seen"}
    spec["policy"]["graph"]["both"] = spec["policy"]["graph"].pop("both")
    observation_space, action_space = token_spaces(SIZE, LENGTH)
    space = Dict({**observation_space.spaces, "seen": action_space})
    spec["policy"]["heads"] = {"in": "both"}
    model = composer.compose(spec, observation_space=space, action_space=action_space)
    refused(
        "with memory, a token network reads one token at each step; it reads 'observation', 'seen'",
        model.policy,
    )


def test_reading_every_place_into_one_value_is_refused():
    every = {**MEMORIES["gpt2"], "read": "all"}
    spec = spec_of("gpt2", latent=every, flat={"block": "flatten", "in": "latent"})
    spec["policy"]["graph"].pop("hidden")
    spec["policy"].pop("shares")
    spec.pop("critic")
    refused(
        "the network cannot read a whole sequence at once: transformer 'latent' has read: all, so what follows sees all "
        "places at once; write read: last",
        compose(spec).policy,
    )


def test_inputs_that_are_no_sequences_of_tokens_are_refused():
    model = compose(spec_of("gru"))
    refused("token_views takes model.policy and model.critic, got a Model", model)
    training, _ = token_views(model.policy)
    for message, inputs in {
        "'sequence' must hold tokens, whole numbers, got torch.float32": (torch.ones(2, 9),),
        "'sequence' must be a tensor (B, L), got a list": ([[1, 2]],),
        "'sequence_mask' must be a tensor (B, L), got a list": (tokens(2), [[1, 1]]),
        "'sequence_mask' must have the shape of 'sequence', (2, 9), got (2, 8)": (
            tokens(2),
            torch.ones(2, 8, dtype=torch.bool),
        ),
    }.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            training(*inputs)


@pytest.mark.parametrize("name", ["gru", "gpt2"])
def test_tokens_beyond_the_vocabulary_are_told_whatever_the_length(name):
    training, _ = token_views(compose(spec_of(name)).policy)
    sequence = tokens(2)[:, :5]
    sequence[1, 3] = SIZE + 1
    (read,) = READS[name == "gpt2"] - {"sequence_mask"}
    message = f"'{read}' holds {SIZE + 1}, but has {SIZE} values, 0 to {SIZE - 1}; it is read by "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        training(sequence)


@pytest.mark.parametrize("shares", [True, False])
def test_packed_sequences_are_read_as_if_each_were_alone(shares):
    spec = spec_of("decoder")
    if not shares:
        spec["policy"].pop("shares")
        spec["critic"]["graph"]["latent"] = spec["policy"]["graph"]["latent"]
    model = compose(spec)
    policy = PackedView(model.policy)
    critic = PackedView(model.critic, policy if shares else None)
    lengths, packed = [4, 1, LENGTH], tokens(2).flatten()[: 5 + LENGTH]
    logits, values = policy(packed, lengths)["action"], critic(packed, lengths)["value"]
    actor, _, judge, _ = token_views(model.policy, model.critic)
    for part, rows, value in zip(
        packed.split(lengths), logits.split(lengths), values.split(lengths)
    ):
        torch.testing.assert_close(actor(part[None])["action"][0], rows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(judge(part[None])["value"][0], value, atol=1e-5, rtol=1e-5)
    assert {id(p) for p in policy.parameters()} == {id(p) for p in model.policy.parameters()}


def test_only_a_decoder_reads_packed_sequences():
    message = "only a network whose memory is one decoder reads packed sequences; its memories: "
    for name, memories in {"gru": "'latent'", "gpt2": "none"}.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message + memories)}$"):
            PackedView(compose(spec_of(name)).policy)


def test_a_copy_that_writes_into_its_states_gives_the_same():
    policy = compose(spec_of("decoder")).policy
    writer, mine, kept = writing_states(policy), policy.initial_state(2), policy.initial_state(2)
    with torch.no_grad():
        for token in tokens(2).T:
            given = {"observation": token}
            outputs, mine_after = writer.run(given, mine, None)
            expected, kept_after = policy.run(given, kept, None)
            assert torch.equal(outputs["action"], expected["action"])
            for name in ("latent/keys", "latent/values"):
                assert torch.equal(mine_after[name], kept_after[name])
                assert torch.equal(mine[name], mine_after[name])  # written into
                assert not torch.equal(kept[name], kept_after[name])
            mine, kept = mine_after, kept_after
