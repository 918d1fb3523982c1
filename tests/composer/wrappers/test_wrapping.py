"""A policy wrapped by its spec's `wrap:`."""

import pickle
import re

import gymnasium
import pytest
import torch
from gymnasium import spaces

import composer
from tests.composer.wrappers.test_composed import BOX, MEMORY, compose

SPEC = """
version: 1
environment: CartPole-v1
policy:
  template: {memory: {block: gru, hidden_units: 8}}
  wrap: [{hidden_state: {state_num: 4}}, eps_greedy_sample]
"""


def written(wrap, template="{}"):
    return (
        f"version: 1\nenvironment: CartPole-v1\npolicy:\n  template: {template}\n  wrap: {wrap}\n"
    )


def compose_text(tmp_path, text):
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return composer.compose(path, seed=0)


def test_a_spec_says_how_its_policy_is_wrapped(tmp_path):
    model = compose_text(tmp_path, SPEC)
    assert model.wrapped is model.wrapped
    assert repr(model.wrapped) == (
        "EpsGreedySampleWrapper(HiddenStateWrapper(BaseModelWrapper(ComposedPolicy(Policy))))"
    )
    envs = gymnasium.make_vec("CartPole-v1", num_envs=4)
    observations, _ = envs.reset(seed=0)
    for _ in range(20):
        action = model.wrapped(observations, eps=0.1)["action"]
        observations, *_ = envs.step(model.wrapped.environment_action(action))
    envs.close()
    other = pickle.loads(pickle.dumps(model))
    assert other.wrapped._model._model._model._model is other.policy
    assert torch.equal(other.wrapped.states[0]["memory/h"], model.wrapped.states[0]["memory/h"])


def test_wrappers_are_loaded_with_the_model(tmp_path):
    model = compose_text(tmp_path, SPEC)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    x = torch.randn(4, 4)
    torch.testing.assert_close(
        loaded.wrapped(x, eps=0.0)["logit"], model.wrapped(x, eps=0.0)["logit"]
    )


def test_a_model_without_weights_may_be_wrapped_already():
    spec = {
        "version": 1,
        "policy": {"template": MEMORY, "wrap": [{"hidden_state": {"state_num": 2}}]},
    }
    model = composer.compose(
        spec, observation_space=BOX, action_space=spaces.Discrete(2), device="meta"
    )
    wrapped = model.wrapped
    model.materialize()
    assert wrapped(torch.zeros(2, 3))["logit"].shape == (2, 2)


def test_without_wrap_there_is_nothing_wrapped():
    model = compose(BOX, BOX)
    message = "the spec has no 'wrap' in its policy; add one, or wrap model.policy with composer.model_wrap"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        model.wrapped  # noqa: B018


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        ("[argmax_smaple]", "5:10: unknown wrapper 'argmax_smaple'; did you mean 'argmax_sample'?"),
        (
            "[{target: {freq: 3}}]",
            "5:11: the wrapper 'target' is for Python only: a target is a second model that training updates",
        ),
        (
            "[{argmax_sample: 3}]",
            "5:26: the settings of 'argmax_sample' must be a mapping, got the number 3",
        ),
        (
            "[{hidden_state: {state_nmu: 3}}]",
            "5:26: 'state_nmu' is not a setting of wrapper 'hidden_state'; did you mean 'state_num'?",
        ),
        (
            "[{hidden_state: {state_num: some}}]",
            "5:37: 'state_num' must be a positive integer, got 'some'",
        ),
        (
            "[argmax_sample, {action_noise: {noise_range: [1, 0]}}]",
            "5:25: 'noise_range' must be [low, high] or {min: low, max: high}, got [1, 0]",
        ),
        (
            "[argmax_sample, multinomial_sample]",
            "5:25: 'multinomial_sample' would replace the action that a wrapper inside of it chooses; keep one of "
            "them",
        ),
        (
            "[{hidden_state: {state_num: 4}}]",
            "5:10: 'hidden_state' keeps the state of a memory, but this policy has no memory",
        ),
    ],
)
def test_a_wrong_wrap_is_said_with_its_place(tmp_path, wrap, message):
    with pytest.raises(composer.SpecError) as error:
        compose_text(tmp_path, written(wrap))
    assert f"agent.yaml:{message}" in str(error.value)


def test_actors_are_wrapped_one_by_one():
    spec = {"version": 1, "policy": {"template": {}, "wrap": ["argmax_sample"]}}
    actors = {
        "observation_space": {"left": BOX, "right": BOX},
        "action_space": {"left": spaces.Discrete(2), "right": spaces.Discrete(2)},
    }
    message = "'wrap' is for a policy of one actor; wrap each with composer.model_wrap(model.policy[actor], ...)"
    with pytest.raises(composer.SpecError, match=re.escape(message)):
        composer.compose(spec, **actors)
    model = composer.compose({"version": 1, "policy": {"template": {}}}, **actors)
    left = composer.model_wrap(model.policy["left"], "argmax_sample")
    x = torch.randn(3)
    assert left(x)["action"] == model.policy.act({"left": x}, deterministic=True)["left"]


def test_everything_wrong_with_a_wrap_is_said_at_once(tmp_path):
    with pytest.raises(composer.SpecError) as error:
        compose_text(tmp_path, written("[targte, {hidden_stat: {}}, teacher]"))
    assert len(error.value.problems) == 3
