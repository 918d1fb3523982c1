"""Nodes of imported specs, whatever the observations are called: no name of a node is that of an input."""

import random

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC

import composer
from composer.importing.imported import Imported
from composer.importing.nodes import Nodes
from tests.composer.importing.test_sb3 import adopted, close, samples, saved
from tests.helpers.foreign import imported

# Names that import gives to nodes, those that a network has itself, and others that are no names of nodes.
NAMES = [
    "observation",
    "action",
    "value",
    "heads",
    "policy",
    "critic",
    "latent",
    "memory",
    "features",
    "features_for_value",
    "joined",
    "both",
    "shared",
    "fixed",
    "image",
    "conv",
    "one_hot",
    "memory_input",
    "memory_output",
    "memory_norm",
    "with_previous",
    "head",
    "net",
    "net_0",
    "latent_2",
    "value_2",
    "q_value",
    "prev_value",
    "present",
    "arm-1",
    "arm_1",
    "1st",
    "x/y",
    "class",
    "é",
]
ACTIONS = Box(-2, 2, (2,))


def vectors(names):
    return Dict({name: Box(-1, 1, (2,)) for name in names})


def drawings(count, size):
    """The names that clash alone, all of them, and some of them at random."""
    chosen = random.Random(0)
    return [["latent"], ["value"], NAMES, *(chosen.sample(NAMES, size) for _ in range(count))]


@pytest.mark.parametrize(
    ("algorithm", "actions", "kwargs"),
    [
        (PPO, ACTIONS, {"net_arch": [4]}),
        (PPO, ACTIONS, {"net_arch": []}),
        (RecurrentPPO, ACTIONS, {"net_arch": [4], "lstm_hidden_size": 3}),
        (RecurrentPPO, ACTIONS, {"net_arch": [4], "lstm_hidden_size": 3, "enable_critic_lstm": False}),
        (SAC, ACTIONS, {"net_arch": [4]}),
        (DQN, Discrete(3), {"net_arch": [4]}),
    ],
)  # fmt: skip
def test_sb3_reads_observations_of_any_name(algorithm, actions, kwargs, tmp_path):
    policy = "MultiInputLstmPolicy" if algorithm is RecurrentPPO else "MultiInputPolicy"
    for names in drawings(2, 3):
        space = vectors(names)
        agent = saved(tmp_path, algorithm, policy, space, actions, policy_kwargs=kwargs)
        _, model, _ = (
            adopted(tmp_path, space, actions) if algorithm is not DQN else loose(tmp_path, space)
        )
        if algorithm is PPO:
            seen = samples(space)
            x, _ = agent.policy.obs_to_tensor(seen)
            with torch.no_grad():
                close(model(seen)[1]["value"], agent.policy.predict_values(x))


def loose(folder, space):
    """A DQN has a target, which no spec has."""
    result = composer.import_config(folder / "agent.zip")
    model = composer.compose(result.spec, observation_space=space, action_space=Discrete(3))
    return result, model, None


@pytest.mark.parametrize("name", ["image", "features", "latent", "value", "image_image"])
def test_sb3_reads_images_of_any_name(name, tmp_path):
    space = Dict({name: Box(0, 255, (36, 36, 3), np.uint8), "latent_image": Box(-1, 1, (2,))})
    kwargs = {"net_arch": [4], "features_extractor_kwargs": {"cnn_output_dim": 4}}
    saved(tmp_path, PPO, "MultiInputPolicy", space, ACTIONS, policy_kwargs=kwargs)
    adopted(tmp_path, space, ACTIONS)


MODEL = "{class_name: %s, hidden_dims: [3], activation: elu, distribution_cfg: {class_name: GaussianDistribution}}"


@pytest.mark.parametrize("kind", ["MLPModel", "RNNModel"])
def test_rsl_rl_reads_groups_of_any_name(kind, tmp_path):
    for names in drawings(6, 4):
        half = max(1, len(names) // 2)
        groups = f"obs_groups: {{actor: {names[:half]}, critic: {names[half - 1 :]}}}\n"
        text = f"{groups}actor: {MODEL % kind}\ncritic: {MODEL % kind}\n"
        result = imported(tmp_path, text)
        composer.compose(result.spec, observation_space=vectors(names), action_space=ACTIONS)


SKRL = """
models:
  separate: %s
  policy:
    class: GaussianMixin
    network:
      - {name: %s, input: 'concatenate([%s])', layers: [4, 3], activations: [elu, tanh]}
    output: ACTIONS
  value:
    class: DeterministicMixin
    network: [{name: %s, input: 'concatenate([%s])', layers: [3]}]
    output: ONE
"""


@pytest.mark.parametrize("separate", [True, False])
def test_skrl_reads_containers_and_observations_of_any_name(separate, tmp_path):
    chosen = random.Random(1)
    for _ in range(12):
        names = chosen.sample(NAMES, 3)
        containers = [name for name in NAMES if name.isidentifier()]
        policy, value = (
            chosen.choice([*containers, names[0].replace("-", "_")]),
            chosen.choice(containers),
        )
        if not policy.isidentifier():
            continue
        reads = [
            ", ".join(f'OBSERVATIONS["{name}"]' for name in each) for each in (names[:2], names[1:])
        ]
        result = imported(tmp_path, SKRL % (separate, policy, reads[0], value, reads[1]))
        used = names if separate else names[:2]
        model = composer.compose(result.spec, observation_space=vectors(used), action_space=ACTIONS)
        for ours, _ in result.weights:
            assert any(name.startswith(f"{ours}.") or name == ours for name in model.state_dict())


def test_a_node_has_a_free_name():
    nodes = Nodes(Imported({}), "critic", "latent", ["value", "net"])
    nodes.begin_with("features")
    names = [
        nodes.add(name, "flatten")
        for name in ("latent", "latent", "value", "heads", "features", "1-é")
    ]
    assert names == ["latent_2", "latent_3", "value_2", "heads_2", "features_2", "_1__"]
    nodes.weigh("latent_2", "there")
    assert nodes.critic("net", "value_net") == {"graph": nodes.graph, "heads": {"in": "net"}}
    assert nodes.imported.weights == [
        ("critic.latent_2", "there"),
        ("critic.heads.value.linear", "value_net"),
    ]


def test_a_name_that_is_longer_than_a_key_of_yaml_is_cut():
    nodes = Nodes(Imported({}), "policy")
    assert [nodes.add("n" * 5000, "flatten") for _ in range(2)] == ["n" * 60, f"{'n' * 60}_2"]
