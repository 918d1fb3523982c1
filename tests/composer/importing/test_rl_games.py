"""The YAML of rl_games as specs: as many parameters and, with the same weights, the same numbers as rl_games has."""

import contextlib
import io
import itertools
import warnings

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from torch import nn
from torch.nn import functional

import composer
from composer.cli.commands import main
from tests.helpers.foreign import adopted, count, drawn, imported, outputs, refusal

CONTINUOUS = """
    space:
      continuous:
        mu_activation: None
        sigma_activation: None
        mu_init: {name: default}
        sigma_init: {name: const_initializer, val: -0.5}
        fixed_sigma: True
"""
DISCRETE = "\n    space: {discrete: }\n"
MLP = "    mlp: {units: [16, 8], activation: elu, initializer: {name: default}}\n"
RNN = "    rnn: {name: %s, units: 6, layers: %d%s}\n"
CNN = """
    cnn:
      type: conv2d
      activation: relu
      initializer: {name: default}
      convs:
        - {filters: 4, kernel_size: 3, strides: 2, padding: 0}
        - {filters: 6, kernel_size: 3, strides: 1, padding: 1}
"""
D2RL = "    mlp: {units: [16, 8, 8], activation: tanh, d2rl: True, initializer: {name: default}}\n"
VECTOR = spaces.Box(-np.inf, np.inf, (5,))
IMAGE = spaces.Box(0, 1, (12, 12, 3), np.float32)


def network(*parts, separate=False, more=""):
    net = f"    name: actor_critic\n    separate: {separate}{''.join(parts)}{more}"
    return f"params:\n  algo: {{name: a2c_continuous}}\n  network:\n{net}  config: {{clip_actions: no}}\n"


def rl_games_network(text, shape, actions):
    """What rl_games builds of the configuration."""
    from rl_games.algos_torch import network_builder

    builder = network_builder.A2CBuilder()
    builder.load(yaml.safe_load(text)["params"]["network"])
    with contextlib.redirect_stdout(io.StringIO()):
        net = builder.build("net", actions_num=actions, input_shape=shape, value_size=1, num_seqs=1)
    return drawn(net)


def their_outputs(net, x):
    """(mean, or mean and log_std, or logits) and value."""
    states = net.get_default_rnn_state()
    if states is not None:
        states = tuple(state.repeat(1, len(x), 1) for state in states)
        states = states if net.separate or len(states) == 1 else (states,)
    with torch.no_grad():
        result = net({"obs": x, "rnn_states": states, "seq_length": 1})
    if not net.is_continuous:
        logits, value, _ = result
        return torch.cat(logits, -1) if isinstance(logits, list) else logits, value
    mean, log_std, value, _ = result
    return mean if net.fixed_sigma else torch.cat([mean, log_std], -1), value


