"""`composer init`, `check`, `draw` and acting work for every environment that can be made here."""

import re
import sys

import ale_py  # noqa: F401  # both register their environments
import gymnasium
import minigrid  # noqa: F401
import numpy as np
import pytest
from gymnasium import spaces

import composer
from composer.cli.commands import main
from composer.template.starter import starting_spec

# What the packages register but cannot make: phys2d and tabular want jax, Pusher-v4 an old mujoco, and the images of
# MiniGrid-WFC are not installed with it.
NOT_HERE = re.compile(r"(phys2d|tabular)/.*|Pusher-v4|MiniGrid-WFC-.*")
FEW = [
    "CartPole-v1", "MountainCarContinuous-v0", "Pendulum-v1", "Blackjack-v1", "FrozenLake-v1", "Taxi-v4",
    "BipedalWalker-v3", "CarRacing-v3", "LunarLander-v3", "Ant-v5", "InvertedPendulum-v5", "ALE/Breakout-v5",
    "MiniGrid-Empty-5x5-v0", "BabyAI-GoToObj-v0",
]  # fmt: skip
ALL = [
    name
    for name, spec in gymnasium.registry.items()
    # A function stands for an environment that has moved away: it only says where to. Those of the composer, which
    # other tests may have registered, need arguments.
    if name not in FEW
    and not NOT_HERE.fullmatch(name)
    and not callable(spec.entry_point)
    and not str(spec.entry_point).startswith("composer.")
]
STEPS = 5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of old versions
@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(name, marks=pytest.mark.full) for name in ALL)]
)
def test_what_init_writes_is_good_and_acts(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # mujoco writes a log
    monkeypatch.setattr(sys, "path", list(sys.path))  # --allow adds to it
    entry = str(gymnasium.spec(name).entry_point)
    allow = [module for module in ("ale_py", "minigrid") if entry.startswith(module)]
    allowed = [word for module in allow for word in ("--allow", module)]
    for command in (["init", name, "--no-schema", "-o"], ["check"], ["draw", "-o", "out.dot"]):
        assert main([*command, "agent.yaml", *allowed]) == 0, capsys.readouterr().err
    env = gymnasium.make(name)
    model = composer.compose("agent.yaml", env=env, allow=allow, seed=0)
    observation, _ = env.reset(seed=0)
    for _ in range(STEPS):
        action = model.policy.act(observation)
        assert env.action_space.contains(action)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()


def test_an_environment_behind_a_module_is_made_with_its_permission(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "minigrid:MiniGrid-Empty-5x5-v0"
    assert main(["init", name, "--no-schema", "-o", "agent.yaml"]) == 0
    text = (tmp_path / "agent.yaml").read_text()
    assert "# The environment is code: composer check FILE --allow minigrid\n" in text
    why = "a MissionSpace space, read where its length is known: texts: {mission: {max_length: 64}}"
    assert f"ignore:\n  - mission # {why}\n" in text
    assert main(["check", "agent.yaml", "--allow", "minigrid"]) == 0
    assert main(["check", "agent.yaml"]) == 1
    assert f"the environment {name!r} would run code" in capsys.readouterr().err


BOX = spaces.Box(-1, 1, (2,))
UNIT = spaces.Dict(
    kind=spaces.Discrete(4),
    health=spaces.Box(0, 1, ()),
    look=spaces.Box(0, 255, (16, 16, 3), np.uint8),
    nothing=spaces.Box(0, 1, (0,)),
)
SPACES = {
    "a stack of grey frames": spaces.Box(0, 255, (4, 84, 84), np.uint8),
    "a stack of coloured frames": spaces.Box(0, 255, (4, 64, 64, 3), np.uint8),
    "an image whose channels could be anywhere": spaces.Box(0, 255, (10, 10, 10), np.uint8),
    "an image without bounds": spaces.Box(-np.inf, np.inf, (64, 64, 3)),
    "a scaled image": spaces.Box(0, 1, (3, 64, 64)),
    "a grey image": spaces.Box(0, 255, (84, 84), np.uint8),
    "the smallest image": spaces.Box(0, 255, (5, 5, 3), np.uint8),
    "bytes": spaces.Box(0, 255, (128,), np.uint8),
    "a table": spaces.Box(0, 1, (3, 4)),
    "a table of bytes": spaces.Box(0, 255, (3, 4), np.uint8),
    "one number": spaces.Box(0, 1, ()),
    "one of few": spaces.Discrete(5, start=3),
    "one of many": spaces.Discrete(500),
    "several choices": spaces.MultiDiscrete([3, 4]),
    "a table of choices": spaces.MultiDiscrete(np.array([[3, 400], [2, 2]])),
    "switches": spaces.MultiBinary(4),
    "a table of switches": spaces.MultiBinary((2, 3)),
    "numbered parts": spaces.Tuple([spaces.Discrete(32), spaces.Box(0, 1, (2,))]),
    "odd names": spaces.Dict(
        {
            "true": spaces.Box(0, 1, (2,)),
            "a b/c": spaces.Discrete(3),
            "a_b_c": spaces.Discrete(3),
            "features": spaces.Box(0, 255, (64, 64, 3), np.uint8),
            "é: [x] # y": spaces.Box(0, 1, (3,)),
            "'\n\"": spaces.Box(0, 1, (1,)),
            "${params.x}": spaces.Box(0, 1, (1,)),
            "nothing": spaces.Box(0, 1, (0,)),
            "words": spaces.Text(4),
        }
    ),
    "empty names": spaces.Dict({"": BOX, "z": spaces.Dict({"": spaces.Discrete(3)})}),
    "a set": spaces.Sequence(BOX),
    "a set of numbers": spaces.Sequence(spaces.Box(0, 1, ())),
    "a set of choices": spaces.Sequence(spaces.MultiDiscrete([3, 400]), stack=True),
    "a set of units": spaces.Sequence(UNIT),
    "sets beside each other": spaces.Tuple([spaces.Sequence(UNIT), spaces.Sequence(UNIT)]),
    "a set of one thing or another": spaces.Sequence(spaces.OneOf([BOX, spaces.Discrete(3)])),
    "a text": spaces.Text(12),
    "a graph": spaces.Graph(BOX, spaces.Discrete(3)),
    "a graph of kinds": spaces.Dict(net=spaces.Graph(spaces.Discrete(4), BOX), speed=BOX),
    "nodes alone": spaces.Graph(BOX, None),
    "one thing or another": spaces.OneOf(
        [BOX, spaces.Discrete(3), spaces.Text(5), spaces.Sequence(BOX), spaces.Graph(BOX, BOX)]
    ),
    "a set of sets": spaces.Dict(teams=spaces.Sequence(spaces.Sequence(BOX)), speed=BOX),
}
ACTIONS = spaces.Dict(
    move=spaces.Discrete(4, start=1),
    aim=spaces.Box(-1, np.inf, (2, 2)),
    use=spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])]),
)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_starting_spec_reads_every_kind_of_observation(space):
    text = starting_spec(space, ACTIONS)
    model = composer.compose(text, observation_space=space, action_space=ACTIONS, seed=0)
    space.seed(0)
    for _ in range(3):
        assert ACTIONS.contains(model.policy.act(space.sample()))


