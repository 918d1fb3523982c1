"""The central critic: one value of what all actors observe, and what it is told where some are absent."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from tests.helpers.actor_critics import (
    ARM,
    CENTRAL,
    OBSERVATIONS,
    STACKED,
    Sum,
    compose,
    linear,
    observe,
    summed,
)

# --- one value of what all observe ---


def test_the_central_value_is_made_of_everything_under_its_actors_name():
    critic = compose(CENTRAL).critic
    seen = observe()
    views = [seen[key]["view"] for key in OBSERVATIONS]
    expected = summed(critic, *views, seen["pick"]["goal"])
    torch.testing.assert_close(critic(seen)["value"], expected)
    torch.testing.assert_close(critic.value(seen), expected.squeeze(-1))


def test_stacked_observations_have_the_actors_first():
    critic = compose(STACKED).critic
    assert critic.network.in_ports["goal"].shape == (3, 2)
    seen = observe()
    stacked = torch.stack([seen[key]["goal"] for key in OBSERVATIONS], dim=1)
    torch.testing.assert_close(critic(seen)["value"], summed(critic, stacked.flatten(1)))
    one = {key: {name: value[0] for name, value in own.items()} for key, own in seen.items()}
    torch.testing.assert_close(critic.value(one), critic.value(seen)[0])
    shuffled = dict(reversed(seen.items()))
    torch.testing.assert_close(critic.value(shuffled), critic.value(seen))


def test_stacked_values_of_policies_have_the_actors_first():
    graph = {
        "each_actor": {"block": "dense", "in": "latent", "each": 1, "hidden_units": 4},
        "flat": {"block": "flatten", "in": "each_actor"},
        "sum": {"block": "linear_output", "in": "flat", "output_units": 1},
    }
    spec = {"kind": "shared_state", "stack": True, "observations": [], "graph": graph}
    model = compose(spec, shares=["latent"])
    logits, values = model(observe())
    stacked = torch.stack([logits[key]["latent"] for key in OBSERVATIONS], dim=1)
    each = model.critic.get_submodule("each_actor")(stacked).flatten(1)
    torch.testing.assert_close(values["value"], summed(model.critic, each))
    values["value"].sum().backward()
    assert all(
        model.policy[key].get_submodule("latent").linears[0].weight.grad.any()
        for key in OBSERVATIONS
    )


def test_choices_of_several_actors_are_stacked_as_integers():
    kinds = spaces.MultiDiscrete([2, 3])
    observations = {"a": kinds, "b": kinds}
    actions = {"a": spaces.Discrete(2), "b": spaces.Discrete(2)}
    graph = {"codes": {"block": "one_hot", "in": "observation"}}
    spec = {
        "version": 1,
        "policy": {"graph": graph, "heads": {"in": "codes"}},
        "critic": {"kind": "shared_state", "stack": True, "graph": {**graph, "sum": {"block": "linear_output", "in": "codes", "output_units": 1}}},
    }  # fmt: skip
    critic = composer.compose(
        spec, observation_space=observations, action_space=actions, seed=0
    ).critic
    codes = torch.tensor([1.0, 0, 0, 0, 1, 0, 1, 1, 0, 0])
    torch.testing.assert_close(critic({"a": [0, 2], "b": [1, 0]})["value"], summed(critic, codes))


def test_sets_of_several_actors_are_padded_to_the_longest_and_padding_changes_nothing():
    seen = spaces.Sequence(ARM, stack=True)
    graph = {
        "each_actor": {"block": "deep_set", "in": "observation", "each": 1, "hidden_units": 4},
        "flat": {"block": "flatten", "in": "each_actor"},
        "sum": {"block": "linear_output", "in": "flat", "output_units": 1},
    }
    spec = {
        "version": 1,
        "policy": {"template": {}},
        "critic": {"kind": "shared_state", "stack": True, "graph": graph},
    }
    actions = {"a": spaces.Discrete(2), "b": spaces.Discrete(2)}
    critic = composer.compose(
        spec, observation_space={"a": seen, "b": seen}, action_space=actions, seed=0
    ).critic
    near, far = torch.randn(2, 3), torch.randn(4, 3)
    pool = critic.get_submodule("each_actor")
    pools = [pool(x, torch.ones(len(x), dtype=torch.bool)) for x in (near, far)]
    value = critic({"a": near.numpy(), "b": far.numpy()})["value"]
    torch.testing.assert_close(value, summed(critic, *pools))


def test_a_central_critic_needs_everyone_it_reads():
    critic = compose(CENTRAL).critic
    seen = observe()
    del seen["place", 1]
    message = (
        "this critic reads the observations of all actors; missing: 'place/1'. If actors may be absent, let its network "
        "read 'present', which is 0 for them; their observations are then zeros"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        critic(seen)
    only_pick = compose({"kind": "shared_state", **linear("pick/view")}).critic
    assert only_pick.value(seen).shape == (5,)


# --- where actors may be absent ---

WITH_PRESENT = {
    "kind": "shared_state",
    "stack": True,
    "observations": ["goal", "present"],
    "graph": {
        "flat": {"block": "flatten", "in": "goal"},
        "all": {"block": "concat", "in": ["flat", "present"]},
        "sum": {"block": "linear_output", "in": "all", "output_units": 1},
    },
}
SINGLE_PRESENT = {"kind": "shared_state", **linear("pick/view", "place/0/view", "present")}


def test_of_absent_actors_the_central_network_gets_zeros_and_is_told():
    critic = compose(WITH_PRESENT).critic
    seen = observe()
    goals = torch.stack([seen[key]["goal"] for key in OBSERVATIONS], dim=1)
    everyone = summed(critic, goals.flatten(1), torch.ones(5, 3))
    torch.testing.assert_close(critic(seen)["value"], everyone)
    del seen["place", 0]
    goals[:, 1] = 0
    expected = summed(critic, goals.flatten(1), torch.tensor([1.0, 0, 1]).expand(5, 3))
    torch.testing.assert_close(critic(seen)["value"], expected)


def test_an_absent_actor_that_is_read_by_name_is_zeros_too():
    critic = compose(SINGLE_PRESENT).critic
    seen = observe()
    present = torch.tensor([0.0, 1, 0]).expand(5, 3)  # place/1 is read of nobody, but counted
    del seen["pick"], seen["place", 1]
    expected = summed(critic, torch.zeros(5, 4), seen["place", 0]["view"], present)
    torch.testing.assert_close(critic(seen)["value"], expected)


def test_in_a_batch_each_sample_says_who_was_present():
    critic = compose(WITH_PRESENT).critic
    seen = observe()
    there = torch.tensor([True, False, True, False, True])
    values = critic.value(seen, present={"place/1": there})
    absent = {key: own for key, own in seen.items() if key != ("place", 1)}
    torch.testing.assert_close(values[there], critic.value(seen)[there])
    torch.testing.assert_close(values[~there], critic.value(absent)[~there])
    torch.testing.assert_close(critic.value(seen, present={"place/1": False}), critic.value(absent))


def test_sets_and_shared_values_of_absent_actors_are_masked_and_zero():
    seen = spaces.Sequence(ARM, stack=True)
    pooled = {"block": "masked_global_pooling", "in": "observation", "each": 1, "pooling": "max"}
    graph = {
        "each_actor": pooled,
        "flat": {"block": "flatten", "in": "each_actor"},
        "shared": {"block": "flatten", "in": "latent"},
        "all": {"block": "concat", "in": ["flat", "shared", "present"]},
        "sum": {"block": "linear_output", "in": "all", "output_units": 1},
    }
    of_policy = {
        "graph": {"latent": {"block": "deep_set", "in": "observation", "hidden_units": 4}},
        "heads": {"in": "latent"},
        "shares": ["latent"],
    }
    for stack in (True, False):
        if not stack:
            graph["each_actor"] = {**pooled, "in": "b/observation"}
            del graph["each_actor"]["each"]
            graph["shared"]["in"] = ["b/latent"]
        spec = {"version": 1, "policy": of_policy, "critic": {"kind": "shared_state", "stack": stack, "graph": graph}}  # fmt: skip
        actions = {"a": spaces.Discrete(2), "b": spaces.Discrete(2)}
        model = composer.compose(
            spec, observation_space={"a": seen, "b": seen}, action_space=actions, seed=0
        )
        if stack:
            near = torch.randn(4, 3)
            logits, values = model({"a": near.numpy()})
            best, zeros = near.amax(0), torch.zeros(3)
            shared = torch.cat([logits["a"]["latent"], torch.zeros(4)])
            told = torch.tensor([1.0, 0.0])
            expected = summed(model.critic, torch.cat([best, zeros]), shared, told)
            torch.testing.assert_close(values["value"], expected)
        else:
            with pytest.raises(
                ValueError, match="no actor is present whose observations this critic reads"
            ):
                model({"a": np.zeros((4, 3), np.float32)})


def test_templates_and_classes_are_told_who_is_present_where_the_spec_says_so():
    plain = compose({"kind": "shared_state", "template": {}}).critic
    assert "present" not in plain.network.in_ports
    names = ["pick/view", "place/0/view", "present"]
    told = compose({"kind": "shared_state", "observations": names, "template": {}}).critic
    assert list(told.network.in_ports) == names
    made = compose({"kind": "shared_state", "observations": names, "_target_": Sum}).critic
    assert made.network.module.shapes["present"] == (3,)
    assert made.value({"pick": observe()["pick"]}).shape == (5,)


@pytest.mark.parametrize("critic", [WITH_PRESENT, SINGLE_PRESENT])
def test_a_critic_of_who_is_present_is_saved_copied_and_shown(critic, tmp_path):
    model = compose(critic)
    seen = {"place/0": observe()["place", 0]}
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.critic.value(seen), model.critic.value(seen))
    assert "who is there" in model.draw(tmp_path / "model.mmd").read_text()
    assert "critic" in model.summary()


@pytest.mark.parametrize(
    ("critic", "actors", "present", "message"),
    [
        (WITH_PRESENT, [], None, "no actor is present whose observations this critic reads"),
        (WITH_PRESENT, ["pick"], {"pick": [True] * 4}, "'present' of 'pick' must have the shape (5,), got (4,)"),
        (WITH_PRESENT, ["pick"], {"pikc": True}, "present of unknown actors: 'pikc'; did you mean 'pick'?"),
        (STACKED, list(OBSERVATIONS), {"pick": True}, "this critic does not read 'present'; leave it out of the call"),
    ],
)  # fmt: skip
def test_a_wrong_word_on_who_is_present_is_refused(critic, actors, present, message):
    seen = observe()
    with pytest.raises(ValueError, match=re.escape(message)):
        compose(critic).critic({key: seen[key] for key in actors}, present=present)


def test_actors_of_other_batches_are_refused():
    seen = {**observe(), "pick": observe(batch=4)["pick"]}
    with pytest.raises(ValueError, match=r"differ in their leading \(batch\) axes"):
        compose(CENTRAL).critic(seen)
    with pytest.raises(ValueError, match=r"differ in their leading \(batch\) axes"):
        compose(STACKED).critic(seen)


@pytest.mark.parametrize("stack", [True, False])
def test_table_and_picture_say_that_a_central_critic_sees_all_actors(stack, tmp_path):
    observed = {name: spaces.Box(-1, 1, (4,)) for name in ("a", "b", "c")}
    spec = {
        "version": 1,
        "policy": {"template": {}},
        "critic": {"kind": "shared_state", "stack": stack, "template": {}},
    }
    actions = dict.fromkeys(observed, spaces.Discrete(3))
    model = composer.compose(spec, observation_space=observed, action_space=actions, device="meta")
    remark = "critic is for all actors at once; it sees 'a', 'b', 'c'"
    assert remark in model.summary()
    model.draw(tmp_path / "model.dot")
    shown = "parameters for all actors at once; it sees 'a', 'b' and 1 more"
    assert shown in (tmp_path / "model.dot").read_text()