CASES = {
    "mlp": network(CONTINUOUS, MLP),
    "separate": network(CONTINUOUS, MLP, separate=True),
    "discrete": network(DISCRETE, MLP),
    "multi_discrete": network("\n    space: {multi_discrete: }\n", MLP),
    "log_std_of_the_state": network(CONTINUOUS.replace("True", "False"), MLP),
    "no_layers": network(CONTINUOUS, MLP.replace("[16, 8]", "[]")),
    "cnn": network(CONTINUOUS, CNN, MLP),
    "separate_cnn": network(DISCRETE, CNN, MLP, separate=True),
    "cnn_alone": network(DISCRETE, CNN, MLP.replace("[16, 8]", "[]")),
    "cnn_by_axis": network(
        DISCRETE,
        CNN.replace("kernel_size: 3, strides: 2, padding: 0", "kernel_size: [3, 2], strides: [2, 1], padding: [1, 0]"),
        MLP,
    ),
    "cnn_channels_first": network(DISCRETE, CNN.replace("type: conv2d", "type: conv2d\n      permute_input: False"), MLP),
    "lstm_after": network(CONTINUOUS, MLP, RNN % ("lstm", 1, "")),
    "lstm_before": network(CONTINUOUS, MLP, RNN % ("lstm", 2, ", before_mlp: True")),
    "gru_concat": network(
        CONTINUOUS, MLP, RNN % ("gru", 1, ", concat_input: True, concat_output: True, layer_norm: yes")
    ),
    "gru_before_separate": network(
        CONTINUOUS,
        MLP,
        RNN % ("gru", 2, ", before_mlp: True, concat_output: True, layer_norm: True"),
        separate=True,
    ),
    "lstm_separate": network(DISCRETE, MLP, RNN % ("lstm", 1, ""), separate=True),
    "cnn_lstm": network(DISCRETE, CNN, MLP, RNN % ("lstm", 1, ", concat_input: True")),
    "d2rl": network(CONTINUOUS, D2RL),
    "d2rl_layer_norm": network(CONTINUOUS, D2RL, more="    normalization: layer_norm\n"),
    # rl_games reads the key, and gives a plain MLP no norm.
    "mlp_layer_norm": network(CONTINUOUS, MLP, more="    normalization: layer_norm\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_spec_computes_what_rl_games_computes(case, tmp_path):
    text = CASES[case]
    observation_space = IMAGE if "cnn" in case else VECTOR
    action_space, number = spaces.Box(-np.inf, np.inf, (3,)), 3
    if "discrete: }" in text:
        action_space, number = spaces.Discrete(4), 4
    if "multi_discrete" in text:
        action_space, number = spaces.MultiDiscrete([2, 3]), [2, 3]
    theirs = rl_games_network(text, observation_space.shape, number)
    result = imported(tmp_path, text)
    assert result.left == []
    tensors = {f"model.a2c_network.{name}": value for name, value in theirs.state_dict().items()}
    model = adopted(result, tensors, observation_space, action_space)
    assert count(model) == count(theirs)
    x = torch.rand(7, *observation_space.shape)
    for ours, expected in zip(outputs(model, x), their_outputs(theirs, x), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


class ByHand(nn.Module):
    """Parameters under the names of rl_games; ``forward`` is written in the test."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.compute = forward


def mlp(*sizes, activation=nn.ELU):
    layers = [(nn.Linear(n, m), activation()) for n, m in itertools.pairwise(sizes)]
    return nn.Sequential(*(module for pair in layers for module in pair))


def with_memory(net, x):
    hidden = net.actor_mlp(x)
    out, _ = net.rnn.rnn(hidden[None])
    return net.logits(out[0]), net.value(out[0])


def with_input_again(net, x):
    y = torch.tanh(net.actor_mlp.linears[0](x))
    for linear in net.actor_mlp.linears[1:]:
        y = torch.tanh(linear(torch.cat([y, x], -1)))
    return net.logits(y), net.value(y)


def of_image(net, x):
    y = functional.relu(net.actor_cnn[0](x.permute(0, 3, 1, 2)))
    y = functional.relu(net.actor_cnn[2](y)).flatten(1)
    return net.logits(net.actor_mlp(y)), net.value(net.actor_mlp(y))


def wrapped(name, module):
    holder = nn.Module()
    holder.add_module(name, module)
    return holder


BY_HAND = {
    "mlp": (
        network(DISCRETE, MLP),
        lambda: ByHand(lambda net, x: (net.logits(net.actor_mlp(x)), net.value(net.actor_mlp(x))), actor_mlp=mlp(5, 16, 8), logits=nn.Linear(8, 4), value=nn.Linear(8, 1)),
    ),
    "separate": (
        network(DISCRETE, MLP, separate=True),
        lambda: ByHand(lambda net, x: (net.logits(net.actor_mlp(x)), net.value(net.critic_mlp(x))), actor_mlp=mlp(5, 16, 8), critic_mlp=mlp(5, 16, 8), logits=nn.Linear(8, 4), value=nn.Linear(8, 1)),
    ),
    "lstm": (
        network(DISCRETE, MLP, RNN % ("lstm", 2, "")),
        lambda: ByHand(with_memory, actor_mlp=mlp(5, 16, 8), rnn=wrapped("rnn", nn.LSTM(8, 6, 2)), logits=nn.Linear(6, 4), value=nn.Linear(6, 1)),
    ),
    "gru": (
        network(DISCRETE, MLP, RNN % ("gru", 1, "")),
        lambda: ByHand(with_memory, actor_mlp=mlp(5, 16, 8), rnn=wrapped("rnn", nn.GRU(8, 6)), logits=nn.Linear(6, 4), value=nn.Linear(6, 1)),
    ),
    "d2rl": (
        network(DISCRETE, D2RL),
        lambda: ByHand(with_input_again, actor_mlp=wrapped("linears", nn.ModuleList([nn.Linear(5, 16), nn.Linear(21, 8), nn.Linear(13, 8)])), logits=nn.Linear(8, 4), value=nn.Linear(8, 1)),
    ),
    "cnn": (
        network(DISCRETE, CNN, MLP),
        lambda: ByHand(of_image, actor_cnn=nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU()), actor_mlp=mlp(150, 16, 8), logits=nn.Linear(8, 4), value=nn.Linear(8, 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_the_spec_computes_what_torch_computes_by_hand(case, tmp_path):
    text, make = BY_HAND[case]
    theirs = drawn(make())
    space = IMAGE if case == "cnn" else VECTOR
    tensors = {f"model.a2c_network.{name}": value for name, value in theirs.state_dict().items()}
    model = adopted(imported(tmp_path, text), tensors, space, spaces.Discrete(4))
    assert count(model) == count(theirs)
    x = torch.rand(7, *space.shape)
    with torch.no_grad():
        expected = theirs.compute(theirs, x)
    for ours, theirs_out in zip(outputs(model, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs_out, atol=1e-5, rtol=1e-5)


def test_an_image_of_bytes_is_divided_by_255_as_rl_games_does(tmp_path):
    text, make = BY_HAND["cnn"]
    theirs = drawn(make())
    tensors = {f"model.a2c_network.{name}": value for name, value in theirs.state_dict().items()}
    space = spaces.Box(0, 255, (12, 12, 3), np.uint8)
    model = adopted(imported(tmp_path, text), tensors, space, spaces.Discrete(4))
    x = torch.randint(0, 256, (7, 12, 12, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected, _ = theirs.compute(theirs, x / 255)
    torch.testing.assert_close(outputs(model, x)[0], expected, atol=1e-5, rtol=1e-5)


def test_normalisation_and_its_running_statistics_come_along(tmp_path):
    from rl_games.algos_torch.models import ModelA2CContinuousLogStd

    text = network(CONTINUOUS, MLP).replace(
        "{clip_actions: no}", "{clip_actions: no, normalize_input: True, normalize_value: True}"
    )
    net = rl_games_network(text, (5,), 3)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, with which it compiles
        theirs = ModelA2CContinuousLogStd.Network(
            net, obs_shape=(5,), normalize_value=True, normalize_input=True, value_size=1
        )
    theirs.running_mean_std.train()(torch.randn(100, 5) * 3 + 1)
    theirs.value_mean_std.train()(torch.randn(100, 1) * 7 - 2)
    theirs.eval()
    result = imported(tmp_path, text)
    assert result.notes == [
        "params.config.normalize_input: clipped at 5 standard deviations there, at 10 here"
    ]
    tensors = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    model = adopted(result, tensors, VECTOR, spaces.Box(-np.inf, np.inf, (3,)))
    x = torch.randn(7, 5)
    with torch.no_grad():
        expected = theirs({"obs": x.clone(), "is_train": False})
        value = model.critic.value(x, shared=model(x)[0])
    torch.testing.assert_close(outputs(model, x)[0], expected["mus"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value.reshape(-1, 1), expected["values"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("initializer", "init"),
    [
        ("{name: default}", "fan_in_uniform"),
        ("{name: orthogonal_initializer, gain: 1.41}", {"orthogonal": {"gain": 1.41}}),
        ("{name: glorot_normal_initializer}", "xavier_normal"),
        ("{name: glorot_uniform_initializer, gain: 0.5}", {"xavier_uniform": {"gain": 0.5}}),
        ("{name: kaiming_normal, nonlinearity: relu}", "kaiming_normal"),
    ],
)
def test_initialisers_come_along(initializer, init, tmp_path):
    text = network(CONTINUOUS, MLP.replace("{name: default}", initializer))
    spec = imported(tmp_path, text).spec
    assert spec["policy"]["graph"]["latent"]["init"] == init
    assert spec["policy"]["heads"]["init"] == init
    assert spec["critic"]["graph"]["value"]["init"] == init
    composer.compose(spec, observation_space=VECTOR, action_space=spaces.Box(-np.inf, np.inf, (3,)))


def test_the_first_weights_spread_as_those_of_rl_games_do(tmp_path):
    """IsaacGym's results differ for less: biases begin at 0 there, weights as torch has them."""
    text = network(CONTINUOUS, MLP.replace("[16, 8]", "[256, 8]"))
    model = composer.compose(
        imported(tmp_path, text).spec,
        observation_space=VECTOR,
        action_space=spaces.Box(-np.inf, np.inf, (3,)),
        seed=0,
    )
    weights = dict(model.named_parameters())
    first = weights["policy.latent.linears.0.weight"]
    assert first.abs().max().item() <= 5**-0.5
    assert first.std().item() == pytest.approx(15**-0.5, rel=0.05)
    assert not any(weights[name].any() for name in weights if name.endswith("bias"))
    assert weights["policy.distributions.action.log_std"].tolist() == [-0.5] * 3


def test_an_initialiser_that_is_not_here_is_named(tmp_path):
    text = network(
        CONTINUOUS.replace(
            "mu_init: {name: default}", "mu_init: {name: orthogonal_initializer, gain: 0.01}"
        ),
        MLP.replace("name: default", "name: variance_scaling_initializer, scale: 2"),
    )
    result = imported(tmp_path, text)
    assert result.notes == [
        "params.network.mlp.initializer: weights begin as torch has them, not as 'variance_scaling_initializer'"
    ]
    assert result.spec["policy"]["heads"]["init"] == {"orthogonal": {"gain": 0.01}}


def test_every_key_is_taken_over_or_named(tmp_path):
    text = network(
        CONTINUOUS,
        MLP.replace("activation: elu", "activation: elu, regularizer: {name: l2}"),
        more="    twin: 1\n",
    ).replace(
        "clip_actions: no",
        "clip_actions: yes, lr: 1e-3, mixed: {a: 1, b: [1]}, central_value_config: {minibatch: 4}",
    )
    result = imported(tmp_path, text)
    assert result.left == [
        "params.network.mlp.regularizer",
        "params.network.twin",
        "params.config.central_value_config",
    ]
    assert result.training == [
        "params.algo.name",
        "params.config.lr",
        "params.config.mixed.a",
        "params.config.mixed.b",
    ]
    assert result.differences() == [
        "differs: params.config.central_value_config: a value of the state; write it as a critic with 'observations:' "
        "of its own",
        "differs: params.config.clip_actions: actions from -1 to 1 are scaled to the bounds of the space there; here "
        "they are in its own units",
        "not taken over: params.network.mlp.regularizer",
        "not taken over: params.network.twin",
        "not taken over: params.config.central_value_config",
        "4 keys of training not taken over",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            network(CONTINUOUS, MLP).replace("name: actor_critic", "name: soft_actor_critic"),
            "config.yaml:4:5: params.network.name: the network 'soft_actor_critic' has a builder of its own; only "
            "'actor_critic' can be written as a spec",
        ),
        (
            network("\n", MLP),
            "config.yaml:3:3: params.network: 'space' is missing: this is a central value, no policy",
        ),
        (
            network(CONTINUOUS, CNN, MLP, more="    normalization: batch_norm\n"),
            "config.yaml:22:5: params.network.normalization: 'batch_norm' between convolutions, after the activation, "
            "has no block",
        ),
        (
            network(CONTINUOUS.replace("mu_activation: None", "mu_activation: tanh"), MLP),
            "config.yaml:8:9: params.network.space.continuous.mu_activation: the mean is linear here, and the text "
            "'tanh' would follow it",
        ),
        (
            network(CONTINUOUS, MLP, more="    central_value: True\n"),
            "config.yaml:14:5: params.network.central_value: a network that is no policy; leave the key out",
        ),
        (
            network(CONTINUOUS, MLP, more="    value_activation: tanh\n"),
            "config.yaml:14:5: params.network.value_activation: the value is linear here, and the text 'tanh' would "
            "follow it",
        ),
        (
            network(CONTINUOUS, MLP.replace("elu", "eluu")),
            "config.yaml:13:27: params.network.mlp.activation: there is no activation 'eluu'; did you mean 'elu'?",
        ),
        (
            network(CONTINUOUS, MLP, RNN % ("identity", 1, "")),
            "config.yaml:14:11: params.network.rnn.name: there is no memory 'identity'; there is 'lstm', 'gru'",
        ),
        (
            network(CONTINUOUS, CNN.replace("conv2d", "coord_conv2d"), MLP),
            "config.yaml:15:7: params.network.cnn.type: there are no layers 'coord_conv2d'; did you mean 'conv2d'?",
        ),
        (
            network(CONTINUOUS, MLP.replace("[16, 8]", "[16, -1]")),
            "config.yaml:13:11: params.network.mlp.units: must be a list of whole numbers of at least 1, got [16, -1]",
        ),
        (
            network(CONTINUOUS, MLP.replace("[16, 8]", "'${....units}'")),
            "config.yaml:13:11: params.network.mlp.units: '${....units}' is filled in from elsewhere; write the value "
            "itself",
        ),
        (
            network(CONTINUOUS.replace("True", "coef_cond"), MLP),
            "config.yaml:12:9: params.network.space.continuous.fixed_sigma: must be true or false, got the text "
            "'coef_cond'",
        ),
        (
            network(CONTINUOUS, D2RL, more="    normalization: batch_norm\n"),
            "config.yaml:14:5: params.network.normalization: 'batch_norm' after the first activation has no block",
        ),
    ],
)  # fmt: skip
def test_what_a_spec_cannot_say_is_refused_by_its_key(text, message, tmp_path):
    assert refusal(tmp_path, text) == message


def test_a_checkpoint_that_rl_games_wrote_becomes_a_model(tmp_path, capsys):
    """A config and its checkpoint, by the command line: spec and weights in one file, with equal outputs."""
    from rl_games.algos_torch import torch_ext
    from rl_games.algos_torch.models import ModelA2C

    config = "{clip_actions: no, normalize_input: True, normalize_value: True}"
    rnn = RNN % ("lstm", 1, ", before_mlp: True, layer_norm: True")
    text = network(DISCRETE, MLP, rnn).replace("{clip_actions: no}", config)
    net = rl_games_network(text, (4,), 2)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, with which it compiles
        theirs = ModelA2C.Network(
            net, obs_shape=(4,), normalize_value=True, normalize_input=True, value_size=1
        )
        theirs.train().running_mean_std(torch.randn(64, 4))
        theirs.value_mean_std(torch.randn(64, 1) * 5)
        theirs.eval()
        optimizer = torch.optim.Adam(theirs.parameters()).state_dict()
        rest = {
            "epoch": 3,
            "optimizer": optimizer,
            "last_mean_rewards": np.float64(1.5),
            "env_state": None,
        }
        torch_ext.save_checkpoint(str(tmp_path / "last"), {"model": theirs.state_dict(), **rest})
    (tmp_path / "ppo.yaml").write_text(text)
    arguments = ["--weights", str(tmp_path / "last.pth"), "-o", str(tmp_path / "agent.safetensors")]
    assert main(["import", str(tmp_path / "ppo.yaml"), "--env", "CartPole-v1", *arguments]) == 0
    assert "24 tensors loaded, 0 differences" in capsys.readouterr().out
    model = composer.load(tmp_path / "agent.safetensors").eval()
    x = torch.randn(5, 4) * 0.5
    states = tuple(state.repeat(1, 5, 1) for state in theirs.get_default_rnn_state())
    with torch.no_grad():
        expected = theirs(
            {"obs": x.clone(), "is_train": False, "rnn_states": (states,), "seq_length": 1}
        )
    logits, values = outputs(model, x)
    torch.testing.assert_close(
        torch.log_softmax(logits, -1),
        torch.log_softmax(expected["logits"], -1),
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(values, expected["values"], atol=1e-4, rtol=1e-4)


def test_images_that_are_channels_first_there_may_be_bytes(tmp_path):
    result = imported(tmp_path, CASES["cnn_channels_first"])
    assert result.notes == [
        "params.network.cnn.permute_input: bytes are divided by 255 there; if yours are bytes, put a scale_image "
        "before 'conv'"
    ]
