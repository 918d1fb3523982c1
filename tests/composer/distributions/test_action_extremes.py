"""Actions and densities at the ends of what a dtype can tell: bounds, saturated policies, the largest numbers."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from gymnasium import spaces

from composer.distributions.base import DISTRIBUTIONS, ActionDistribution
from composer.distributions.cells import log_upper
from composer.spaces.tree import flatten_space

UNIT = spaces.Box(-1, 1, (2,))
UNEVEN = spaces.Box(np.float32([-3, 0.1]), np.float32([7, 0.2]))
FAMILIES = [
    ("categorical", spaces.Discrete(4), {}),
    ("multi_categorical", spaces.MultiDiscrete([2, 3]), {}),
    ("multi_categorical", spaces.MultiDiscrete([3, 3]), {}),
    ("bernoulli", spaces.MultiBinary(3), {}),
    ("gaussian", spaces.Box(-np.inf, np.inf, (2,)), {}),
    ("gaussian", UNIT, {"log_std": "learned"}),
    ("squashed_gaussian", UNIT, {}),
    ("squashed_gaussian", UNEVEN, {"log_std": "learned"}),
    ("squashed_gaussian", spaces.Box(-3e38, 3e38, (2,)), {}),
    ("squashed_gaussian", spaces.Box(0, 1, (2,), np.float16), {}),
    ("squashed_gaussian", spaces.Box(-5, 5, (2,), np.int32), {}),
    ("squashed_gaussian", spaces.Box(2, 2, (2,)), {}),
    ("beta", UNIT, {}),
    ("beta", UNEVEN, {}),
    ("gsde", spaces.Box(-np.inf, np.inf, (2,)), {"latent_units": 3, "learn_features": True}),
    ("gsde", UNEVEN, {"latent_units": 3, "full_std": False}),
]
IDS = [f"{name}-{index}" for index, (name, _, _) in enumerate(FAMILIES)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def build(name, space, **settings) -> ActionDistribution:
    leaf = flatten_space(space, "action").leaves["action"]
    return DISTRIBUTIONS.get(name)(leaf, **settings)


def extreme_logits(family, dtype, rows=200):
    """All magnitudes that the dtype has, of both signs, zeros among them."""
    limits = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(0)
    shape = (rows, *family.logits_shape)
    exponent = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    signs = torch.randint(-1, 2, shape, generator=generator)
    size = torch.where(exponent > 0, exponent * math.log(limits.max), exponent * 3).exp()
    logits = (signs * size.clamp_max(limits.max)).to(dtype)
    logits[0], logits[1], logits[2, 0] = limits.max, limits.min, limits.max
    return logits


@pytest.mark.parametrize("temperature", [1.0, 1e-30, 1e3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "space", "settings"), FAMILIES, ids=IDS)
def test_whatever_the_logits_samples_are_legal_and_everything_is_finite(
    name, space, settings, dtype, temperature
):
    family = build(name, space, **settings)
    logits = extreme_logits(family, dtype)
    distribution: Any = family(logits, temperature=temperature)
    other: Any = family(logits.flip(0), temperature=temperature)
    generator = torch.Generator().manual_seed(0)
    for action in (distribution.sample(generator), distribution.mode()):
        assert action.isfinite().all()
        if name in ("squashed_gaussian", "beta") or space is UNEVEN:
            assert (action >= torch.tensor(space.low)).all()
            assert (action <= torch.tensor(space.high)).all()
        assert distribution.log_prob(action).isfinite().all()
        assert other.log_prob(action).isfinite().all()
    assert distribution.entropy().isfinite().all()
    assert distribution.kl(other).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "space", "settings"), FAMILIES, ids=IDS)
def test_gradients_are_finite_wherever_logits_are_moderate_and_actions_are_any(
    name, space, settings, dtype
):
    family = build(name, space, **settings)
    logits = extreme_logits(family, dtype).clamp(-1e4, 1e4).requires_grad_()
    distribution: Any = family(logits)
    other: Any = family(logits.detach().flip(0))
    for value in (
        distribution.log_prob(distribution.sample()),
        distribution.log_prob(other.sample()),
        distribution.entropy(),
        distribution.kl(other),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.isfinite().all()


def in_log_std(mean, log_std, like=()):
    return torch.tensor([mean, log_std]).expand(*like, 2)


def test_a_saturated_action_has_a_log_prob_that_fits_its_entropy_and_a_ratio_near_one():
    family = build("squashed_gaussian", spaces.Box(-1, 1, (1,)))
    edge = torch.ones(1)
    for mean, log_std in ((9.5, -2.0), (12.0, -1.8), (20.0, -3.0), (1e3, -20.0), (1e30, 0.0)):
        old, new = (family(in_log_std(m, log_std)).log_prob(edge) for m in (mean, mean + 0.01))
        # All of its probability is on what rounds to 1: the half cell below it, 2**-25 wide.
        assert old.item() == pytest.approx(25 * math.log(2), abs=1e-3)
        assert (new - old).exp().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("box", [UNIT, UNEVEN, spaces.Box(0, 1, (2,)), spaces.Box(99, 100, (2,))])
@pytest.mark.parametrize("log_std", [-20.0, -6.0, -3.0, -1.0, 0.0, 2.0])
def test_own_samples_never_surprise_more_than_a_normal_does(box, log_std):
    """However few numbers there are where a policy is."""
    family = build("squashed_gaussian", spaces.Box(box.low[:1], box.high[:1]))
    for mean in (-30.0, -9.0, -8.4, -5.0, 0.0, 3.3, 7.0, 8.5, 8.7, 1e6):
        distribution: Any = family(in_log_std(mean, log_std, (2000,)))
        action = distribution.sample(torch.Generator().manual_seed(0))
        cell_or_density = distribution.log_prob(action)
        exact = distribution.rsample(torch.Generator().manual_seed(0))
        # What the density of its own u is, or the most that a cell can have; less where its own cell is a neighbour.
        most = -math.log(float(box.high[0] - box.low[0]) * 2.0**-25)
        expected = torch.minimum(distribution.log_prob(exact), torch.tensor(most))
        assert (cell_or_density > expected - 15).all(), (mean, (cell_or_density - expected).min())


def next_to_bounds(low, high, count):
    """All float32 from the bounds inwards, and the widths of what rounds to each of them within the bounds."""
    for bound, inwards in ((low, high), (high, low)):
        values = [np.float32(bound)]
        for _ in range(count):
            values.append(np.nextafter(values[-1], np.float32(inwards)))
        numbers = np.sort(np.array(values).astype(np.float64))
        edges = np.concatenate([numbers[:1], (numbers[1:] + numbers[:-1]) / 2, numbers[-1:]])
        yield torch.tensor(numbers), torch.tensor(edges).diff()


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0.1, 0.2), (99, 101)])
@pytest.mark.parametrize(
    ("mean", "log_std"), [(0.0, 1.0), (0, 2), (8, 0), (8.7, -2), (-20, -3), (30, 2), (5, -3)]
)
def test_the_density_integrates_to_one_with_the_bounds(low, high, mean, log_std):
    family, exact = (
        build("squashed_gaussian", spaces.Box(low, high, (), dtype))
        for dtype in (np.float32, np.float64)
    )
    logits = in_log_std(float(mean), float(log_std))
    total, ends = 0.0, []
    for numbers, widths in next_to_bounds(low, high, 3000):
        density = family(logits).log_prob(numbers.float()).double().exp()
        total += float((density * widths).sum())
        ends.append(numbers)
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    edges = ends[0].max() + (ends[1].min() - ends[0].max()) * t**4 / (t**4 + (1 - t) ** 4)
    density = exact(logits.double()).log_prob((edges[1:] + edges[:-1]) / 2).exp()
    total += float((density * edges.diff()).sum())
    assert total == pytest.approx(1, abs=0.015)


def test_the_density_of_a_rounded_action_is_smooth_in_mean_and_deviation():
    """No jump where one form hands over to another: the function is what its gradient says."""
    family = build("squashed_gaussian", spaces.Box(-1, 1, (), np.float64))
    for action in (1.0, 1 - 2.0**-50, 1 - 2.0**-40, math.tanh(6), 0.3):
        for log_std in (-6.0, -2.0, 0.0, 1.0):
            means = torch.linspace(-2, 25, 20_001, dtype=torch.float64, requires_grad=True)
            logits = torch.stack([means, torch.full_like(means, log_std)], -1)
            log_prob = family(logits).log_prob(torch.tensor(action, dtype=torch.float64))
            (slope,) = torch.autograd.grad(log_prob.sum(), means)
            step = (means[1] - means[0]).detach()
            predicted = (slope[1:] + slope[:-1]) / 2 * step
            error = (log_prob.diff() - predicted).detach().abs()
            curvature = (step * math.exp(-log_std)) ** 2 + 1e-4
            assert (error < curvature).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_the_environment_rounds_is_what_counts(dtype):
    """Actions that the space cannot tell from each other have one log-probability."""
    family = build("squashed_gaussian", spaces.Box(-1, 1, (), dtype))
    distribution = family(torch.tensor([2.0, -1.0]))
    drawn = torch.tensor([0.99951, 0.99944, 0.9638])
    rounded = torch.tensor(drawn.numpy().astype(dtype).astype(np.float32))
    assert distribution.log_prob(drawn).equal(distribution.log_prob(rounded))


def test_whole_numbers_have_the_probability_of_what_rounds_to_them():
    family = build("squashed_gaussian", spaces.Box(-2, 2, (), np.int64))
    for mean, log_std in ((0.3, -1.0), (2.0, -2.0), (-5.0, 1.0)):
        distribution: Any = family(in_log_std(mean, log_std))
        log_probs = distribution.log_prob(torch.arange(-2.0, 3.0))
        widths = torch.tensor([0.5, 1, 1, 1, 0.5])
        assert (log_probs.exp() * widths).sum().item() == pytest.approx(1, abs=2e-2)


def test_the_upper_tail_of_a_normal_and_its_slope():
    for dtype, digits in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        x = torch.tensor([-40, -5, -1, 0, 0.99, 1, 3, 19.9, 20.1, 1e3, 1e9], dtype=dtype)
        x.requires_grad_()
        ours = log_upper(x)
        (slope,) = torch.autograd.grad(ours.sum(), x)
        for value, found, gradient in zip(x.tolist(), ours.tolist(), slope.tolist(), strict=True):
            with mpmath.workdps(60):
                upper = mpmath.log(mpmath.erfc(mpmath.mpf(value) / mpmath.sqrt(2)) / 2)
                density = mpmath.npdf(value) * mpmath.exp(-upper)
            assert found == pytest.approx(float(upper), rel=digits, abs=digits)
            assert gradient == pytest.approx(-float(density), rel=10 * digits, abs=digits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_beta_is_exact_however_narrow_it_is(dtype):
    """Against the closed forms in 60 digits, from the broadest to what float32 can just tell."""
    family = build("beta", spaces.Box(0, 1, ()))
    sizes = [0.01, 0.7, 5.0, 40.0, 3e3, 2e6, 1e9]
    near = 1e-5 if dtype == torch.float32 else 1e-9
    for first in sizes:
        for second in sizes:
            a, b = (math.log(math.expm1(s)) if s < 40 else s for s in (first, second))
            distribution: Any = family(torch.tensor([a, b], dtype=dtype))
            other: Any = family(torch.tensor([a + 0.1, b], dtype=dtype))
            mode = distribution.mode()
            alpha, beta = (mpmath.mpf(c.item()) + 1 for c in distribution._excess)
            gamma, delta = (mpmath.mpf(c.item()) + 1 for c in other._excess)
            with mpmath.workdps(60):
                entropy, divergence = beta_forms(alpha, beta, gamma, delta)
                p = (alpha - 1) / (alpha + beta - 2)
                peak = (alpha - 1) * mpmath.log(p) + (beta - 1) * mpmath.log(1 - p)
                peak -= log_beta(alpha, beta)
            assert distribution.entropy().item() == pytest.approx(float(entropy), abs=30 * near)
            assert distribution.kl(other).item() == pytest.approx(
                float(divergence), abs=30 * near, rel=1e-3
            )
            if peak < 15:  # above it float32 has no narrower cell
                found = distribution.log_prob(mode).item()
                assert found == pytest.approx(float(peak), abs=100 * near)


def log_beta(alpha, beta):
    return mpmath.loggamma(alpha) + mpmath.loggamma(beta) - mpmath.loggamma(alpha + beta)


def beta_forms(alpha, beta, gamma, delta):
    """The entropy of Beta(alpha, beta), and its divergence to Beta(gamma, delta)."""
    psi = mpmath.digamma
    entropy = log_beta(alpha, beta) - (alpha - 1) * psi(alpha) - (beta - 1) * psi(beta)
    entropy += (alpha + beta - 2) * psi(alpha + beta)
    divergence = log_beta(gamma, delta) - log_beta(alpha, beta)
    divergence += (alpha - gamma) * psi(alpha) + (beta - delta) * psi(beta)
    divergence += (gamma - alpha + delta - beta) * psi(alpha + beta)
    return entropy, divergence


def test_a_beta_on_its_bounds_is_finite_and_smooth():
    family = build("beta", spaces.Box(-3, 7, ()))
    for edge in (-3.0, 7.0):
        for size in (0.0, 5.0, 1e3, 1e8, 1e30):
            logits = torch.tensor([size, 1.0], requires_grad=True)
            log_prob = family(logits).log_prob(torch.tensor(edge))
            log_prob.backward()
            assert log_prob.isfinite()
            assert log_prob < 20
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("categorical", spaces.Discrete(4)),
        ("multi_categorical", spaces.MultiDiscrete([2, 2])),
        ("bernoulli", spaces.MultiBinary(4)),
    ],
)
def test_what_is_masked_is_never_drawn_whatever_the_logits(name, space, dtype):
    family = build(name, space)
    logits = extreme_logits(family, dtype, 3000)
    logits[5:500] = logits[5:500].abs() * torch.tensor(
        [1, -1, 1, -1]
    )  # what is masked is the largest
    logits[500, 1] = logits[500, 3] = -math.inf
    legal = torch.tensor([False, True, False, True])
    for temperature in (1.0, 0.01, 50.0):
        distribution: Any = family(logits, legal, temperature)
        for action in (distribution.sample(), distribution.mode()):
            if name == "categorical":
                assert set(action.tolist()) <= {1, 3}
            elif name == "multi_categorical":
                assert (action == 1).all()
            else:
                assert (action[:, [0, 2]] == 0).all()
            assert distribution.log_prob(action).isfinite().all()
            assert (distribution.log_prob(action) <= 1e-6).all()
        assert distribution.entropy().isfinite().all()
    if name == "categorical":  # among what is legal, the differences are exact
        expected = logits[:500, [1, 3]].double().log_softmax(-1)
        shown = torch.where(expected < -1e30, -1e30, expected)
        ours = family(logits[:500], legal).log_probs[:, [1, 3]].double().clamp_min(-1e30)
        torch.testing.assert_close(ours, shown, rtol=1e-4, atol=1e-5)
