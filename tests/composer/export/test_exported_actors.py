"""Files of several actors: everyone in one, or one alone; policies, and every kind of critic."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Sequence

import composer
from composer.export.network import ExportedNetwork
from composer.export.parity import random_inputs, zero_state
from tests.composer.export.test_exporting import (
    CONFIGS,
    MODULES,
    ProgramFile,
    every_kind,
    exported,
    message,
)

TEAM = """
version: 1
policy:
  networks:
    player:
      separate: true
      graph: {latent: {block: dense, in: observation, hidden_units: [8]}}
      heads: {in: latent}
      shares: [latent]
critic:
  networks:
    player:
      separate: true
      graph: {hidden: {block: gru, in: latent, hidden_units: 4}}
"""
NAMES = ["player_0", "player_1"]


def team(spec=TEAM, action_space=None, **keywords):
    spaces = {
        "observation_space": {name: Box(-1, 1, (3,)) for name in NAMES},
        "action_space": dict.fromkeys(NAMES, action_space or Discrete(2)),
    }
    return composer.compose(spec, **{**spaces, **keywords}, seed=0)


def drawn(model, part, batch, unroll=None):
    """Random inputs of a file, and the same by actor as the model takes them."""
    critic = None if part == "policy" else model.critic
    network = ExportedNetwork(model.policy, critic, part, unroll)
    inputs = dict(zero_state(network, batch)) | next(random_inputs(network, batch, 1, seed=5))
    return inputs, network.interface.by_actor("observation", inputs)


def critic_of(model):
    """The critic, which is there."""
    assert model.critic is not None
    return model.critic


def assert_equal(found, expected):
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


# --- policies ---


@every_kind
def test_everyone_is_in_one_file(suffix, tmp_path):
    model = team()
    file = exported(model, tmp_path, suffix)
    assert file.inputs == [f"{name}/observation" for name in NAMES]
    assert file.outputs == [f"{name}/{out}" for name in NAMES for out in ("logits", "action")]
    inputs, observations = drawn(model, "policy", 3)
    outputs = file(inputs)
    actions = model.policy.act(observations, deterministic=True)
    for name, logits in model.policy(observations).items():
        assert_equal(outputs[f"{name}/logits"], logits["action"])
        np.testing.assert_array_equal(outputs[f"{name}/action"], actions[name])
    assert file.metadata["inputs"]["player_1/observation"] == {
        "kind": "observation",
        "key": "observation",
        "shape": ["batch", 3],
        "dtype": "float32",
        "actor": "player_1",
    }


def test_an_actor_alone_is_a_file_with_names_of_its_own(tmp_path):
    model = team()
    observation = np.ones((2, 3), np.float32)
    for name in NAMES:
        model.export(tmp_path / f"{name}.pt2", actor=name)
        file = ProgramFile(tmp_path / f"{name}.pt2")
        assert (file.inputs, file.outputs) == (["observation"], ["logits", "action"])
        expected = model.policy[name](observation)["action"]
        assert_equal(file({"observation": observation})["logits"], expected)
    path = tmp_path / "team.pt2"
    assert message(model, path, actor="player_3") == (
        "there is no actor or group 'player_3'; did you mean 'player_1'?"
    )


# --- critics ---


@every_kind
@pytest.mark.parametrize("unroll", [None, 3])
def test_critics_by_actor_have_a_value_for_each(unroll, suffix, tmp_path):
    model = team()
    file = exported(model, tmp_path, suffix, part="model", unroll=unroll)
    state = [f"critic/{name}/hidden/h" for name in NAMES]
    assert file.inputs == [*(f"{name}/observation" for name in NAMES), *state, "resets"]
    values = [f"{name}/value" for name in NAMES]
    assert file.outputs[-4:] == [*values, *(f"next/{name}" for name in state)]
    inputs, observations = drawn(model, "model", 4, unroll)
    outputs = file(inputs)
    own = {name.removeprefix("critic/"): inputs[name] for name in state}
    call = model.critic if unroll is None else model.critic.unroll
    shared = model.policy(observations)
    expected, after = call(observations, own, inputs["resets"], shared=shared)
    for name in NAMES:
        assert_equal(outputs[f"{name}/value"], expected[name]["value"])
        assert_equal(outputs[f"next/critic/{name}/hidden/h"], after[f"{name}/hidden/h"])


def test_the_critic_of_one_actor_is_a_file(tmp_path):
    model = team()
    file = exported(model, tmp_path, ".pt2", part="critic", actor="player_1")
    assert file.inputs == ["observation", "critic/hidden/h", "resets"]
    assert file.outputs == ["value", "next/critic/hidden/h"]
    observation = torch.ones(2, 3)
    state, resets = torch.rand(2, 1, 4), torch.tensor([False, True])
    outputs = file({"observation": observation, "critic/hidden/h": state, "resets": resets})
    expected, _ = model.critic(
        {"player_1": observation},
        {"player_1/hidden/h": state},
        resets,
        shared=model.policy({"player_1": observation}),
    )
    assert_equal(outputs["value"], expected["player_1"]["value"])


SHARED = """
version: 1
policy:
  graph: {latent: {block: deep_set, in: things, hidden_units: 8}}
  heads: {in: latent}
