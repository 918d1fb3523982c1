"""Configurations of rsl_rl as specs: IsaacLab's, mjlab's and legged_gym's Python is parsed, never run."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer
from tests.helpers.foreign import adopted, count, drawn, imported, outputs, refusal

VECTOR = spaces.Box(-np.inf, np.inf, (5,))
CONTINUOUS = spaces.Box(-np.inf, np.inf, (3,))

ISAAC = """\
from isaaclab.utils import configclass
from isaaclab_rl.rsl_rl import RslRlOnPolicyRunnerCfg, RslRlPpoActorCriticCfg, RslRlPpoAlgorithmCfg

raise SystemExit("this file was run")

@configclass
class RoughCfg(RslRlOnPolicyRunnerCfg):
    num_steps_per_env = 24
    experiment_name = "rough"
    policy = RslRlPpoActorCriticCfg(
        init_noise_std=0.5,
        actor_hidden_dims=[16, 8],
        critic_hidden_dims=[12, 6],
        activation="elu",
    )
    algorithm = RslRlPpoAlgorithmCfg(learning_rate=1.0e-3, gamma=0.99)


@configclass
class FlatCfg(RoughCfg):
    def __post_init__(self):
        super().__post_init__()
        self.experiment_name = "flat"
        self.policy.actor_hidden_dims = [8, 8]
"""
MJLAB = """\
from mjlab.rl import RslRlModelCfg, RslRlOnPolicyRunnerCfg, RslRlPpoAlgorithmCfg

WIDTHS = (16, 8)

