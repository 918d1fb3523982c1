import copy
import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Text

import composer
from composer.language import ActionModel, Predicted, ProofError
from tests.helpers.action_models import KINDS, PROMPTS, observations, spec


@pytest.fixture(scope="module")
def model():
    return composer.compose(spec(), seed=0)


def test_the_policy_is_an_action_model_and_composes_alike_from_a_seed(model):
    assert isinstance(model, ActionModel)
    assert not model.training
    again = composer.compose(spec(), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    other = composer.compose(spec(), seed=1)
    assert not torch.equal(model.hf.lm_head.weight, other.hf.lm_head.weight)


def test_composing_moves_no_random_state_and_a_model_on_meta_gets_the_same_weights(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    late = composer.compose(spec(), seed=0, device="meta")
    assert all(parameter.is_meta for parameter in late.parameters())
    late.materialize()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), late.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), late.buffers()))


def test_predicted_tokens_are_the_last_of_the_sequences_and_bins_alone(model):
    inputs = model.inputs(observations())
    actions, sequences, logits, values = predicted = model.predict_tokens(**inputs)
    assert isinstance(predicted, Predicted)
    assert torch.equal(actions, sequences[:, -3:])
    assert bool((actions >= 32).all())
    assert torch.equal(sequences[:, :-3], inputs["input_ids"])
    assert logits.shape == (4, 3, 40)
    assert values.shape == (4, 3, 1)


def test_the_batch_of_tokens_is_the_same_four(model):
    inputs = model.inputs(observations())
    ours = model.predict_action_batch(**inputs, do_sample=False)
    for one, other in zip(ours, model.predict_tokens(**inputs, do_sample=False)):
        assert torch.equal(one, other)


def test_actions_of_observations_are_in_the_environments_units(model):
    actions, result = model.predict_action_batch(observations(), mode="eval")
    tokens = result["forward_inputs"]["action_tokens"]
    assert actions.shape == (4, 1, 3)
    assert torch.equal(actions[:, 0], model.bins.values(tokens))
    assert {name: tuple(result[name].shape) for name in ("prev_logprobs", "prev_values")} == {
        "prev_logprobs": (4, 3), "prev_values": (4, 1),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_forward_gives_what_acting_gave_with_prompts_of_unequal_lengths(kind):
    model = composer.compose(KINDS[kind], seed=0)
    with torch.no_grad():  # large weights, so that a wrong place shows
        for parameter in model.hf.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    assert len({len(prompt.split()) for prompt in PROMPTS}) == 4
    _, acted = model.predict_action_batch(observations())
    again = model(acted["forward_inputs"])
    torch.testing.assert_close(again["logprobs"], acted["prev_logprobs"], rtol=0, atol=1e-5)
    torch.testing.assert_close(again["values"], acted["prev_values"], rtol=0, atol=1e-5)
    assert model.prove(observations()) < 1e-5
    assert float(acted["prev_logprobs"].std()) > 0.1


def test_a_model_that_reads_otherwise_in_one_pass_is_found_out():
    model = composer.compose(spec(model_type="forgetful_vla"), seed=0)
    with torch.no_grad():
        model.hf.projector.weight.mul_(100)
    with pytest.raises(
        ProofError,
        match=r"^logprobs that forward calculates again differ by .* from those of acting",
    ):
        model.prove()


def test_entropy_and_log_probabilities_are_over_the_bins_alone(model):
    _, acted = model.predict_action_batch(observations())
    inputs = acted["forward_inputs"]
    logits = model.predict_tokens(
        **{k: v for k, v in inputs.items() if k != "action_tokens"}, do_sample=False
    ).logits[:, 0, 32:]
    first = torch.distributions.Categorical(logits=logits)
    again = model(inputs)
    torch.testing.assert_close(again["entropy"][:, 0], first.entropy())
    chosen = inputs["action_tokens"][:, 0] - 32
    torch.testing.assert_close(again["logprobs"][:, 0], first.log_prob(chosen))


def test_what_is_not_computed_is_none_and_the_second_name_gives_the_same(model):
    inputs = model.predict_action_batch(observations())[1]["forward_inputs"]
    assert model(inputs, False, False, False) == {"logprobs": None, "entropy": None, "values": None}
    only = model.default_forward(inputs, compute_entropy=False, compute_values=False)
    assert only["entropy"] is None
    assert torch.equal(only["logprobs"], model(inputs)["logprobs"])


def test_without_a_value_head_values_are_zeros():
    model = composer.compose(spec(value_head=False), seed=0)
    _, acted = model.predict_action_batch(observations())
    assert model.value_head is None
    assert float(acted["prev_values"].abs().sum()) == 0
    assert float(model(acted["forward_inputs"])["values"].abs().sum()) == 0


def test_samples_follow_the_probabilities_whatever_the_library_would_cut(model):
    """transformers samples from the 50 likeliest tokens unless told otherwise, or as a folder's settings say."""
    inputs = {
        name: value[:1].expand(4000, *value.shape[1:])
        for name, value in model.inputs(observations()).items()
    }
    probabilities = model.predict_tokens(
        **{name: value[:1] for name, value in inputs.items()}, do_sample=False
    ).logits[0, 0, 32:].softmax(-1)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for chosen in (None, generator):
        torch.manual_seed(0)
        tokens = model.predict_tokens(**inputs, generator=chosen).actions[:, 0] - 32
        shares = torch.bincount(tokens, minlength=8) / len(tokens)
        torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.03)


