"""PettingZoo's environments, parallel and AEC, are composed directly and played to the end."""

import re
import sys
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Space

import composer
from composer import SpecError, StructuredPolicy
from composer.cli.commands import main
from composer.spaces.lookup import environment_spaces, make_environment
from composer.spaces.pettingzoo import is_pettingzoo
from composer.template.starter import starting_actor_spec

KNIGHTS = "butterfly/knights_archers_zombies_v11"
BY_TYPE = """
version: 1
policy:
  networks:
    archer:
      graph: {things: {block: deep_set, in: observation, hidden_units: [8]}}
      heads: {in: things}
    knight:
      separate: true
      graph:
        things: {block: deep_set, in: observation, hidden_units: [8]}
        memory: {block: gru, in: things, hidden_units: 4}
      heads: {in: memory}
"""
BOARD = """
version: 1
policy:
  action_mask: {action: action_mask}
  graph:
    board: {block: flatten, in: observation}
    latent: {block: dense, in: board, hidden_units: [16]}
  heads: {in: latent}
"""
PISTONS = """
version: 1
policy:
  graph:
    scaled: {block: scale_image, in: observation}
    seen: {block: strided_conv_dense, in: scaled, hidden_channels: [4, 4], strides: [8, 8], hidden_units: [8]}
  heads: {in: seen}
"""
CHOICE = """
version: 1
policy:
  separate: true
  graph:
    seen: {block: one_hot, in: observation}
    latent: {block: dense, in: seen, hidden_units: [8]}
  heads: {in: latent}
"""


class Meeting(pettingzoo.ParallelEnv):
    """Guests come and go; each hears a number and answers with one."""

    metadata = {"name": "meeting"}
    render_mode = None
    possible_agents = ["guest_0", "guest_1", "guest_2"]
    schedule = [[0], [0, 2], [2, 1], [], [1]]  # who is there after each step

    def observation_space(self, agent):
        return Box(-1, 1, (3,))

    def action_space(self, agent):
        return Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents, self._time = ["guest_0"], 0
        return self._seen(), {}

    def step(self, actions):
        assert list(actions) == self.agents
        self._time += 1
        self.agents = [self.possible_agents[i] for i in self.schedule[self._time % 5]]
        ends = dict.fromkeys(self.agents, False)
        return self._seen(), dict.fromkeys(self.agents, 0.0), ends, ends, {}

    def _seen(self):
        return {agent: np.full(3, self._time / 10, np.float32) for agent in self.agents}


GUESTS = """
version: 1
policy:
  graph: {memory: {block: gru, in: observation, hidden_units: 4}}
  heads: {in: memory}
"""


def test_every_agent_has_a_network_by_its_type():
    env = pettingzoo.make("parallel", KNIGHTS)
    model = composer.compose(BY_TYPE, env=env, seed=0)
    assert isinstance(model.policy, StructuredPolicy)
    assert {
        name: list(g.members) for name, g in zip(["archer", "knight"], model.policy.groups)
    } == {
        "archer": [model.policy["archer"]] * 2,
        "knight": model.policy.groups[1].module.members,
    }
    assert list(model.observation_space) == env.possible_agents


def test_agents_that_die_leave_and_the_others_play_on():
    env = pettingzoo.make("parallel", KNIGHTS, max_cycles=400)
    model = composer.compose(BY_TYPE, env=env, seed=0)
    observations, _ = env.reset(seed=1)
    state, present = model.policy.initial_state(), set()
    generator = torch.Generator().manual_seed(1)  # with which somebody dies
    while env.agents:
        before = dict(state)
        here = {agent: observations[agent] for agent in env.agents}  # not of who has just died
        actions, state = model.policy.act(here, state, generator=generator)
        assert list(actions) == env.agents
        assert all(env.action_space(agent).contains(a) for agent, a in actions.items())
        present.add(tuple(env.agents))
        for name in before:
            gone = name.partition("/")[0] not in env.agents
            assert (state[name] is before[name]) == gone
        observations, *_ = env.step(actions)
    assert len(present) > 1


