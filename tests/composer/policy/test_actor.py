"""The value `actor`: a network that several actors share is told which of them it acts for."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from torch import nn

import composer

NAMES = ("a_0", "a_1", "a_2")
SEEN = Box(-1, 1, (4,))
MOVE = Discrete(3)


def graph(block="dense", code="one_hot", of=("observation",)):
    return {
        "who": {
            "block": code,
            "in": "actor",
            **({"embedding_dim": 4} if code == "embedding" else {}),
        },
        "seen": {"block": "concat", "in": [*of, "who"]},
        "latent": {"block": block, "in": "seen", "hidden_units": 8},
    }


def network(block="dense", code="one_hot"):
    return {"graph": graph(block, code), "heads": {"in": "latent"}}


def composed(policy=None, critic=None, names=NAMES, observation=SEEN, action=MOVE, **more):
    spec = {"version": 1, "policy": policy or network(), **more}
    if critic is not None:
        spec["critic"] = critic
    return composer.compose(
        spec,
        observation_space=dict.fromkeys(names, observation),
        action_space=dict.fromkeys(names, action),
        seed=0,
    )


def observe(*leading, names=NAMES):
    same = torch.rand(*leading, 4)
    return dict.fromkeys(names, same)


TEMPLATE = {"observations": ["observation", "actor"], "template": {}}
POLICIES = {
    "one_hot": network(),
    "embedding": network(code="embedding"),
    "separate": {**network(), "separate": True},
    "template": TEMPLATE,
    "types": {"networks": {"a": network()}},
}


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_an_actor_gets_the_same_logits_alone_and_among_others(policy, leading):
    model = composed(policy)
    seen = observe(*leading)
    together = model.policy(seen)
    assert not torch.equal(together["a_0"]["action"], together["a_1"]["action"])
    backwards = model.policy(dict(reversed(seen.items())))
    for name in NAMES:
        logits = together[name]["action"]
        torch.testing.assert_close(model.policy[name](seen[name])["action"], logits)
        torch.testing.assert_close(model.policy({name: seen[name]})[name]["action"], logits)
        torch.testing.assert_close(backwards[name]["action"], logits)
    some = model.policy({name: seen[name] for name in ("a_0", "a_2")})
    torch.testing.assert_close(some["a_2"]["action"], together["a_2"]["action"])


def test_the_index_counts_the_actors_of_the_network():
    names = ("a_0", "b_0", "a_1")
    read = {"graph": {"who": {"block": "one_hot", "in": "actor"},
                      "out": {"block": "multiply", "in": ["who", "size"]},
                      "size": {"block": "dense", "in": "observation", "hidden_units": 1}},
            "heads": {"in": "out"}}  # fmt: skip
    shared = composed({**read}, names=names)
    assert shared.policy.groups[0].module.network.in_ports["actor"].cardinality == 3
    of_types = composed({"networks": {"b": read, "a": read}}, names=names)
    groups: Any = of_types.policy.groups
    counts = {g.name: g.module.network.in_ports["actor"].cardinality for g in groups}
    assert counts == {"a": 2, "b": 1}
    assert [a.name for a in groups[-1].actors] == ["a_0", "a_1"]


CRITICS = {
    "state": {"graph": graph()},
    "separate": {"graph": graph(), "separate": True},
    "template": TEMPLATE,
    "choices": {"kind": "state_action", "graph": graph(), "heads": {"action_q_values": {"in": "latent"}}},
}  # fmt: skip


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
def test_critics_are_told_whom_they_value(critic):
    model = composed(critic=critic)
    seen = observe(5)
    together = model.critic(seen)
    (name,) = [name for name in together["a_0"] if name in ("value", "action_q_values")]
    assert not torch.equal(together["a_0"][name], together["a_1"][name])
    for actor in NAMES:
        alone = model.critic[actor](seen[actor])[name]
        torch.testing.assert_close(alone, together[actor][name])


def test_a_critic_of_actions_and_its_target_are_told():
    critic = {"kind": "state_action", "ensemble": 2, "graph": graph(of=("observation", "action"))}
    model = composed(critic=critic, action=Box(-1, 1, (2,)))
    seen, action = observe(5), dict.fromkeys(NAMES, torch.rand(5, 2))
    for whole in (model.critic, model.critic.target):
        values = whole(seen, action)
        assert not torch.equal(values["a_0"]["q_value"], values["a_1"]["q_value"])
    alone = model.critic["a_2"](seen["a_2"], action["a_2"])
    torch.testing.assert_close(alone["q_value"], model.critic(seen, action)["a_2"]["q_value"])


def test_steps_that_build_on_one_another_are_told():
    names = ("pick", ("place", 0), ("place", 1))
    policy = {"networks": {"pick": {"template": {}}, "place": network()}}
    critic = {"kind": "delta_state", "networks": {"pick": {"template": {}}, "place": {"graph": graph()}}}  # fmt: skip
    model = composed(policy, critic, names)
    values = model.critic(observe(5, names=names))
    assert not torch.equal(values["place", 0]["delta"], values["place", 1]["delta"])


def test_memory_steps_as_it_unrolls():
    model = composed(network("gru"), {"graph": graph("gru")})
    sequence = {name: torch.rand(2, 5, 4) for name in NAMES}
    resets = torch.rand(2, 5) < 0.3
    logits, _ = model.policy.unroll(sequence, model.policy.initial_state(2), resets)
    values, _ = model.critic.unroll(sequence, model.critic.initial_state(2), resets)
    state, judged = model.policy.initial_state(2), model.critic.initial_state(2)
    for t in range(5):
        seen = {name: value[:, t] for name, value in sequence.items()}
        out, state = model.policy(seen, state, resets[:, t])
        value, judged = model.critic(seen, judged, resets[:, t])
        for name in NAMES:
            torch.testing.assert_close(out[name]["action"], logits[name]["action"][:, t])
            torch.testing.assert_close(value[name]["value"], values[name]["value"][:, t])
    alone = model.policy["a_1"]
    out, _ = alone.unroll(sequence["a_1"], alone.initial_state(2), resets)
    torch.testing.assert_close(out["action"], logits["a_1"]["action"])


def test_actors_of_one_network_act_in_one_call_each_by_its_masks():
    space = Dict(legal=MultiBinary(3), observation=SEEN)
    model = composed({**network(), "action_mask": {"action": "legal"}}, observation=space)
    calls = []
    shared = model.policy.groups[0].module.network.module
    shared.latent.register_forward_hook(lambda *_: calls.append(1))
    legal = np.eye(3, dtype=np.int8)
    seen = {n: {"legal": legal[i], "observation": np.zeros(4, np.float32)} for i, n in enumerate(NAMES)}  # fmt: skip
    assert model.policy.act(seen) == {"a_0": 0, "a_1": 1, "a_2": 2}
    assert len(calls) == 1


def test_the_policy_of_one_actor_is_lowered():
    model = composed()
    observation = np.full(4, 0.5, np.float32)
    for name in NAMES:
        policy = model.policy[name]
        lowered = policy.lower()
        assert type(lowered._twin.network).__name__ == "ToldNetwork"
        for seed in range(5):
            first, second = (
                each.act(observation, generator=torch.Generator().manual_seed(seed))
                for each in (policy, lowered)
            )
            assert first == second


def test_the_policy_of_one_actor_moves_trains_and_is_hooked_with_the_others():
    model = composed()
    policy = model.policy["a_1"]
    hooked = []
    policy.register_forward_hook(lambda *_: hooked.append(1))
    model.policy(observe(3))
    assert hooked
    assert {id(p) for p in policy.parameters()} == {id(p) for p in model.policy.parameters()}
    model.double()
    seen = torch.rand(3, 4, dtype=torch.float64)
    assert policy(seen)["action"].dtype == policy.dtype == torch.float64
    policy.float()
    assert model.policy.dtype == torch.float32
    assert "actor" not in policy.read_keys


@pytest.mark.parametrize("separate", [False, True])
def test_copies_and_files_know_the_actors(separate, tmp_path):
    model = composed({**network(), "separate": separate}, {"graph": graph(), "separate": separate})
    seen = observe(3)
    model.save(tmp_path / "model.safetensors")
    for other in (
        composer.load(tmp_path / "model.safetensors"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        for name in NAMES:
            expected = model.policy(seen)[name]["action"]
            torch.testing.assert_close(other.policy(seen)[name]["action"], expected)
            torch.testing.assert_close(other.policy[name](seen[name])["action"], expected)
            values = (each.critic(seen)[name]["value"] for each in (model, other))
            torch.testing.assert_close(*values)


@pytest.mark.parametrize("form", ["onnx", "pt2"])
@pytest.mark.parametrize("actor", [None, "a_2"])
def test_exported_files_know_the_actors(form, actor, tmp_path):
    model = composed(critic={"graph": graph()})
    report = model.export(tmp_path / f"model.{form}", actor=actor)  # parity is proven
    assert not any("actor" in name.split("/")[-1] for name in map(str, report.inputs))


def test_compiled_policies_know_the_actors():
    model = composed()
    compiled = torch.compile(model.policy, backend="eager", fullgraph=True)
    seen = observe(3)
    for name, outputs in compiled(seen).items():
        torch.testing.assert_close(outputs["action"], model.policy(seen)[name]["action"])


def test_heads_that_read_actions_are_told():
    policy = {
        "graph": graph(),
        "heads": {
            "first": {"in": "latent"},
            "second": {"block": "linear_output", "in": "both"},
        },
    }
    policy["graph"]["both"] = {"block": "concat", "in": ["latent", "action/first"]}
    model = composed(policy, action=Dict(first=MOVE, second=MOVE))
    seen = observe(4)
    action = {"first": torch.tensor([0, 1, 2, 0]), "second": torch.tensor([1, 1, 0, 2])}
    together = model.policy.distribution(seen)
    for name in NAMES:
        alone = model.policy[name].distribution(seen[name])
        torch.testing.assert_close(alone.log_prob(action), together[name].log_prob(action))
    chances = [together[name].log_prob(action) for name in ("a_0", "a_1")]
    assert not torch.equal(*chances)


class Team(nn.Module):
    """A class that is told the actor."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        assert obs_shapes == {"observation": (4,), "actor": ()}
        self.table = nn.Embedding(3, 3)

    def forward(self, inputs):
        assert inputs["actor"].dtype == torch.int64
        return {"action": self.table(inputs["actor"]) + inputs["observation"].sum(-1, True)}


