"""All that a spec cannot say is told at once, each with its place, and no consequence of it."""

import copy
import itertools
import json
import random

import pytest
import yaml

import composer
from tests.composer.importing.test_unknown_keys import FILES
from tests.helpers.foreign import refusal

RL_GAMES = """\
params:
  algo: {name: a2c_continuous}
  network:
    name: actor_critic
    separate: maybe
    value_activation: tanh
    space: {discrete: }
    mlp: {units: [8, -1], activation: rely}
    cnn: {type: conv3d, activation: relu, convs: [{filters: 4, strides: 1}, {filters: 4, kernel_size: big, strides: 1}]}
    rnn: {name: lstn, units: 8, layers: 1}
"""
SKRL = """\
models:
  policy:
    class: GaussianMixin
    fixed_log_std: True
    network:
      - {name: net, input: 2 * OBSERVATIONS, layers: [8, lstm, {conv2d: {groups: 2}}], activations: [elu, softmax, relu]}
      - {name: 1, input: net, layers: [8]}
    output: tanh(ACTIONS)
  value: {class: GaussianMixin, network: [], output: TWO}
"""
RSL_RL = """\
class Cfg(RslRlOnPolicyRunnerCfg):
    policy = RslRlPpoActorCriticCfg(
        actor_hidden_dims=[-1, 8],
        critic_hidden_dims=sizes(),
        init_noise_std=-1.0,
        activation="elo",
        noise_std_type="log2",
    )
"""
ZOO = """\
Hopper-v4:
  policy: MlpPolice
  n_timesteps: 9
  policy_kwargs: "dict(net_arch=['a'], activation_fn=nn.Relu, ortho_init=1, features_extractor_class=Mine)"
"""
RLLIB = """\
cartpole:
  run: DQN
  config:
    model:
      {fcnet_hiddens: 8, fcnet_activation: rely, use_lstm: 1, custom_model: mine, conv_filters: [[1, 2], [4, 3, 1], x]}
"""
ML_AGENTS = """\
behaviors:
  Walker:
    trainer_type: poca
    network_settings: {hidden_units: many, num_layers: 0, vis_encode_type: vgg, memory: 3, normalize: maybe}
"""

RL_GAMES_SAYS = """\
a.yaml:5:5: params.network.separate: must be true or false, got the text 'maybe'
a.yaml:6:5: params.network.value_activation: the value is linear here, and the text 'tanh' would follow it
a.yaml:8:11: params.network.mlp.units: must be a list of whole numbers of at least 1, got [8, -1]
a.yaml:8:27: params.network.mlp.activation: there is no activation 'rely'; did you mean 'relu'?
a.yaml:9:11: params.network.cnn.type: there are no layers 'conv3d'; did you mean 'conv2d'?
a.yaml:9:51: params.network.cnn.convs.0: 'kernel_size' is missing: a whole number of at least 1, or a list of them
a.yaml:9:51: params.network.cnn.convs.0: 'padding' is missing: a whole number of at least 0, or a list of them
a.yaml:9:77: params.network.cnn.convs.1: 'padding' is missing: a whole number of at least 0, or a list of them
a.yaml:9:90: params.network.cnn.convs.1.kernel_size: must be a whole number of at least 1, or a list of them, got the text 'big'
a.yaml:10:11: params.network.rnn.name: there is no memory 'lstn'; did you mean 'lstm'?
"""
SKRL_SAYS = """\
a.yaml:4:5: models.policy.fixed_log_std: log_std is learned here; leave the key out, and freeze it in Python
a.yaml:6:21: models.policy.network.0.input: the text '2 * OBSERVATIONS' is no input of a spec: observations, containers, permute and concatenate are
a.yaml:6:46: models.policy.network.0.layers: there is no layer 'lstm'; there is 'linear', 'conv2d', 'flatten'
a.yaml:6:46: models.policy.network.0.layers: conv2d: there is no setting 'groups' here; there is 'out_channels', 'kernel_size', 'stride', 'padding', 'bias', 'dilation', 'in_channels'
a.yaml:6:88: models.policy.network.0.activations: there is no activation 'softmax'; there is 'elu', 'leaky_relu', 'relu', 'selu', 'sigmoid', 'softplus', 'softsign', 'tanh'
a.yaml:7:10: models.policy.network.1.name: must be a text, got the number 1
a.yaml:8:5: models.policy.output: one linear layer ends this network here, 'ACTIONS', got 'tanh(ACTIONS)'
a.yaml:9:11: models.value.class: a value is deterministic
a.yaml:9:33: models.value.network: needs at least one container of layers
a.yaml:9:46: models.value.output: one linear layer ends this network here, 'ONE', got 'TWO'
"""
RSL_RL_SAYS = """\
a.py:3:27: policy.actor_hidden_dims: -1 stands for the size of the observation; write the number
a.py:4:28: policy.critic_hidden_dims: 'sizes()' is code, which is not run; write the value itself
a.py:5:24: policy.init_noise_std: a standard deviation is above 0, got -1
a.py:6:20: policy.activation: there is no activation 'elo'; did you mean 'elu'?
a.py:7:24: policy.noise_std_type: is 'scalar' or 'log', got 'log2'
"""
ZOO_SAYS = """\
ppo.yml:2:3: Hopper-v4.policy: there is no policy 'MlpPolice'; did you mean 'MlpPolicy'?
ppo.yml:4:3: Hopper-v4.policy_kwargs.features_extractor_class: 'Mine' is a class of your own, whose layers are not read; there is 'CombinedExtractor', 'FlattenExtractor', 'NatureCNN'
ppo.yml:4:3: Hopper-v4.policy_kwargs.activation_fn: there is no activation 'Relu'; did you mean 'ReLU'?
ppo.yml:4:3: Hopper-v4.policy_kwargs.net_arch: must be a list of sizes, or {pi: [...], vf: [...]}, got a list
ppo.yml:4:3: Hopper-v4.policy_kwargs.ortho_init: must be true or false, got the number 1
"""
RLLIB_SAYS = """\
a.yaml:2:3: cartpole.run: 'DQN' has no actor with a state value; those that have are 'PPO', 'APPO', 'IMPALA', 'MARWIL', 'BC', 'A2C', 'A3C', 'PG'
a.yaml:5:50: cartpole.config.model.use_lstm: must be true or false, got the number 1
a.yaml:5:63: cartpole.config.model.custom_model: it is registered in code, which is not read
a.yaml:5:83: cartpole.config.model.conv_filters: must be a list of [channels, kernel, stride], got a list at 0
a.yaml:5:83: cartpole.config.model.conv_filters: must be a list of [channels, kernel, stride], got the text 'x' at 2
"""
ML_AGENTS_SAYS = """\
a.yaml:3:5: behaviors.Walker.trainer_type: 'poca' has a critic of all agents with attention; there is 'ppo', 'sac'
a.yaml:4:24: behaviors.Walker.network_settings.hidden_units: must be a whole number of at least 1, got the text 'many'
a.yaml:4:44: behaviors.Walker.network_settings.num_layers: must be a whole number of at least 1 and at most 1000, got the number 0
a.yaml:4:59: behaviors.Walker.network_settings.vis_encode_type: there is no encoder 'vgg'; there is 'simple', 'nature_cnn', 'match3', 'fully_connected', 'resnet'
a.yaml:4:81: behaviors.Walker.network_settings.memory: must be a mapping, got the number 3
a.yaml:4:92: behaviors.Walker.network_settings.normalize: must be true or false, got the text 'maybe'
"""


