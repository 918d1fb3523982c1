"""Whatever a trainer advises instead of what it refuses is done here, and then nothing is refused."""

import ast
import copy
import functools
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from gymnasium.wrappers import TransformAction
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from torchrl import objectives

import composer
from composer.adapters.needs import NEEDS, SB3, problems
from composer.adapters.needs import refuse as refuse_model
from composer.adapters.torchrl.checks import refuse_loss
from tests.helpers.paths import ROOT
from tests.helpers.sb3_agents import ACTOR, DETERMINISTIC, Walk, agent

SEEN = spaces.Box(-1, 1, (3,))
ACTIONS = {
    "choices": spaces.Discrete(3),
    "choices that start later": spaces.Discrete(3, start=2),
    "numbers": spaces.Box(-1, 1, (2,)),
    "numbers without bounds": spaces.Box(-np.inf, np.inf, (2,)),
    "several choices": spaces.MultiDiscrete([2, 3]),
    "a table of choices": spaces.MultiBinary([2, 2]),
    "a mixture": spaces.Dict(move=spaces.Discrete(2), steer=spaces.Box(-1, 1, (2,))),
    "two Boxes": spaces.Dict(one=spaces.Box(-1, 1, (2,)), two=spaces.Box(-np.inf, 1, (2,))),
}
CRITICS = {
    "none": None,
    "of states": {"template": {}},
    "several of states": {"ensemble": 3, "template": {}},
    "of actions": {"kind": "state_action", "template": {}},
    "several of actions": {"kind": "state_action", "ensemble": 2, "template": {}},
}
MEMORY = {"none": {}, "gru": {"memory": {"block": "gru", "hidden_units": 4}}}
RULES = [None, "gaussian", "deterministic"]
LOSSES = "torchrl.objectives"
TRAINERS = {trainer: list(row.algorithms) for trainer, row in NEEDS.items()}
TRAINERS[LOSSES] += ["ReinforceLoss", "DDPGLoss"]  # which have no row of their own
NEED = re.compile(r"critic: (?:null|\{.*\})|no 'ensemble'|distribution: \w+ for '\w+'")


def answer(refuse, model, algorithm):
    """What is refused, line by line."""
    try:
        refuse(model, algorithm)
    except ValueError as error:
        return str(error).splitlines()[1:]
    return []


def follow(lines, algorithm, spec):
    """The algorithm and the spec after all that is advised was done."""
    spec = copy.deepcopy(spec)
    for line in lines:
        if line.endswith("; use the trainer sb3"):
            return "PPO", spec, "sb3"
        if use := re.search(r"; use (\w+)(?: or \w+|, \w+)*(?: with (.*))?", line):
            algorithm = use[1]
            for need in NEED.findall(use[2] or ""):
                change(spec, need)
        elif such := re.search(r" such as (critic: \{.*\})$", line):
            change(spec, such[1])
        elif line.endswith("leave out 'ensemble'"):
            change(spec, "no 'ensemble'")
        elif line.endswith("as --set critic=null does"):
            change(spec, "critic: null")
        elif own := re.search(
            r"(\w+)' (?:is|has|leaves|of).*; write (distribution: \w+) in its entry", line
        ):
            change(spec, f"{own[2]} for {own[1]!r}")
        elif entry := re.search(r"; write under 'distributions': - (\{.*\})", line):
            spec.setdefault("distributions", []).append(yaml.safe_load(entry[1]))
        elif own := re.search(r"of '(\w+)' leaves; write (distribution: \w+) in its entry", line):
            change(spec, f"{own[2]} for {own[1]!r}")
        else:
            raise AssertionError(f"this advice is not followed here: {line}")
    return algorithm, spec, None


def change(spec, need):
    if need == "no 'ensemble'":
        spec["critic"].pop("ensemble", None)
    elif need.startswith("critic: "):
        spec |= yaml.safe_load(need)
    else:
        family, _, action = need.removeprefix("distribution: ").partition(" for ")
        for entry in spec["distributions"]:
            if entry.get("action") in (None, action.strip("'")):
                entry["distribution"] = family


@functools.cache
def composed(spec, action):
    return composer.compose(
        ast.literal_eval(spec),
        observation_space=SEEN,
        action_space=ACTIONS[action],
        device="meta",
        seed=0,
    )