def test_a_starting_spec_is_one_to_read_and_edit():
    space = spaces.Dict(
        screen=spaces.Box(0, 255, (64, 64, 3), np.uint8), speed=spaces.Box(-1, 1, (2,))
    )
    assert (
        starting_spec(space, spaces.Discrete(3), "rover:Rover-v0")
        == """\
# A first policy and critic for rover:Rover-v0, to be changed at will.
# The environment is code: composer check FILE --allow rover
#   observation screen: Box(0, 255, (64, 64, 3), uint8)
#   observation speed: Box(-1.0, 1.0, (2,), float32)
#   action: Discrete(3)
version: 1
environment: 'rover:Rover-v0'

policy:
  graph:
    screen_scaled: {block: scale_image, in: screen}
    screen_features: {block: nature_cnn_dense, in: screen_scaled, hidden_units: [256]}
    features: {block: concat, in: [screen_features, speed]}
    latent: {block: dense, in: features, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
  shares: [features] # the critic sees through the policy's eyes

critic:
  graph:
    latent: {block: dense, in: features, hidden_units: [64, 64], activation: tanh}
"""
    )


@pytest.mark.parametrize(
    ("mask", "action", "masked"),
    [
        (spaces.MultiBinary(3), spaces.Discrete(3), True),
        (spaces.Box(0, 1, (5,), np.int8), spaces.MultiDiscrete([2, 3]), True),
        (spaces.MultiBinary(4), spaces.Discrete(3), False),
        (spaces.Box(-1, 1, (3,)), spaces.Discrete(3), False),
        (spaces.MultiBinary(3), spaces.Box(-1, 1, (3,)), False),
        (spaces.MultiBinary(3), spaces.Dict(a=spaces.Discrete(3), b=spaces.Discrete(3)), False),
    ],
)
def test_a_starting_spec_masks_the_only_choice_by_the_mask_that_fits_it(mask, action, masked):
    space = spaces.Dict(action_mask=mask, speed=spaces.Box(-1, 1, (2,)))
    text = starting_spec(space, action)
    assert ("  action_mask: {action: action_mask}\n" in text) == masked
    composer.compose(text, observation_space=space, action_space=action, seed=0)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (
            spaces.Sequence(spaces.Text(3)),
            spaces.Discrete(2),
            "there is no observation that a network can read: 'observation' is a Sequence space, which no block reads yet",
        ),
        (
            spaces.Dict(),
            spaces.Discrete(2),
            "there is no observation that a network can read: the space is empty",
        ),
        (
            spaces.Discrete(2),
            spaces.Text(3),
            "action 'action' is a Text space, which is not supported "
            "(Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple are)",
        ),
    ],
    ids=["only texts", "nothing", "text as action"],
)
def test_spaces_without_a_starting_spec_are_refused_in_words(observation, action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        starting_spec(observation, action)


def test_init_says_that_an_environment_is_not_there(capsys):
    assert main(["init", "NoSuchThing-v0"]) == 1
    assert capsys.readouterr().err == (
        "the environment 'NoSuchThing-v0' cannot be made: Environment `NoSuchThing` doesn't exist.\n"
        "  If a module of yours registers it, allow that: allow=['my_envs'] or --allow my_envs\n"
    )
