"""Models with memory: pure functions of their state, the same step by step and over sequences."""

import numpy as np
import pytest
import torch

from tests.test_model import ACTIONS, compose, observations, recurrent_spec, single


def test_policies_with_memory_are_pure():
    model = compose(recurrent_spec()).eval()
    policy = model.policy
    assert policy.state_shapes == {"memory/h": (1, 8), "memory/c": (1, 8)}
    state = policy.initial_state(3)
    first = policy(observations(3), state)
    second = policy(observations(3), state)
    torch.testing.assert_close(first, second)
    action, after = policy.act(observations(3), state, np.array([True, False, False]))
    assert action["move"].shape == (3,)
    assert after["memory/h"].shape == (3, 1, 8)
    one = policy.act(single(observations(1)), policy.initial_state())
    assert ACTIONS.contains(one[0])


def test_unrolling_a_policy_is_stepping_it():
    policy = compose(recurrent_spec()).eval().policy
    steps = {k: np.stack([v] * 6, axis=1) for k, v in observations(3).items()}
    resets = np.random.default_rng(0).random((3, 6)) < 0.3
    together, last = policy.unroll(steps, policy.initial_state(3), resets)
    state = policy.initial_state(3)
    for t in range(6):
        now, state = policy({k: v[:, t] for k, v in steps.items()}, state, resets[:, t])
        torch.testing.assert_close(now["use"], together["use"][:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, dict(last), atol=1e-5, rtol=1e-5)


def test_a_distribution_over_sequences_is_that_of_each_step():
    policy = compose(recurrent_spec()).eval().policy
    steps = {k: np.stack([v] * 4, axis=1) for k, v in observations(3).items()}
    together, last = policy.distribution(steps, policy.initial_state(3), unroll=True)
    actions = together.sample()
    log_probs, state = [], policy.initial_state(3)
    for t in range(4):
        now = {k: v[:, t] for k, v in steps.items()}
        distribution, state = policy.distribution(now, state)
        log_probs.append(distribution.log_prob({k: v[:, t] for k, v in actions.items()}))
    torch.testing.assert_close(together.log_prob(actions), torch.stack(log_probs, 1))
    torch.testing.assert_close(state, dict(last))


def test_resets_are_one_for_each_observation():
    model = compose(recurrent_spec())
    state = model.policy.initial_state(2)
    first, _ = model.policy(observations(2), state, [True, False])
    same, _ = model.policy(observations(2), state, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(first, same)
    with pytest.raises(ValueError, match=r"resets must have the shape \(2,\), got \(3,\)"):
        model.policy(observations(2), state, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"resets must have the shape \(2,\), got \(\)"):
        model.policy.unroll(observations(2), model.policy.initial_state(), True)


def test_a_model_carries_the_state_of_policy_and_critic():
    model = compose(recurrent_spec())
    state = model.initial_state(2)
    assert sorted(state) == ["critic/memory/h", "policy/memory/c", "policy/memory/h"]
    _, values, after = model(observations(2), state)
    assert values["value"].shape == (2, 1)
    assert after.keys() == state.keys()


def test_a_state_for_a_network_without_memory_is_refused():
    with pytest.raises(ValueError, match="this policy has no memory; call it without a state"):
        compose().policy(observations(2), {"memory/h": torch.zeros(2, 1, 8)})


def test_calls_without_the_right_state_say_what_is_missing():
    model = compose(recurrent_spec())
    with pytest.raises(
        ValueError, match=r"this network has memory; call policy\(observations, state, resets\)"
    ):
        model.policy(observations(2))
    with pytest.raises(
        ValueError, match=r"this model has memory; call model\(observations, state, resets\)"
    ):
        model(observations(2))
    with pytest.raises(
        ValueError, match=r"the state 'memory/h' must have the shape \(2, 1, 8\), got \(3, 1, 8\)"
    ):
        model.policy(observations(2), model.policy.initial_state(3))
    with pytest.raises(ValueError, match="the state needs 'memory/h', 'memory/c', got nothing"):
        model.policy(observations(2), {})
