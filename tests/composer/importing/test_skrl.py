"""The YAML of skrl as specs: as many parameters and, with the same weights, the same numbers as skrl's models have."""

import copy
import warnings

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from torch import nn

import composer
from tests.helpers.foreign import adopted, count, drawn, imported, outputs, refusal

VECTOR = spaces.Box(-np.inf, np.inf, (5,))
IMAGE = spaces.Box(0, 1, (12, 12, 3), np.float32)
CONTINUOUS = spaces.Box(-np.inf, np.inf, (3,))
MLP = """[{name: net, input: OBSERVATIONS, layers: [16, 8], activations: elu}]"""
CNN = """
      - name: features
        input: "permute(OBSERVATIONS, (0, 3, 1, 2))"
        layers:
          - conv2d: {out_channels: 4, kernel_size: 3, stride: 2, padding: 0}
          - conv2d: [6, 3, 1, 1]
          - flatten
        activations: relu
      - name: net
        input: features
        layers: [16, linear: 8]
        activations: [elu, tanh]
"""
SEVERAL = """
      - {name: value, input: OBSERVATIONS, layers: [7], activations: [tanh]}
      - {name: side, input: OBSERVATIONS, layers: [6, {linear: [5, false]}]}
      - {name: net, input: "concatenate([value, side, OBSERVATIONS])", layers: [{linear: {features: 9}}, 8], activations: ["", relu]}
"""


def config(
    network=MLP, value=None, separate=True, policy="class: GaussianMixin", agent="{class: PPO}"
):
    return f"""
models:
  separate: {separate}
  policy:
    {policy}
    network: {network}
    output: ACTIONS
  value:
    class: DeterministicMixin
    network: {network if value is None else value}
    output: ONE
agent: {agent}
trainer: {{class: SequentialTrainer, timesteps: 100}}
"""


def skrl_models(text, observation_space, action_space):
    """skrl's own models of the configuration, and their tensors under the names in a checkpoint."""
    from skrl.utils.model_instantiators.torch import (
        categorical_model,
        deterministic_model,
        gaussian_model,
        multicategorical_model,
        shared_model,
    )

    of_class = {
        "GaussianMixin": gaussian_model,
        "CategoricalMixin": categorical_model,
        "MultiCategoricalMixin": multicategorical_model,
        "DeterministicMixin": deterministic_model,
    }
    given = copy.deepcopy(yaml.safe_load(text)["models"])
    room = {
        "observation_space": observation_space,
        "state_space": observation_space,
        "action_space": action_space,
        "device": "cpu",
    }
    roles = ("policy", "value")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's lazy layers
        if given["separate"]:
            models = {
                role: of_class[given[role].pop("class")](**room, **given[role]) for role in roles
            }
        else:
            structure = [given[role].pop("class") for role in roles]
            parameters = [given[role] for role in roles]
            shared = shared_model(
                **room, structure=structure, roles=list(roles), parameters=parameters
            )
            models = dict.fromkeys(roles, shared)
        for role, model in models.items():
            model.init_state_dict(role=role)
    modules = {id(model): (role, model) for role, model in reversed(models.items())}
    tensors = {
        f"{role}.{name}": tensor
        for role, model in modules.values()
        for name, tensor in drawn(model).state_dict().items()
    }
    return models, tensors


def flat(x):
    """A batch of observations as skrl has them: side by side, by key."""
    if isinstance(x, dict):
        return torch.cat([flat(x[key]) for key in sorted(x)], -1)
    return x.flatten(1)