@pytest.mark.parametrize(
    ("file", "text", "messages"),
    [
        ("a.yaml", RL_GAMES, RL_GAMES_SAYS),
        ("a.yaml", SKRL, SKRL_SAYS),
        ("a.py", RSL_RL, RSL_RL_SAYS),
        ("ppo.yml", ZOO, ZOO_SAYS),
        ("a.yaml", RLLIB, RLLIB_SAYS),
        ("a.yaml", ML_AGENTS, ML_AGENTS_SAYS),
    ],
    ids=["rl_games", "skrl", "rsl_rl", "sb3", "rllib", "mlagents"],
)
def test_all_refusals_are_told_at_once(file, text, messages, tmp_path):
    assert refusal(tmp_path, text, file) + "\n" == messages


def places(value, path=()):
    """The paths of all values in ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


BEYOND = (  # which nothing can be read
    "params.network: must be a mapping",
    "this is no configuration of a known kind",
    "params.network: 'space' is missing: this is a central value",
    "params.network.name: the network '?' has a builder of its own",
)
DECIDES = ("use_lstm", "policy", "separate")  # whether other keys are read
WRONG = ["?", {"?": 1}]


def changed(data, changes):
    data = copy.deepcopy(data)
    for path, value in changes:
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    return data


def problems_of(path, data):
    path.write_text(json.dumps(data))
    try:
        composer.import_config(path)
    except composer.SpecError as error:
        return {problem.message for problem in error.problems}
    return set()


@pytest.mark.parametrize("kind", FILES)
def test_a_problem_hides_no_other_one(kind, tmp_path):
    """What is told of two wrong values is what is told of each alone."""
    file, text = FILES[kind]
    data = yaml.safe_load(text)
    path = tmp_path / file
    alone = {}
    for place, value in itertools.product(places(data), range(len(WRONG))):
        told = problems_of(path, changed(data, [(place, WRONG[value])]))
        if told:
            alone[place, value] = told
    chosen = random.Random(0)
    pairs = [(a, b) for a, b in itertools.combinations(alone, 2) if a[0] != b[0][: len(a[0])]]
    for first, second in chosen.sample(pairs, min(60, len(pairs))):
        changes = [(place, WRONG[value]) for place, value in (first, second)]
        both = problems_of(path, changed(data, changes))
        assert both <= alone[first] | alone[second], changes
        is_decided = {first[0][-1], second[0][-1]}.isdisjoint(DECIDES)
        if is_decided and not any(message.startswith(BEYOND) for message in both):
            assert both == alone[first] | alone[second], changes
