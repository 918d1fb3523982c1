"""Each family: densities on the action's own scale, masks, temperature, gradients."""

import copy
import math
import re
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as reference
from torch.nn import functional

from composer.distributions.base import DISTRIBUTIONS, ActionDistribution
from composer.distributions.continuous import GaussianDistribution
from composer.spaces.tree import flatten_space

LEADING = [(), (5, 2), (0,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
WIDE = spaces.Box(-3, 7, (2,), np.float64)
UNEVEN = spaces.Box(np.array([-3.0, 0.1]), np.array([7.0, 0.2]), dtype=np.float64)
FREE = spaces.Box(-np.inf, np.inf, (2, 2))
PAIRS = spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]))
FAMILIES = [
    ("categorical", spaces.Discrete(4)),
    ("multi_categorical", PAIRS),
    ("multi_categorical", spaces.MultiDiscrete([3, 3])),
    ("bernoulli", spaces.MultiBinary([2, 2])),
    ("gaussian", FREE),
    ("squashed_gaussian", WIDE),
    ("squashed_gaussian", UNEVEN),
    ("squashed_gaussian", spaces.Box(-1, 1, ())),
    ("beta", WIDE),
    ("beta", UNEVEN),
    ("gsde", FREE),
    ("gsde", UNEVEN),
    ("gsde", spaces.Box(-1, 1, ())),
]
CHOICES = FAMILIES[:4]


def build(name, space, **settings) -> ActionDistribution:
    leaf = flatten_space(space, "action").leaves["action"]
    return DISTRIBUTIONS.get(name)(leaf, **settings)


def random_logits(family, leading=(), dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (*leading, *family.logits_shape)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize(("name", "space"), FAMILIES)
def test_leading_axes_are_kept_for_every_dtype(name, space, leading, dtype):
    family = build(name, space)
    distribution: Any = family(random_logits(family, leading, dtype))
    for action in (distribution.sample(), distribution.mode()):
        assert action.shape == leading + space.shape
        assert not action.requires_grad
        for value in (
            distribution.log_prob(action),
            distribution.entropy(),
            distribution.kl(distribution),
        ):
            assert value.shape == leading
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert value.isfinite().all()


@pytest.mark.parametrize(("name", "space"), FAMILIES)
def test_samples_follow_the_generator_and_move_no_other(name, space):
    family = build(name, space)
    distribution = family(random_logits(family, (50,)))
    before = torch.get_rng_state()
    first, second, other = (
        distribution.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert first.equal(second)
    assert not first.equal(other)


def torch_reference(name, family, logits) -> Any:
    if name == "categorical":
        return reference.Categorical(logits=logits)
    if name == "bernoulli":
        bits = reference.Bernoulli(logits=logits.unflatten(-1, family.action_shape))
        return reference.Independent(bits, 2)
    if name == "gaussian":
        mean, log_std = (part.unflatten(-1, family.action_shape) for part in logits.chunk(2, -1))
        return reference.Independent(reference.Normal(mean, log_std.clamp(-20, 2).exp()), 2)
    a, b = (1 + functional.softplus(part) for part in logits.chunk(2, -1))
    return reference.Beta(a, b)


@pytest.mark.parametrize(
    ("name", "space"), [f for f in FAMILIES if f[0] in ("categorical", "bernoulli", "gaussian")]
)
def test_closed_forms_equal_those_of_torch(name, space):
    family = build(name, space)
    logits, others = (random_logits(family, (7,), seed=seed, scale=3) for seed in (0, 1))
    ours: Any = family(logits)
    other: Any = family(others)
    theirs, their_other = (torch_reference(name, family, x) for x in (logits, others))
    action = ours.sample()
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action.to(logits.dtype)))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.kl(other), reference.kl_divergence(theirs, their_other))


