"""Blocks of the catalogue at the ends of a composed model, and its memory and drawn buffers inside of one."""

import copy

import pytest
import torch
from gymnasium import spaces

import composer

OBSERVATION, ACTION = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
SPEC = {
    "version": 1,
    "policy": {
        "graph": {
            "waves": {"block": "fourier_features", "in": "observation", "num_frequencies": 4},
            "wide": {"block": "residual_dense", "in": "waves", "hidden_units": 8},
            "latent": {"block": "noisy_dense", "in": "wide", "hidden_units": [8]},
        },
        "heads": {"action": {"block": "dueling", "in": "latent"}},
    },
    "critic": {"graph": {"value": {"block": "value", "in": "observation"}}},
}


def compose(spec, **keywords):
    keywords = {"seed": 0, **keywords}
    return composer.compose(
        spec, observation_space=OBSERVATION, action_space=ACTION, **keywords
    ).eval()


def with_block(where, **node):
    """SPEC with one node of its own as memory of the policy, or as value of the critic."""
    spec = copy.deepcopy(SPEC)
    if where == "critic":
        spec["critic"]["graph"]["value"] = {"in": "observation", **node}
    else:
        spec["policy"]["graph"]["memory"] = {"in": "latent", **node}
        spec["policy"]["heads"]["action"]["in"] = "memory"
    return spec


def test_a_dueling_head_has_a_value_for_each_action():
    model = compose(SPEC)
    assert model.policy(torch.randn(5, 3))["action"].shape == (5, 4)


def test_a_critic_that_ends_in_a_value_gets_no_second_layer():
    model = compose(SPEC)
    assert model.critic is not None
    names = [name for name, _ in model.critic.named_parameters()]
    assert names == ["value.head.linear.weight", "value.head.linear.bias"]
    assert model.critic(torch.randn(5, 3))["value"].shape == (5, 1)


@pytest.mark.parametrize(
    ("block", "raw", "width"),
    [("quantile_value", "value_quantiles", 200), ("categorical_value", "value_logits", 51)],
)
def test_a_distribution_of_values_is_read_as_its_mean(block, raw, width):
    critic = compose(with_block("critic", block=block)).critic
    assert critic is not None
    values = critic(torch.randn(5, 3))
    assert list(values) == ["value", raw]
    assert values["value"].shape == (5, 1)
    assert values[raw].shape == (5, width)
    head = critic.get_submodule("value")
    torch.testing.assert_close(values["value"], head.to_scalar(values[raw]))


@pytest.mark.parametrize(
    "node",
    [
        {"block": "rnn", "hidden_units": 8},
        {"block": "min_gru", "hidden_units": 8},
        {"block": "lru", "hidden_units": 8},
        {"block": "gtrxl", "hidden_units": 8, "memory_length": 3},
    ],
    ids=lambda node: node["block"],
)
def test_memory_of_any_kind_in_a_policy_steps_as_it_unrolls(node):
    policy = compose(with_block("policy", **node)).policy
    x, resets = torch.randn(2, 6, 3), torch.rand(2, 6) < 0.3
    state = policy.initial_state(2)
    expected, end = policy.unroll(x, state, resets)
    for t in range(6):
        logits, state = policy(x[:, t], state, resets[:, t])
        torch.testing.assert_close(logits["action"], expected["action"][:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", ["lru", "gtrxl"])
def test_what_is_composed_on_meta_and_given_weights_is_what_is_composed(block):
    """Buffers that are drawn or computed included."""
    spec = with_block("policy", block=block, hidden_units=8)
    model, later = compose(spec), compose(spec, device="meta")
    later.materialize("cpu")
    for (name, one), two in zip(model.state_dict().items(), later.state_dict().values()):
        assert torch.equal(one, two), name
    x = torch.randn(5, 3)
    state = model.policy.initial_state(5)
    torch.testing.assert_close(later.policy(x, state), model.policy(x, state))
