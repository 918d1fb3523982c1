"""Model.step and Model.value."""

import re

import pytest
import torch

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