class Acting(Team):
    """A class that acts by itself."""

    def act(self, observation):
        return 0


def test_a_class_is_told_if_its_observations_say_so():
    model = composed({"_target_": Team, "observations": ["observation", "actor"]})
    seen = observe(2, 3)
    together = model.policy(seen)
    for name in NAMES:
        torch.testing.assert_close(
            model.policy[name](seen[name])["action"], together[name]["action"]
        )
    assert not torch.equal(together["a_0"]["action"], together["a_1"]["action"])


def test_a_class_that_acts_by_itself_cannot_be_told():
    with pytest.raises(composer.SpecError) as error:
        composed({"_target_": Acting, "observations": ["observation", "actor"]})
    message = "'Acting' defines 'act' itself, which is not told the 'actor'; leave 'actor' out"
    assert message in str(error.value)


def test_an_observation_called_actor_is_read_as_before():
    space = Dict(actor=Discrete(5), observation=SEEN)
    message = (
        "'actor' is an observation here, and that is what networks read; to tell a network which actor it acts for, "
        "rename the observation in the environment"
    )
    with pytest.warns(UserWarning, match="'actor' is") as warned:
        model = composed(observation=space)
    assert [str(each.message) for each in warned] == [message]
    assert model.policy["a_0"].network.in_ports["actor"].cardinality == 5
    alone = composer.compose(
        {"version": 1, "policy": network()}, observation_space=space, action_space=MOVE, seed=0
    )
    assert alone.policy.read_keys == ("actor", "observation")


