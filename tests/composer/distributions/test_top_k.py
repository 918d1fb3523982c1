"""The most likely actions, against all actions of small spaces one by one."""

import math
import re
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.distributions.joint import CompositeDistribution
from tests.composer.distributions.test_distributions import PAIRS, build, random_logits

NUMBERS = spaces.Box(-1, 1, (2,))
CHOICES: list[tuple[str, Any]] = [
    ("categorical", spaces.Discrete(5)),
    ("multi_categorical", PAIRS),
    ("multi_categorical", spaces.MultiDiscrete([3, 3])),
    ("bernoulli", spaces.MultiBinary([2, 2])),
]


def values(space):
    """Every action of a space of choices, zero-based."""
    if isinstance(space, spaces.Discrete):
        return torch.arange(int(space.n))
    sizes = np.full(space.shape, 2) if isinstance(space, spaces.MultiBinary) else space.nvec
    every = torch.tensor(list(product(*(range(size) for size in sizes.flatten()))))
    return every.reshape(-1, *space.shape)


def by_enumeration(distribution, every, k):
    """The log-probabilities of the k best of ``every``, best first, shape (k, ...)."""
    batch = distribution.mode().shape[: distribution.mode().dim() - (every.dim() - 1)]
    given = every.reshape(len(every), *[1] * len(batch), *every.shape[1:])
    log_probs = distribution.log_prob(given.expand(len(every), *batch, *every.shape[1:]))
    return log_probs.sort(0, descending=True).values[:k]


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize(("name", "space"), CHOICES)
def test_candidates_are_the_best_of_all_actions_in_order(name, space, leading, k):
    distribution: Any = build(name, space)(random_logits(build(name, space), leading, scale=2))
    actions, log_probs = distribution.top_k(k)
    assert actions.shape == (k, *leading, *space.shape)
    assert log_probs.shape == (k, *leading)
    count = min(k, len(values(space)))
    assert actions.dtype == distribution.sample().dtype
    assert torch.equal(actions[0], distribution.mode())
    torch.testing.assert_close(
        log_probs[:count], by_enumeration(distribution, values(space), count)
    )
    torch.testing.assert_close(distribution.log_prob(actions[:count]), log_probs[:count])
    for row in actions[:count].flatten(1, len(leading)).unbind(1) if leading else [actions[:count]]:
        assert len(row.reshape(count, -1).unique(dim=0)) == count  # no action twice
    assert bool((log_probs[count:] == -math.inf).all())
    assert torch.equal(actions[count:], actions[:1].expand_as(actions[count:]))


