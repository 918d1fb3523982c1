"""What an action model cannot act on, or train on, is told in words."""

import re

import numpy as np
import pytest
import torch

import composer
from tests.helpers.action_models import observations, spec

ROWS = 2
IMAGES = np.zeros((ROWS, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return composer.compose(spec(), seed=0)


@pytest.fixture(scope="module")
def inputs(model):
    return model.inputs(observations(ROWS))


def refused(message, call):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


OBSERVATIONS = {
    "no mapping": ([1], "observations are a mapping with 'main_images', 'task_descriptions', got a list"),
    "nothing": ({}, "the observation has no 'main_images' for the image; there is nothing"),
    "one text": ({"task_descriptions": ["pick"]}, "observations must have equally many rows, at least one; there are 2 of 'main_images' and 1 of 'task_descriptions'"),
    "no rows": ({"main_images": IMAGES[:0], "task_descriptions": []}, "observations must have equally many rows, at least one; there are 0 of 'main_images' and 0 of 'task_descriptions'"),
    "no texts": ({"task_descriptions": [1, 2]}, "'task_descriptions' must hold texts, got the number 1"),
    "bytes": ({"task_descriptions": [b"a", b"b"]}, "'task_descriptions' must hold texts, got an object of type 'bytes'"),
    "a text": ({"task_descriptions": "pick"}, "'task_descriptions' must hold one text for each row, got the text 'pick'"),
    "an image": ({"main_images": 3}, "'main_images' must hold one image for each row, got the number 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", OBSERVATIONS)
def test_observations_that_do_not_fit_are_told(case, model):
    given, message = OBSERVATIONS[case]
    batch = {**observations(ROWS), **given} if isinstance(given, dict) and given else given
    refused(message, lambda: model.predict_action_batch(batch))


def test_an_observation_is_a_mapping(model):
    refused("an observation is a mapping, got a list", lambda: model.act([1]))
    refused("an observation is a mapping, got nothing (null)", lambda: model.act(None))


PROMPT = "a prompt must be tokens (B, L), whole numbers and at least one, got "
PROMPTS = {
    "below": (lambda ids: {"input_ids": ids - 100}, "the prompt has the token -100; the model has those below 40"),
    "above": (lambda ids: {"input_ids": ids + 100}, "the prompt has the token 114; the model has those below 40"),
    "empty": (lambda ids: {"input_ids": ids[:, :0]}, f"{PROMPT}(2, 0) of int64"),
    "of no rows": (lambda ids: {"input_ids": ids[:0]}, f"{PROMPT}(0, 9) of int64"),
    "one row": (lambda ids: {"input_ids": ids[0]}, f"{PROMPT}(9,) of int64"),
    "floats": (lambda ids: {"input_ids": ids.float()}, f"{PROMPT}(2, 9) of float32"),
    "a list": (lambda ids: {"input_ids": ids.tolist()}, f"{PROMPT}a list"),
    "mask of others": (lambda ids: {"attention_mask": torch.ones(2, 8)}, "'attention_mask' must have the shape of the prompt, (2, 9), got (2, 8)"),
    "padded behind": (lambda ids: {"attention_mask": torch.tensor([[1] * 8 + [0], [1] * 9])}, "prompts must be padded on the left, and 'attention_mask' leaves out the last token of one"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_that_are_none_are_told(case, model, inputs):
    given, message = PROMPTS[case]
    refused(message, lambda: model.predict_tokens(**{**inputs, **given(inputs["input_ids"])}))


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["without", "with generator"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0}, "'temperature' must be a number above 0, got the number 0"),
        ({"temperature": -1.0}, "'temperature' must be a number above 0, got the number -1.0"),
        ({"temperature": float("nan")}, "'temperature' must be a number above 0, got the number nan"),
        ({"temperature": "hot"}, "'temperature' must be a number above 0, got the text 'hot'"),
        ({"top_k": -1}, "'top_k' must be a whole number, 0 for all tokens, got the number -1"),
        ({"top_k": 1.5}, "'top_k' must be a whole number, 0 for all tokens, got the number 1.5"),
        ({"top_p": 0}, "'top_p' must be a number above 0 and at most 1, got the number 0"),
        ({"top_p": 2.0}, "'top_p' must be a number above 0 and at most 1, got the number 2.0"),
    ],
)  # fmt: skip
def test_numbers_by_which_nothing_is_sampled_are_told(given, message, generator, model, inputs):
    refused(message, lambda: model.predict_tokens(**inputs, generator=generator, **given))
    left_out = dict.fromkeys(given)
    assert model.predict_tokens(**inputs, generator=generator, **left_out).actions.shape == (2, 3)


@pytest.mark.parametrize(
    "name", ["max_new_tokens", "num_beams", "eos_token_id", "custom_generate", "assistant_model", "logits_processor"]
)  # fmt: skip
def test_arguments_of_generate_are_not_passed_on(name, model, inputs):
    refused(
        f"{name!r} cannot be chosen: an action has its number of tokens, and one sequence; leave it out",
        lambda: model.predict_tokens(**inputs, **{name: "someone/code"}),
    )


@pytest.fixture(scope="module")
def acted(model):
    return model.predict_action_batch(observations(ROWS))[1]["forward_inputs"]


@pytest.mark.parametrize("count", [0, 2, 6])
def test_tokens_that_are_no_actions_are_told(count, model, acted):
    tokens = acted["action_tokens"].repeat(1, 2)[:, :count]
    refused(
        f"'action_tokens' must be (2, 3), a row for each prompt, got (2, {count})",
        lambda: model({**acted, "action_tokens": tokens}),
    )


@pytest.mark.parametrize("name", ["action_tokens", "input_ids", "attention_mask"])
def test_what_forward_inputs_lack_is_told(name, model, acted):
    left = {key: value for key, value in acted.items() if key != name}
    refused(
        f"'forward_inputs' lacks {name!r}; it is what predict_action_batch returns under that name",
        lambda: model(left),
    )


def test_forward_takes_a_mapping(model):
    refused("forward takes 'forward_inputs', a mapping, got a list", lambda: model([1]))