def test_beta_equals_that_of_torch_on_the_actions_scale():
    family = build("beta", WIDE)  # ten wide in both dimensions
    logits, others = (random_logits(family, (7,), seed=seed, scale=3) for seed in (0, 1))
    ours, other = family(logits), family(others)
    theirs, their_other = (torch_reference("beta", family, x) for x in (logits, others))
    action = ours.sample()
    log_prob = theirs.log_prob((action + 3) / 10).sum(-1) - 2 * math.log(10)
    torch.testing.assert_close(ours.log_prob(action), log_prob)
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1) + 2 * math.log(10))
    divergence = reference.kl_divergence(theirs, their_other).sum(-1)
    torch.testing.assert_close(ours.kl(other), divergence)


def test_multi_categorical_is_independent_categoricals():
    family = build("multi_categorical", PAIRS)
    logits, others = (random_logits(family, (6,), seed=seed) for seed in (0, 1))
    ours, other = family(logits), family(others)
    theirs = [reference.Categorical(logits=part) for part in logits.split([2, 3, 4, 2], -1)]
    their_other = [reference.Categorical(logits=part) for part in others.split([2, 3, 4, 2], -1)]
    action = ours.sample()
    log_prob = sum(d.log_prob(a) for d, a in zip(theirs, action.flatten(1).unbind(-1)))
    torch.testing.assert_close(ours.log_prob(action), log_prob)
    torch.testing.assert_close(ours.entropy(), sum(d.entropy() for d in theirs))
    divergence = sum(map(reference.kl_divergence, theirs, their_other))
    torch.testing.assert_close(ours.kl(other), divergence)


def grid(low, high, points=200_001):
    """Midpoints and widths of cells, the finer the closer to the ends: there a squashed density may pile up."""
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    edges = low + (high - low) * t**4 / (t**4 + (1 - t) ** 4)
    return (edges[1:] + edges[:-1]) / 2, edges.diff()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["squashed_gaussian", "beta", "gaussian"])
def test_a_density_integrates_to_one_and_has_its_entropy_on_the_actions_own_scale(
    name, temperature
):
    family = build(name, spaces.Box(-3, 7, (), np.float64))
    x, width = grid(-3, 7) if name != "gaussian" else grid(-60, 60)
    for seed in range(3):
        distribution: Any = family(random_logits(family, seed=seed), temperature=temperature)
        log_density = distribution.log_prob(x)
        density = log_density.exp()
        assert (density * width).sum().item() == pytest.approx(1, abs=1e-4)
        entropy = -(density * log_density * width).sum()
        assert distribution.entropy().item() == pytest.approx(entropy.item(), abs=2e-4)


@pytest.mark.parametrize(("name", "space"), CHOICES)
def test_probabilities_of_all_actions_sum_to_one(name, space):
    family = build(name, space)
    distribution: Any = family(random_logits(family))
    sizes = {"categorical": [4], "bernoulli": [2] * 4}.get(name)
    sizes = sizes or [int(n) for n in space.nvec.flat]
    actions = torch.tensor(list(product(*map(range, sizes)))).reshape(-1, *space.shape)
    log_probs = distribution.log_prob(actions)
    probs = log_probs.exp()
    assert probs.sum().item() == pytest.approx(1)
    assert distribution.entropy().item() == pytest.approx(-(probs * log_probs).sum().item())
    assert distribution.log_prob(distribution.mode()).item() == pytest.approx(log_probs.max())


@pytest.mark.parametrize(("name", "space"), FAMILIES)
def test_samples_follow_their_density(name, space):
    """The mean surprise of samples is the entropy, within five standard errors."""
    family = build(name, space)
    distribution: Any = family(random_logits(family).expand(40_000, -1))
    surprise = -distribution.log_prob(distribution.sample(torch.Generator().manual_seed(0)))
    error = surprise.std() / 200 + 1e-6
    assert (surprise.mean() - distribution.entropy()[0]).abs() < 5 * error