def test_an_aec_environment_is_played_by_last():
    env = pettingzoo.make("aec", KNIGHTS, max_cycles=60)
    model = composer.compose(BY_TYPE, env=env, seed=0)
    env.reset(seed=1)
    state, seen = model.policy.initial_state(), set()
    for agent in env.agent_iter():
        observation, _, terminated, truncated, _ = env.last()
        if terminated or truncated:
            env.step(None)
            continue
        actions, state = model.policy.act({agent: observation}, state)
        assert env.action_space(agent).contains(actions[agent])
        env.step(actions[agent])
        seen.add(agent)
    assert seen == set(env.possible_agents)


@pytest.mark.parametrize("first", [False, True])
def test_legal_moves_in_dict_observations_mask_actions(first):
    env = pettingzoo.make("aec", "classic/tictactoe_v3")
    spec = starting_actor_spec(*environment_spaces(env)) if first else BOARD
    model = composer.compose(spec, env=env, seed=0)
    for seed in range(10):
        env.reset(seed=seed)
        for agent in env.agent_iter():
            observation, _, terminated, truncated, _ = env.last()
            if terminated or truncated:
                env.step(None)
                continue
            action = model.policy.act({agent: observation})[agent]
            assert observation is not None
            assert observation["action_mask"][action] == 1
            env.step(action)
        assert not env.agents


def test_images_of_many_agents_are_one_call():
    env = pettingzoo.make("parallel", "butterfly/pistonball_v6", n_pistons=4, max_cycles=3)
    model = composer.compose(PISTONS, env=env, seed=0)
    calls = []
    model.policy.seen.register_forward_hook(lambda *arguments: calls.append(arguments[2].shape))
    observations, _ = env.reset(seed=0)
    while env.agents:
        actions = model.policy.act(observations)
        assert all(env.action_space(agent).contains(a) for agent, a in actions.items())
        observations, *_ = env.step(actions)
    assert calls == [(4, 8)] * 3


def test_agents_with_weights_of_their_own_play_against_each_other():
    env = pettingzoo.make("parallel", "classic/rps_v2", max_cycles=5)
    model = composer.compose(CHOICE, env=env, seed=0)
    observations, _ = env.reset(seed=0)
    while env.agents:
        observations, *_ = env.step(model.policy.act(observations))
    first, second = (model.policy[agent].state_dict() for agent in env.possible_agents)
    assert not torch.equal(
        first["heads.action.linear.weight"], second["heads.action.linear.weight"]
    )


def test_guests_that_come_back_still_remember():
    env = Meeting()
    model = composer.compose(GUESTS, env=env, seed=0)
    alone = {agent: model.policy[agent].initial_state() for agent in env.possible_agents}
    observations, _ = env.reset()
    state = model.policy.initial_state()
    for _ in range(12):
        actions, state = model.policy.act(observations, state)
        for agent, observation in observations.items():
            _, alone[agent] = model.policy[agent](observation, alone[agent])
        for agent, own in alone.items():
            assert torch.allclose(state[f"{agent}/memory/h"], own["memory/h"], atol=1e-6)
        observations, *_ = env.step(actions)


def test_wrapped_environments_are_read_alike():
    from pettingzoo.utils import BaseParallelWrapper, aec_to_parallel, parallel_to_aec

    env = Meeting()
    for wrapped in (
        BaseParallelWrapper(env),
        parallel_to_aec(env),
        aec_to_parallel(parallel_to_aec(env)),
    ):
        assert is_pettingzoo(wrapped)
        assert environment_spaces(wrapped) == environment_spaces(env)


# --- by id ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [KNIGHTS, "butterfly/pistonball_v6", "classic/tictactoe_v3", "classic/rps_v2"]
)
def test_an_environment_is_made_by_its_id(name):
    env = make_environment(f"pettingzoo:{name}")
    assert is_pettingzoo(env)
    assert isinstance(env, pettingzoo.AECEnv) == ("tictactoe" in name)
    env.close()


