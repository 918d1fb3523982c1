"""Critics of several actors: a value for each, values that build on one another, and one of what all observe."""

import copy
import pickle
import re

import gymnasium
import pettingzoo
import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer
from composer import SpecError
from tests.helpers.actor_critics import (
    ACTIONS,
    ARM,
    BY_STEP,
    CENTRAL,
    CHAINED,
    GOAL,
    OBSERVATIONS,
    STACKED,
    Sum,
    compose,
    linear,
    network,
    observe,
    policy,
    summed,
)
from tests.helpers.paths import CONFIGS

# --- a value for each actor ---


def test_everyone_present_gets_the_value_of_its_network():
    critic = compose(BY_STEP).critic
    seen = observe()
    values = critic(seen)
    assert list(values) == ["pick", ("place", 0), ("place", 1)]
    torch.testing.assert_close(
        values["pick"]["value"], summed(critic.get_submodule("pick"), seen["pick"]["view"])
    )
    place = critic.get_submodule("place")
    for key in (("place", 0), ("place", 1)):
        expected = summed(place, seen[key]["view"], seen[key]["goal"])
        torch.testing.assert_close(values[key]["value"], expected)
        torch.testing.assert_close(critic.value(seen)[key], expected.squeeze(-1))
    alone = critic.value({"place/1": seen["place", 1]})
    torch.testing.assert_close(alone, {"place/1": critic.value(seen)["place", 1]})


def test_one_network_may_value_actors_whose_policies_differ():
    observations = {"a": ARM, "b": ARM}
    actions = {"a": spaces.Discrete(2), "b": GOAL}
    graph = {"latent": {"block": "dense", "in": "observation", "hidden_units": 4}}
    of_policy = {"graph": graph, "heads": {"in": "latent"}}
    spec = {
        "version": 1,
        "normalize": ["observation"],
        "policy": {"networks": {"a": of_policy, "b": of_policy}},
        "critic": linear("observation"),
    }
    model = composer.compose(spec, observation_space=observations, action_space=actions, seed=0)
    seen = {"a": torch.randn(5, 3), "b": torch.randn(5, 3)}
    model.update_normalizers({"a": torch.randn(9, 3) * 4 + 2, "b": torch.randn(9, 3) - 3})
    values = model.critic(seen)
    for key, own in values.items():
        scaled = model.policy[key].observer.normalizers["observation"](seen[key])
        torch.testing.assert_close(own["value"], summed(model.critic, scaled))
    assert [name for name in model.state_dict() if name.startswith("critic.")] == [
        "critic.sum.linear.weight",
        "critic.sum.linear.bias",
    ]


def test_separate_critics_have_weights_of_their_own_in_one_call():
    networks = {"pick": linear("view"), "place": {**network("view"), "separate": True}}
    model = compose({"networks": networks})
    seen = observe()
    same = {**seen, ("place", 1): seen["place", 0]}
    values = model.critic.value(same)
    assert not torch.isclose(values["place", 0], values["place", 1]).any()
    assert model.critic.groups[1].module.ensemble is not None
    for index in range(2):
        view = model.critic.groups[1].module.member_of(index)
        expected = view.value(seen["place", 0])
        torch.testing.assert_close(values["place", index], expected)


