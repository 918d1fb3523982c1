"""Whatever the action space and the distribution: act returns what the space contains, and its log_prob is finite."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from gymnasium import spaces
from hypothesis import given, settings

import composer
from composer.distributions import is_bounded
from composer.spaces import flatten_space

SAMPLES = 1000
SEEN = spaces.Box(-1, 1, (3,))
FLOATS = [np.float16, np.float32, np.float64, np.longdouble]
INTEGERS = [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64]
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2), (1, 2, 1)])


@st.composite
def float_boxes(draw) -> spaces.Box:
    """Bounds of each element: finite, on one side, on none; far from zero, and as close as the dtype can tell."""
    dtype, shape = draw(st.sampled_from(FLOATS)), draw(SHAPES)
    kinds = ["both"] if draw(st.booleans()) else ["both", "low", "high", "none"]
    low, high = np.empty(shape, dtype), np.empty(shape, dtype)
    for index in np.ndindex(shape):
        start = dtype(draw(st.floats(-1e4, 1e4, width=16)))
        width = draw(st.sampled_from([0.0, 1e-6, 0.1, 1.0, 3.0, 1e4]))
        kind = draw(st.sampled_from(kinds))
        low[index] = start if kind in ("both", "low") else -np.inf
        high[index] = start + dtype(width) if kind in ("both", "high") else np.inf
    return spaces.Box(low, high, shape, dtype)


@st.composite
def integer_boxes(draw) -> spaces.Box:
    dtype, shape = draw(st.sampled_from(INTEGERS)), draw(SHAPES)
    limits = np.iinfo(dtype)
    numbers = st.integers(limits.min, limits.max) | st.integers(max(limits.min, -3), 3)
    low, high = np.empty(shape, dtype), np.empty(shape, dtype)
    for index in np.ndindex(shape):
        low[index], high[index] = sorted(draw(st.tuples(numbers, numbers)))
    return spaces.Box(low, high, shape, dtype)


@st.composite
def multi_discretes(draw) -> spaces.MultiDiscrete:
    shape = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    size = int(np.prod(shape))
    counts = draw(st.lists(st.integers(1, 5), min_size=size, max_size=size))
    starts = draw(st.lists(st.integers(-9, 9), min_size=size, max_size=size))
    dtype = draw(st.sampled_from([np.int8, np.int32, np.int64]))
    return spaces.MultiDiscrete(
        np.array(counts).reshape(shape), dtype, start=np.array(starts, dtype).reshape(shape)
    )


leaf_spaces = st.one_of(
    float_boxes(),
    integer_boxes(),
    multi_discretes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-9, 9)),
    st.builds(spaces.MultiBinary, st.sampled_from([1, 4, [2, 3], [1, 2, 2]])),
)  # fmt: skip
action_spaces = st.recursive(
    leaf_spaces,
    lambda inner: st.one_of(
        st.builds(spaces.Dict, st.dictionaries(st.sampled_from("abc"), inner, min_size=1)),
        st.builds(spaces.Tuple, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=5,
)


def families(leaf) -> list[dict[str, Any]]:
    """Every distribution that an action can have, and its settings."""
    if leaf.kind != "box":
        return [{}]
    names = ["gaussian", "squashed_gaussian", "beta"] if is_bounded(leaf) else ["gaussian"]
    learned = [{"distribution": name, "log_std": "learned"} for name in names if name != "beta"]
    return [{"distribution": name} for name in names] + learned


@st.composite
def spaces_and_rules(draw):
    space = draw(action_spaces)
    rules = []
    for key, leaf in flatten_space(space, "action").leaves.items():
        chosen = draw(st.sampled_from(families(leaf)))
        rules += [{"action": key, **chosen}] if chosen else []
    return space, rules


def compose(space, rules):
    spec: dict[str, Any] = {
        "version": 1,
        "distributions": rules,
        "policy": {
            "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [8]}},
            "heads": {"in": "latent", "init_scale": 3.0},
        },
    }
    return composer.compose(spec, observation_space=SEEN, action_space=space, seed=0)


def element(action, index):
    """One action of a batch of them."""
    if isinstance(action, dict):
        return {key: element(value, index) for key, value in action.items()}
    if isinstance(action, tuple):
        return tuple(element(value, index) for value in action)
    return action[index, ...]  # an array also where it has no axes


def as_arrays(action):
    if isinstance(action, dict):
        return {key: as_arrays(value) for key, value in action.items()}
    if isinstance(action, tuple):
        return tuple(as_arrays(value) for value in action)
    return action.numpy()


@settings(max_examples=60)
@given(spaces_and_rules())
def test_act_is_legal_and_has_a_finite_log_prob_in_every_space(drawn):
    space, rules = drawn
    policy = compose(space, rules).policy
    observations = np.random.default_rng(0).uniform(-1, 1, (SAMPLES, 3)).astype(np.float32) * 5
    generator = torch.Generator().manual_seed(0)
    for deterministic in (False, True):
        actions = policy.act(observations, deterministic=deterministic, generator=generator)
        for index in range(SAMPLES if not deterministic else 20):
            assert space.contains(element(actions, index)), element(actions, index)
        log_prob = policy.distribution(observations).log_prob(policy.from_environment(actions))
        assert log_prob.shape == (SAMPLES,)
        assert log_prob.isfinite().all()
        alone = policy.act(observations[0], deterministic=deterministic, generator=generator)
        assert space.contains(alone)
        of_one = policy.distribution(observations[0]).log_prob(policy.from_environment(alone))
        assert of_one.shape == ()
        assert of_one.isfinite()
    if all(leaf.space.dtype != np.longdouble for leaf in policy.action_tree.leaves.values()):
        tensors = as_arrays(policy.act(torch.from_numpy(observations[:50]), generator=generator))
        assert all(space.contains(element(tensors, index)) for index in range(50))