@pytest.mark.parametrize("std", [1e-6, 0.01, 0.3, 1.0, math.exp(2)])
@pytest.mark.parametrize("mean", [-6.0, -0.5, 0.0, 2.0, 9.0])
def test_the_entropy_of_a_squashed_gaussian_is_accurate(mean, std):
    family = build("squashed_gaussian", spaces.Box(-1, 1, (), np.float64))
    distribution = family(torch.tensor([mean, math.log(std)], dtype=torch.float64))
    z, width = grid(-9, 9)
    u = mean + std * z
    slope = 2 * (math.log(2) - u.abs() - torch.log1p(torch.exp(-2 * u.abs())))
    expected = (torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * slope * width).sum()
    expected += 0.5 * math.log(2 * math.pi * math.e) + math.log(std)
    assert distribution.entropy().item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["squashed_gaussian", "beta"])
def test_log_prob_is_finite_on_the_bounds_with_finite_gradients(name, dtype):
    family = build(name, UNEVEN)
    for action in (UNEVEN.low, UNEVEN.high):
        logits = random_logits(family, dtype=dtype).requires_grad_()
        log_prob = family(logits).log_prob(torch.tensor(action))
        log_prob.backward()
        assert log_prob.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["squashed_gaussian", "beta"])
def test_samples_never_leave_the_bounds(name):
    generator = np.random.default_rng(0)
    low = generator.uniform(-10, 10, 300).astype(np.float32)
    space = spaces.Box(low, low + generator.uniform(0, 1, 300).astype(np.float32))
    family = build(name, space)
    distribution = family(random_logits(family, (40,), torch.float32, scale=20))
    for action in (distribution.sample(), distribution.rsample(), distribution.mode()):
        assert (action >= torch.tensor(space.low)).all()
        assert (action <= torch.tensor(space.high)).all()


@pytest.mark.parametrize("name", ["gaussian", "squashed_gaussian", "beta"])
def test_gradients_flow_through_a_reparametrised_sample(name):
    family = build(name, spaces.Box(-3, 7, (), np.float64))

    def loss(logits):
        distribution: Any = family(logits)
        action = distribution.rsample(torch.Generator().manual_seed(0))
        return (action + distribution.log_prob(action) + distribution.entropy()).sum()

    logits = random_logits(family, (3,)).requires_grad_()
    if (
        name == "beta"
    ):  # gamma samples are drawn by rejection: their own gradient is torch's business
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        assert gradient.isfinite().all()
        assert (gradient != 0).all()
    else:
        assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize(("name", "space"), FAMILIES)
def test_gradients_of_the_closed_forms(name, space):
    # Else gsde keeps gradients from its features.
    family = build(name, space, **({"learn_features": True} if name == "gsde" else {}))
    other: Any = family(random_logits(family, (3,), seed=1))
    action = other.sample()

    def values(logits):
        distribution: Any = family(logits)
        return distribution.log_prob(action), distribution.entropy(), distribution.kl(other)

    assert torch.autograd.gradcheck(values, random_logits(family, (3,)).requires_grad_())


def test_the_log_prob_of_a_reparametrised_sample_is_that_of_its_own_u():
    family = build("squashed_gaussian", spaces.Box(-1, 1, ()))
    distribution = family(torch.tensor([20.0, 0.0]))
    action = distribution.rsample(torch.Generator().manual_seed(0))
    assert action == 1.0
    assert distribution.log_prob(action) > 20  # the density near the bound, where u is about 20
    half_cell = 2.0**-25  # all that float32 can tell: it is above 1 - 2**-25
    assert distribution.log_prob(action.clone()).item() == pytest.approx(-math.log(half_cell))
    with pytest.raises(ValueError, match=r"^ChoiceDistribution has no reparametrised sample; use"):
        build("categorical", spaces.Discrete(3))(torch.zeros(3)).rsample()


