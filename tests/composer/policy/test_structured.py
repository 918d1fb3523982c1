"""Policies of several actors: steps and agents with spaces of their own, shared networks and separate ones."""

import pickle
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

import composer
from composer import StructuredPolicy
from composer.policy.structured import one_policy
from tests.helpers.structured_models import (
    AGENT,
    MEMORY,
    SEPARATE,
    SHARED,
    agents,
    crowd,
    observations,
    pick_and_place,
    same,
)


class ClassWithMemory(nn.Module):
    """A user's network that counts; it cannot be told from its weights what it does."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.layer = nn.Linear(obs_shapes["observation"][0] + 1, action_logits_shapes["action"][0])
        self.state_shapes = {"count": (1,)}

    def forward(self, inputs, state, resets):
        count = state["count"] if resets is None else state["count"] * ~resets[:, None]
        x = torch.cat([inputs["observation"], count], -1)
        return {"action": self.layer(x)}, {"count": count + 1}


class ClassThatActs(nn.Module):
    """A user's network that reads and acts in its own way."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.layer = nn.Linear(obs_shapes["observation"][0], action_logits_shapes["action"][0])

    def preprocess(self, observation):
        return {"observation": np.asarray(observation) * 2}

    def forward(self, inputs):
        return {"action": self.layer(inputs["observation"])}

    def act(self, observation):
        return int(np.asarray(observation).sum() > 0)


# --- shapes, names, access --------------------------------------------------------------------------------------------


def test_one_space_still_gives_a_plain_policy():
    model = composer.compose(
        AGENT.replace("SEPARATE", "init: orthogonal"), env="CartPole-v1", seed=0
    )
    assert isinstance(model.policy, composer.Policy)


@pytest.mark.parametrize("leading", [(), (1,), (5, 2), (0,)])
@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_the_same_action_name_has_other_spaces_in_two_steps(leading, separate):
    model = pick_and_place(separate)
    assert isinstance(model.policy, StructuredPolicy)
    logits, _ = model.policy(observations(model, leading), model.policy.initial_state(leading))
    assert {key: own["move"].shape for key, own in logits.items()} == {
        "pick": (*leading, 3),
        ("place", 0): (*leading, 4),
        ("place", 1): (*leading, 4),
    }


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_actions_are_those_of_each_actors_own_space(separate):
    model = pick_and_place(separate)
    state = model.policy.initial_state()
    for seed in range(20):
        seen = observations(model, seed=seed)
        actions, state = model.policy.act(seen, state)
        assert list(actions) == list(seen)
        assert all(model.action_space[key].contains(action) for key, action in actions.items())


def test_tensor_names_say_group_agent_and_node():
    def heads(model):
        return [name for name in model.state_dict() if name.endswith("linear.bias")]

    assert heads(pick_and_place()) == [
        "policy.pick.heads.move.linear.bias",
        "policy.place.heads.move.linear.bias",
    ]
    assert heads(pick_and_place(SEPARATE)) == [
        "policy.pick.heads.move.linear.bias",
        "policy.place.0.heads.move.linear.bias",
        "policy.place.1.heads.move.linear.bias",
    ]
    assert heads(agents()) == ["policy.heads.action.linear.bias"]
    assert heads(agents(separate=SEPARATE, number=2)) == [
        "policy.0.heads.action.linear.bias",
        "policy.1.heads.action.linear.bias",
    ]


def test_a_policy_is_reached_by_step_agent_or_group():
    policy = pick_and_place().policy
    assert policy["pick"] is policy.pick
    assert policy["place"] is policy["place", 1] is policy["place/0"] is policy.place


