"""A critic's template goes on from what the policy's template shares: a stage, or the value of any of its nodes."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer

OBSERVATIONS = spaces.Dict(
    camera=spaces.Box(0, 255, (64, 64, 3), np.uint8),
    joints=spaces.Box(-1, 1, (7,)),
    units=spaces.Sequence(spaces.Box(-1, 1, (2,))),
)
TRUNK = ["latent", "heads"]


def compose(policy, critic="{}", observations: spaces.Space = OBSERVATIONS):
    text = f"version: 1\npolicy:\n{policy}\ncritic:\n  template: {critic}\n"
    return composer.compose(
        text, observation_space=observations, action_space=spaces.Discrete(3), seed=0
    )


def shares(name, memory="{block: gru, hidden_units: 8}"):
    return f"  template: {{memory: {memory}}}\n  shares: [{name}]"


def nodes(part):
    """The nodes of a network, heads among them."""
    return [
        name for name, _ in part.named_children() if name not in ("distributions", "normalizers")
    ]


@pytest.mark.parametrize(
    ("shared", "reads", "critic"),
    [
        ("features", ["features"], ["latent", "heads"]),
        ("trunk", ["latent"], ["heads"]),
        ("latent", ["latent"], ["heads"]),
        ("memory", ["memory"], ["heads"]),
        ("camera_features", ["joints", "units", "units:mask", "camera_features"], ["units_features", "features", "latent", "heads"]),
        ("units_features", ["camera", "joints", "units_features"], ["camera_scaled", "camera_features", "features", "latent", "heads"]),
    ],
)  # fmt: skip
def test_the_critic_reads_a_shared_value_in_place_of_what_it_is_made_of(shared, reads, critic):
    model = compose(shares(shared))
    assert model.critic is not None
    assert set(model.critic.network.in_ports) == set(reads)
    assert nodes(model.critic) == critic
    observation = OBSERVATIONS.sample()
    _, values, _ = model(observation, model.initial_state())
    values["value"].sum().backward()
    trained = {
        name.split(".")[0] for name, p in model.policy.named_parameters() if p.grad is not None
    }
    assert ("memory" in trained) == (shared == "memory")
    assert ("latent" in trained) == (shared in ("trunk", "latent", "memory"))
    assert ("camera_features" in trained) == (shared != "units_features")


def test_what_a_critic_writes_itself_comes_after_what_it_shares():
    critic = "{trunk: {block: dense, hidden_units: 5}, memory: {block: lstm, hidden_units: 4}}"
    model = compose(shares("trunk"), critic)
    assert model.critic is not None
    assert nodes(model.critic) == ["latent_2", "memory", "heads"]
    assert model.critic.state_shapes == {"memory/h": (1, 4), "memory/c": (1, 4)}


def test_a_critic_that_sees_more_reads_that_by_itself():
    model = compose("  observations: [joints]\n  template: {}\n  shares: [trunk]")
    assert model.critic is not None
    assert set(model.critic.network.in_ports) == {"camera", "units", "units:mask", "latent"}


def test_a_shared_value_of_a_graph_stands_for_its_observations_too():
    policy = """\
  graph:
    scaled: {block: scale_image, in: camera}
    seen: {block: strided_conv_dense, in: scaled, hidden_channels: [4], strides: 2, hidden_units: 8}
    around: {block: deep_set, in: units, hidden_units: 4}
    all: {block: concat, in: [seen, joints, around]}
  heads: {in: all}
  shares: [seen]"""
    model = compose(policy)
    assert model.critic is not None
    assert set(model.critic.network.in_ports) == {"joints", "units", "units:mask", "seen"}


def test_one_vector_is_no_stage_of_its_own():
    vector = spaces.Box(-1, 1, (4,))
    for name, message in (
        ("features", "the template makes no value 'features' to share; it has 'latent'"),
        ("memory", "the template makes no value 'memory' to share; it has 'latent'"),
        ("trnk", "the template makes no value 'trnk' to share; did you mean 'trunk'?"),
    ):
        with pytest.raises(composer.SpecError, match=f"^<spec>:4:12: {re.escape(message)}$"):
            compose(f"  template: {{}}\n  shares: [{name}]", observations=vector)
    message = "the template makes no value 'latent' (its trunk) to share; it has 'memory'"
    with pytest.raises(composer.SpecError, match=f"^<spec>:4:12: {re.escape(message)}$"):
        compose(
            "  template: {trunk: null, memory: {block: gru, hidden_units: 4}}\n  shares: [trunk]",
            observations=vector,
        )


def test_policy_and_critic_that_share_their_trunk_learn_it_together():
    model = compose("  template: {}\n  shares: [trunk]")
    own = sum(p.numel() for p in model.critic.parameters()) if model.critic else 0
    assert own == 64 + 1
    observation = OBSERVATIONS.sample()
    logits, values = model(observation)
    expected = torch.nn.functional.linear(logits["latent"], *model.critic.parameters())
    torch.testing.assert_close(values["value"], expected)