@pytest.mark.parametrize(("name", "space"), FAMILIES)
def test_a_temperature_below_one_sharpens_and_keeps_the_mode(name, space):
    family = build(name, space)
    logits = random_logits(family, scale=0.5)
    cold, plain, hot = (family(logits, temperature=t) for t in (0.3, 1.0, 3.0))
    torch.testing.assert_close(cold.mode(), plain.mode())
    torch.testing.assert_close(hot.mode(), plain.mode())
    if name == "squashed_gaussian":  # before squashing: a wide normal piles up at the bounds
        cold, plain, hot = cold.base, plain.base, hot.base
    assert cold.entropy() < plain.entropy() < hot.entropy()


def test_a_temperature_multiplies_the_standard_deviation():
    family = build("gaussian", FREE)
    logits = random_logits(family)
    torch.testing.assert_close(family(logits, temperature=0.5).stddev, family(logits).stddev / 2)


@pytest.mark.parametrize("name", ["categorical", "gaussian", "beta", "deterministic"])
@pytest.mark.parametrize(
    "temperature", [0, -1.0, math.nan, math.inf, torch.tensor(math.nan)], ids=str
)
def test_a_temperature_is_positive_and_finite(name, temperature):
    family = build(name, spaces.Discrete(4) if name == "categorical" else spaces.Box(-1, 1, (2,)))
    message = f"temperature must be positive and finite, got {temperature}; a deterministic policy takes mode()"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        family(random_logits(family), temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_a_masked_choice_has_no_probability(dtype):
    family = build("categorical", spaces.Discrete(4))
    logits = torch.tensor([5.0, 1.0, 0.0, 9.0], requires_grad=True)
    distribution = family(logits.expand(2000, 4), torch.tensor([0, 1, 1, 0]).to(dtype))
    assert set(distribution.sample().tolist()) == {1, 2}
    assert set(distribution.mode().tolist()) == {1}
    expected = reference.Categorical(logits=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(distribution.entropy()[0], expected.entropy())
    actions = torch.arange(4).unsqueeze(-1)  # other leading axes than the distribution's
    probs = distribution.log_prob(actions).exp()[:, 0]
    torch.testing.assert_close(probs[1:3], expected.probs)
    assert probs[0] == probs[3] == 0
    assert distribution.log_prob(actions).isfinite().all()
    total = distribution.entropy().sum() + distribution.log_prob(torch.tensor(1)).sum()
    total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0] == 0


def test_masks_of_several_choices_are_concatenated():
    family = build("multi_categorical", PAIRS)
    mask = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1])
    distribution = family(random_logits(family, (500,)), mask)
    samples = distribution.sample()
    assert [set(column.tolist()) for column in samples.flatten(1).unbind(-1)] == [
        {0},
        {1, 2},
        {3},
        {1},
    ]
    assert distribution.log_prob(samples).isfinite().all()
    assert distribution.kl(distribution).abs().max() == 0


def test_a_masked_bit_is_zero():
    family = build("bernoulli", spaces.MultiBinary(3))
    logits = torch.tensor([9.0, 9.0, 0.0], requires_grad=True)
    distribution = family(logits.expand(200, 3), torch.tensor([False, True, False]))
    assert distribution.sample()[:, [0, 2]].max() == 0
    assert distribution.mode()[0].tolist() == [0, 1, 0]
    entropy = distribution.entropy()
    torch.testing.assert_close(
        entropy[0], reference.Bernoulli(logits=torch.tensor(9.0)).entropy(), rtol=1e-3, atol=1e-6
    )
    entropy.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert distribution.log_prob(torch.tensor([1.0, 1.0, 0.0])).max() < -1e30