critic:
  kind: shared_state
  stack: true
  normalize_value: true
  graph:
    all: {block: deep_set, in: things, each: 1, hidden_units: 8}
    team: {block: deep_set, in: {x: all, mask: present}, hidden_units: 8}
"""


def test_a_critic_of_all_is_told_who_is_there(tmp_path):
    space = Dict(things=Sequence(Box(-1, 1, (2,)), stack=True))
    model = team(SHARED, observation_space=dict.fromkeys(NAMES, space))
    model.critic.update_normalizer(torch.randn(100) * 3 + 5)
    file = exported(model, tmp_path, ".onnx", part="critic")
    things = [f"{name}/things{mask}" for name in NAMES for mask in ("", ":mask")]
    assert file.inputs == [*things, *(f"{name}/present" for name in NAMES)]
    assert file.outputs == ["value", "normalized_value"]
    assert file.metadata["inputs"]["player_1/things"]["shape"] == ["batch", "things_mask", 2]
    inputs, observations = drawn(model, "critic", 5)
    present = {name: inputs[f"{name}/present"] for name in NAMES}
    present["player_0"][1] = False
    expected = model.critic(observations, present=present)
    assert_equal(file(inputs)["value"], expected["value"])


STEPS = """
version: 1
policy:
  networks:
    aim: {graph: {l: {block: dense, in: observation, hidden_units: 4}}, heads: {in: l}}
    shoot: {graph: {l: {block: dense, in: observation, hidden_units: 4}}, heads: {in: l}}
critic:
  kind: delta_state
  networks:
    aim: {graph: {l: {block: dense, in: observation, hidden_units: 4}}}
    shoot:
      graph:
        both: {block: concat, in: [observation, prev_value]}
        l: {block: dense, in: both, hidden_units: 4}
"""
SHOOTER = [("shoot", 0), ("shoot", 1)]


def steps(shooter):
    spaces = {"aim": Box(-1, 1, (3,)), **dict.fromkeys(shooter, Box(-1, 1, (2,)))}
    actions = dict.fromkeys(spaces, Discrete(3))
    return composer.compose(STEPS, observation_space=spaces, action_space=actions, seed=0)


def test_values_of_steps_build_on_one_another_inside_of_the_file(tmp_path):
    model = steps(SHOOTER)
    file = exported(model, tmp_path, ".pt2", part="critic")
    assert file.inputs == ["aim/observation", "shoot/0/observation", "shoot/1/observation"]
    deltas = [f"shoot/{i}/{name}" for i in (0, 1) for name in ("value", "delta")]
    assert file.outputs == ["aim/value", *deltas]
    inputs, observations = drawn(model, "critic", 3)
    expected = model.critic(observations)
    assert_equal(file(inputs)["shoot/1/value"], expected["shoot/1"]["value"])
    assert message(model, tmp_path / "a.pt2", part="critic", actor="aim") == (
        "the values of steps depend on each other, so 'aim' has no critic alone; "
        "export all actors, or part='policy'"
    )


def test_the_critic_of_one_actor_is_that_of_the_whole():
    model = team(TWIN, Box(-2, 2, (1,)))
    critic = critic_of(model)
    own = critic["player_1"]
    observation, action = torch.rand(4, 3), torch.rand(4, 1)
    whole = critic({"player_1": observation}, {"player_1": action})
    torch.testing.assert_close(own(observation, action)["q_value"], whole["player_1"]["q_value"])
    with pytest.raises(KeyError, match="there is no actor or group 'player_9'"):
        critic["player_9"]
    message = "the values of steps depend on each other, so a single step has no critic"
    with pytest.raises(KeyError, match=message):
        critic_of(steps(SHOOTER))["aim"]


def test_steps_with_agents_that_are_not_counted_have_no_values_in_a_row(tmp_path):
    path = str(tmp_path / "steps.pt2")
    assert message(steps([("shoot", None)]), path, part="critic") == (
        f"{path!r} cannot be exported: the values of steps depend on each other, and the agents of 'shoot', whose "
        "number is not known, are a separate axis"
    )


def test_what_all_observe_together_has_no_value_of_one(tmp_path):
    space = Dict(things=Sequence(Box(-1, 1, (2,)), stack=True))
    model = team(SHARED, observation_space=dict.fromkeys(NAMES, space))
    assert message(model, tmp_path / "a.pt2", part="model", actor="player_0") == (
        "the critic reads the observations of all actors, so 'player_0' has no critic alone; "
        "export all actors, or part='policy'"
    )


TWIN = """
version: 1
policy:
  graph: {latent: {block: dense, in: observation, hidden_units: 8}}
  heads: {in: latent}