CASES = {
    "separate": config(),
    "shared": config(separate=False),
    "other_value": config(value="[{name: net, input: STATES, layers: [4, 4, 4], activations: relu}]"),
    "several": config(SEVERAL),
    "several_shared": config(SEVERAL, separate=False),
    "cnn": config(CNN),
    "cnn_shared": config(CNN, separate=False),
    "categorical": config(policy="class: CategoricalMixin"),
    "multicategorical": config(policy="class: MultiCategoricalMixin"),
    "dict": config(
        CNN.replace("permute(OBSERVATIONS,", "permute(OBSERVATIONS['camera'],").replace(
            "input: features", """input: "concatenate([features, OBSERVATIONS['joint-pos']])" """
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_spec_computes_what_skrl_computes(case, tmp_path):
    text = CASES[case]
    observation_space = IMAGE if "cnn" in case else VECTOR
    if case == "dict":
        observation_space = spaces.Dict({"camera": IMAGE, "joint-pos": VECTOR})
    action_space = {
        "categorical": spaces.Discrete(4),
        "multicategorical": spaces.MultiDiscrete([2, 3]),
    }.get(case, CONTINUOUS)
    models, tensors = skrl_models(text, observation_space, action_space)
    result = imported(tmp_path, text)
    assert result.left == []
    model = adopted(result, tensors, observation_space, action_space)
    assert count(model) == sum(count(each) for each in {id(m): m for m in models.values()}.values())
    x = {name: torch.rand(7, *s.shape or ()) for name, s in observation_space.items()} if case == "dict" else torch.rand(7, *observation_space.shape or ())  # fmt: skip
    inputs = {"observations": flat(x), "states": flat(x)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [models[role].compute(inputs, role=role)[0] for role in ("policy", "value")]
        logits, values, *_ = model(x)
    torch.testing.assert_close(logits["action"], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["value"].reshape(-1, 1), expected[1], atol=1e-5, rtol=1e-5)


def test_the_spec_computes_what_torch_computes_by_hand(tmp_path):
    policy = nn.Sequential(nn.Linear(5, 16), nn.ELU(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 3))
    value = nn.Sequential(nn.Linear(5, 16), nn.ELU(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 1))
    tensors = {f"policy.net_container.{n}": t for n, t in drawn(policy).state_dict().items()}
    tensors |= {f"value.net_container.{n}": t for n, t in drawn(value).state_dict().items()}
    tensors["policy.log_std_parameter"] = log_std = torch.randn(3)
    model = adopted(imported(tmp_path, config()), tensors, VECTOR, CONTINUOUS)
    assert count(model) == count(policy) + count(value) + 3
    x = torch.randn(7, 5)
    logits, values = outputs(model, x)
    torch.testing.assert_close(logits, policy(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, value(x), atol=1e-5, rtol=1e-5)
    std = torch.exp(log_std).expand(7, 3)
    expected = torch.distributions.Normal(policy(x), std).log_prob(torch.zeros(7, 3)).sum(-1)
    found = model.policy.distribution(x).log_prob(torch.zeros(7, 3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_graph_reads_like_the_containers(tmp_path):
    result = imported(tmp_path, config(SEVERAL))
    assert result.spec["policy"]["graph"] == {
        "value_2": {"block": "dense", "in": "observation", "hidden_units": [7], "activation": "tanh"},
        "side_0": {"block": "dense", "in": "observation", "hidden_units": [6], "activation": "identity"},
        "side": {"block": "dense", "in": "side_0", "hidden_units": [5], "activation": "identity", "bias": False},
        "joined": {"block": "concat", "in": ["value_2", "side", "observation"]},
        "net_0": {"block": "dense", "in": "joined", "hidden_units": [9], "activation": "identity"},
        "net": {"block": "dense", "in": "net_0", "hidden_units": [8], "activation": "relu"},
    }  # fmt: skip


def test_running_statistics_come_along(tmp_path):
    from skrl.resources.preprocessors.torch import RunningStandardScaler

    agent = "{observation_preprocessor: RunningStandardScaler, value_preprocessor: RunningStandardScaler, gamma: 0.9}"
    result = imported(tmp_path, config(agent=agent))
    assert result.notes == [
        "agent.observation_preprocessor: clipped at 5 standard deviations there, at 10 here"
    ]
    assert result.training == ["agent.gamma", "trainer.class", "trainer.timesteps"]
    _, tensors = skrl_models(config(), VECTOR, CONTINUOUS)
    observations, values = (RunningStandardScaler(size=n, device="cpu") for n in (5, 1))
    observations(torch.randn(50, 5) * 3 + 2, train=True)
    values(torch.randn(50, 1) * 7 - 1, train=True)
    for name, scaler in (("observation", observations), ("value", values)):
        tensors |= {f"{name}_preprocessor.{k}": t for k, t in scaler.state_dict().items()}
    model = adopted(result, tensors, VECTOR, CONTINUOUS)
    x = torch.randn(7, 5)
    with torch.no_grad():
        normalized = model.policy.observer.normalizers["observation"](x)
        value, values_out = model.critic.value(x), model(x)[1]
    torch.testing.assert_close(normalized, observations(x), atol=1e-5, rtol=1e-5)
    expected = values(values_out["normalized_value"].reshape(-1, 1), inverse=True)
    torch.testing.assert_close(value.reshape(-1, 1), expected, atol=1e-4, rtol=1e-4)


def test_limits_of_log_std_come_along(tmp_path):
    policy = "{class: GaussianMixin, clip_actions: True, min_log_std: -5, initial_log_std: -1, reduction: prod}"
    result = imported(tmp_path, config(policy=policy[1:-1].replace(", ", "\n    ")))
    assert result.spec["distributions"] == [
        {
            "action": "action",
            "distribution": "gaussian",
            "log_std": "learned",
            "init_log_std": -1.0,
            "log_std_range": [-5.0, 2.0],
        }
    ]
    assert result.notes == [
        "models.policy.reduction: log_prob is a sum over the actions here",
        "models.policy.clip_actions: actions clipped before log_prob there, what `act` returns here",
    ]


def test_models_of_other_roles_are_named(tmp_path):
    text = config() + "seed: 1\n"
    text = text.replace("agent:", "  discriminator: {class: DeterministicMixin}\nagent:")
    result = imported(tmp_path, text)
    assert result.left == ["models.discriminator"]
    assert result.training == ["agent.class", "trainer.class", "trainer.timesteps", "seed"]


def test_what_skrl_reads_otherwise_is_noted(tmp_path):
    network = "[{name: net, input: STATES, layers: [8], activations: gelu}]"
    result = imported(tmp_path, config(network, value=MLP, separate=False))
    assert result.notes == [
        "models.policy.network.0.input: STATES is the observation here; for a state of its own write 'observations:' "
        "for the critic",
        "models.policy.network.0.activations: skrl has no 'gelu' and applies nothing, nor does this spec",
        "models.value.network: a shared model has the layers of the policy alone, as in skrl",
    ]
    assert result.spec["policy"]["graph"]["net"]["activation"] == "identity"


def net(text):
    return config(f"[{{name: net, input: OBSERVATIONS, {text}}}]", value=MLP)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            config(policy="class: DeterministicMixin"),
            "config.yaml:5:5: models.policy.class: there is no policy 'DeterministicMixin' here; there is "
            "'GaussianMixin', 'CategoricalMixin', 'MultiCategoricalMixin', 'MultivariateGaussianMixin'",
        ),
        (
            config(policy="class: GaussianMixin\n    fixed_log_std: True"),
            "config.yaml:6:5: models.policy.fixed_log_std: log_std is learned here; leave the key out, and freeze it in "
            "Python",
        ),
        (
            config(policy="class: GaussianMixin\n    min_log_std: 3\n    max_log_std: 1"),
            "config.yaml:6:5: models.policy.min_log_std: is 3, above 'max_log_std' 1",
        ),
        (
            config(policy="class: GaussianMixin\n    initial_log_std: 3"),
            "config.yaml:6:5: models.policy.initial_log_std: must be a number of at least -20 and at most 2, got the "
            "number 3",
        ),
        (
            config().replace("output: ACTIONS", "output: 2 * tanh(ACTIONS)"),
            "config.yaml:7:5: models.policy.output: one linear layer ends this network here, 'ACTIONS', got '2 * "
            "tanh(ACTIONS)'",
        ),
        (
            net("layers: [lstm: 8]"),
            "config.yaml:6:48: models.policy.network.0.layers: there is no layer 'lstm'; there is 'linear', 'conv2d', "
            "'flatten'",
        ),
        (
            net("layers: [{linear: 8, flatten: {}}]"),
            "config.yaml:6:48: models.policy.network.0.layers: a layer is a number, a word or a mapping with one key, "
            "got 'linear', 'flatten'",
        ),
        (
            net("layers: [linear: ACTIONS]"),
            "config.yaml:6:48: models.policy.network.0.layers: linear: 'out_features' is a whole number of at least 1, "
            "got the text 'ACTIONS'",
        ),
        (
            net("layers: [conv2d: {out_channels: 8, kernel_size: 3, groups: 2}]"),
            "config.yaml:6:48: models.policy.network.0.layers: conv2d: there is no setting 'groups' here; there is "
            "'out_channels', 'kernel_size', 'stride', 'padding', 'bias', 'dilation', 'in_channels'",
        ),
        (
            net("layers: [8, 8], activations: [elu, elu, elu]"),
            "config.yaml:6:64: models.policy.network.0.activations: 3 activations for 2 layers; give one for all, or "
            "one for each",
        ),
        (
            net("layers: [8], activations: softmax"),
            "config.yaml:6:61: models.policy.network.0.activations: there is no activation 'softmax'; there is 'elu', "
            "'leaky_relu', 'relu', 'selu', 'sigmoid', 'softplus', 'softsign', 'tanh'",
        ),
        (
            config("[{name: net, input: '2 * OBSERVATIONS', layers: [8]}]", value=MLP),
            "config.yaml:6:27: models.policy.network.0.input: the text '2 * OBSERVATIONS' is no input of a spec: "
            "observations, containers, permute and concatenate are",
        ),
        (
            config('[{name: net, input: "__import__(\'os\').system(\'touch ran\')", layers: [8]}]', value=MLP),
            "config.yaml:6:27: models.policy.network.0.input: the text \"__import__('os').system('touch ran')\" is no "
            "input of a spec: observations, containers, permute and concatenate are",
        ),
        (
            config("[{name: net, input: '%s', layers: [8]}]" % ("(" * 900), value=MLP),
            "config.yaml:6:27: models.policy.network.0.input: the text '(((((((((((((((((((((((((((((((((((((...' is "
            "no input of a spec: observations, containers, permute and concatenate are",
        ),
        (
            config("[]", value=MLP),
            "config.yaml:6:5: models.policy.network: needs at least one container of layers",
        ),
    ],
)  # fmt: skip
def test_what_a_spec_cannot_say_is_refused_by_its_key(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(tmp_path, text) == message
    assert not (tmp_path / "ran").exists()


def test_one_hot_codes_of_a_discrete_observation(tmp_path):
    network = "[{name: net, input: 'one_hot_encoding(OBSERVATION_SPACE, OBSERVATIONS)', layers: [8], activations: elu}]"
    spec = imported(tmp_path, config(network)).spec
    assert spec["policy"]["graph"]["one_hot"] == {"block": "one_hot", "in": "observation"}
    composer.compose(spec, observation_space=spaces.Discrete(4), action_space=CONTINUOUS)