def test_a_generator_repeats_samples_and_torchs_own_does_not_move(model):
    inputs = model.inputs(observations())
    before = torch.get_rng_state()
    first, second = (
        model.predict_tokens(**inputs, generator=torch.Generator().manual_seed(5)).actions
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_micro_batches_change_nothing(model, mode):
    small = composer.compose(spec(micro_batch_size=3, val_micro_batch_size=1), seed=0)
    calls = []
    small.hf.register_forward_pre_hook(lambda *_: calls.append(0))
    keywords = {"mode": mode, "do_sample": False}
    (actions, result), (expected, whole) = (
        m.predict_action_batch(observations(), **keywords) for m in (small, model)
    )
    assert torch.equal(actions, expected)
    torch.testing.assert_close(result["prev_logprobs"], whole["prev_logprobs"])
    torch.testing.assert_close(result["prev_values"], whole["prev_values"])
    assert len(calls) == {"train": 2, "eval": 4}[mode] * 3


@pytest.mark.parametrize(
    ("mode", "key"), [("train", "micro_batch_size"), ("eval", "val_micro_batch_size")]
)
def test_inputs_that_cannot_be_split_say_what_to_leave_out(mode, key):
    split = composer.compose(spec(model_type="packed_vla", **{key: 3}), seed=0)
    with pytest.raises(ValueError, match=f"^'{key}'") as error:
        split.predict_action_batch(observations(), mode)
    assert str(error.value) == (
        f"'{key}' splits inputs by rows, and 'pixel_values' has not 4 of them; leave it out"
    )
    model = composer.compose(spec(model_type="packed_vla"), seed=0)
    model.predict_action_batch(observations(), mode)
    assert model.prove(observations()) < 1e-5


def test_several_actions_are_chosen_at_once():
    model = composer.compose(spec(action_token_len=6, action_chunks_len=2), seed=0)
    actions, acted = model.predict_action_batch(observations())
    assert actions.shape == (4, 2, 3)
    assert acted["prev_logprobs"].shape == (4, 6)
    assert model.prove() < 1e-5


SPACE = Dict(main_images=Box(0, 255, (8, 8, 3), np.uint8), task_descriptions=Text(50))
ACTIONS = Box(-0.5, 0.5, (3,), np.float32)


def test_act_gives_an_action_of_the_space_for_one_observation_and_for_a_batch():
    model = composer.compose(spec(), observation_space=SPACE, action_space=ACTIONS, seed=0)
    batch = observations()
    one = {name: values[0] for name, values in batch.items()}
    assert ACTIONS.contains(model.act(one))
    assert ACTIONS.contains(model.act(one, deterministic=True))
    actions = model.act(batch, deterministic=True)
    assert actions.shape == (4, 3)
    assert all(ACTIONS.contains(action) for action in actions)
    np.testing.assert_array_equal(model.act(batch, deterministic=True), actions)
    tensors = {**batch, "main_images": torch.as_tensor(batch["main_images"])}
    assert isinstance(model.act(tensors), torch.Tensor)


def test_act_plays_the_environment_of_the_config():
    from tests.helpers.paths import CONFIGS

    model = composer.compose(CONFIGS / "tiny_vla.yaml", allow=["environments", "networks"], seed=0)
    env = gymnasium.make("PointAt-v0")
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        action = model.act(observation)
        assert env.action_space.contains(action)
        observation, reward, terminated, *_ = env.step(action)
        assert terminated
        assert reward <= 1
        observation, _ = env.reset()


@pytest.mark.parametrize("word", ["bf16", "fp16"])
def test_half_precision_acts_and_reads_values_in_full(word):
    model = composer.compose(spec(precision=word), seed=0)
    full = composer.compose(spec(), seed=0)
    assert {p.dtype for p in model.hf.parameters()} == {next(model.hf.parameters()).dtype}
    assert next(model.hf.parameters()).itemsize == 2
    for half, whole in zip(model.hf.parameters(), full.hf.parameters()):
        assert torch.equal(half, whole.to(half.dtype))
    assert torch.equal(model.hf.model.rotary_emb.inv_freq, full.hf.model.rotary_emb.inv_freq)
    _, acted = model.predict_action_batch(observations())
    assert acted["prev_logprobs"].dtype == acted["prev_values"].dtype == torch.float32
    assert model.prove() < 0.1


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = composer.compose(spec(gradient_checkpointing=checkpointing), seed=0)
        inputs = model.predict_action_batch(observations(), "eval")[1]["forward_inputs"]
        model.train()
        model(inputs)["logprobs"].sum().backward()
        gradients.append(model.hf.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_exactly_the_frozen_parts_are_not_trained():
    model = composer.compose(spec(freeze=["model.layers.0", "projector"]), seed=0)
    frozen = {name for name, p in model.hf.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.hf.named_parameters()
        if name.startswith(("model.layers.0.", "projector."))
    }


def test_it_is_deep_copied(model):
    twin = copy.deepcopy(model)
    actions = [m.predict_action_batch(observations(), "eval")[0] for m in (model, twin)]
    assert torch.equal(*actions)


REFUSED = {
    "mode": (lambda m: m.predict_action_batch(observations(), mode="evil"), "mode is one of 'train', 'eval', got 'evil'; did you mean 'eval'?"),
    "no observations": (lambda m: m.predict_action_batch(), "predict_action_batch takes observations, or input_ids"),
    "key": (lambda m: m.inputs({"main_image": [], "task_descriptions": []}), "the observation has no 'main_images' for the image; did you mean 'main_image'?"),
    "sampling": (
        lambda m: m.predict_tokens(**m.inputs(observations()), generator=torch.Generator(), top_k=3),
        "with a generator there is 'temperature' only, got 'top_k'",
    ),
    "export": (lambda m: m.export("x.onnx"), "an action model is not exported: no file holds its processor and its loop over tokens; model.save_pretrained(folder) writes what transformers reads"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said(model, case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(model)


def test_it_has_no_other_policy(model):
    with pytest.raises(TypeError, match=r"^an action model is the policy, and has no other"):
        _ = model.policy
