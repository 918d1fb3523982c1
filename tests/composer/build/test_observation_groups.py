"""The name of a group stands for its observations, wherever a spec names observations."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, Sequence, Tuple

import composer

JOINTS = Dict(position=Box(-1, 1, (3,)), speed=Box(-1, 1, (3,)))
ROBOT = Dict(
    policy=JOINTS,
    critic=Dict(mass=Box(0, 9, (1,)), parts=Tuple([Box(-1, 1, (2,)), Box(-1, 1, (2,))])),
    debug=Dict(gear=Discrete(3), load=Box(-1, 1, (2,))),
)
MOVE = Discrete(2)
POLICY = ("policy/position", "policy/speed")
CRITIC = ("critic/mass", "critic/parts/0", "critic/parts/1")


def composed(spec, observation_space=ROBOT, action_space=MOVE):
    return composer.compose(
        {"version": 1, **spec},
        observation_space=observation_space,
        action_space=action_space,
        seed=0,
    )


def joined(*names):
    return {"graph": {"seen": {"block": "concat", "in": [*names]}}, "heads": {"in": "seen"}}


def test_networks_see_the_groups_that_they_name():
    policy = {"observations": ["policy"], "template": {}}
    critic = {"observations": ["policy/speed", "critic"], "template": {}}
    model = composed({"ignore": ["debug"], "policy": policy, "critic": critic})
    assert model.policy.read_keys == POLICY
    assert set(model.critic.read_keys) == {"policy/speed", *CRITIC}


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["policy"], POLICY),
        (["critic"], CRITIC),
        (["critic/parts", "policy/speed"], ("critic/parts/0", "critic/parts/1", "policy/speed")),
    ],
)
def test_a_node_of_any_number_of_inputs_reads_a_group_in_the_order_of_the_space(names, keys):
    model = composed({"policy": joined(*names), "critic": {"template": {}}})
    assert model.policy.network.module.nodes[0].step.inputs == keys
    by_hand = composed({"policy": joined(*keys), "critic": {"template": {}}})
    observation = ROBOT.sample()
    torch.testing.assert_close(
        model.policy(observation)["action"], by_hand.policy(observation)["action"]
    )


def test_heads_and_nested_graphs_read_groups():
    nested = {
        "same": {"block": "graph", "in": ["policy"], "graph": {"a": {"block": "add", "in": "policy"}}},
        "other": {"block": "graph", "in": {"p": "critic/parts"}, "graph": {"b": {"block": "concat", "in": "p"}}},
        "both": {"block": "concat", "in": ["same", "other"]},
    }  # fmt: skip
    model = composed(
        {"policy": {"graph": nested, "heads": {"in": "both"}}, "critic": {"template": {}}}
    )
    assert model.policy.read_keys == (*POLICY, "critic/parts/0", "critic/parts/1")
    assert model.policy(ROBOT.sample())["action"].shape == (2,)


def test_normalize_takes_the_numbers_of_a_group_once():
    spec = {"normalize": ["debug", "policy", "policy/speed"], "policy": {"template": {}}}
    model = composed(spec)
    assert model.policy.observer.keys == ("debug/load", *POLICY)


def test_a_group_without_numbers_is_not_normalised():
    space = Dict(policy=JOINTS, kinds=Dict(gear=Discrete(3)))
    with pytest.raises(composer.SpecError) as error:
        composed({"normalize": ["kinds"], "policy": {"template": {}}}, space)
    assert "'kinds/gear' holds integers, such as categories; only numbers are normalised" in str(
        error.value
    )


@pytest.mark.parametrize("name", ["policy", "both"])
def test_an_observation_or_node_of_the_name_comes_first(name):
    space = Dict({"policy": Box(-1, 1, (4,)), "policy/x": Box(-1, 1, (2,)), "both/y": MOVE})
    graph = {}
    if name == "both":
        graph["both"] = {"block": "concat", "in": ["policy", "policy/x"]}
    spec = {
        "ignore": ["both/y"],
        "policy": {"graph": graph, "heads": {"in": name}},
        "critic": {"template": {}},
    }
    model = composed(spec, space)
    width = {"policy": 4, "both": 6}[name]
    assert model.policy.network.module.heads.action.linear.weight.shape == (2, width)


def test_sets_and_graphs_in_a_group_bring_their_masks():
    space = Dict(
        near=Dict(units=Sequence(Box(-1, 1, (3,)), stack=True), wind=Box(-1, 1, (2,))),
        roads=Graph(Box(-1, 1, (2,)), None),
    )
    policy = {"observations": ["near"], "template": {}}
    model = composed({"policy": policy, "critic": {"template": {}}}, space)
    assert set(model.policy.read_keys) == {"near/units", "near/units:mask", "near/wind"}


def test_actors_have_groups_and_a_central_critic_names_an_actor_as_one():
    spaces = {name: Dict(body=JOINTS, goal=Box(-1, 1, (2,))) for name in ("a", "b")}
    spec = {
        "normalize": ["body"],
        "policy": joined("body"),
        "critic": {"kind": "shared_state", "observations": ["a", "b/body"], "template": {}},
    }
    model = composed(spec, spaces, dict.fromkeys(spaces, MOVE))
    assert list(model.policy["a"].observer.keys) == ["body/position", "body/speed"]
    assert set(model.critic.network.in_ports) == {
        "a/body/position", "a/body/speed", "a/goal", "b/body/position", "b/body/speed",
    }  # fmt: skip
    stacked = {"kind": "shared_state", "stack": True, "observations": ["body"], "template": {}}
    model = composed(
        {**spec, "ignore": ["goal"], "critic": stacked}, spaces, dict.fromkeys(spaces, MOVE)
    )
    assert set(model.critic.network.in_ports) == {"body/position", "body/speed"}


def test_a_critic_reads_all_actions_as_the_group_action():
    actions = Dict(grip=MOVE, move=Box(-1, 1, (2,)))
    critic = {"kind": "state_action", **joined("policy", "action"), "heads": {"in": "seen"}}
    model = composed({"policy": joined("policy"), "ignore": ["critic", "debug"], "critic": critic},
                     action_space=actions)  # fmt: skip
    nodes = model.critic.network.module.nodes
    assert nodes[0].step.inputs == (*POLICY, "action/grip", "action/move")


def test_groups_are_saved_as_they_are_written(tmp_path):
    critic = {"observations": ["critic"], **joined("critic")}
    del critic["heads"]
    spec = {"ignore": ["debug"], "normalize": ["policy"], "policy": joined("policy")}
    model = composed({**spec, "critic": critic})
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    observation = ROBOT.sample()
    logits, values = model(observation)
    again, values_again = loaded(observation)
    torch.testing.assert_close(logits["action"], again["action"])
    torch.testing.assert_close(values["value"], values_again["value"])
    assert loaded.policy.observer.keys == POLICY
    assert np.isfinite(values["value"].detach().numpy()).all()
