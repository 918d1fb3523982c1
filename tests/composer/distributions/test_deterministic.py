"""Actions without chance: within their bounds, with gradients, without a density."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

from composer.distributions.deterministic import Deterministic
from composer.spaces.tree import flatten_space

UNEVEN = spaces.Box(np.float32([[-3.0], [0.1]]), np.float32([[7.0], [0.2]]))


def build(space):
    return Deterministic(flatten_space(space, "action").leaves["action"])


@pytest.mark.parametrize("leading", [(), (1,), (5, 2), (0,)])
def test_logits_are_squashed_into_the_bounds(leading):
    family = build(UNEVEN)
    logits = 100 * torch.randn(*leading, 2, requires_grad=True)
    distribution = family(logits, temperature=0.5)
    action = distribution.mode()
    assert action.shape == (*leading, 2, 1)
    assert torch.equal(action, distribution.sample())
    assert torch.equal(distribution.rsample(), action)
    assert distribution.rsample().requires_grad
    assert not distribution.sample().requires_grad
    low, high = (torch.tensor(bound) for bound in (UNEVEN.low, UNEVEN.high))
    assert bool(((action >= low) & (action <= high)).all())


def test_the_middle_is_where_the_network_says_nothing():
    assert build(spaces.Box(-1, 3, ()))(torch.zeros(1)).mode().item() == 1.0


@pytest.mark.parametrize("what", ["log_prob", "entropy", "kl"])
def test_there_is_no_density(what):
    distribution = build(UNEVEN)(torch.zeros(2))
    arguments = [] if what == "entropy" else [distribution.mode()]
    expected = f"the action 'action' is deterministic, which has no {what}; use 'squashed_gaussian'"
    with pytest.raises(ValueError, match=re.escape(expected)):
        getattr(distribution, what)(*arguments)


@pytest.mark.parametrize(
    ("space", "instead"),
    [(spaces.Discrete(2), "categorical"), (spaces.Box(-np.inf, 1, ()), "gaussian")],
)
def test_other_spaces_are_refused(space, instead):
    with pytest.raises(ValueError, match=f"needs a Box action with finite bounds.*{instead}"):
        build(space)


def test_a_mask_is_refused():
    expected = "action 'action' is deterministic, which takes no mask; only choices have one"
    with pytest.raises(ValueError, match=expected):
        build(UNEVEN)(torch.zeros(2), mask=torch.ones(2))
