"""A key that nobody knows is named, wherever in a configuration it stands."""

import copy
import json

import pytest
import yaml

import composer

UNKNOWN = "unknown_key"
RL_GAMES = """
params:
  algo: {name: a2c_continuous}
  network:
    name: actor_critic
    separate: True
    space: {%s}
    cnn:
      {type: conv2d, activation: relu, initializer: {name: default}, convs: [{filters: 4, kernel_size: 3, strides: 2, padding: 0}]}
    mlp: {units: [8], activation: elu, initializer: {name: default}}
    rnn: {name: lstm, units: 8, layers: 1}
  config: {normalize_input: False, player: {games_num: 3}}
"""
BOX = "continuous: {mu_activation: None, sigma_activation: None, mu_init: {name: default}, sigma_init: {name: %s}, fixed_sigma: %s}"
SKRL = """
models:
  separate: %s
  policy: {class: GaussianMixin, network: [{name: net, input: OBSERVATIONS, layers: [8, linear: {features: 9}]}], output: ACTIONS}
  value: {class: DeterministicMixin, network: [{name: net, input: OBSERVATIONS, layers: [8, linear: {features: 9}]}], output: ONE}
agent: {class: PPO, observation_preprocessor: RunningStandardScaler}
"""
RSL_RL = """
obs_groups: {actor: [policy], critic: [policy, privileged]}
actor: {class_name: RNNModel, hidden_dims: [3], activation: elu, distribution_cfg: {class_name: GaussianDistribution}}
critic: {class_name: MLPModel, hidden_dims: [3], activation: elu}
algorithm: {class_name: PPO}
"""
ZOO = """
Hopper-v4:
  normalize: {norm_obs: True, norm_reward: False}
  policy: %s
  n_timesteps: 1000
  policy_kwargs: {net_arch: {pi: [3], vf: [4]}, features_extractor_kwargs: {%s: 4}}
"""
RLLIB = """
cartpole:
  run: PPO
  config:
    model: {fcnet_hiddens: [8], use_lstm: true, lstm_cell_size: 5}
    env_config: {length: 1}
"""
ML_AGENTS = """
behaviors:
  Walker:
    trainer_type: ppo
    hyperparameters: {batch_size: 2048}
    network_settings: {normalize: true, num_layers: 3, memory: {memory_size: 128}}
"""
FILES = {
    "rl_games": ("config.yaml", RL_GAMES % BOX % ("default", "True")),
    "rl_games of the state": ("config.yaml", RL_GAMES % BOX % ("default", "False")),
    "rl_games discrete": ("config.yaml", RL_GAMES % "discrete: {}"),
    "skrl": ("config.yaml", SKRL % "True"),
    "skrl shared": ("config.yaml", SKRL % "False"),
    "rsl_rl": ("config.yaml", RSL_RL),
    "zoo": ("ppo.yml", ZOO % ("CnnPolicy", "features_dim")),
    "zoo of dicts": ("ppo.yml", ZOO % ("MultiInputPolicy", "cnn_output_dim")),
    "rllib": ("config.yaml", RLLIB),
    "mlagents": ("config.yaml", ML_AGENTS),
}  # fmt: skip


def mappings(value):
    """All mappings in ``value``."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from mappings(inner)


def said_of(path):
    try:
        imported = composer.import_config(path)
    except composer.SpecError as error:
        return str(error)
    return "\n".join([*imported.notes, *imported.left, *imported.training])


@pytest.mark.parametrize("kind", FILES)
def test_an_unknown_key_is_named(kind, tmp_path):
    file, text = FILES[kind]
    data = yaml.safe_load(text)
    for index in range(len([*mappings(data)])):
        changed = copy.deepcopy(data)
        where = [*mappings(changed)][index]
        if where is changed or (where is changed.get("behaviors")):
            continue  # another entry
        where[UNKNOWN] = 1
        (tmp_path / file).write_text(json.dumps(changed))
        said = said_of(tmp_path / file)
        is_ignored = "models.value.network: a shared model has the layers of the policy" in said
        assert UNKNOWN in said or is_ignored, where


def test_images_are_not_scaled_and_normalised(tmp_path):
    text = FILES["rl_games"][1].replace("normalize_input: False", "normalize_input: True")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(composer.SpecError) as caught:
        composer.import_config(tmp_path / "config.yaml")
    assert str(caught.value).endswith(
        "config.yaml:12:12: params.config.normalize_input: images are scaled from their bounds here, and not "
        "normalised as well; write False and import again"
    )