def test_a_list_of_networks_is_for_steps_that_are_numbered():
    spec = AGENT.replace("SEPARATE", "").partition("policy:")[0] + (
        "policy:\n  networks:\n"
        "    - {graph: {x: {block: dense, in: observation, hidden_units: [4]}}, heads: {in: x}}\n"
        "    - {graph: {y: {block: dense, in: observation, hidden_units: [4]}}, heads: {in: y}}\n"
    )
    spaces = {0: Box(-1, 1, (2,)), 1: Box(-1, 1, (3,))}
    model = composer.compose(
        spec, observation_space=spaces, action_space=dict.fromkeys(spaces, Discrete(2)), seed=0
    )
    assert list(model.policy(observations(model))) == [0, 1]
    assert model.policy[0] is model.policy["0"]
    assert "policy.1.y.linears.0.weight" in model.state_dict()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("plase", "there is no actor or group 'plase'; did you mean 'place'?"),
        (7, "there is no actor or group 7; there is 'pick', 'place/0', 'place/1'"),
    ],
)
def test_an_unknown_key_has_no_policy(key, message):
    with pytest.raises(KeyError) as caught:
        pick_and_place().policy[key]
    assert caught.value.args == (message,)


def test_a_group_of_separate_agents_has_no_single_policy():
    with pytest.raises(KeyError) as caught:
        pick_and_place(SEPARATE).policy["place"]
    assert caught.value.args == (
        "the actors of 'place' have separate networks; name one of 'place/0', 'place/1'",
    )


# --- shared and separate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_the_batched_call_equals_each_agents_own_policy(separate, leading):
    model = agents(separate=separate)
    seen = observations(model, leading)
    together = model.policy(seen)
    for key, observation in seen.items():
        assert same(together[key], model.policy[key](observation))


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_a_subset_in_any_order_is_answered_in_its_order(separate):
    model = agents(separate=separate)
    seen = observations(model, (2,))
    everyone = model.policy(seen)
    for keys in (["agent_3", "agent_0"], ["agent_2"], ["agent_1", "agent_3", "agent_2"]):
        some = model.policy({key: seen[key] for key in keys})
        assert list(some) == keys
        assert all(same(some[key], everyone[key]) for key in keys)


def test_nobody_present_is_no_error():
    assert agents().policy.act({}) == {}


def test_separate_agents_differ_and_shared_ones_do_not():
    same_for_all = dict.fromkeys(("agent_0", "agent_1"), np.ones(3, np.float32))
    shared = agents().policy(same_for_all)
    separate = agents(separate=SEPARATE).policy(same_for_all)
    assert same(shared["agent_0"], shared["agent_1"])
    assert not same(separate["agent_0"], separate["agent_1"])


def test_separate_weights_depend_on_seed_group_and_index_only():
    few, many = (agents(separate=SEPARATE, number=n).state_dict() for n in (2, 4))
    assert all(torch.equal(few[name], many[name]) for name in few)
    other = agents(separate=SEPARATE, number=2, seed=4).state_dict()
    assert not torch.equal(
        few["policy.0.latent.linears.0.weight"], other["policy.0.latent.linears.0.weight"]
    )