def test_each_actor_reads_what_its_own_policy_shares():
    networks = {"pick": linear("latent"), "place": linear("latent", "view")}
    model = compose({"networks": networks}, shares=["latent"])
    seen = observe()
    logits, values = model(seen)
    pick, place = model.critic.get_submodule("pick"), model.critic.get_submodule("place")
    torch.testing.assert_close(values["pick"]["value"], summed(pick, logits["pick"]["latent"]))
    key = ("place", 1)
    expected = summed(place, logits[key]["latent"], seen[key]["view"])
    torch.testing.assert_close(values[key]["value"], expected)
    message = (
        "for 'pick': this critic reads 'latent' of the policy; call critic(observations, shared=logits) with the "
        "logits that the policy returns"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.critic(seen)


# --- values that build on one another ---


def test_a_later_step_adds_to_the_value_before_it():
    critic = compose(CHAINED).critic
    seen = observe()
    values = critic(seen)
    first = summed(critic.get_submodule("pick"), seen["pick"]["view"])
    assert list(values["pick"]) == ["value"]
    torch.testing.assert_close(values["pick"]["value"], first)
    for key in (("place", 0), ("place", 1)):
        delta = summed(critic.get_submodule("place"), seen[key]["goal"], first)
        torch.testing.assert_close(values[key], {"value": first + delta, "delta": delta})


def test_no_gradient_flows_into_the_value_before():
    critic = compose(CHAINED).critic
    critic.value(observe())["place", 0].sum().backward()
    assert all(p.grad is None for p in critic.get_submodule("pick").parameters())
    assert all(p.grad is not None for p in critic.get_submodule("place").parameters())


def test_a_later_step_alone_is_told_the_value_before():
    critic = compose(CHAINED).critic
    seen = observe()
    place = {("place", 0): seen["place", 0]}
    before = torch.full((5, 1), 2.0, requires_grad=True)
    values = critic(place, prev_value=before)
    delta = summed(critic.get_submodule("place"), seen["place", 0]["goal"], torch.full((5, 1), 2.0))
    torch.testing.assert_close(values["place", 0]["value"], 2.0 + delta)
    values["place", 0]["value"].sum().backward()
    assert before.grad is None


def test_the_value_of_a_step_of_several_agents_is_their_mean():
    networks = {"place": linear("view"), "pick": linear("prev_value")}
    spec = {
        "version": 1,
        "policy": {"networks": dict(reversed(policy()["networks"].items()))},
        "critic": {"kind": "delta_state", "networks": networks},
        "ignore": [],
    }
    model = composer.compose(spec, observation_space=OBSERVATIONS, action_space=ACTIONS, seed=0)
    values = model.critic(observe())
    before = (values["place", 0]["value"] + values["place", 1]["value"]) / 2
    delta = summed(model.critic.get_submodule("pick"), before)
    torch.testing.assert_close(values["pick"]["value"], before + delta)


@pytest.mark.parametrize(
    ("actors", "prev_value", "message"),
    [
        ([("place", 0)], None, "the first step is absent: 'place/0' builds on the value before it; pass that as prev_value=value, (..., 1)"),
        ([("place", 0)], torch.zeros(4, 1), "for 'place/0': prev_value must have the shape (5, 1), got (4, 1)"),
        ([("place", 0)], "high", "prev_value must be numbers or an array of them, got a str"),
        (["pick"], torch.zeros(5, 1), "the first step has no value before it; leave prev_value out"),
        ([("place", 0)], torch.zeros(5), "prev_value must have the shape (5, 1), got (5,)"),
    ],
)  # fmt: skip
def test_a_wrong_value_before_is_refused(actors, prev_value, message):
    seen = observe()
    critic = compose(
        {**CHAINED, "networks": {**CHAINED["networks"], "place": linear("goal")}}
    ).critic
    with pytest.raises(ValueError, match=re.escape(message)):
        critic({key: seen[key] for key in actors}, prev_value=prev_value)


def test_values_that_build_on_one_another_share_one_scale():
    model = compose({**CHAINED, "normalize_value": True})
    seen = observe()
    before = model.critic(seen)
    model.update_normalizers(returns={"pick": [10.0, 20.0], ("place", 0): [30.0, 40.0]})
    values = model.critic(seen)
    for key, own in values.items():
        torch.testing.assert_close(own["normalized_value"], before[key]["value"])
        torch.testing.assert_close(own["value"], own["normalized_value"] * 125**0.5 + 25.0)
    place = {("place", 0): seen["place", 0]}
    later = model.critic(place, prev_value=values["pick"]["value"])
    torch.testing.assert_close(later["place", 0]["value"], values["place", 0]["value"])


# --- of any kind ---

KINDS = pytest.mark.parametrize("critic", [BY_STEP, CHAINED, CENTRAL, STACKED])


@KINDS
def test_a_critic_comes_back_from_a_file_and_from_the_meta_device(critic, tmp_path):
    model = compose({**critic, "normalize_value": True})
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    later = compose({**critic, "normalize_value": True}, device="meta").materialize()
    for other in (loaded, later, model.to(torch.float64).float()):
        torch.testing.assert_close(other(observe()), model(observe()), rtol=0, atol=0)
    assert "critic" in model.summary()
    assert model.draw(tmp_path / "model.mmd").read_text().count("critic") >= 1


@KINDS
def test_a_copy_of_a_critic_is_a_critic_of_its_own(critic):
    model = compose({**critic, "normalize_value": True})
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(observe()), model(observe()), rtol=0, atol=0)
        with torch.no_grad():
            for parameter in other.critic.parameters():
                parameter.add_(1.0)
        assert not torch.equal(flat(other.critic(observe())), flat(model.critic(observe())))
        other.update_normalizers(returns={"pick": [5.0]} if "networks" in critic else [5.0])
        other.update_normalizers(observe())