def cases():
    for action, critic, memory, rule in itertools.product(ACTIONS, CRITICS, MEMORY, RULES):
        if rule and action not in ("numbers", "numbers without bounds"):
            continue
        if rule == "deterministic" and action != "numbers":
            continue
        yield action, critic, memory, rule


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_advised_is_not_refused(trainer):
    def refuse(model, algorithm, advised=None):
        if trainer == LOSSES:
            refuse_loss(getattr(objectives, algorithm), model)
        else:
            refuse_model(model, algorithm, advised or trainer)

    refused = 0
    for action, critic, memory, rule in cases():
        spec = {"version": 1, "policy": {"template": MEMORY[memory]}, "critic": CRITICS[critic]}
        if rule:
            by_kind = {"space": "box", "distribution": rule}
            named = {"action": "action", "distribution": rule}
            spec["distributions"] = [by_kind if memory == "none" else named]
        model = composed(repr(spec), action)
        for algorithm in TRAINERS[trainer]:
            lines = answer(refuse, model, algorithm)
            if lines:
                refused += 1
                if trainer == "rsl_rl" and "a Box, got" in lines[0]:
                    continue  # it has no algorithm for other actions
                other, mended, advised = follow(lines, algorithm, spec)
                case = (algorithm, action, critic, memory, rule, lines, other, mended)
                again = functools.partial(refuse, advised=advised)
                left = answer(again, composed(repr(mended), action), other)
                if advised is None:
                    assert left == [], case
                elif left:  # of the other trainer, whose advice holds by its own row
                    other, mended, _ = follow(left, other, mended)
                    assert answer(again, composed(repr(mended), action), other) == [], case
    assert refused > 50


CHOICES = Walk(SEEN, spaces.Discrete(2))
NUMBERS = Walk(SEEN, spaces.Box(-1, 1, (2,)))
REMEMBERS = ACTOR.replace(
    "dense, in: observation, hidden_units: [16]", "gru, in: observation, hidden_units: 4"
)
BY_NAME = {cls.__name__: cls for cls in (A2C, DQN, PPO, RecurrentPPO, SAC, TD3)}


@pytest.mark.parametrize(
    ("algorithm", "text", "env"),
    [
        (PPO, ACTOR, CHOICES),
        (PPO, REMEMBERS, CHOICES),
        (DQN, ACTOR, NUMBERS),
        (DQN, ACTOR, Walk(SEEN, spaces.Discrete(3, start=5))),
        (DQN, ACTOR, Walk(SEEN, spaces.MultiDiscrete([2, 3]))),
        (SAC, ACTOR, Walk(SEEN, spaces.MultiDiscrete([2, 3]))),
        (SAC, ACTOR, Walk(SEEN, spaces.Box(-np.inf, np.inf, (2,)))),
        (SAC, DETERMINISTIC + ACTOR, NUMBERS),
        (TD3, ACTOR, NUMBERS),
        (A2C, DETERMINISTIC + ACTOR, NUMBERS),
    ],
)
def test_what_is_advised_learns(algorithm, text, env):
    spec = yaml.safe_load(text)
    lines = answer(
        lambda model, cls: agent(cls, model, env), composer.compose(spec, env=env), algorithm
    )
    assert lines
    other, mended, _ = follow(lines, algorithm.__name__, spec)
    agent(BY_NAME[other], mended, env).learn(40)


def test_actions_that_the_environment_bounds_are_trained_by_sac():
    env = Walk(SEEN, spaces.Box(-np.inf, np.inf, (2,)))
    spec = yaml.safe_load(ACTOR) | {"critic": CRITICS["several of actions"]}
    (line,) = answer(
        lambda model, cls: agent(cls, model, env), composer.compose(spec, env=env), SAC
    )
    assert line == (
        "  it needs Box actions with finite bounds, but 'action' is Box(-inf, inf, (2,), float32); "
        "use PPO or A2C with critic: {kind: state, template: {}}, or give the environment's actions bounds, "
        "as gymnasium.wrappers.TransformAction does"
    )
    bounded = TransformAction(env, lambda action: action, spaces.Box(-1, 1, (2,)))
    agent(SAC, spec, bounded).learn(40)


