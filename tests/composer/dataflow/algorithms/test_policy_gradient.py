"""The formulae of PPO, against loops over plain numbers."""

import math

import pytest
import torch

from composer.dataflow.algorithms.policy_gradient import (
    ValueNorm,
    actor_losses,
    adapted_kl,
    advantages,
    critic_losses,
    normalized,
    token_rewards,
)
from tests.helpers.experiment_models import a_model

LENGTHS = torch.tensor([2, 7, 3, 40])
N = int(LENGTHS.sum())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slowly(rewards, values, discount, gae_lambda):
    """Advantages of one sequence, from the last action to the first."""
    result, following = [], 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + discount * values[t + 1] - values[t]
        following = delta + discount * gae_lambda * following
        result.insert(0, following)
    return result


@pytest.mark.parametrize(
    ("discount", "gae_lambda"), [(1.0, 1.0), (0.97, 0.9), (0.9, 0.0), (0.0, 1.0)]
)
def test_advantages_are_those_of_a_loop(discount, gae_lambda):
    rewards, values = draw(N - 4), draw(N, seed=1)
    result, returns = advantages(rewards, values, LENGTHS, discount, gae_lambda)
    expected, expected_returns = [], []
    for r, v in zip(rewards.split((LENGTHS - 1).tolist()), values.split(LENGTHS.tolist())):
        slow = slowly(r.tolist(), v.tolist(), discount, gae_lambda)
        expected += slow
        expected_returns += [a + b for a, b in zip(slow, v.tolist())]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(returns, torch.tensor(expected_returns, dtype=torch.float64))


def test_advantages_of_a_closed_form():
    """One reward r at the end, no values: A[t] = (discount * lambda) ** (T - 1 - t) * r."""
    rewards = torch.zeros(9)
    rewards[-1] = 3.0
    result, _ = advantages(rewards, torch.zeros(10), torch.tensor([10]), 0.9, 0.5)
    expected = torch.tensor([3.0 * 0.45 ** (8 - t) for t in range(9)])
    torch.testing.assert_close(result, expected)


def test_rewards_of_tokens():
    kl = draw(N - 4)
    scores = torch.tensor([1.0, -9.0, 9.0, 0.5])
    rewards = token_rewards(kl, scores, LENGTHS, 0.2, 5.0)
    expected = []
    for part, score in zip(kl.split((LENGTHS - 1).tolist()), [1.0, -5.0, 5.0, 0.5]):
        row = [-0.2 * x for x in part.tolist()]
        row[-1] += score
        expected += row
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float64))


def test_the_loss_of_the_actor():
    old, new, advantage = draw(50), draw(50, seed=1), draw(50, seed=2)
    losses, ratio, clipped = actor_losses(new, old, advantage, 0.2)
    for i in range(50):
        r, a = math.exp(new[i] - old[i]), advantage[i].item()
        kept = min(max(r, 0.8), 1.2)
        assert losses[i].item() == pytest.approx(-min(r * a, kept * a))
        assert ratio[i].item() == pytest.approx(r)
        assert clipped[i].item() == ((a > 0 and r > 1.2) or (a < 0 and r < 0.8))


def test_the_loss_of_the_critic():
    old, new, returns = draw(50), draw(50, seed=1), draw(50, seed=2)
    losses, clipped = critic_losses(new, old, returns, 0.3)
    for i in range(50):
        v, o, r = new[i].item(), old[i].item(), returns[i].item()
        near = min(max(v, o - 0.3), o + 0.3)
        assert losses[i].item() == pytest.approx(max(0.5 * (v - r) ** 2, 0.5 * (near - r) ** 2))
        assert clipped[i].item() == ((near - r) ** 2 > (v - r) ** 2)


def test_advantages_are_normalised_over_actions_alone():
    values = draw(20)
    mask = torch.arange(20) % 3 > 0
    result = normalized(values, mask, eps=0.0)
    assert result[~mask].tolist() == [0.0] * 7
    assert result[mask].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert result[mask].std(unbiased=False).item() == pytest.approx(1.0)
    assert normalized(values, torch.zeros(20, dtype=torch.bool)).tolist() == [0.0] * 20


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 0.1), (6.6, 0.1 * 1.001), (60.0, 0.1 * 1.002), (0.0, 0.1 * 0.998)]
)
def test_the_weight_of_the_penalty_follows_the_divergence(kl, expected):
    assert adapted_kl(0.1, kl, 6.0, 10000, 100) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["exp", "ma"])
def test_statistics_of_returns(kind):
    model = a_model(is_critic=True, lr=0.1)
    norm = ValueNorm(kind, beta=0.9, eps=0.0)
    assert norm.statistics(model) == (0.0, 1.0)
    batches = [3.0 + draw(10), -1.0 + 2.0 * draw(30, seed=1), draw(20, seed=2)]
    for batch in batches:
        norm.update(model, batch)
    sizes = [len(batch) for batch in batches]
    weights = [0.81, 0.9, 1.0] if kind == "exp" else sizes
    mean = sum(w * b.mean().item() for w, b in zip(weights, batches)) / sum(weights)
    square = sum(w * (b**2).mean().item() for w, b in zip(weights, batches)) / sum(weights)
    assert norm.statistics(model) == pytest.approx((mean, math.sqrt(square - mean**2)))
    state = model.optimizer.state_dict()
    again = a_model(is_critic=True, lr=0.1)
    again.optimizer.load_state_dict(state)
    assert norm.statistics(again) == norm.statistics(model)