def test_a_row_without_a_legal_choice_is_an_error_on_the_host():
    family = build("categorical", spaces.Discrete(3))
    mask = torch.ones(4, 2, 3)
    mask[2, 1] = 0
    message = (
        "the mask of action 'action' leaves no legal choice at index (2, 1); "
        "each row needs a nonzero element"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        family(torch.zeros(4, 2, 3), mask)
    with pytest.raises(ValueError, match=re.escape("no legal choice at index (1, 0);")):
        build("multi_categorical", PAIRS)(
            torch.zeros(11), torch.tensor([1] * 5 + [0] * 4 + [1] * 2)
        )


@pytest.mark.parametrize(("name", "space"), CHOICES)
def test_choices_compile_and_a_row_without_a_legal_one_is_uniform(name, space):
    family = build(name, space)

    def values(logits, mask):
        distribution: Any = family(logits, mask)
        action = distribution.mode()
        distribution.sample()
        return action, distribution.log_prob(action), distribution.entropy()

    compiled = torch.compile(values, fullgraph=True, backend="eager")
    logits = random_logits(family, (5,))
    mask = torch.ones_like(logits, dtype=torch.bool)
    for ours, theirs in zip(values(logits, mask), compiled(logits, mask)):
        torch.testing.assert_close(ours, theirs)
    _, _, entropy = compiled(logits, ~mask)
    sizes = {"categorical": [4], "bernoulli": [1]}.get(name)  # a masked bit is 0: no choice at all
    sizes = sizes or [int(n) for n in space.nvec.flat]
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(math.prod(sizes))))


def test_a_mask_must_have_the_width_of_the_logits():
    family = build("categorical", spaces.Discrete(3))
    message = "the mask of action 'action' has width 4, its logits have 3"
    with pytest.raises(ValueError, match=f"^{message}$"):
        family(torch.zeros(3), torch.ones(4))
    message = "action 'action' is beta, which takes no mask; only choices have one"
    with pytest.raises(ValueError, match=f"^{message}$"):
        build("beta", WIDE)(torch.zeros(4), torch.ones(4))


def test_a_learned_log_std_is_a_parameter():
    family: Any = build("gaussian", FREE, log_std="learned", init_log_std=-1.0)
    assert family.logits_shape == (4,)
    assert family.log_std.shape == (2, 2)
    distribution = family(torch.zeros(5, 4))
    torch.testing.assert_close(distribution.stddev, torch.full((5, 2, 2), math.exp(-1)))
    assert distribution.entropy().shape == (5,)
    with torch.no_grad():
        family.log_std.fill_(5)
    assert family(torch.zeros(4)).stddev.max().item() == pytest.approx(math.exp(2))
    family.reset_parameters(torch.Generator())
    assert family.log_std.tolist() == [[-1, -1], [-1, -1]]


def test_a_log_std_from_the_logits_starts_at_init_log_std_and_is_clamped():
    family: Any = build("gaussian", FREE, init_log_std=-1.0, log_std_range=(-2.0, 0.5))
    logits = torch.tensor([0.0] * 4 + [0.0, -9.0, 9.0, 1.0])
    expected = torch.tensor([[-1.0, -2.0], [0.5, 0.0]])
    torch.testing.assert_close(family(logits).log_std, expected)
    message = "'init_log_std' must be within 'log_std_range' (-2.0, 0.5), got 1.0"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build("gaussian", FREE, init_log_std=1.0, log_std_range=(-2.0, 0.5))


def test_bounds_are_neither_cast_nor_lost():
    family: Any = build("squashed_gaussian", UNEVEN)
    moved = copy.deepcopy(family).to(torch.bfloat16).to("meta").to_empty(device="cpu")
    assert moved.low.equal(family.low)
    assert moved.high.tolist() == [7.0, 0.2]
    assert moved.state_dict() == {}


@pytest.mark.parametrize(
    ("name", "space", "wrong"),
    [
        ("categorical", spaces.Discrete(4), (6, 1)),
        ("bernoulli", spaces.MultiBinary(3), (6,)),
        ("gaussian", spaces.Box(-np.inf, np.inf, (1,)), (6,)),
        ("squashed_gaussian", spaces.Box(-1, 1, (1,)), (6,)),
        ("beta", spaces.Box(-1, 1, (3,)), (6, 1)),
    ],
)
def test_an_action_of_another_shape_is_not_broadcast(name, space, wrong):
    family = build(name, space)
    distribution = family(torch.zeros(6, *family.logits_shape))
    action = distribution.sample()
    assert distribution.log_prob(action[:1]).shape == (6,)
    message = f"an action of this distribution has the shape {tuple(action.shape)}, got {wrong}"
    with pytest.raises(ValueError, match=re.escape(message)):
        distribution.log_prob(torch.zeros(wrong))