@pytest.mark.parametrize("trainer", [name for name in NEEDS if not NEEDS[name].takes_actors])
def test_several_actors_are_refused_in_the_same_words(trainer):
    model = composer.compose(
        {"version": 1, "policy": {"template": {}}, "critic": {"template": {}}},
        observation_space={"pick": SEEN, "place": SEEN},
        action_space={"pick": spaces.Discrete(2), "place": spaces.Discrete(2)},
        device="meta",
    )
    row = NEEDS[trainer]
    for algorithm in row.algorithms:
        with pytest.raises(ValueError, match="cannot train this model:") as error:
            refuse_model(model, algorithm, trainer)
        assert str(error.value) == (
            f"{row.title.format(algorithm)} cannot train this model:\n  it acts for several steps or agents "
            f"('pick', 'place'); {row.host} trains one policy of one agent"
        )


def test_the_table_needs_no_library_of_a_trainer():
    code = (
        "import sys, composer.adapters.needs, composer.adapters.host\n"
        "print(*{'stable_baselines3', 'torchrl', 'ray', 'skrl', 'rsl_rl', 'rl_games', 'tianshou'} & {*sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == ""


AFTER = """
version: 1
policy:
  graph:
    both: {block: concat, in: [observation, action/move]}
  heads: {move: {in: observation}, use: {in: both}}
critic: {template: {}}
"""


@pytest.mark.parametrize(
    ("trainer", "algorithm", "title"),
    [
        ("torchrl", "ppo", "ppo of torchrl"),
        ("rl_games", "a2c_discrete", "a2c_discrete"),
        ("rllib", "PPO", "PPO of RLlib"),
        (LOSSES, "ClipPPOLoss", "ClipPPOLoss"),
    ],
)
def test_heads_that_read_actions_are_refused_where_numbers_stand_for_distributions(
    trainer, algorithm, title
):
    model = composer.compose(
        AFTER, observation_space=SEEN,
        action_space=spaces.Dict(move=spaces.Discrete(2), use=spaces.Discrete(3)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot train") as caught:
        refuse_model(model, algorithm, trainer)
    assert str(caught.value) == (
        f"{title} cannot train this model:\n"
        "  it makes distributions of stored numbers, but the head 'use' reads the action of 'move'; "
        "use the trainer sb3"
    )
    for algorithm in ("PPO", "A2C"):
        refuse_model(model, algorithm, "sb3")
    refuse_model(model, "PPO", "skrl")


BOX, CHOICE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)


@pytest.mark.parametrize(
    "action",
    [
        spaces.Dict(a=BOX, b=BOX),
        spaces.Dict({"yes": BOX, "a, b": BOX}),
        spaces.Dict(x=spaces.Dict(a=BOX, b=BOX)),
        spaces.Tuple((BOX, BOX)),
    ],
    ids=str,
)
def test_advice_for_several_actions_works_as_it_is_written(action):
    def refused(entries):
        text = f"""
version: 1
policy:
  graph: {{latent: {{block: dense, in: observation, hidden_units: [8]}}}}
  heads: {{in: latent}}
critic: {{kind: state_action, template: {{}}}}
distributions: [{", ".join(entries)}]
"""
        seen = {"observation_space": spaces.Box(-1, 1, (4,)), "action_space": action}
        return problems(composer.compose(text, **seen, device="meta", seed=0), "TD3", SB3)

    said = refused([])
    assert len(said) == 2
    assert not refused([line.partition("'distributions': - ")[2] for line in said])


def test_advice_for_mixed_actions_works_as_it_is_written():
    text = """
version: 1
policy:
  graph: {latent: {block: dense, in: observation, hidden_units: [8]}}
  heads: {in: latent}
critic: {template: {}}
distributions: [{action: '0', distribution: %s}]
"""
    action = spaces.Tuple((BOX, CHOICE))
    seen = {"observation_space": spaces.Box(-1, 1, (4,)), "action_space": action}
    model = composer.compose(text % "deterministic", **seen, device="meta", seed=0)
    (said,) = problems(model, "PPO", SB3)
    advised = re.search(r"write distribution: (\w+) in its entry", said)
    model = composer.compose(text % advised[1], **seen, device="meta", seed=0)
    assert not problems(model, "PPO", SB3)
