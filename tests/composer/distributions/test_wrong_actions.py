"""What no distribution can be made of, and what is no action of one, is refused in words."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.distributions.base import DISTRIBUTIONS, ActionDistribution
from composer.distributions.rules import build_distributions
from composer.spaces.tree import flatten_space

UNEVEN = spaces.Box(np.array([-3.0, 0.1]), np.array([7.0, 0.2]), dtype=np.float64)
LINE = spaces.Box(-1, 1, (2,))
PAIRS = spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]))
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
FAMILIES = [
    ("categorical", spaces.Discrete(4)),
    ("multi_categorical", PAIRS),
    ("bernoulli", spaces.MultiBinary([2, 2])),
    ("gaussian", spaces.Box(-np.inf, np.inf, (2, 2))),
    ("squashed_gaussian", UNEVEN),
    ("beta", UNEVEN),
]


def build(name, space) -> ActionDistribution:
    leaf = flatten_space(space, "action").leaves["action"]
    return DISTRIBUTIONS.get(name)(leaf)


def random_logits(family, leading):
    generator = torch.Generator().manual_seed(0)
    return torch.randn((*leading, *family.logits_shape), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["squashed_gaussian", "beta"])
def test_an_action_outside_of_its_bounds_is_refused_but_not_rounding(name):
    family = build(name, UNEVEN)  # -3 to 7, and 0.1 to 0.2
    distribution = family(torch.zeros(6, 4))
    for dtype in DTYPES:
        action = torch.tensor(np.stack([UNEVEN.low, UNEVEN.high] * 3)).to(dtype)
        assert distribution.log_prob(action).isfinite().all()
    clip = "clip it to the bounds: action.clamp(low, high)"
    look = "look for NaN and infinity where the action is from"
    for value, shown, way_out in (
        (0.21, "0.21", clip),
        (0.2001, "0.2001", clip),
        (math.nan, "nan", look),
        (math.inf, "inf", look),
    ):
        action = torch.tensor(np.stack([UNEVEN.low, UNEVEN.high] * 3))
        action[4, 1] = value
        message = f"action 'action' is {shown} at index (4, 1), expected 0.1 to 0.2; {way_out}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            distribution.log_prob(action)
        if way_out == clip:
            low, high = torch.tensor(UNEVEN.low), torch.tensor(UNEVEN.high)
            assert distribution.log_prob(action.clamp(low, high)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(-2, 2), (-1, 1), (0, 1), (-3, 7), (5, 9)])
@pytest.mark.parametrize("name", ["squashed_gaussian", "beta"])
def test_what_rounding_takes_beyond_a_bound_is_on_the_bound(name, low, high, dtype):
    distribution = build(name, spaces.Box(low, high, ()))(torch.zeros(2, dtype=dtype))
    eps = torch.finfo(torch.float32).eps
    for bound, outwards in ((low, -1), (high, 1)):
        on_it = torch.tensor(float(bound), dtype=dtype)
        beyond = torch.nextafter(on_it, torch.tensor(outwards * math.inf, dtype=dtype))
        assert distribution.log_prob(beyond) == distribution.log_prob(on_it)
        further = on_it + outwards * 16 * eps * max(abs(low), abs(high))
        with pytest.raises(ValueError, match=re.escape(f"expected {low} to {high}; clip it")):
            distribution.log_prob(further)


AS_SAMPLED = "log_prob takes actions as sample() gives them"
OF_ENVIRONMENT = "policy.from_environment(action) makes it of an environment's action"


@pytest.mark.parametrize(
    ("space", "action", "way_out"),
    [
        (spaces.Discrete(3), 3, AS_SAMPLED),
        (spaces.Discrete(3, start=2), 4, OF_ENVIRONMENT),
        (spaces.Discrete(3, start=2), 5, AS_SAMPLED),
        (spaces.Discrete(3, start=2), 2.5, AS_SAMPLED),
        (spaces.MultiDiscrete([2, 3], start=[1, 2]), [2, 4], OF_ENVIRONMENT),
        (spaces.MultiDiscrete([2, 3], start=[1, 2]), [0, 4], AS_SAMPLED),
        (spaces.MultiBinary(2), [2, 0], AS_SAMPLED),
        (spaces.Discrete(3, start=2), math.nan, "look for NaN and infinity where the action is from"),
    ],
)  # fmt: skip
def test_from_environment_is_advised_only_where_it_helps(space, action, way_out):
    policy: Any = composer.compose(
        {"version": 1, "policy": {"template": {}}}, observation_space=LINE, action_space=space
    ).policy
    distribution, taken = policy.distribution(torch.zeros(2)), torch.tensor(action)
    with pytest.raises(ValueError, match=f"; {re.escape(way_out)}$"):
        distribution.log_prob(taken)
    if way_out == OF_ENVIRONMENT:
        assert distribution.log_prob(policy.from_environment(taken)).isfinite()


def test_a_dict_for_one_action_is_refused():
    message = "log_prob takes the tensor of one action, got a dict of 'action'; give the value of this action"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build("beta", LINE)(torch.zeros(4)).log_prob({"action": torch.zeros(2)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "space", "action", "message"),
    [
        ("categorical", spaces.Discrete(4), 4, "is 4, expected an integer from 0 to 3;"),
        ("categorical", spaces.Discrete(4), -1, "is -1, expected an integer from 0 to 3;"),
        (
            "multi_categorical",
            PAIRS,
            [[1, 2], [4, 1]],
            "is 4 at index (1, 0), expected an integer from 0 to 3;",
        ),
        (
            "multi_categorical",
            PAIRS,
            [[2, 2], [3, 1]],
            "is 2 at index (0, 0), expected an integer from 0 to 1;",
        ),
        ("categorical", spaces.Discrete(4), 1.5, "is 1.5, expected an integer from 0 to 3;"),
        ("categorical", spaces.Discrete(4), -0.5, "is -0.5, expected an integer from 0 to 3;"),
        ("categorical", spaces.Discrete(4), math.nan, "is nan, expected an integer from 0 to 3;"),
        ("categorical", spaces.Discrete(4), math.inf, "is inf, expected an integer from 0 to 3;"),
        (
            "multi_categorical",
            PAIRS,
            [[1, 2], [0.5, 1]],
            "is 0.5 at index (1, 0), expected an integer from 0 to 3;",
        ),
        ("bernoulli", spaces.MultiBinary(2), [0.5, 1], "is 0.5 at index (0,), expected 0 or 1;"),
        (
            "bernoulli",
            spaces.MultiBinary(2),
            [math.nan, 1],
            "is nan at index (0,), expected 0 or 1;",
        ),
        ("gaussian", LINE, [0.5, math.nan], "is nan at index (1,), expected a finite number;"),
        ("gaussian", LINE, [-math.inf, 1], "is -inf at index (0,), expected a finite number;"),
        ("beta", LINE, [0.5, math.nan], "is nan at index (1,), expected -1 to 1;"),
        ("squashed_gaussian", LINE, [2, 0], "is 2 at index (0,), expected -1 to 1;"),
        ("bernoulli", spaces.MultiBinary(2), [1, 2], "is 2 at index (1,), expected 0 or 1;"),
    ],
)
def test_an_action_that_is_no_choice_is_refused(name, space, action, message):
    family = build(name, space)
    distribution = family(torch.zeros(family.logits_shape))
    with pytest.raises(ValueError, match=f"^action 'action' {re.escape(message)}"):
        distribution.log_prob(torch.tensor(action))


@pytest.mark.parametrize(("name", "space"), [("categorical", spaces.Discrete(4)), ("beta", LINE)])
def test_an_action_of_complex_numbers_is_refused(name, space):
    family = build(name, space)
    action = torch.zeros(space.shape, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"real numbers, got torch\.complex64$"):
        family(torch.zeros(family.logits_shape)).log_prob(action)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float16, torch.float64], ids=str)
def test_a_whole_number_of_any_dtype_is_a_choice(dtype):
    distribution = build("categorical", spaces.Discrete(4))(torch.zeros(4))
    assert distribution.log_prob(torch.tensor(3, dtype=dtype)).item() == pytest.approx(-math.log(4))


def test_a_mask_of_another_batch_is_refused_in_words():
    family = build("categorical", spaces.Discrete(3))
    for shape, needed in (((2, 3), (5, 3)), ((5, 3), (3,)), ((1, 5, 3), (5, 3))):
        message = f"the mask of action 'action' has the shape {shape}, its logits have {needed}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            family(torch.zeros(needed), torch.ones(shape))
    with pytest.raises(
        ValueError, match=r"^the mask of action 'action' is nan at index \(1,\), expected 0 or 1$"
    ):
        family(torch.zeros(3), torch.tensor([1, math.nan, 0]))
    for shape in ((3,), (1, 3), (5, 3)):
        assert family(torch.zeros(5, 3), torch.ones(shape)).entropy().shape == (5,)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(("name", "space"), FAMILIES)
def test_logits_that_are_no_numbers_are_refused(name, space, wrong):
    families = build_distributions(
        flatten_space(space, "action"), [{"action": "action", "distribution": name}]
    )
    logits = random_logits(families["action"], (5, 2))
    if families["action"].allows_minus_infinity:
        logits[3, 1, 0] = -math.inf  # a choice that is never taken
        families({"action": logits})
    logits[3, 1, 0] = wrong
    message = (
        "the logits of action 'action' are NaN or infinite at index (3, 1, 0); "
        "look for NaN in the observations, the state and the weights"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        families({"action": logits})


@pytest.mark.parametrize(("name", "space"), [f for f in FAMILIES if f[0] != "bernoulli"])
def test_minus_infinity_is_no_mean_and_leaves_a_choice(name, space):
    families = build_distributions(
        flatten_space(space, "action"), [{"action": "action", "distribution": name}]
    )
    logits = random_logits(families["action"], (2,))
    logits[1, : 2 if name == "multi_categorical" else None] = -math.inf  # all of the first choice
    with pytest.raises(ValueError, match=r"^the logits of action 'action' are NaN or infinite at"):
        families({"action": logits})


def test_minus_infinity_has_no_probability_and_a_finite_entropy():
    logits = torch.tensor([0.0, -math.inf, 0.0, -math.inf], requires_grad=True)
    distribution = build("categorical", spaces.Discrete(4))(logits)
    assert distribution.entropy().item() == pytest.approx(math.log(2))
    assert distribution.log_prob(torch.tensor(1)).isfinite()
    distribution.entropy().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_densities_are_mapped_and_differentiated_by_torch_func():
    """Nothing looks at values where torch.func is at work."""
    for name, space in FAMILIES:
        family = build(name, space)
        logits = random_logits(family, (4,))
        actions = family(logits).sample()

        def log_prob(row, action, family=family):
            return family(row).log_prob(action)

        expected = family(logits).log_prob(actions)
        torch.testing.assert_close(torch.func.vmap(log_prob)(logits, actions), expected)
        gradients = torch.func.vmap(torch.func.grad(log_prob))(logits, actions)
        assert gradients.isfinite().all()


def test_actions_of_another_batch_are_refused():
    distribution = build("categorical", spaces.Discrete(4))(torch.zeros(6, 4))
    assert distribution.log_prob(torch.zeros(5, 1, dtype=torch.int64)).shape == (5, 6)
    message = "actions of the shape (4,) are no batch for this one, (6,)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        distribution.log_prob(torch.zeros(4, dtype=torch.int64))


ROBOT = spaces.Dict(grip=spaces.Discrete(3), move=spaces.Box(-1, 1, (2,)))


def robot(space=ROBOT):
    families = build_distributions(flatten_space(space, "action"))
    return families({key: torch.zeros(2, *shape) for key, shape in families.logits_shapes.items()})


def test_an_action_that_the_space_does_not_have_is_refused():
    joint = robot()
    message = "log_prob got 'grp', which is no action; did you mean 'grip'?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        joint.log_prob({**joint.sample(), "grp": torch.zeros(2)})


@pytest.mark.parametrize(("name", "space"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_a_divergence_is_to_the_same_family(name, space):
    family = build(name, space)
    distribution = family(torch.zeros(6, *family.logits_shape))
    message = f"kl of a {type(distribution).__name__} is to another one, got a int"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        distribution.kl(3)


def test_a_joint_divergence_is_to_the_same_actions():
    other = robot(spaces.Dict(grip=spaces.Discrete(3)))
    with pytest.raises(ValueError, match="kl of 'grip', 'move' cannot be to 'grip'"):
        robot().kl(other)


def test_a_range_of_log_std_is_from_low_to_high():
    leaf = flatten_space(spaces.Box(-1, 1, (1,)), "action").leaves["action"]
    message = "'log_std_range' must be (low, high), got (1.0, -1.0)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DISTRIBUTIONS.get("gaussian")(leaf, log_std_range=(1.0, -1.0))