def test_an_action_that_is_no_tensor_is_refused_with_a_way_out():
    family = build("categorical", spaces.Discrete(4, start=1))
    message = (
        "log_prob takes what sample() gives, a tensor, got a ndarray; "
        "policy.from_environment(action) makes it of an environment's action"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        family(torch.zeros(6, 4)).log_prob(np.ones(6, np.int64))


@pytest.mark.parametrize("space", [spaces.Box(-np.inf, np.inf, s) for s in [(), (3,), (2, 2)]])
@pytest.mark.parametrize("start", [-1.0, 0.5, 2.0, 3.0], ids=["in", "in", "at the bound", "out"])
def test_learned_deviations_count_for_the_whole_batch(space, start):
    family: Any = build("gaussian", space, log_std="learned")
    with torch.no_grad():
        family.log_std.fill_(start)
    logits = random_logits(family, (5,)).requires_grad_()
    ours = family(logits)
    log_std = family.log_std.double().clamp(-20.0, 2.0)
    mean = logits.reshape(5, *space.shape)
    theirs = reference.Normal(mean, log_std.exp().expand_as(mean))
    action = theirs.sample()
    other = family(logits.detach() + 0.3)
    shifted = reference.Normal(mean.detach() + 0.3, theirs.scale.detach())

    def sums(values):
        return values.reshape(5, -1).sum(-1)

    pairs = [
        (ours.log_prob(action), sums(theirs.log_prob(action))),
        (ours.entropy(), sums(theirs.entropy())),
        (ours.kl(other), sums(reference.kl_divergence(theirs, shifted))),
    ]
    for value, expected in pairs:
        assert value.shape == (5,)
        torch.testing.assert_close(value, expected)
    for values in (ours.log_std, ours.stddev):
        assert values.shape == mean.shape
    both = (logits, family.log_std)
    (value, expected), (entropy, _) = pairs[0], pairs[1]
    gradients = torch.autograd.grad((value - entropy).sum(), both, retain_graph=True)
    wanted = torch.autograd.grad((expected - pairs[1][1]).sum(), both)
    for gradient, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, right)


def test_normals_take_deviations_that_are_broadcast():
    mean, log_std = torch.zeros(4, 3), torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    broadcast, whole = (
        GaussianDistribution(mean, deviations, 1) for deviations in (log_std, log_std.expand(4, 3))
    )
    action = torch.ones(4, 3)
    torch.testing.assert_close(broadcast.log_prob(action), whole.log_prob(action))
    torch.testing.assert_close(broadcast.entropy(), whole.entropy())


@pytest.mark.parametrize("name", ["gaussian", "squashed_gaussian"])
def test_a_sample_has_no_gradient_and_the_numbers_of_rsample(name):
    family: Any = build(name, WIDE, log_std="learned")
    distribution = family(random_logits(family, (6,)).requires_grad_())
    drawn, with_gradient = (
        draw(torch.Generator().manual_seed(1))
        for draw in (distribution.sample, distribution.rsample)
    )
    assert not drawn.requires_grad
    assert with_gradient.requires_grad
    assert torch.equal(drawn, with_gradient)


def test_a_far_choice_and_a_far_number_have_finite_densities_and_gradients():
    for name, space, far in [
        ("categorical", spaces.Discrete(2), [[3e38, -3e38]]),
        ("gaussian", spaces.Box(-np.inf, np.inf, (1,)), [[3e37, -20.0]]),
    ]:
        family = build(name, space)
        logits = torch.tensor(far, requires_grad=True)
        action = torch.tensor([1]) if name == "categorical" else torch.zeros(1, 1)
        log_prob = family(logits).log_prob(action)
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        assert log_prob.isfinite().all()
        assert gradient.isfinite().all()
