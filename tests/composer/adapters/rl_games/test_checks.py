"""Settings of rl_games that do not go with a composed model are refused at once; what is advised instead works."""

import copy
import re

import numpy as np
import pytest
from gymnasium import spaces
from rl_games.algos_torch.model_builder import ModelBuilder

import composer
from composer.adapters.rl_games import register
from composer.adapters.rl_games.environments import GymnasiumEnvironments
from composer.adapters.rl_games.hosted import as_space, model_spaces, with_states
from tests.helpers.rl_games_agents import (
    ACTOR_CRITIC,
    ASYMMETRIC,
    CENTRAL,
    REMEMBERS,
    agent,
    config,
    player,
    trained,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
CHOICES = {"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}
GAUSSIAN = "distributions: [{action: action, distribution: gaussian}]\n"
COUNTS = ACTOR_CRITIC.replace("critic:", "critic:\n  normalize_value: true")
NO_CRITIC = ACTOR_CRITIC[: ACTOR_CRITIC.index("critic:")]
SEEN_TWICE = ASYMMETRIC.replace("[states]", "[observation]").replace(
    "in: states", "in: observation"
)
SHARED = """
version: 1
ignore: [states]
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16]}
  heads: {in: latent}
  shares: [latent]
critic:
  graph:
    value: {block: linear_output, in: latent, output_units: 1}
"""
FOREIGN = {
    **CENTRAL,
    "model": {"name": "central_value"},
    "network": {
        "name": "actor_critic",
        "central_value": True,
        "mlp": {"units": [8], "activation": "elu", "initializer": {"name": "default"}},
    },
}
APART = {"central_value_config": CENTRAL, "use_experimental_cv": False}
WRITE_CENTRAL = (
    "central_value_config: {model: {name: composer}, network: {name: composer}, normalize_input: false, "
    "learning_rate: 3e-4, mini_epochs: 4, minibatch_size: 512, clip_value: false}"
)
INPUT = (
    "normalize_input: its statistics would not be saved with the model; write normalize_input: false there, "
    "and normalize: [...] in the spec"
)
SCALES = (
    "clip_actions, which is true by default, scales actions from -1 and 1 to their bounds, which the model's actions "
    "have already; write clip_actions: false"
)
# Name: the config as (spec, settings), the lines of the message, and the config after what they advise.
REFUSED = {
    "the host's normaliser": (
        (ACTOR_CRITIC, {"normalize_input": True}),
        [INPUT],
        ("normalize: [observation]\n" + ACTOR_CRITIC, {}),
    ),
    "the host's value normaliser without ours": (
        (ACTOR_CRITIC, {"normalize_value": True}),
        ["normalize_value: its statistics would not be saved with the model; write normalize_value: false, or "
         "normalize_value: true in the critic of the spec as well, whose statistics it then uses"],
        (COUNTS, {"normalize_value": True}),
    ),
    "our value normaliser without the host's": (
        (COUNTS, {}),
        ["the critic's normalize_value would never count a return; write normalize_value: true in the config as well, "
         "which then uses its statistics"],
        (COUNTS, {"normalize_value": True}),
    ),
    "settings of another network": (
        (ACTOR_CRITIC, {"network": {"mlp": {"units": [8]}, "sed": 1}}),
        ["network: 'mlp' is no setting beside 'spec', which describes the network; it takes 'spec', 'allow', 'seed', "
         "'overrides', 'observation_space', 'action_space'",
         "network: 'sed' is no setting beside 'spec', which describes the network; did you mean 'seed'?"],
        (ACTOR_CRITIC, {}),
    ),
    "memory that goes on": (
        (REMEMBERS % "gru", {"zero_rnn_on_done": False}),
        ["zero_rnn_on_done: false carries memory into the next episode, and says nothing of it when it learns; leave "
         "it out"],
        (REMEMBERS % "gru", {}),
    ),
    "sequences across environments": (
        (REMEMBERS % "gru", {"seq_length": 12}),
        ["seq_length: 12 does not divide horizon_length 32 and minibatch_size 32, so that sequences would be of "
         "several environments; write seq_length: 8"],
        (REMEMBERS % "gru", {"seq_length": 8}),
    ),
    "no critic": (
        (NO_CRITIC, {}),
        ["a2c_discrete needs the value of a state; add a critic such as critic: {kind: state, template: {}}"],
        (NO_CRITIC + "critic: {kind: state, template: {}}\n", {}),
    ),
    "numbers for choices": (
        (ACTOR_CRITIC, {"env": "Pendulum-v1", "network": {
            "action_space": CHOICES}, "algorithm": "a2c_continuous"}),
        ["it learns numbers, but 'action' is Discrete(3); use a2c_discrete",
            "action_space: the environment takes Box(-2.0, 2.0, (1,), float32), but the model acts in Discrete(3)",
],
        (ACTOR_CRITIC, {}),
    ),
    "scaling of actions, and bounds": (
        (ACTOR_CRITIC, {"env": "Pendulum-v1", "algorithm": "a2c_continuous", "clip_actions": True,
                        "bounds_loss_coef": 0.1}),
        [SCALES, "bounds_loss_coef draws means back into bounds that 'action' cannot leave; write "
         "bounds_loss_coef: 0.0"],
        (ACTOR_CRITIC, {"env": "Pendulum-v1", "algorithm": "a2c_continuous", "clip_actions": False}),
    ),
    "gaussians beyond -1 and 1": (
        (GAUSSIAN + ACTOR_CRITIC, {"env": "Pendulum-v1", "algorithm": "a2c_continuous", "clip_actions": True}),
        [SCALES],
        (GAUSSIAN + ACTOR_CRITIC, {"env": "Pendulum-v1", "algorithm": "a2c_continuous", "clip_actions": False}),
    ),
    "no number for the loss of bounds, and masks": (
        (ACTOR_CRITIC, {"env": "Pendulum-v1", "algorithm": "a2c_continuous", "bounds_loss_coef": None,
                        "use_action_masks": True}),
        ["use_action_masks: a2c_continuous has no masks; write use_action_masks: false",
         "bounds_loss_coef: without a number rl_games fails in its first update; write bounds_loss_coef: 0.0"],
        (ACTOR_CRITIC, {"env": "Pendulum-v1", "algorithm": "a2c_continuous", "bounds_loss_coef": 0.0}),
    ),
    "beta": (
        ("distributions: [{action: action, distribution: beta}]\n" + ACTOR_CRITIC,
         {"env": "Pendulum-v1", "algorithm": "a2c_continuous"}),
        ["its KL is of normals, which the beta of 'action' is not; write distribution: squashed_gaussian in its entry "
         "of 'distributions'"],
        ("distributions: [{action: action, distribution: squashed_gaussian}]\n" + ACTOR_CRITIC,
         {"env": "Pendulum-v1", "algorithm": "a2c_continuous"}),
    ),
    "a central critic that is half done": (
        (ASYMMETRIC, {"env": "Place-v0", "algorithm": "a2c_continuous", "central_value_config": {
            **{k: v for k, v in CENTRAL.items() if k != "model"}, "normalize_input": True}}),
        [f"central_value_config: {INPUT}",
         "central_value_config: network: {name: composer} needs the model of that name; write " + WRITE_CENTRAL,
         "use_experimental_cv would train values of the actor, which has none beside a central critic; write "
         "use_experimental_cv: false"],
        (ASYMMETRIC, {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
    ),
    "a critic of the actor's own": (
        ("ignore: [states]" + SEEN_TWICE, {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
        ["rl_games hands 'states' alone to a central critic, which reads 'observation'; let the environment put them "
         "into its states, and the critic read those"],
        (ASYMMETRIC, {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
    ),
    "a central critic of the actor's layers": (
        (SHARED, {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
        ["rl_games trains a central critic apart from the actor, of which it cannot read 'latent'; leave out 'shares'"],
        (ASYMMETRIC, {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
    ),
    "a central critic that remembers": (
        (ASYMMETRIC.replace("latent: {block: dense, in: states, hidden_units: [16]}",
                            "memory: {block: gru, in: states, hidden_units: 4}"),
         {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
        ["rl_games steps the memory of a central critic twice where a rollout ends; give the critic none: "
         "critic: {template: {}}"],
        (ASYMMETRIC, {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
    ),
    "a policy that looks at the states": (
        (ASYMMETRIC.replace("in: observation", "in: states").replace("[observation]", "[states]").replace(
            "policy:", "ignore: [observation]\npolicy:"), {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
        ["rl_games hands 'states' to the central critic alone, but the policy reads 'states'; list what it may read "
         "under policy: observations"],
        (ASYMMETRIC, {"env": "Place-v0", "algorithm": "a2c_continuous", **APART}),
    ),
    "two critics": (
        (ACTOR_CRITIC, {"env": "Place-v0", "algorithm": "a2c_continuous", "use_experimental_cv": False,
                        "central_value_config": FOREIGN}),
        ["the critic of the spec would not be trained beside the network in central_value_config; leave it out, as "
         f"overrides: [critic=null] does, or train it: {WRITE_CENTRAL}"],
        (ACTOR_CRITIC, {"env": "Place-v0", "algorithm": "a2c_continuous", "use_experimental_cv": False,
                        "central_value_config": FOREIGN, "network": {"overrides": ["critic=null"]}}),
    ),
    "everything at once": (
        (REMEMBERS % "lstm", {"normalize_input": True, "seq_length": 12, "network": {"units": 3}}),
        ["network: 'units' is no setting beside 'spec', which describes the network; it takes 'spec', 'allow', 'seed', "
         "'overrides', 'observation_space', 'action_space'",
         INPUT,
         "seq_length: 12 does not divide horizon_length 32 and minibatch_size 32, so that sequences would be of "
         "several environments; write seq_length: 8"],
        (REMEMBERS % "lstm", {"seq_length": 8}),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_every_reason(case):
    (spec, settings), lines, _ = REFUSED[case]
    algorithm = settings.get("algorithm", "a2c_discrete")
    assert refused(config(spec, **settings)) == "\n  ".join(
        [f"{algorithm} cannot train this model:", *lines]
    )


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_advised_learns(case):
    _, _, (spec, settings) = REFUSED[case]
    trained(config(spec, **settings, max_epochs=1))


def refused(params):
    with pytest.raises(ValueError, match=r"rl_games|composer|train|env_config") as caught:
        agent(params)
    return str(caught.value)


def test_a_model_is_no_part_of_a_config():
    model = composer.compose(ACTOR_CRITIC, env="CartPole-v1")
    assert refused(config(model)) == (
        "rl_games copies its config, and a Model in it would be another one that nobody trains; give its spec: "
        "spec: agent.yaml, and load weights into agent.model.composed"
    )


def test_the_spec_is_asked_for():
    params = config(ACTOR_CRITIC)
    params["params"]["network"] = {"name": "composer", "sepc": "agent.yaml"}
    assert refused(params) == (
        "network: {name: composer} needs a 'spec', a file or its text, got 'sepc'; "
        "write network: {name: composer, spec: agent.yaml}"
    )


def test_network_and_model_go_together():
    params = config(ACTOR_CRITIC)
    params["params"]["model"] = {"name": "discrete_a2c"}
    assert refused(params) == (
        "network: {name: composer} gives distributions, not means or logits for another model; write beside it "
        "model: {name: composer}"
    )
    params = config(ACTOR_CRITIC)
    params["params"]["network"] = {"name": "actor_critic"}
    assert refused(params) == (
        "model: {name: composer} takes its network from a spec; write network: {name: composer, spec: agent.yaml}"
    )


def test_the_players_refuse_what_they_would_double():
    params = config(ACTOR_CRITIC, "Pendulum-v1", "a2c_continuous", clip_actions=True)
    with pytest.raises(ValueError, match="write clip_actions: false"):
        player(params)


def test_states_without_a_central_critic_are_told_where_they_go():
    with pytest.raises(composer.SpecError) as caught:
        agent(config(ASYMMETRIC, "Place-v0", "a2c_continuous"))
    assert caught.value.__notes__ == [
        f"rl_games hands 'states' to a central critic alone: {WRITE_CENTRAL}"
    ]


def test_the_spaces_beside_the_spec_are_of_the_shapes_of_the_environment():
    seen = {"type": "Box", "shape": [4], "dtype": "float32", "low": -1.0, "high": 1.0}
    acts = {"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}
    params = config(
        ACTOR_CRITIC, network={"observation_space": {**seen, "shape": [5]}, "action_space": acts}
    )
    env = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)
    params["params"]["config"]["env_info"] = {"observation_space": env[0], "action_space": env[1]}
    assert refused(params).splitlines()[1:] == [
        "  action_space: the environment takes Discrete(2), but the model acts in Discrete(3)",
        "  observation_space: it is Box(-1.0, 1.0, (5,), float32), but one tensor (4,) in the environment",
    ]
    parts = spaces.Dict(place=env[0], speed=env[0])
    params = config(
        ACTOR_CRITIC, network={"observation_space": spaces.Dict(observation=env[0], sped=env[0])}
    )
    params["params"]["network"]["overrides"] = ["ignore=[sped]"]
    params["params"]["config"]["env_info"] = {
        "observation_space": parts,
        "action_space": spaces.Discrete(2, start=1),
    }
    assert refused(params).splitlines()[1:] == [
        "  rl_games counts choices from 0, got Discrete(2, start=1); use env_name: composer",
        "  observation_space: the environment's 'place' is missing; there is 'observation', 'sped'",
        "  observation_space: the environment's 'speed' is missing; did you mean 'sped'?",
    ]


def test_spaces_must_be_known():
    with pytest.raises(ValueError, match="no agent") as caught:
        model_spaces(
            None, {"action_space": {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}}
        )
    assert str(caught.value) == (
        "no agent of rl_games builds this model, which would know the spaces; write observation_space beside 'spec', as "
        "{type: Box, shape: [4], dtype: float32, low: -inf, high: inf}"
    )


def built(builder):
    return builder.build({"input_shape": (4,), "num_seqs": 1})


def builder_with(**given):
    """What rl_games makes of a config's model and network, without an agent."""
    register()
    network = {"name": "composer", "spec": ACTOR_CRITIC, **given}
    return ModelBuilder().load({"model": {"name": "composer"}, "network": network})


def test_a_builder_without_an_agent_needs_the_spaces():
    with pytest.raises(ValueError, match="no agent") as caught:
        built(builder_with())
    assert str(caught.value) == (
        "no agent of rl_games builds this model, which would know the spaces; write observation_space and action_space beside 'spec', as "
        "{type: Box, shape: [4], dtype: float32, low: -inf, high: inf}"
    )
    seen = {"type": "Box", "shape": [4], "dtype": "float32", "low": "-inf", "high": "inf"}
    model = built(builder_with(observation_space=seen, action_space=CHOICES)).composed
    assert model.action_space == spaces.Discrete(3)


def test_an_agent_among_the_callers_that_builds_another_model_is_no_agent_of_this_one(monkeypatch):
    made = agent(config(ACTOR_CRITIC))
    monkeypatch.setattr(type(made), "build_another", lambda self, it: built(it), raising=False)
    with pytest.raises(ValueError, match="no agent of rl_games builds this model"):
        made.build_another(builder_with())
    assert made.build_another(made.network).composed.action_space == spaces.Discrete(2)


def test_one_value_is_asked_of_a_critic(monkeypatch):
    info = GymnasiumEnvironments.get_env_info
    several = lambda self: {**info(self), "value_size": 2}  # noqa: E731
    monkeypatch.setattr(GymnasiumEnvironments, "get_env_info", several)
    assert refused(config(ACTOR_CRITIC)) == (
        "a2c_discrete cannot train this model:\n  value_size: a composed critic gives one value, not 2; write 1"
    )


def test_other_algorithms_are_refused():
    params = config(ACTOR_CRITIC, env="Pendulum-v1", algorithm="sac")
    settings = params["params"]["config"]
    settings |= {
        "num_steps_per_episode": 8,
        "num_warmup_steps": 2,
        "batch_size": 4,
        "init_alpha": 1,
    }
    settings |= {
        "replay_buffer_size": 100,
        "critic_tau": 0.005,
        "actor_lr": 1e-3,
        "critic_lr": 1e-3,
    }
    settings |= {"alpha_lr": 1e-3, "learnable_temperature": True, "target_entropy_coef": 1.0}
    assert refused(params) == (
        "a composed model is trained by a2c_discrete and a2c_continuous of rl_games, not by its SACAgent; "
        "write algo: {name: a2c_continuous}"
    )


def test_spaces_of_the_older_gym_are_read():
    class Box:
        low, high, shape, dtype = (
            np.zeros(2, np.float32),
            np.ones(2, np.float32),
            (2,),
            np.dtype("float32"),
        )

    class Discrete:
        n = 3

    class Dict:
        def __init__(self, spaces):
            self.spaces = spaces

    class Tuple(Dict):
        pass

    old = Dict({"a": Box(), "b": Tuple([Discrete()])})
    assert as_space(old) == spaces.Dict(
        a=spaces.Box(0, 1, (2,)), b=spaces.Tuple([spaces.Discrete(3)])
    )


def test_a_config_can_be_copied():
    params = config(ACTOR_CRITIC)
    assert copy.deepcopy(params) == params


def test_an_environment_has_an_id():
    assert refused(config(ACTOR_CRITIC, env_config={})) == (
        "env_config needs the id of an environment; write env_config: {id: CartPole-v1}"
    )


def test_an_observation_called_as_the_states_is_renamed():
    box = spaces.Box(-1, 1, (2,))
    message = "the actor has an observation 'states', which is the name of the central critic's; rename it in the environment"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        with_states(spaces.Dict(states=box), box)
    assert with_states(spaces.Dict(place=box), box) == spaces.Dict(place=box, states=box)
