"""Models with memory: pure functions of their state, the same step by step and over sequences."""

import numpy as np
import pytest
import torch

from composer.network.network import share_of
from tests.composer.test_model import ACTIONS, compose, observations, recurrent_spec, single


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


def moved(whole, role, after):
    """The state of a whole model after its policy or critic has moved on."""
    return {**whole, **{f"{role}/{name}": value for name, value in after.items()}}


def test_policy_and_critic_take_the_state_of_the_whole_model():
    model = compose(recurrent_spec()).eval()
    whole = {name: torch.randn_like(value) for name, value in model.initial_state(2).items()}
    own = {role: share_of(role, whole) for role in ("policy", "critic")}
    for policy in (model.policy, model.policy.lower()):
        logits, after = policy(observations(2), own["policy"])
        again, carried = policy(observations(2), whole)
        torch.testing.assert_close((again, carried), (logits, moved(whole, "policy", after)))
        _, carried = policy.act(observations(2), whole, deterministic=True)
        torch.testing.assert_close(carried, moved(whole, "policy", after))
    _, carried = model.policy.distribution(observations(2), whole)
    torch.testing.assert_close(carried, moved(whole, "policy", after))
    shared = {"shared": logits}
    value, after = model.critic.value(observations(2), own["critic"], **shared)
    again, carried = model.critic.value(observations(2), whole, **shared)
    torch.testing.assert_close((again, carried), (value, moved(whole, "critic", after)))
    steps = {k: np.stack([v] * 3, axis=1) for k, v in observations(2).items()}
    logits, after = model.policy.unroll(steps, own["policy"])
    _, carried = model.policy.unroll(steps, whole)
    torch.testing.assert_close(carried, moved(whole, "policy", after))
    _, after = model.critic.unroll(steps, own["critic"], shared=logits)
    _, carried = model.critic.unroll(steps, whole, shared=logits)
    torch.testing.assert_close(carried, moved(whole, "critic", after))


def test_a_node_may_be_called_policy():
    spec = recurrent_spec()
    graph = spec["policy"]["graph"]
    graph["policy"] = graph.pop("memory")
    model = compose({**spec, "policy": {**spec["policy"], "heads": {"in": "policy"}}})
    own = model.policy.initial_state(2)
    assert list(own) == ["policy/h", "policy/c"]
    assert model.policy(observations(2), own)[1].keys() == own.keys()
    whole = model.initial_state(2)
    assert model.policy(observations(2), whole)[1].keys() == whole.keys()
    with pytest.raises(ValueError, match="the state needs 'policy/h', 'policy/c', got 'policy/h'"):
        model.policy(observations(2), {"policy/h": own["policy/h"]})


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