def test_a_policy_of_several_actors_is_not_taken_for_one_of_one_actor():
    policy = agents(number=2).policy
    message = (
        "this policy acts for several actors ('agent_0', 'agent_1'); take the policy of one of them: "
        "model.policy[actor]"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        one_policy(policy)
    assert one_policy(policy["agent_0"]) is policy["agent_0"]


def test_gradients_of_each_agent_reach_its_own_weights_only():
    model = agents(separate=SEPARATE)
    model.policy(observations(model))["agent_1"]["action"].sum().backward()
    stack: Any = dict(model.policy.named_parameters())["latent/linears/0/weight"]
    assert [bool(row.any()) for row in stack.grad] == [False, True, False, False]


def test_the_policy_of_a_separate_agent_is_over_its_own_weights():
    model = agents(separate=SEPARATE)
    seen = observations(model)
    alone = model.policy["agent_2"]
    assert list(alone.state_dict()) == list(agents().policy.state_dict())
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.mul_(2)
    assert same(model.policy(seen)["agent_2"], alone(seen["agent_2"]))
    alone(seen["agent_2"])["action"].sum().backward()
    stack: Any = dict(model.policy.named_parameters())["latent/linears/0/weight"]
    assert [bool(row.any()) for row in stack.grad] == [False, False, True, False]


@pytest.mark.parametrize("moved", ["model", "parameter"])
def test_the_policy_of_a_separate_agent_refuses_weights_that_the_model_has_left(moved):
    model = agents(separate=SEPARATE)
    seen = observations(model)["agent_2"]
    alone = model.policy["agent_2"]
    lowered, copied = alone.lower(), pickle.loads(pickle.dumps(alone))
    before = alone(seen)
    torch.testing.assert_close(lowered(seen), before)
    if moved == "model":
        model.double().float()
    else:
        name, stack = next(iter(model.policy.named_parameters()))
        model.policy._parameters[name] = nn.Parameter(stack.detach() + 1)
    message = (
        "the model has been moved, or has new parameters, since this policy was taken from it; "
        "get it again: model.policy[...]"
    )
    for call in (alone, alone.act, lowered, lowered.act):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(seen)
    torch.testing.assert_close(copied(seen), before)
    again = model.policy["agent_2"]
    torch.testing.assert_close(again.lower()(seen), again(seen))


def test_separate_agents_of_other_spaces_run_one_by_one():
    spaces = {"agent_0": Box(-1, 1, (3,)), "agent_1": Box(-1, 1, (4,))}
    actions = {"agent_0": Discrete(2), "agent_1": Box(-1, 1, (2,))}
    model = composer.compose(
        AGENT.replace("SEPARATE", SEPARATE), observation_space=spaces, action_space=actions, seed=0
    )
    seen = observations(model, (2,))
    logits = model.policy(seen)
    assert [own["action"].shape for own in logits.values()] == [(2, 2), (2, 4)]
    assert same(logits["agent_1"], model.policy["agent_1"](seen["agent_1"]))
    assert model.policy.groups[0].module.why_looped == (
        "the observation spaces of 'agent_0' and 'agent_1' differ "
        "('observation': shape is (4,), expected (3,))"
    )


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_a_class_with_memory_serves_several_agents(separate):
    spec = f"version: 1\npolicy: {{_target_: {__name__}.ClassWithMemory, {separate}}}".replace(
        ", }", "}"
    )
    model = agents(spec, allow=[__name__])
    state = model.policy.initial_state(2)
    seen = observations(model, (2,))
    for _ in range(3):
        own = {key: model.policy[key](seen[key], {"count": state[f"{key}/count"]}) for key in seen}
        logits, state = model.policy(seen, state)
        assert all(same(logits[key], own[key][0]) for key in seen)
    assert {float(value.max()) for value in state.values()} == {3.0}


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_a_class_that_acts_is_asked(separate):
    spec = f"version: 1\npolicy: {{_target_: {__name__}.ClassThatActs, {separate}}}".replace(
        ", }", "}"
    )
    model = agents(spec, allow=[__name__])
    seen = {"agent_0": np.ones(3, np.float32), "agent_2": -np.ones(3, np.float32)}
    assert model.policy.act(seen) == {"agent_0": 1, "agent_2": 0}
    assert same(model.policy(seen)["agent_2"], model.policy["agent_2"](seen["agent_2"]))
    if separate:
        assert model.policy.groups[0].module.why_looped == "the class defines 'act' itself"


def test_one_of_several_networks_may_be_separate():
    model = pick_and_place(SEPARATE)
    assert {
        name: policy is model.policy[name] for name, policy in model.policy.policies.items()
    } == {
        "pick": True,
        "place/0": False,  # the whole policy is made over its part of the weights
        "place/1": False,
    }


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_memory_is_of_each_actor(separate):
    model = agents(MEMORY, separate)
    state = model.policy.initial_state(2)
    assert list(state) == [f"agent_{index}/memory/h" for index in range(4)]
    alone = {key: model.policy[key].initial_state(2) for key in model.observation_space}
    for step in range(4):
        present = [key for index, key in enumerate(alone) if (index + step) % 3]
        seen = observations(model, (2,), present, seed=step)
        resets = torch.tensor([step == 2, False])
        before = dict(state)
        logits, state = model.policy(seen, state, resets)
        for key in alone:
            name = f"{key}/memory/h"
            if key not in present:
                assert state[name] is before[name]
                continue
            expected, alone[key] = model.policy[key](seen[key], alone[key], resets)
            assert same(logits[key], expected)
            assert torch.allclose(state[name], alone[key]["memory/h"], atol=1e-6)


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_resets_by_actor_reset_only_theirs(separate):
    model = agents(MEMORY, separate, number=3)
    seen = observations(model, (2,))
    _, state = model.policy(seen, model.policy.initial_state(2))
    fresh, _ = model.policy(seen, model.policy.initial_state(2))
    on, _ = model.policy(seen, state)
    resets = {"agent_0": [False, False], "agent_1": np.array([True, False]), "agent_2": None}
    logits, _ = model.policy(seen, state, resets)
    assert same(logits["agent_0"], on["agent_0"])
    assert same(logits["agent_2"], on["agent_2"])
    assert torch.allclose(logits["agent_1"]["action"][0], fresh["agent_1"]["action"][0], atol=1e-6)
    assert torch.allclose(logits["agent_1"]["action"][1], on["agent_1"]["action"][1], atol=1e-6)


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_step_by_step_equals_unroll(separate):
    model = pick_and_place(separate)
    seen = observations(model, (2, 5))
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[0, 3] = True
    whole, last = model.policy.unroll(seen, model.policy.initial_state(2), resets)
    state = model.policy.initial_state(2)
    for t in range(5):
        now = {
            key: {n: v[:, t] for n, v in own.items()} if isinstance(own, dict) else own[:, t]
            for key, own in seen.items()
        }
        logits, state = model.policy(now, state, resets[:, t])
        for key in logits:
            assert torch.allclose(logits[key]["move"], whole[key]["move"][:, t], atol=1e-5)
    assert all(torch.allclose(state[name], last[name], atol=1e-5) for name in state)


# --- agents that are not counted --------------------------------------------------------------------------------------


def test_agents_that_are_not_counted_come_and_go():
    model = crowd()
    assert model.observation_space == {("look", None): Box(-1, 1, (3,)), "decide": Box(-1, 1, (2,))}
    assert list(model.policy.initial_state()) == ["decide/memory/h"]
    state = model.policy.initial_state(actors=["decide", ("look", 4), "look/x"])
    seen = {("look", 4): np.ones(3), "look/x": -np.ones(3), "decide": np.ones(2)}
    actions, state = model.policy.act(seen, state)
    assert list(actions) == [("look", 4), "look/x", "decide"]
    assert list(state) == ["decide/memory/h", "look/4/memory/h", "look/x/memory/h"]
    assert model.policy["look", 9] is model.policy["look"]


def test_agents_that_are_not_counted_may_come_as_one_array():
    model = crowd()
    many = np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32)
    state = model.policy.initial_state(7, actors=["look"]) | model.policy.initial_state(
        actors=["decide"]
    )
    logits, state = model.policy({"look": many, "decide": np.ones(2, np.float32)}, state)
    assert logits["look"]["action"].shape == (7, 2)
    one, _ = model.policy({("look", 3): many[3]}, model.policy.initial_state(actors=[("look", 3)]))
    assert torch.allclose(logits["look"]["action"][3], one["look", 3]["action"], atol=1e-6)


# --- environments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_vector_environment_is_composed_directly(vectorization):
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode=vectorization)
    try:
        model = composer.compose(AGENT.replace("SEPARATE", "init: orthogonal"), env=envs, seed=0)
        seen, _ = envs.reset(seed=0)
        for _ in range(5):
            seen, *_ = envs.step(model.policy.act(seen))
        assert seen.shape == (3, 4)
    finally:
        envs.close()