def test_a_spec_may_name_an_environment_of_pettingzoo_without_permission():
    model = composer.compose(f"environment: pettingzoo:{KNIGHTS}\n{BY_TYPE}", seed=0)
    assert model.policy.actors.names == ("archer_0", "archer_1", "knight_0", "knight_1")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("butterfly/pistonbal_v6", "there is no 'butterfly/pistonbal_v6'; did you mean 'butterfly/pistonball_v6'?"),
        ("os", "there is no 'os'; there is 'atari/basketball_pong_v3', "),
    ],
)  # fmt: skip
def test_an_unknown_environment_hears_of_a_near_name(name, why):
    spec = f"environment: pettingzoo:{name}\n{BY_TYPE}"
    message = f"<spec>:1:14: the environment 'pettingzoo:{name}' cannot be made: {why}"
    with pytest.raises(SpecError, match=f"^{re.escape(message)}"):
        composer.compose(spec)


@pytest.mark.parametrize(
    ("module", "name", "needs"),
    [("pettingzoo", KNIGHTS, "pettingzoo"), ("mpe2.all_modules", "mpe/simple_tag_v3", "mpe2")],
)
def test_a_missing_library_is_said_with_its_extra(module, name, needs, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SpecError) as caught:
        composer.compose(BY_TYPE, env=f"pettingzoo:{name}")
    assert str(caught.value) == (
        f"the environment 'pettingzoo:{name}' needs '{needs}'; "
        'install it with: pip install "perception-composer[pettingzoo]"'
    )


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "agents.yaml"
    path.write_text(BY_TYPE)
    return str(path)


def test_a_spec_is_checked_shown_and_drawn_for_an_id(file, tmp_path, capsys):
    environment = ["--env", f"pettingzoo:{KNIGHTS}"]
    assert main(["check", file, *environment]) == 0
    assert capsys.readouterr().out == f"{file}: good; 810 parameters\n"
    assert main(["show", file, *environment]) == 0
    assert (
        "policy/knight acts for 'knight_0', 'knight_1', one network each" in capsys.readouterr().out
    )
    assert main(["draw", file, *environment, "-o", str(tmp_path / "agents.png")]) == 0
    assert (tmp_path / "agents.png").stat().st_size > 10_000


def test_a_spec_for_other_agents_is_refused_without_traceback(file, capsys):
    assert main(["check", file, "--env", "pettingzoo:classic/rps_v2"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == (
        f"{file}:5:5: the network 'archer' serves no actor; there is 'player_0', 'player_1'"
    )


@pytest.mark.parametrize("name", [KNIGHTS, "classic/tictactoe_v3", "butterfly/pistonball_v6"])
def test_a_first_spec_has_a_network_for_each_type(name, tmp_path, capsys):
    path = str(tmp_path / "first.yaml")
    assert main(["init", f"pettingzoo:{name}", "--no-schema", "-o", path]) == 0
    assert capsys.readouterr().out == f"wrote {path}; next: composer check {path}\n"
    assert main(["check", path]) == 0
    policy = composer.compose(path, seed=0).policy
    assert isinstance(policy, composer.StructuredPolicy)
    assert [group.name for group in policy.groups] == {
        KNIGHTS: ["archer", "knight"],
        "classic/tictactoe_v3": ["player"],
        "butterfly/pistonball_v6": ["piston"],
    }[name]


def test_a_first_spec_has_names_of_their_own_for_agents_that_differ():
    spaces = {
        "a_0": Box(-1, 1, (2,)),
        "a_1": Box(-1, 1, (3,)),
        ("go", 0): Dict(),
        ("go", 1): Dict(),
    }
    spaces |= dict.fromkeys([("go", 0), ("go", 1)], Dict(x=Box(-1, 1, (2,)), y=Space()))
    actions = dict.fromkeys(spaces, Discrete(2))
    text = starting_actor_spec(spaces, actions)
    assert text.splitlines()[:4] == [
        "# A first policy and critic for these spaces, to be changed at will.",
        "version: 1",
        "ignore:",
        "  - go/y # a Space space, which no block reads yet",
    ]
    model = composer.compose(text, observation_space=spaces, action_space=actions, seed=0)
    parts: list[Any] = [model.policy, model.critic]
    for part in parts:
        assert [group.name for group in part.groups] == ["a_0", "a_1", "go"]
    observation = {"x": torch.zeros(4, 2)}
    values = model.critic.value({"a_0": torch.zeros(4, 2), ("go", 1): observation})
    assert [value.shape for value in values.values()] == [(4,), (4,)]