@pytest.mark.parametrize(("name", "space"), CHOICES)
def test_masked_choices_never_appear(name, space):
    family: Any = build(name, space)
    logits = random_logits(family, (6,))
    mask = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    if name == "categorical":
        mask[:, 2] = True
    elif name == "multi_categorical":
        mask[:, [0, 2, 3, 5, 6, 8][: mask.shape[1] // 2]] = True
        first = np.cumsum([0, *space.nvec.flatten()])[:-1]
        mask[:, torch.as_tensor(first)] = True
    distribution = family(logits, mask)
    actions, log_probs = distribution.top_k(16)
    exact = by_enumeration(distribution, values(space), 16)
    legal = exact > -1e30
    kept = log_probs[: len(exact)]
    torch.testing.assert_close(kept[legal], exact[legal])
    assert bool((kept[~legal] == -math.inf).all())
    assert bool((distribution.log_prob(actions) > -1e30).all())  # even where none is left


def test_equal_choices_come_in_their_order():
    distribution = build("categorical", spaces.Discrete(6))(torch.zeros(6))
    assert distribution.top_k(4).actions.tolist() == [0, 1, 2, 3]
    bits: Any = build("bernoulli", spaces.MultiBinary(2))(torch.zeros(2))
    assert bits.top_k(4).actions.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_choice_of_no_probability_is_no_candidate():
    logits = torch.tensor([0.0, -math.inf, 1.0])
    actions, log_probs = build("categorical", spaces.Discrete(3))(logits).top_k(3)
    assert actions.tolist() == [2, 0, 2]
    assert log_probs.isfinite().tolist() == [True, True, False]


def test_joint_candidates_are_exact_and_a_continuous_part_is_its_mode():
    parts: Any = {
        "move": build("categorical", spaces.Discrete(4))(torch.randn(5, 4)),
        "bits": build("bernoulli", spaces.MultiBinary(3))(torch.randn(5, 3)),
        "push": build("squashed_gaussian", NUMBERS)(torch.randn(5, 4)),
    }
    joint = CompositeDistribution(parts)
    actions, log_probs = joint.top_k(40)
    assert list(actions) == list(parts)
    assert torch.equal(actions["push"], parts["push"].mode().expand(40, 5, 2))
    sums = [
        parts["move"].log_prob(torch.full((5,), move))
        + parts["bits"].log_prob(torch.tensor(bits).expand(5, 3))
        for move in range(4)
        for bits in product([0.0, 1.0], repeat=3)
    ]
    exact = torch.stack(sums).sort(0, descending=True).values
    exact = exact + parts["push"].log_prob(parts["push"].mode())
    torch.testing.assert_close(log_probs[:32], exact)
    assert bool((log_probs[32:] == -math.inf).all())
    first = {key: value[:32] for key, value in actions.items()}
    torch.testing.assert_close(joint.log_prob(first), log_probs[:32])


def test_an_action_without_chance_is_its_only_candidate():
    distribution: Any = build("deterministic", NUMBERS)(torch.randn(3, 2))
    actions, log_probs = distribution.top_k(2)
    assert torch.equal(actions[0], distribution.mode())
    assert log_probs.tolist() == [[0.0] * 3, [-math.inf] * 3]


def test_log_probs_have_gradients():
    logits = torch.randn(3, 5, requires_grad=True)
    build("categorical", spaces.Discrete(5))(logits).top_k(2).log_probs.sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad != 0).any())


def test_many_independent_choices_take_no_enumeration():
    distribution: Any = build("bernoulli", spaces.MultiBinary(200))(torch.randn(2, 200))
    actions, log_probs = distribution.top_k(50)
    assert actions.shape == (50, 2, 200)
    assert bool((log_probs[:-1] >= log_probs[1:]).all())
    torch.testing.assert_close(distribution.log_prob(actions), log_probs)


def test_candidates_of_a_policy_are_actions_of_its_environment():
    space = spaces.Dict(
        a=spaces.Discrete(3, start=5), b=spaces.Tuple([spaces.MultiBinary(2), NUMBERS])
    )
    policy: Any = composer.compose(
        {"version": 1, "policy": {"template": {}}},
        observation_space=spaces.Box(-1, 1, (4,)),
        action_space=space,
    ).policy
    actions, _ = policy.distribution(torch.randn(4)).top_k(5)
    for index in range(5):
        one = policy.to_environment({key: value[index] for key, value in actions.items()})
        assert space.contains(one)


@pytest.mark.parametrize("k", [0, -1, True, 2.0])
def test_a_number_of_candidates_is_a_positive_integer(k):
    text = f"k must be a positive integer, the number of candidates, got {k!r}"
    distribution = build("categorical", spaces.Discrete(3))(torch.zeros(3))
    for each in (distribution, CompositeDistribution({"a": distribution})):
        with pytest.raises(ValueError, match=re.escape(text)):
            each.top_k(k)


def test_heads_that_read_actions_have_no_candidates():
    heads = {"a": {"in": "latent"}, "b": {"in": "both"}}
    graph = {
        "latent": {"block": "dense", "in": "observation", "hidden_units": 8},
        "both": {"block": "concat", "in": ["latent", "action/a"]},
    }
    policy: Any = composer.compose(
        {"version": 1, "policy": {"graph": graph, "heads": heads}},
        observation_space=spaces.Box(-1, 1, (4,)),
        action_space=spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)),
    ).policy
    distribution = policy.distribution(torch.randn(4))
    text = (
        "top_k of heads that read actions would need a pass of the network for every joint action; draw candidates "
        "by sample() and compare them by log_prob(action)"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        distribution.top_k(2)
    distribution.log_prob(distribution.sample())