def runner_cfg() -> RslRlOnPolicyRunnerCfg:
    "A runner."
    algorithm = RslRlPpoAlgorithmCfg(clip_param=0.2)
    return RslRlOnPolicyRunnerCfg(
        actor=RslRlModelCfg(
            hidden_dims=WIDTHS,
            activation="elu",
            obs_normalization=False,
            distribution_cfg={"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "scalar"},
        ),
        critic=RslRlModelCfg(hidden_dims=WIDTHS, activation="elu"),
        algorithm=algorithm,
        max_iterations=10 * 30,
    )
"""
LEGGED = """\
class RobotCfgPPO(LeggedRobotCfgPPO):
    class policy:
        init_noise_std = 1.0
        actor_hidden_dims = [16, 8]
        critic_hidden_dims = [16, 8]
        activation = 'elu'
        rnn_type = 'lstm'
        rnn_hidden_size = 6
        rnn_num_layers = 2
    class runner(LeggedRobotCfgPPO.runner):
        policy_class_name = 'ActorCriticRecurrent'
        max_iterations = 1500
"""
YAML = """\
runner:
  class_name: OnPolicyRunner
  obs_groups: {policy: [policy], critic: [policy, privileged]}
  policy:
    class_name: %s
    activation: %s
    actor_hidden_dims: [16, 8]
    critic_hidden_dims: [16, 8]
    init_noise_std: 1.0
    noise_std_type: log
    actor_obs_normalization: %s
  algorithm: {learning_rate: 0.001}
"""


def models(actor="", critic="", more="", hidden="[16, 8]"):
    """A configuration of version 5 as YAML."""
    distribution = "distribution_cfg: {class_name: GaussianDistribution, std_type: log}"
    return f"""
actor: {{hidden_dims: {hidden}, activation: elu, {actor or distribution}}}
critic: {{hidden_dims: {hidden}, activation: elu{critic}}}
{more}"""


def mlp(*sizes, activation=nn.ELU):
    layers = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1])


def state(module, name):
    return {f"{name}.{key}": tensor for key, tensor in drawn(module).state_dict().items()}


@pytest.mark.parametrize(("name", "hidden"), [("RoughCfg", (16, 8)), ("FlatCfg", (8, 8))])
def test_a_class_of_isaac_lab_computes_what_torch_computes_by_hand(name, hidden, tmp_path):
    result = imported(tmp_path, ISAAC, "rl_cfg.py", name=name)
    assert result.left == []
    assert "algorithm.learning_rate" in result.training
    actor, critic = mlp(5, *hidden, 3), mlp(5, 12, 6, 1)
    tensors = state(actor, "model_state_dict.actor") | state(critic, "model_state_dict.critic")
    tensors["model_state_dict.std"] = std = torch.tensor([0.1, 1.0, 3.0])
    model = adopted(result, tensors, VECTOR, CONTINUOUS)
    assert count(model) == count(actor) + count(critic) + 3
    x = torch.randn(7, 5)
    logits, values = outputs(model, x)
    torch.testing.assert_close(logits, actor(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, critic(x), atol=1e-5, rtol=1e-5)
    expected = torch.distributions.Normal(actor(x), std.expand(7, 3)).log_prob(logits).sum(-1)
    found = model.policy.distribution(x).log_prob(logits)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_first_standard_deviation_comes_along(tmp_path):
    spec = imported(tmp_path, ISAAC, "rl_cfg.py", name="RoughCfg").spec
    model = composer.compose(spec, observation_space=VECTOR, action_space=CONTINUOUS, seed=0)
    std = model.policy.distribution(torch.zeros(1, 5)).log_std.exp()
    torch.testing.assert_close(std, torch.full((1, 3), 0.5))


def test_what_isaac_lab_says_otherwise_is_noted(tmp_path):
    result = imported(tmp_path, ISAAC, "rl_cfg.py", name="FlatCfg")
    assert result.notes == [
        "policy.noise_std_type: the standard deviation is the parameter there, its logarithm here"
    ]
    assert result.training == [
        "num_steps_per_env",
        "experiment_name",
        "algorithm.learning_rate",
        "algorithm.gamma",
    ]


def rsl_rl_model(name, output, **settings):
    """A model of rsl_rl 5 for a vector of 5."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rsl_rl.models as library
        from tensordict import TensorDict
    observations = TensorDict({"o": torch.zeros(1, 5)}, [1])
    return getattr(library, name)(observations, {"set": ["o"]}, "set", output, **settings)


GAUSSIAN = {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "scalar"}
OF_STATE = {"class_name": "HeteroscedasticGaussianDistribution", "std_type": "log"}
BETA = {"class_name": "BetaDistribution"}
MODELS = {
    "mlp": ("MLPModel", {"distribution_cfg": GAUSSIAN}, {}, MJLAB),
    "log_std": ("MLPModel", {"distribution_cfg": GAUSSIAN | {"std_type": "log"}}, {}, models()),
    "of_state": (
        "MLPModel",
        {"distribution_cfg": OF_STATE},
        {},
        models("distribution_cfg: {class_name: 'rsl_rl.modules:HeteroscedasticGaussianDistribution', std_type: log}"),
    ),
    "beta": ("MLPModel", {"distribution_cfg": BETA}, {}, models("distribution_cfg: {class_name: BetaDistribution}")),
    **{
        kind: (
            "RNNModel",
            {"distribution_cfg": GAUSSIAN, "rnn_type": kind, "rnn_hidden_dim": 6, "rnn_num_layers": layers},
            {"rnn_type": kind, "rnn_hidden_dim": 6, "rnn_num_layers": layers},
            models(
                f"class_name: RNNModel, rnn_type: {kind}, rnn_hidden_dim: 6, rnn_num_layers: {layers}, distribution_cfg: {{std_type: scalar}}",
                f", class_name: RNNModel, rnn_type: {kind}, rnn_hidden_dim: 6, rnn_num_layers: {layers}",
            ),
        )
        for kind, layers in (("lstm", 2), ("gru", 1))
    },
    "normalized": (
        "MLPModel",
        {"distribution_cfg": GAUSSIAN, "obs_normalization": True},
        {"obs_normalization": True},
        models("obs_normalization: true, distribution_cfg: {std_type: scalar}", ", obs_normalization: true"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_the_spec_computes_what_rsl_rl_computes(case, tmp_path):
    kind, of_actor, of_critic, text = MODELS[case]
    actor = rsl_rl_model(kind, 3, hidden_dims=[16, 8], activation="elu", **of_actor)
    critic = rsl_rl_model(kind, 1, hidden_dims=[16, 8], activation="elu", **of_critic)
    tensors = state(actor, "actor_state_dict") | state(critic, "critic_state_dict")
    for name in tensors:
        if name.endswith("std_param") and "log" not in name:
            tensors[name] = tensors[name].abs() + 0.1
        if name.endswith(("_var", "_std")):  # both networks have seen the same observations
            tensors[name] = torch.full_like(tensors[name], 4.0 if name.endswith("_var") else 2.0)
    if case == "normalized":
        for part, module in (("actor", actor), ("critic", critic)):
            module.load_state_dict(
                {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(part)}
            )
    result = imported(tmp_path, text, "cfg.py" if text is MJLAB else "cfg.yaml")
    assert result.left == []
    space = spaces.Box(-1, 1, (3,)) if case == "beta" else CONTINUOUS
    used = {k: v for k, v in tensors.items() if "critic_state_dict.obs_normalizer" not in k}
    model = adopted(result, used, VECTOR, space)
    assert count(model) == count(actor) + count(critic)
    x = torch.randn(7, 5)
    logits, values = outputs(model, x)
    with torch.no_grad():
        latents = [module.get_latent({"o": x}) for module in (actor, critic)]
        expected, value = actor.mlp(latents[0]), critic.mlp(latents[1])
    torch.testing.assert_close(logits, expected.reshape(7, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, value, atol=1e-5, rtol=1e-5)


def test_a_recurrent_class_of_legged_gym_computes_what_torch_computes(tmp_path):
    result = imported(tmp_path, LEGGED, "robot_config.py")
    parts = {
        "actor": mlp(6, 16, 8, 3),
        "critic": mlp(6, 16, 8, 1),
        "memory_a.rnn": nn.LSTM(5, 6, 2),
        "memory_c.rnn": nn.LSTM(5, 6, 2),
    }
    tensors = {"model_state_dict.std": torch.ones(3)}
    for name, module in parts.items():
        tensors |= state(module, f"model_state_dict.{name}")
    model = adopted(result, tensors, VECTOR, CONTINUOUS)
    assert count(model) == sum(map(count, parts.values())) + 3
    x = torch.randn(7, 5)
    logits, values = outputs(model, x)
    for found, net, memory in (
        (logits, "actor", "memory_a.rnn"),
        (values, "critic", "memory_c.rnn"),
    ):
        expected = parts[net](parts[memory](x[None])[0][0])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert result.training == ["runner.max_iterations"]


def test_groups_of_observations_are_what_the_networks_read(tmp_path):
    result = imported(tmp_path, YAML % ("ActorCritic", "relu", "True"))
    spec = result.spec
    assert spec["policy"]["graph"]["latent"]["in"] == "policy"
    assert spec["critic"]["graph"]["joined"] == {"block": "concat", "in": ["policy", "privileged"]}
    assert spec["normalize"] == ["policy"]
    assert result.notes == [
        "policy.actor_obs_normalization: divided by the standard deviation plus 0.01 there, clipped at 10 of them here",
        "policy.actor_obs_normalization: what both networks read is normalised for both here",
    ]
    composer.compose(
        spec,
        observation_space=spaces.Dict(policy=VECTOR, privileged=spaces.Box(-1, 1, (2,))),
        action_space=CONTINUOUS,
    )


@pytest.mark.parametrize(
    ("word", "module"),
    [("crelu", nn.CELU), ("lrelu", nn.LeakyReLU), ("swish", nn.SiLU), ("mish", nn.Mish), ("selu", nn.SELU)],
)  # fmt: skip
def test_activations_have_our_names(word, module, tmp_path):
    result = imported(tmp_path, models(hidden="[16]").replace("elu", word))
    actor, critic = mlp(5, 16, 3, activation=module), mlp(5, 16, 1, activation=module)
    tensors = state(actor, "actor_state_dict.mlp") | state(critic, "critic_state_dict.mlp")
    tensors["actor_state_dict.distribution.log_std_param"] = torch.zeros(3)
    x = torch.randn(7, 5)
    logits, _ = outputs(adopted(result, tensors, VECTOR, CONTINUOUS), x)
    torch.testing.assert_close(logits, actor(x), atol=1e-5, rtol=1e-5)


def test_a_large_standard_deviation_widens_the_range(tmp_path):
    text = models("distribution_cfg: {init_std: 20.0}")
    (rule,) = imported(tmp_path, text).spec["distributions"]
    assert rule["init_log_std"] == pytest.approx(math.log(20))
    assert rule["log_std_range"] == [-80.0, 80.0]
    text = models("distribution_cfg: {init_std: 1.0, std_range: [0.1, 2]}")
    (rule,) = imported(tmp_path, text).spec["distributions"]
    assert rule["log_std_range"] == pytest.approx([math.log(0.1), math.log(2)])


PYTHON = "rl_cfg.py"


@pytest.mark.parametrize(
    ("text", "file", "message"),
    [
        (ISAAC, PYTHON, "rl_cfg.py:1:1: the file has 'RoughCfg', 'FlatCfg'; choose one: --class RoughCfg, or name="),
        (
            YAML % ("StudentTeacher", "elu", "no"),
            "c.yaml",
            "c.yaml:5:5: policy.class_name: the class 'StudentTeacher' is no plain network; those are 'ActorCritic', "
            "'ActorCriticRecurrent'",
        ),
        (
            YAML % ("ActorCritic", "prelu", "no"),
            "c.yaml",
            "c.yaml:6:5: policy.activation: there is no activation 'prelu'; did you mean 'relu'?",
        ),
        (
            models(hidden="[-1, 8]"),
            "c.yaml",
            "c.yaml:2:9: actor.hidden_dims: -1 stands for the size of the observation; write the number",
        ),
        (
            models("distribution_cfg: {learn_std: false}"),
            "c.yaml",
            "c.yaml:2:67: actor.distribution_cfg.learn_std: log_std is learned here; leave the key out, and freeze it "
            "in Python",
        ),
        (
            models("obs_normalization: false"),
            "c.yaml",
            "c.yaml:2:1: actor: 'distribution_cfg' is missing: an actor without noise is no policy here",
        ),
        (
            models("distribution_cfg: {class_name: HeteroscedasticGaussianDistribution, std_type: scalar}"),
            "c.yaml",
            "c.yaml:2:116: actor.distribution_cfg.std_type: the network gives a standard deviation there, its "
            "logarithm here; only 'log' is alike",
        ),
        (
            models("cnn_cfg: {output_channels: [8]}, distribution_cfg: {}"),
            "c.yaml",
            "c.yaml:2:48: actor.cnn_cfg: the file does not say which observations are images; write the graph by hand",
        ),
        (
            models("class_name: CNNModel, distribution_cfg: {}"),
            "c.yaml",
            "c.yaml:2:48: actor.class_name: the class 'CNNModel' is no plain network; did you mean 'RNNModel'?",
        ),
        (
            ISAAC.replace("[16, 8]", "[16, *WIDTHS]").replace("FlatCfg", "_").replace("policy.", "p."),
            PYTHON,
            "rl_cfg.py:12:27: policy.actor_hidden_dims: must be a list of whole numbers of at least 1, got [16, "
            "'*WIDTHS']",
        ),
        (
            ISAAC.replace("init_noise_std=0.5", "init_noise_std=open('x').read()"),
            PYTHON,
            "rl_cfg.py:11:24: policy.init_noise_std: \"open('x').read()\" is code, which is not run; write the value "
            "itself",
        ),
        ("class A(:\n", PYTHON, "rl_cfg.py:1:9: this is not valid Python: invalid syntax"),
        ("a = 1\0\n", PYTHON, "rl_cfg.py:1:1: this is not valid Python: source code string cannot contain null bytes"),
        (
            "x = " + "-" * 20_000 + "1\n",
            PYTHON,
            "rl_cfg.py:1:1: this Python is nested too deep",
        ),
        ("x = 1\n", PYTHON, "rl_cfg.py:1:1: this is no configuration of a known kind; say which with --from, or kind=:"),
    ],
)  # fmt: skip
def test_what_a_spec_cannot_say_is_refused_by_its_key(text, file, message, tmp_path):
    name = "RoughCfg" if "class RoughCfg" in text and "choose one" not in message else None
    assert refusal(tmp_path, text, file, name=name).split("\n")[0] == message


def test_a_class_that_is_not_there_is_told_what_there_is(tmp_path):
    message = "rl_cfg.py:1:1: there is no configuration 'Flat' in the file; did you mean 'FlatCfg'?"
    assert refusal(tmp_path, ISAAC, PYTHON, name="Flat") == message


def test_widths_that_a_base_in_another_file_may_have_are_noted(tmp_path):
    text = "class Flat(Rough):\n    def __post_init__(self):\n        self.policy.actor_hidden_dims = [4]\n"
    result = imported(tmp_path, text, PYTHON)
    assert result.notes[-1] == (
        "policy.critic_hidden_dims: not in the file; [256, 256, 256] is rsl_rl's own default, and a base in another "
        "file may say otherwise"
    )
    assert result.spec["policy"]["graph"]["latent"]["hidden_units"] == [4]
    assert result.spec["critic"]["graph"]["latent"]["hidden_units"] == [256, 256, 256]


BASE = """\
SIZES = [4]

class Base(RslRlOnPolicyRunnerCfg):
    max_iterations = 10
    policy = RslRlPpoActorCriticCfg(actor_hidden_dims=[16, 8], critic_hidden_dims=[8], activation="elu")

class Policy(RslRlPpoActorCriticCfg):
    actor_hidden_dims = [5]
    critic_hidden_dims = [8]

class Small(Base):
    def __post_init__(self):
        super().__post_init__()
        self.policy.actor_hidden_dims = [3]

def runner():
    return Base()
"""


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("class Cfg(Base):\n def __post_init__(self):\n  self.policy.actor_hidden_dims = self.policy.critic_hidden_dims", [8]),
        ("class Cfg(Base):\n def __post_init__(self):\n  a, self.policy.actor_hidden_dims = [1], [2]", [2]),
        ("class Cfg(Base):\n def __post_init__(self):\n  p = self.policy\n  p.actor_hidden_dims = [2]", [2]),
        ("class Cfg(Small):\n policy = Policy()", [3]),  # the base's __post_init__ runs after it
        ("class Cfg(Small):\n def __post_init__(self):\n  pass", [16, 8]),  # and this one takes its place
        ("class Cfg(Small):\n def __post_init__(self):\n  super(Cfg, self).__post_init__()", [3]),
        ("class Cfg(Base):\n SIZES = [6]\n policy = Policy(actor_hidden_dims=SIZES)", [6]),
        ("class Cfg(Base):\n pass\nCfg.policy = Policy()", [5]),
        ("def Cfg():\n cfg = runner()\n cfg.policy.actor_hidden_dims = [2, 2]\n return cfg", [2, 2]),
        ("Cfg = {'runner': {}, 'policy': {'actor_hidden_dims': [1]}}\nCfg['policy']['actor_hidden_dims'] = [7]", [7]),
        ("class Cfg(Base):\n pass\nif __name__ == '__main__':\n Cfg.policy = main(Cfg)", [16, 8]),
        ("class Cfg(Base):\n pass\nstore(node=Cfg)", [16, 8]),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_python_assigns_is_followed(text, widths, tmp_path):
    result = imported(tmp_path, BASE + text, "rl_cfg.py", name="Cfg")
    assert result.spec["policy"]["graph"]["latent"]["hidden_units"] == widths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Cfg(Base):\n def __post_init__(self):\n  if self.small:\n   self.policy.actor_hidden_dims = [2]",
         "20:3: policy.actor_hidden_dims: 'if self.small:' is code"),
        ("class Cfg(Base):\n def __post_init__(self):\n  self.policy.actor_hidden_dims += [2]",
         "20:3: policy.actor_hidden_dims: 'self.policy.actor_hidden_dims += [2]' is code"),
        ("class Cfg(Base):\n def __post_init__(self):\n  self.policy.actor_hidden_dims[0] = 2",
         "20:3: policy.actor_hidden_dims: 'self.policy.actor_hidden_dims[0] = 2' is code"),
        ("class Cfg(Base):\n def __post_init__(self):\n  w = self.policy.actor_hidden_dims\n  w.append(2)",
         "21:3: policy.actor_hidden_dims: 'w.append(2)' is code"),
        ("class Cfg(Base):\n def __post_init__(self):\n  setattr(self.policy, 'activation', 'relu')",
         "20:3: policy.actor_hidden_dims: \"setattr(self.policy, 'activation', 'relu')\" is code"),
        ("class Cfg(Base):\n def __post_init__(self):\n  self._shrink()",
         "20:3: policy.actor_hidden_dims: 'self._shrink()' is code"),
        ("class Cfg(Base):\n if SIZES:\n  policy = Policy()", "19:2: policy: 'if SIZES:' is code"),
        ("class Cfg(Base):\n policy = Base.policy.replace(activation='relu')",
         "19:11: policy: \"Base.policy.replace(activation='relu')\" is code"),
        ("class Cfg(Base):\n policy = Policy(**COMMON)", "19:11: policy.actor_hidden_dims: 'Policy(**COMMON)' is code"),
        ("class Cfg(Base):\n policy = Policy([1])", "19:11: policy.actor_hidden_dims: 'Policy([1])' is code"),
        ("SIZES.append(2)\nclass Cfg(Base):\n policy = Policy(actor_hidden_dims=SIZES)",
         "18:1: policy.actor_hidden_dims: 'SIZES.append(2)' is code"),
        ("def Cfg(small):\n if small:\n  return Small()\n return Base()",
         "19:2: policy.actor_hidden_dims: 'if small:' is code"),
        ("def Cfg(SIZES):\n return Base(policy=Policy(actor_hidden_dims=SIZES))",
         "18:9: policy.actor_hidden_dims: 'SIZES' is code"),
        ("Cfg = runner(small=True)", "18:7: policy.actor_hidden_dims: 'runner(small=True)' is code"),
    ],
    ids=range(14),
)  # fmt: skip
def test_what_python_would_have_to_run_is_an_error_at_its_place(text, message, tmp_path):
    said = refusal(tmp_path, BASE + text, "rl_cfg.py", name="Cfg")
    assert said == f"rl_cfg.py:{message}, which is not run; write the value itself"
