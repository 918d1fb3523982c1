"""Model.step and Model.value."""

import re

import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

import composer

TWIN_Q = """
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
  heads: {in: latent}
critic:
  kind: state_action
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
  heads: {in: latent}
"""
MESSAGE = (
    "the critic of this model values actions, which step() and value() do not; call "
    "model(observations, action=action), or give the model a critic of kind: state"
)


@pytest.mark.parametrize("call", [lambda model, x: model.step(x), lambda model, x: model.value(x)])
def test_a_critic_of_actions_is_refused(call):
    model = composer.compose(TWIN_Q, seed=0)
    with pytest.raises(ValueError, match=f"^{re.escape(MESSAGE)}$"):
        call(model, torch.zeros(3, 4))


SHARED = """
version: 1
normalize: [seen]
policy:
  graph:
    both: {block: concat, in: [seen, size]}
    memory: {block: gru, in: both, hidden_units: 5}
  shares: [memory]
  heads: {in: memory}
critic:
  graph:
    latent: {block: concat, in: [memory, secret]}
"""
SEEN = spaces.Dict(
    seen=spaces.Box(-1, 1, (3,)), size=spaces.Box(0, 1, (1,)), secret=spaces.Box(-1, 1, (2,))
)
TAKEN = spaces.Dict(
    many=spaces.MultiDiscrete([2, 3]), one=spaces.Discrete(3, start=4), push=spaces.Box(-1, 1, (2,))
)


def remembering():
    model = composer.compose(SHARED, observation_space=SEEN, action_space=TAKEN, seed=0)
    shapes = {key: space.shape or () for key, space in SEEN.items()}
    model.update_normalizers({key: torch.randn(9, *shape) for key, shape in shapes.items()})
    observations = {key: torch.rand(4, *shape) for key, shape in shapes.items()}
    return model, observations, model.initial_state(4)


def test_what_both_parts_read_is_what_each_reads_alone():
    model, observations, state = remembering()
    step = model.step(observations, state=state)
    logits, values, after = model(observations, state)
    assert_close(step.value, values["value"].squeeze(-1), rtol=0, atol=0)
    assert_close(step.state, after, rtol=0, atol=0)
    expected = model.policy.distribution_of(logits, observations, None, 1.0)
    assert_close(step.log_prob, expected.log_prob(step.action), rtol=0, atol=0)
    assert_close(step.value, model.value(observations, state), rtol=0, atol=0)


def test_a_lowered_model_steps_as_the_model_does_and_follows_it():
    model, observations, state = remembering()
    lowered = model.lower()
    for _ in range(2):
        step = model.step(observations, state=state, deterministic=True)
        other = lowered.step(observations, step.action, state)
        assert_close(other.log_prob, step.log_prob)
        assert_close(other.value, step.value)
        assert_close(lowered.value(observations, state), step.value)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)


@pytest.mark.parametrize("kind", ["masked", "free"])
def test_the_density_of_a_draw_is_the_density_of_the_action(kind):
    model, observations, _ = remembering()
    mask = {"one": torch.tensor([True, False, True])} if kind == "masked" else None
    state = model.initial_state(4)
    torch.manual_seed(0)
    drawn = model.step(observations, state=state, mask=mask)
    given = model.step(observations, drawn.action, state, mask=mask)
    assert_close(drawn.log_prob, given.log_prob, rtol=0, atol=0)