def flat(values):
    """All values as one tensor."""
    return torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(values)])


@KINDS
def test_the_weights_of_a_critic_depend_on_the_seed_alone(critic):
    first, second = compose(critic).critic.state_dict(), compose(critic).critic.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = compose(critic, seed=1).critic.state_dict()
    assert not any(torch.equal(first[name], other[name]) for name in first if "weight" in name)


def remembering(critic):
    """The same critic with memory before its value."""
    if "networks" in critic:
        networks = {key: remembering(own) for key, own in critic["networks"].items()}
        return {**critic, "networks": networks}
    graph = dict(critic["graph"])
    last = graph.pop("sum")
    graph["memory"] = {"block": "gru", "in": last["in"], "hidden_units": 4}
    return {**critic, "graph": {**graph, "sum": {**last, "in": "memory"}}}


@KINDS
def test_memory_of_a_critic_steps_as_it_unrolls(critic):
    net = compose(remembering(critic)).critic.eval()
    states = [observe(batch=2, seed=seed) for seed in range(4)]
    whole = {
        key: {name: torch.stack([one[key][name] for one in states], dim=1) for name in own}
        for key, own in states[0].items()
    }
    resets = torch.tensor([[True, False, True, False], [False, False, False, True]])
    start = {name: torch.randn_like(value) for name, value in net.initial_state(2).items()}
    expected, end = net.unroll(whole, start, resets)
    state = start
    for t in range(4):
        values, state = net(states[t], state, resets[:, t])
        for key, own in values.items() if "value" not in values else [(None, values)]:
            all_steps = expected if key is None else expected[key]
            torch.testing.assert_close(own["value"], all_steps["value"][:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="has memory; call critic"):
        net(states[0])


@pytest.mark.parametrize("name", ["shared", "reader", "observers", "sources", "groups", "actors"])
def test_nodes_and_steps_may_be_called_as_attributes_of_a_critic_are(name):
    graph = {name: {"block": "linear_output", "in": "observation", "output_units": 1}}
    critics = [{"graph": graph}, {"kind": "shared_state", "graph": {name: {**graph[name], "in": f"{name}/observation"}}}]  # fmt: skip
    for critic in [*critics, {"networks": {name: {"graph": graph}, "other": {"graph": graph}}}]:
        model = compose(
            critic,
            observations={name: ARM, "other": ARM},
            actions={name: spaces.Discrete(2), "other": spaces.Discrete(2)},
            policy={"template": {}},
        )
        seen = {name: torch.randn(5, 3), "other": torch.randn(5, 3)}
        layer = next(m for m in model.critic.modules() if isinstance(m, nn.Linear))
        values = model.critic.value(seen)
        value = values[name] if isinstance(values, dict) else values
        torch.testing.assert_close(value, layer(seen[name]).squeeze(-1))


@pytest.mark.parametrize(
    ("critic", "shapes"),
    [
        ({"networks": {"pick": {"_target_": Sum}, "place": {"_target_": Sum}}}, {"view": (4,), "goal": (2,)}),
        ({"kind": "delta_state", "networks": {"pick": {"_target_": Sum}, "place": {"_target_": Sum}}}, {"view": (3,), "goal": (2,), "prev_value": (1,)}),
        ({"kind": "shared_state", "_target_": Sum, "observations": ["pick/view", "place/1/goal"]}, {"pick/view": (4,), "place/1/goal": (2,)}),
        ({"kind": "shared_state", "stack": True, "_target_": Sum, "observations": ["goal"]}, {"goal": (3, 2)}),
    ],
)  # fmt: skip
def test_a_class_is_told_what_it_reads(critic, shapes):
    made = compose(critic).critic
    module = made.get_submodule("place") if "prev_value" in shapes else made
    module = made.get_submodule("pick") if "networks" in critic and module is made else module
    assert module.network.module.shapes == shapes
    assert all(torch.isfinite(v).all() for v in torch.utils._pytree.tree_leaves(made(observe())))


# --- what cannot be ---


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ({"kind": "shared_state", "stack": True, "template": {}},
         "critic.stack: 'stack' needs values of one form, but 'view' of 'pick' and 'place/0' has the shapes (4,) and (3,); leave 'stack' out, or name other 'observations'"),
        ({"kind": "delta_state", "template": {}},
         "critic: the first step gives a value and each later one a difference: a critic of kind 'delta_state' needs 'networks' by step"),
        ({"stack": True, "template": {}},
         "critic.stack: 'stack' puts the observations of all actors together, for kind: shared_state"),
        ({**CHAINED, "ensemble": 2},
         "critic.ensemble: a value that builds on the one before is one number; leave 'ensemble' out"),
        ({"kind": "shared_state", "separate": True, "template": {}},
         "critic.separate: 'separate' gives each agent a critic of its own, for kind: state"),
        ({"kind": "shared_state", "networks": {"pick": {"template": {}}}},
         "critic.networks: one network reads the observations of all actors; write it directly, without 'networks'"),
        ({"template": {}},
         "critic: one network values them, but 'view' of 'pick' and 'place/0' has the shapes (4,) and (3,); give them networks of their own under 'networks', or write separate: true"),
        ({"networks": {"pick": {"template": {}}, "plaec": {"template": {}}}},
         "critic.networks.plaec: the network 'plaec' serves no actor; did you mean 'place'?"),
        ({"kind": "shared_state", "observations": ["pick/veiw"], "template": {}},
         "critic.observations.0: 'pick/veiw' is not an observation; did you mean 'pick/view'?"),
        ({"kind": "shared_state", **linear("pick/view", "latent")},
         "critic.graph.all.in: 'all' reads 'latent', which belongs to the policy; share it: write shares: [latent] in the policy"),
        ({"networks": {"pick": linear("view", "prev_value"), "place": {"template": {}}}},
         "critic.networks.pick.graph.all.in: 'all' reads 'prev_value', which is neither an input nor a node's output"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(critic, message):
    with pytest.raises(SpecError) as caught:
        compose(critic)
    assert message in str(caught.value)


def test_what_policies_share_in_other_shapes_is_not_stacked():
    wide = network("view", "goal", node="latent", heads={"in": "latent"}, shares=["latent"])
    narrow = {**wide, "graph": {**wide["graph"], "latent": {**wide["graph"]["latent"], "hidden_units": 5}}}  # fmt: skip
    spec = {
        "version": 1,
        "policy": {"networks": {"pick": wide, "place": narrow}},
        "critic": {"kind": "shared_state", "stack": True, "observations": [], "graph": {"flat": {"block": "flatten", "in": "latent"}}},
    }  # fmt: skip
    message = "'latent' of 'pick' and 'place/0' has the shapes (8,) and (5,)"
    with pytest.raises(SpecError, match=re.escape(message)):
        composer.compose(spec, observation_space=OBSERVATIONS, action_space=ACTIONS)


def test_a_central_critic_counts_its_actors():
    observations, actions = {("agent", None): ARM}, {("agent", None): spaces.Discrete(2)}
    spec = {"version": 1, "policy": {"template": {}}, "critic": {"kind": "shared_state", "template": {}}}  # fmt: skip
    message = "a critic of the observations of all actors needs a known number of agents; it is not known for 'agent'"
    with pytest.raises(SpecError, match=re.escape(message)):
        composer.compose(spec, observation_space=observations, action_space=actions)


# --- in real environments ---


def test_all_knights_and_archers_have_one_value_together_dead_or_alive():
    model = composer.compose(CONFIGS / "knights_archers.yaml", seed=0)
    assert model.critic.network.in_ports["observation"].shape[0] == 4
    env = pettingzoo.make("parallel", "butterfly/knights_archers_zombies_v11", max_cycles=10)
    observations, _ = env.reset(seed=0)
    state = model.policy.initial_state()
    for _ in range(5):
        value = model.critic.value(observations)
        without = {key: own for key, own in observations.items() if key != "knight_0"}
        assert value.shape == ()
        assert model.critic.value(without) != value
        actions, state = model.policy.act(observations, state)
        observations, *_ = env.step(actions)
    env.close()


def test_placing_builds_on_the_value_of_picking(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    model = composer.compose(CONFIGS / "pick_place.yaml", allow=["environments"], seed=0)
    env = gymnasium.make("environments.pick_place_env:PickPlace-v0").unwrapped
    observation, _ = env.reset(seed=0)
    picked, placed = None, 0
    for _ in range(20):
        if "pick" in observation:
            picked = model.critic(observation)["pick"]["value"]
        else:
            values = model.critic(observation, prev_value=picked)["place"]
            torch.testing.assert_close(values["value"], picked + values["delta"])
            placed += 1
        observation, _, over, truncated, _ = env.step(model.policy.act(observation))
        if over or truncated:
            observation, _ = env.reset()
    assert placed


def test_a_critic_that_knows_more_than_its_policy_says_so(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(CONFIGS)
    model = composer.compose(CONFIGS / "asymmetric.yaml", allow=["environments"], seed=0)
    summary = model.summary()
    assert "the policy may see: 'place', 'smell'" in summary
    assert "the critic may see: 'goal', 'wind'" in summary
    drawn = model.draw(tmp_path / "model.mmd").read_text()
    assert drawn.count("only for the critic") == 2
    env = gymnasium.make("environments.seek_env:Seek-v0")
    observation, _ = env.reset(seed=0)
    for hidden in ("goal", "wind"):
        blind = {key: value for key, value in observation.items() if key != hidden}
        model.policy.act(blind, model.policy.initial_state())
        outputs, _ = model.policy(observation, model.policy.initial_state())
        with pytest.raises(ValueError, match=f"observation '{hidden}' is missing"):
            model.critic(blind, shared=outputs)
    env.close()


def test_a_state_of_another_batch_is_refused():
    critic = compose(remembering(CENTRAL)).critic
    message = "the state 'memory/h' must have the shape (5, 1, 4), got (4, 1, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        critic(observe(), critic.initial_state(4))
    by_step = compose(remembering(BY_STEP)).critic
    message = "for 'pick': the state 'memory/h' must have the shape (5, 1, 4), got (4, 1, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        by_step(observe(), by_step.initial_state(4))


@pytest.mark.parametrize("critic", [BY_STEP, CHAINED])
def test_returns_are_counted_all_or_none(critic):
    model = compose({**critic, "normalize_value": True})
    before = {name: value.clone() for name, value in model.critic.state_dict().items()}
    message = "for 'place/1': the returns contain NaN or an infinite number, which the statistics cannot count"
    with pytest.raises(ValueError, match=re.escape(message)):
        model.update_normalizers(returns={"pick": [5.0], "place/1": [1.0, float("nan")]})
    torch.testing.assert_close(dict(model.critic.state_dict()), before, rtol=0, atol=0)
    with pytest.raises(
        ValueError, match=re.escape("returns must be numbers or an array of them, got a str")
    ):
        model.update_normalizers(returns={"pick": "high"})
    unscaled = "this critic does not normalise its values; write normalize_value: true in it"
    with pytest.raises(ValueError, match=re.escape(unscaled)):
        compose(critic).update_normalizers(returns={"pick": [5.0]})


def test_values_of_one_step_alone_have_a_scale_too():
    model = compose(
        {"kind": "delta_state", "template": {}, "normalize_value": True},
        observations={"pick": OBSERVATIONS["pick"]},
        actions={"pick": ACTIONS["pick"]},
        policy={"template": {}},
    )
    model.update_normalizers(returns={"pick": [10.0, 20.0]})
    values = model.critic({"pick": observe()["pick"]})["pick"]
    torch.testing.assert_close(values["value"], values["normalized_value"] * 5 + 15)