def test_a_node_called_actor_is_read_as_before():
    policy = {
        "shares": ["actor"],
        "graph": {"actor": {"block": "dense", "in": "observation", "hidden_units": 4}},
        "heads": {"in": "actor"},
    }
    critic = {"graph": {"value": {"block": "linear_output", "in": "actor", "output_units": 1}}}
    model = composed(policy, critic)
    assert not model.policy["a_0"].reads_actor
    logits, values = model(observe(3))
    assert torch.equal(logits["a_0"]["action"], logits["a_1"]["action"])
    assert values["a_0"]["value"].shape == (3, 1)


def test_a_shared_policy_asks_for_the_actor():
    model = composed({"networks": {"a": network()}}, {"networks": {"a": {"graph": graph()}}})
    for part, members in (("policy", model.policy.policies), ("critic", model.critic.critics)):
        with pytest.raises(ValueError, match="is shared") as error:
            members["a_0"](torch.rand(4))
        assert str(error.value) == (
            f"this {part} is shared by several actors, and its network reads which of them it acts for; take that of "
            f"one of them: model.{part}[actor]"
        )
        assert getattr(model, part)["a_0"](torch.rand(4))
    with pytest.raises(KeyError) as error:
        model.policy["a"]
    assert error.value.args[0] == (
        "the network of 'a' reads which of its actors it acts for; name one of 'a_0', 'a_1', 'a_2'"
    )
    assert model.policy["a_1"](torch.rand(4))
