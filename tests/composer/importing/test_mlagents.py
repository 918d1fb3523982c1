"""The network settings of ML-Agents' behaviors as templates."""

import pytest
import yaml
from gymnasium.spaces import Box, Dict, Discrete

import composer
from tests.helpers.foreign import imported, refusal

WALKER = """
default_settings:
  network_settings: {hidden_units: 512, normalize: true}
behaviors:
  Walker:
    trainer_type: ppo
    hyperparameters: {batch_size: 2048, beta: 0.005}
    network_settings:
      num_layers: 3
      vis_encode_type: simple
      goal_conditioning_type: hyper
      depth: 2
      memory: {sequence_length: 64, memory_size: 256}
    max_steps: 30000000
  Crawler:
    trainer_type: sac
    network_settings: {hidden_units: 64, deterministic: false, goal_conditioning_type: none}
env_settings: {env_path: walker}
"""
SEEN = Dict(rays=Box(-1, 1, (9,)), body=Box(-1, 1, (4,)))
NORMAL = {"kaiming_normal": {"nonlinearity": "linear"}}
INIT = {"body": NORMAL, "heads": NORMAL}


def composed(result, observations=SEEN, actions=None):
    actions = actions or Box(-1, 1, (2,))
    return composer.compose(result.spec, observation_space=observations, action_space=actions)


def test_a_behavior_with_a_memory(tmp_path):
    result = imported(tmp_path, WALKER, name="Walker")
    template = {
        "trunk": {"block": "dense", "hidden_units": [512, 512, 512], "activation": "silu"},
        "memory": {"block": "lstm", "hidden_units": 128, "init": "xavier_uniform"},
    }
    gaussian = {"space": "box", "distribution": "gaussian", "log_std": "learned", "optional": True}
    assert result.kind == "mlagents"
    assert result.spec == {
        "version": 1,
        "policy": {"init": INIT, "template": template},
        "critic": {"init": INIT, "template": template},
        "distributions": [gaussian],
    }
    settings = "behaviors.Walker.network_settings"
    assert result.left == [f"{settings}.goal_conditioning_type", f"{settings}.depth"]
    assert result.training == [
        "behaviors.Walker.hyperparameters.batch_size",
        "behaviors.Walker.hyperparameters.beta",
        "behaviors.Walker.max_steps",
        "env_settings.env_path",
    ]
    assert composed(result).has_memory
    composed(result, actions=Discrete(3))


def test_what_an_image_needs_can_be_added_as_it_is_told(tmp_path):
    result = imported(tmp_path, WALKER, name="Walker")
    (note,) = [note for note in result.notes if "vis_encode_type" in note]
    where, _, node = note.partition("templates: ")
    assert (
        where == "behaviors.Walker.network_settings.vis_encode_type: for images add this to both "
    )
    for part in ("policy", "critic"):
        result.spec[part]["template"] |= yaml.safe_load(node)
    seen = Dict(camera=Box(0, 255, (64, 64, 3), "uint8"), body=Box(-1, 1, (4,)))
    model = composed(result, seen)
    assert model.policy.get_submodule("camera_features.conv.convs.1").out_channels == 32
    assert (
        model.policy.get_submodule("camera_features.flatten_dense.dense.linears.0").out_features
        == 512
    )


def test_q_functions(tmp_path):
    result = imported(tmp_path, WALKER, name="Crawler")
    assert result.left == []
    assert result.spec["critic"]["ensemble"] == 2
    assert result.spec["policy"]["template"]["trunk"]["hidden_units"] == [64, 64]
    state = composed(result).state_dict()
    assert state["critic.ensemble.1.latent.linears.1.weight"].shape == (64, 64)


def test_the_defaults(tmp_path):
    result = imported(tmp_path, "behaviors: {Ball: {trainer_type: ppo}}")
    assert result.spec["policy"]["template"]["trunk"]["hidden_units"] == [128, 128]
    assert result.left == result.training == []


SETTINGS = "behaviors: {Ball: {network_settings: {%s}}}"
REFUSED = {
    "behaviors: {Ball: {trainer_type: poca}}": (
        "config.yaml:1:20: behaviors.Ball.trainer_type: 'poca' has a critic of all agents with attention; there is 'ppo', "
        "'sac'"
    ),
    SETTINGS % "vis_encode_type: simpel": (
        "config.yaml:1:39: behaviors.Ball.network_settings.vis_encode_type: there is no encoder 'simpel'; did you mean "
        "'simple'?"
    ),
    SETTINGS % "hidden_units: many": (
        "config.yaml:1:39: behaviors.Ball.network_settings.hidden_units: must be a whole number of at least 1, got the text 'many'"
    ),
    "behaviors: {Ball: {}, Cube: {}}": (
        "config.yaml:1:1: behaviors: it has 2 behaviors; say which with --class, or name=: 'Ball', 'Cube'"
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_behaviors_that_cannot_be_said(text, tmp_path):
    assert refusal(tmp_path, text) == REFUSED[text]


def test_a_behavior_that_is_not_there(tmp_path):
    assert refusal(tmp_path, WALKER, name="Wlaker") == (
        "config.yaml:4:1: behaviors: there is no behavior 'Wlaker'; did you mean 'Walker'?"
    )