critic:
  kind: state_action
  ensemble: 2
  separate: true
  graph:
    both: {block: concat, in: [observation, action/action]}
    q_value: {block: dense, in: both, hidden_units: 8}
"""


@every_kind
@pytest.mark.parametrize("actor", [None, "player_1"])
def test_critics_of_actions_are_asked_about_them(actor, suffix, tmp_path):
    model = team(TWIN, Box(-2, 2, (1,)))
    file = exported(model, tmp_path, suffix, part="critic", actor=actor)
    prefix = "" if actor is None else "player_1/"
    names = [name.removeprefix(prefix) for name in file.inputs]
    owner = NAMES if actor is None else ["player_1"]
    observation, action = torch.rand(4, 3), torch.rand(4, 1) * 4 - 2
    known = {"observation": observation, "taken": action}
    outputs = file({name: known[name.rpartition("/")[2]] for name in names})
    taken = model.policy.from_environment(dict.fromkeys(NAMES, action))
    expected = model.critic(dict.fromkeys(NAMES, observation), taken)
    for name in owner:
        key = f"{name}/q_value" if actor is None else "q_value"
        assert_equal(outputs[key], expected[name]["q_value"])


def test_weights_that_nothing_reads_are_not_in_the_file(tmp_path):
    model = composer.compose(CONFIGS / "twin_q.yaml", seed=0)
    path = tmp_path / "q.pt2"
    model.export(path, part="critic")
    program = torch.export.load(path)
    online = sum(value.numel() for value in model.critic.online.parameters())
    assert sum(value.numel() for value in program.state_dict.values()) == online
    assert not any("target" in name for name in program.state_dict)
    team().export(path, part="critic")  # which reads what the policies share, not what they do
    names = torch.export.load(path).state_dict
    assert any("policy" in name for name in names)
    assert not any("policy" in name and "heads" in name for name in names)


# --- agents that are not counted ---

CROWD = """
version: 1
policy:
  networks:
    look:
      graph: {latent: {block: dense, in: seen, hidden_units: 8}, m: {block: gru, in: latent, hidden_units: 4}}
      heads: {in: m}
    move:
      graph: {latent: {block: dense, in: seen, hidden_units: 8}}
      heads: {in: latent}
critic:
  networks:
    look: {graph: {latent: {block: gru, in: seen, hidden_units: 4}}}
    move: {graph: {latent: {block: dense, in: seen, hidden_units: 8}}}
"""


@pytest.mark.parametrize(
    ("unroll", "suffix"),
    [
        (None, ".onnx"),
        (2, ".pt2"),
        pytest.param(None, ".pt2", marks=pytest.mark.full),
        pytest.param(2, ".onnx", marks=pytest.mark.full),
    ],
)
def test_agents_that_are_not_counted_are_an_axis(unroll, suffix, tmp_path):
    observed = {("look", None): Dict(seen=Box(-1, 1, (3,))), "move": Dict(seen=Box(-1, 1, (2,)))}
    acted = {("look", None): Discrete(5), "move": Box(-1, 1, (2,))}
    model = composer.compose(CROWD, observation_space=observed, action_space=acted, seed=0)
    file = exported(model, tmp_path, suffix, part="model", unroll=unroll)
    steps = () if unroll is None else (unroll,)
    assert file.metadata["inputs"]["look/seen"]["shape"] == ["batch", "look_agents", *steps, 3]
    state = "policy/look/m/h"
    assert file.metadata["inputs"][state]["shape"] == ["batch", "look_agents", 1, 4]
    for agents in (1, 4):
        seen, moved = torch.rand(2, agents, *steps, 3), torch.rand(2, *steps, 2)
        resets = torch.zeros(2, *steps, dtype=torch.bool)
        memory, critics = torch.rand(2, agents, 1, 4), torch.rand(2, agents, 1, 4)
        own = {"look/seen": seen, "move/seen": moved}
        states = {state: memory, "critic/look/latent/h": critics}
        outputs = file({**own, **states, "resets": resets})
        observations = {"look": {"seen": seen}, "move": {"seen": moved}}
        call = model.policy if unroll is None else model.policy.unroll
        logits, _ = call(observations, {"look/m/h": memory})
        assert_equal(outputs["look/logits"], logits["look"]["action"])
        call = model.critic if unroll is None else model.critic.unroll
        values, _ = call(observations, {"look/latent/h": critics})
        assert_equal(outputs["look/value"], values["look"]["value"])


# --- every example ---


@pytest.mark.full
@every_kind
@pytest.mark.parametrize("name", ["knights_archers", "pick_place"])
def test_every_actor_of_every_config_is_exported(name, suffix, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    model = composer.compose(CONFIGS / f"{name}.yaml", allow=MODULES, seed=0)
    for actor in model.policy.actors.names:
        model.export(tmp_path / f"{actor}{suffix}", actor=actor)
        if model.policy[actor].has_memory:
            model.export(tmp_path / f"{actor}{suffix}", actor=actor, unroll=3)
