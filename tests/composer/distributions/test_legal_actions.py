"""Whatever the action space and the distribution: act returns what the space contains, and its log_prob is finite."""

import copy
import pickle
import re
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings

import composer
from composer.distributions.base import is_bounded
from composer.distributions.discrete import NoLegalChoiceError
from composer.spaces.tree import flatten_space

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


def head_of(policy):
    """The layer whose bias the logits are, once its weights are zero."""
    (linear,) = (
        m for m in policy.modules() if isinstance(m, torch.nn.Linear) and m.out_features != 8
    )
    torch.nn.init.zeros_(linear.weight)
    return linear.bias


@pytest.mark.parametrize(
    ("name", "logits", "expected"),
    [
        # A tanh, or the mode of a beta, between the bounds -2 to 6 and 10 to 11.
        ("squashed_gaussian", [0.0, 0.5, 0.0, 0.0], [2.0, 10.5 + 0.5 * np.tanh(0.5)]),
        ("squashed_gaussian", [30.0, -30.0, 0.0, 0.0], [6.0, 10.0]),
        ("beta", [1.0, 1.0, 1.0, 1.0], [2.0, 10.5]),
        ("beta", [np.log(np.e**3 - 1), 0.0, np.log(np.e - 1), 40.0], [-2 + 8 * 0.75, 10 + np.log(2) / (40 + np.log(2))]),
        ("gaussian", [0.5, 12.0, 0.0, 0.0], [0.5, 11.0]),  # clipped: its numbers are the action's own
    ],
)  # fmt: skip
def test_an_action_is_rescaled_to_the_bounds_by_its_distribution(name, logits, expected):
    space = spaces.Box(np.array([-2, 10], np.float32), np.array([6, 11], np.float32))
    policy = compose(space, [{"action": "action", "distribution": name}]).policy
    with torch.no_grad():
        head_of(policy).copy_(torch.tensor(logits))
    action = policy.act(np.zeros(3, np.float32), deterministic=True)
    np.testing.assert_allclose(action, expected, rtol=1e-5)


def test_a_discrete_action_counts_from_the_start_of_its_space():
    policy = compose(spaces.Discrete(3, start=-7), []).policy
    with torch.no_grad():
        head_of(policy).copy_(torch.tensor([0.0, 0.0, 30.0]))
    action = policy.act(np.zeros(3, np.float32))
    assert action == -5
    assert policy.from_environment(action) == 2


def refuse(message, call, *arguments, **keywords):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(*arguments, **keywords)


def test_what_act_cannot_use_is_refused_in_words():
    policy = compose(spaces.Dict(move=spaces.Discrete(3), aim=spaces.Box(-1, 1, (2,))), []).policy
    seen = np.zeros((4, 3), np.float32)
    refuse(
        "the mask of action 'move' has the shape (5, 3), its logits have (4, 3)",
        policy.act, seen, mask={"move": np.ones((5, 3), bool)},
    )  # fmt: skip
    none_in_row_2 = np.ones((4, 3), bool)
    none_in_row_2[2] = False
    refuse(
        "the mask of action 'move' leaves no legal choice at index (2,); each row needs a nonzero element",
        policy.act, seen, mask={"move": none_in_row_2},
    )  # fmt: skip
    seen[1, 2] = np.nan
    refuse(
        "the logits of action 'move' are NaN or infinite at index (1, 0); "
        "look for NaN in the observations, the state and the weights; "
        "the observation 'observation' is nan at index (1, 2)",
        policy.act, seen,
    )  # fmt: skip
    refuse(
        "'move' is 3, outside of Discrete(3)", policy.from_environment, {"move": 3, "aim": [0, 0]}
    )


def test_a_model_without_weights_does_not_act():
    spec = "version: 1\npolicy:\n  template: {}\n"
    model = composer.compose(
        spec, observation_space=SEEN, action_space=spaces.Discrete(2), device="meta"
    )
    message = "this model has no weights yet; call model.materialize(device) first"
    seen = np.zeros(3, np.float32)
    refuse(message, model.policy.act, seen)
    copied = copy.deepcopy(model)
    copied.materialize("cpu").policy.act(seen)
    refuse(message, model, seen)
    model.materialize("cpu").policy.act(seen)


def test_a_state_that_does_not_fit_is_refused_in_words():
    spec = "version: 1\npolicy:\n  template: {memory: {block: gru, hidden_units: 4}}\n"
    policy = composer.compose(spec, observation_space=SEEN, action_space=spaces.Discrete(2)).policy
    seen = np.zeros((5, 3), np.float32)
    state = policy.initial_state(5)
    refuse(
        "the state 'memory/h' must have the shape (5, 1, 4), got (2, 1, 4)",
        policy.act, seen, policy.initial_state(2),
    )  # fmt: skip
    refuse(
        "the state is a dict of tensors, as policy(observations, state, resets) returns it, got a ndarray",
        policy.act, seen, np.ones(5, bool),
    )  # fmt: skip
    refuse(
        "the state 'memory/h' must be a tensor, got a ndarray",
        policy.act, seen, {"memory/h": np.zeros((5, 1, 4))},
    )  # fmt: skip
    refuse("the state needs 'memory/h', got 'h'", policy.act, seen, {"h": state["memory/h"]})
    refuse("resets must have the shape (5,), got (4,)", policy.act, seen, state, np.ones(4, bool))


@pytest.mark.parametrize("lowered", [False, True])
def test_a_mask_that_leaves_nothing_names_its_observation_and_its_action(lowered):
    observed = spaces.Dict(x=SEEN, legal=spaces.MultiBinary(3))
    spec = {"version": 1, "policy": {"template": {}, "action_mask": {"action": "legal"}}}
    model = composer.compose(spec, observation_space=observed, action_space=spaces.Discrete(3))
    act = model.policy.lower().act if lowered else model.policy.act
    seen = {"x": np.zeros((2, 3), np.float32), "legal": np.int8([[1, 0, 1], [0, 0, 0]])}
    message = (
        "the mask of action 'action' (observation 'legal'{}) leaves no legal choice at index (1,); "
        "each row needs a nonzero element"
    )
    refuse(message.format(""), act, seen)
    seen["legal"][1, 1] = 1
    within = message.format(" within the mask that was given")
    refuse(within, act, seen, mask=np.array([True, False, True]))
    with pytest.raises(NoLegalChoiceError) as caught:
        act(seen, mask=np.array([True, False, True]))
    assert str(pickle.loads(pickle.dumps(caught.value))) == within
