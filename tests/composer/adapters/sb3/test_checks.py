"""What cannot be trained by an algorithm is refused before anything is, with every reason and a way out."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv

import composer
from composer.adapters import sb3
from composer.checkpoint.container import CheckpointError
from perception_blocks.registry import MissingExtraError
from tests.helpers import fresh
from tests.helpers.paths import ROOT
from tests.helpers.sb3_agents import (
    ACTOR,
    CARTPOLE,
    CHOICES,
    CONFIGS,
    DETERMINISTIC,
    NESTED,
    NESTED_ACTIONS,
    NESTED_SPEC,
    TWINS,
    VALUES,
    Walk,
    agent,
)

SEEN = spaces.Box(-1, 1, (3,))
DISCRETE = Walk(SEEN, spaces.Discrete(2))
BOX = Walk(SEEN, spaces.Box(-1, 1, (2,)))
MEMORY = ACTOR.replace(
    "block: dense, in: observation, hidden_units: [16]",
    "block: gru, in: observation, hidden_units: 4",
)
NO_CRITIC = (
    "DQN learns one network, whose values choose the action: the policy, whose logits they are. "
    "A critic would leave one of the two untrained; leave it out, as --set critic=null does"
)
RULE = "write distribution: {} in its entry of 'distributions'"
STATE = "critic: {kind: state, template: {}}"
TWIN_VALUES = "critic: {kind: state_action, ensemble: 2, template: {}}"

# algorithm, spec, environment, the problems
REFUSED = {
    "DQN of numbers": (
        DQN, ACTOR + TWINS.replace("ensemble: 2", "ensemble: 1"), BOX,
        ["it learns a value for each choice of one Discrete action, got Box(-1.0, 1.0, (2,), float32); use SAC"],
    ),
    "DQN of state values": (DQN, ACTOR + VALUES, DISCRETE, [NO_CRITIC]),
    "DQN of a critic of choices": (DQN, ACTOR + CHOICES, DISCRETE, [NO_CRITIC]),
    "DQN of choices that start later": (
        DQN, ACTOR, Walk(SEEN, spaces.Discrete(3, start=5)),
        ["it finds the value of an action by its number, so that these must begin with 0, "
         f"got Discrete(3, start=5); use PPO or A2C with {STATE}"],
    ),
    "DQN of masks": (
        DQN, ACTOR.replace("heads: {", "action_mask: {action: legal}\n  heads: {"),
        Walk(spaces.Dict(observation=SEEN, legal=spaces.MultiBinary(2)), spaces.Discrete(2)),
        [f"it explores with any action, legal or not, so no 'action_mask' can be kept; use PPO or A2C with {STATE}"],
    ),
    "TD3 of chances": (
        TD3, ACTOR + TWINS, BOX,
        ["its actor is deterministic, but 'action' has the distribution 'squashed_gaussian'; "
         "write under 'distributions': - {action: action, distribution: deterministic}"],
    ),
    "TD3 of choices": (
        TD3, ACTOR + CHOICES, DISCRETE,
        [f"it needs Box actions, but 'action' is Discrete(2); use PPO or A2C with {STATE}"],
    ),
    "SAC of choices, without a critic of actions": (
        SAC, ACTOR + VALUES, DISCRETE,
        ["it needs Box actions, but 'action' is Discrete(2); use PPO or A2C"],
    ),
    "SAC without chance": (
        SAC, DETERMINISTIC + ACTOR + TWINS, BOX,
        [f"it learns from chances, but 'action' is deterministic; {RULE.format('squashed_gaussian')}"],
    ),
    "SAC beyond the bounds": (
        SAC, DETERMINISTIC.replace("deterministic", "gaussian") + ACTOR, BOX,
        [f"it needs actions within their bounds, which the gaussian of 'action' leaves; {RULE.format('squashed_gaussian')}",
         f"SAC needs the value of an action; add a critic such as {TWIN_VALUES}"],
    ),
    "SAC of memory": (
        SAC, MEMORY + TWINS, BOX,
        ["it has memory, but its replay buffer holds single steps (with the trainer torchrl, sac learns from sequences); "
         f"use RecurrentPPO with {STATE}"],
    ),
    "PPO of memory": (
        PPO, MEMORY + VALUES, DISCRETE,
        ["it has memory, which only RecurrentPPO of sb3-contrib carries from step to step; use RecurrentPPO"],
    ),
    "PPO without a critic": (
        PPO, ACTOR, DISCRETE, [f"PPO needs the value of a state; add a critic such as {STATE}"],
    ),
    "A2C of action values, without chance": (
        A2C, DETERMINISTIC + ACTOR + TWINS, BOX,
        [f"it learns from chances, but 'action' is deterministic; {RULE.format('squashed_gaussian')}",
         f"A2C needs the value of a state, but the critic is of kind 'state_action'; give it one such as {STATE}"],
    ),
    "PPO of an ensemble": (
        PPO, ACTOR + VALUES.replace("graph:", "ensemble: 2\n  graph:"), DISCRETE,
        ["PPO needs the value of a state once, but the critic gives 2; leave out 'ensemble'"],
    ),
    "RecurrentPPO without memory": (
        RecurrentPPO, ACTOR + VALUES, DISCRETE,
        ["neither its policy nor its critic has memory; use PPO or A2C"],
    ),
    "MaskablePPO of numbers": (
        MaskablePPO, ACTOR + VALUES, BOX,
        ["it masks the choices of one Discrete, MultiDiscrete or MultiBinary action, got Box(-1.0, 1.0, (2,), float32); "
         "use PPO or A2C"],
    ),
}  # fmt: skip


def refuses(text):
    """All of the message is ``text``."""
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(name):
    algorithm, spec, env, problems = REFUSED[name]
    expected = "".join(
        [f"{algorithm.__name__} cannot train this model:", *(f"\n  {p}" for p in problems)]
    )
    with refuses(expected):
        agent(algorithm, spec, env)
    model = composer.compose(spec, env=env, seed=0)
    with refuses(expected):
        agent(algorithm, model, env)


def test_the_policy_itself_refuses_too():
    expected = (
        "PPO cannot train this model:\n  "
        f"PPO needs the value of a state; add a critic such as {STATE}"
    )
    with refuses(expected):
        PPO(sb3.POLICIES["PPO"], "CartPole-v1", policy_kwargs={"spec": ACTOR})


def test_several_actors_are_refused(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    spec, allow = CONFIGS / "pick_place.yaml", ["environments"]
    actors = (
        "('pick', ('place', 0), ('place', 1)); Stable-Baselines3 trains one policy of one agent"
    )
    model = composer.compose(spec, allow=allow)
    actors = actors.replace(
        "'pick', ('place', 0), ('place', 1)", ", ".join(map(repr, model.observation_space))
    )
    for given in (spec, model):
        expected = f"PPO cannot train this model:\n  it acts for several steps or agents {actors}"
        with refuses(expected):
            agent(PPO, given, allow=allow)
    env = composer.spaces.lookup.make_environment("environments.pick_place_env:PickPlace-v0")
    with refuses(f"the environment has several steps or agents {actors}"):
        sb3.wrap(env, spec, allow=allow)
    with refuses(f"the environment has several steps or agents {actors}"):
        agent(PPO, composer.compose(CARTPOLE), env)


def test_other_spaces_than_the_models_are_refused():
    model = composer.compose(ACTOR + VALUES, env=DISCRETE)
    expected = (
        "the environment's spaces are not those of the model:\n"
        "  'observation': shape is (4,), expected (3,)\n"
        "  'action': n is 3, expected 2"
    )
    with refuses(expected):
        agent(PPO, model, Walk(spaces.Box(-1, 1, (4,)), spaces.Discrete(3)))


def test_environments_that_are_not_wrapped_are_refused():
    envs = DummyVecEnv([lambda: Walk(spaces.Dict(a=SEEN), spaces.MultiBinary([2, 2]))])
    expected = (
        "the environment's spaces are not those that the model needs:\n"
        "  'action': is MultiBinary, expected Box\n"
        "Wrap each environment in composer.adapters.sb3.agents.wrap(env, spec), or compose the model for this one"
    )
    with refuses(expected):
        agent(PPO, NESTED_SPEC.replace("ignore: [note]\n", ""), envs)


def test_an_environment_in_another_wrapping_is_refused_when_loading(tmp_path):
    made = agent(PPO, NESTED_SPEC, Walk(NESTED, NESTED_ACTIONS))
    made.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        PPO.load(tmp_path / "agent.zip", env=gymnasium.make("CartPole-v1"))


def test_what_varies_in_size_is_refused():
    space = spaces.Dict(observation=SEEN, items=spaces.Sequence(SEEN, stack=True))
    env = Walk(space, spaces.Discrete(2))
    spec = "version: 1\npolicy:\n  template: {}\ncritic:\n  template: {}\n"
    expected = (
        "Stable-Baselines3 stores observations of one size, but these vary: 'items' (?, 3), 'items:mask' (?,); "
        "pad them in a wrapper of the environment, or name them under 'ignore'"
    )
    with refuses(expected):
        agent(PPO, spec, env)
    agent(PPO, "ignore: [items]\n" + spec, env).learn(32)  # and so it can be trained


def test_an_unknown_algorithm_is_refused():
    known = "PPO, A2C, MaskablePPO, RecurrentPPO, DQN, SAC, TD3"
    start = "algorithm is a class of Stable-Baselines3 or sb3-contrib, one of "
    for given, shown in ((dict, "dict"), ("ppo", "'ppo'")):
        with refuses(f"{start}{known}; got {shown}"):
            sb3.agent(given, CARTPOLE)


def test_a_class_of_ones_own_is_the_algorithm_that_it_is_derived_from():
    class Mine(PPO):
        pass

    made = sb3.agent(Mine, CARTPOLE, n_steps=32, batch_size=32)
    assert type(made) is Mine


def test_vector_environments_of_gymnasium_are_refused():
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
    expected = (
        "Stable-Baselines3 has vector environments of its own; make one of them instead of gymnasium's: "
        "stable_baselines3.common.env_util.make_vec_env(id, n_envs)"
    )
    with refuses(expected):
        agent(PPO, CARTPOLE, envs)
    envs.close()


def test_no_environment_is_refused():
    with pytest.raises(ValueError, match="agent needs an env, or a spec with an 'environment'"):
        agent(PPO, ACTOR + VALUES)


def test_noise_of_the_host_is_refused():
    expected = (
        "use_sde holds the noise of actions for several steps, which only the distribution gsde has; write "
        "distribution: gsde for a Box action under 'distributions', or leave use_sde out"
    )
    with refuses(expected):
        agent(PPO, ACTOR + VALUES, BOX, use_sde=True)


@pytest.mark.parametrize(("algorithm", "critic"), [(PPO, VALUES), (DQN, "")])
def test_weights_of_another_network_are_refused_and_nothing_is_written(algorithm, critic, tmp_path):
    agent(algorithm, ACTOR + critic, DISCRETE).save(tmp_path / "wide.zip")
    narrow = agent(algorithm, (ACTOR + critic).replace("[16]", "[8]"), DISCRETE, seed=1)
    before = {name: tensor.clone() for name, tensor in narrow.policy.state_dict().items()}
    expected = (
        "model.policy.latent.linears.0.weight is (16, 3) in the state_dict, the model needs (8, 3)"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        narrow.set_parameters(str(tmp_path / "wide.zip"))
    after = narrow.policy.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_settings_of_the_hosts_own_policies_are_refused():
    with refuses(
        "policy_kwargs takes 'optimizer_class' and 'optimizer_kwargs', not 'net_arch', 'ortho_init': "
        "the spec describes the policy"
    ):
        agent(PPO, CARTPOLE, policy_kwargs={"net_arch": [64], "ortho_init": False})


def test_another_number_of_critics_is_refused():
    kwargs = {"n_critics": 1}
    expected = "n_critics is 1, but the critic of the spec has ensemble: 2; write ensemble: 1"
    with refuses(expected):
        agent(TD3, DETERMINISTIC + ACTOR + TWINS, BOX, policy_kwargs=kwargs)


def test_a_class_that_is_not_allowed_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    spec = CONFIGS / "cartpole_torch_class.yaml"
    with pytest.raises(composer.SpecError, match="outside the allowed modules"):
        agent(PPO, spec, "CartPole-v1")
    made = agent(PPO, spec, "CartPole-v1", allow=["networks"])
    made.learn(32)
    model = composer.compose(spec, env="CartPole-v1", allow=["networks"])
    agent(PPO, model, "CartPole-v1")  # what a model is made of is allowed already


@pytest.mark.parametrize("library", ["stable_baselines3", "sb3_contrib"])
def test_a_missing_library_names_the_extra(library):
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "try: from composer.adapters.sb3 import agent\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    done = fresh.run(code, ROOT)
    assert done.stdout.strip() == (
        f"{MissingExtraError.__name__} composer.adapters.sb3 needs {library!r}; "
        'install it with: pip install "perception-composer[sb3]"'
    )


def test_a_mask_without_a_legal_action_is_refused():
    space = spaces.Dict(observation=SEEN, legal=spaces.MultiBinary(2))
    spec = ACTOR.replace("heads: {", "action_mask: {action: legal}\n  heads: {") + VALUES
    made = agent(PPO, spec, Walk(space, spaces.Discrete(2)))
    observation = {"observation": np.zeros(3, np.float32), "legal": np.zeros(2, np.int8)}
    message = (
        "the mask of action 'action' (observation 'legal'{}) leaves no legal choice at index (0,); "
        "each row needs a nonzero element"
    )
    with refuses(message.format("")):
        made.predict(observation)
    observation["legal"][:] = [0, 1]
    masked = agent(MaskablePPO, spec, Walk(space, spaces.Discrete(2)))
    with refuses(message.format(" within the mask that was given")):
        masked.predict(observation, action_masks=np.array([[True, False]]))
    masked = agent(MaskablePPO, ACTOR + VALUES, DISCRETE)
    message = (
        "the mask of action 'action' (action_masks() of the environment) leaves no legal choice at index (0,); "
        "each row needs a nonzero element"
    )
    seen, nothing = SEEN.sample(), np.zeros((1, 2), bool)
    with refuses(message):
        masked.predict(seen, action_masks=nothing)
    with refuses(message):
        masked.policy(torch.as_tensor(seen)[None], action_masks=nothing)


@pytest.mark.parametrize("algorithm", [PPO, RecurrentPPO])
def test_a_mask_without_a_legal_action_stops_training(algorithm):
    class Stuck(Walk):
        def observed(self):
            return super().observed() | {"legal": np.zeros(2, np.int8)}

    spec = (ACTOR if algorithm is PPO else MEMORY) + VALUES
    spec = spec.replace("heads: {", "action_mask: {action: legal}\n  heads: {", 1)
    space = spaces.Dict(observation=SEEN, legal=spaces.MultiBinary(2))
    made = agent(algorithm, spec, Stuck(space, spaces.Discrete(2)))
    with pytest.raises(ValueError, match=r"^the mask of action 'action' \(observation 'legal'\)"):
        made.learn(8)


def test_limits_hold_for_agents_and_wrapped_environments(tmp_path):
    low, high = {"tensors": 3}, {"tensors": 60_000}
    env = gymnasium.make("CartPole-v1")
    for call in (sb3.wrap, lambda env, spec, limits: agent(PPO, spec, env, limits=limits)):
        with pytest.raises(
            composer.SpecError, match="above the limit of 3 tensors; if it is meant"
        ):
            call(env, CARTPOLE, limits=low)
        call(env, CARTPOLE, limits=high)
    model = composer.compose(CARTPOLE, env, limits=high)
    made = agent(PPO, model, env)  # within the limits of the model
    made.save(tmp_path / "agent.zip")
    assert PPO.load(tmp_path / "agent.zip").policy_kwargs["limits"]["tensors"] == 60_000
