"""What a spec says by name of several actors, and what is wrong with it or with a call, in words."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

import composer
from composer import SpecError
from tests.helpers.structured_models import (
    AGENT,
    MEMORY,
    SEPARATE,
    SHARED,
    agents,
    crowd,
    observations,
    pick_and_place,
)

# --- names in the spec ------------------------------------------------------------------------------------------------

TWO = """
version: 1
IGNORE
policy:
  action_mask: {MASK}
  networks:
    a: {graph: {x: {block: dense, in: position, hidden_units: [4]}}, heads: {in: x}}
    b: {graph: {x: {block: dense, in: position, hidden_units: [4]}}, heads: {in: x}}
"""
POSITION = Box(-1, 1, (2,))
LEGAL = Box(0, 1, (3,), np.int8)


def two(head: str = "", mask: str = "", more=None, observations=None) -> composer.Model:
    """Two actors that differ in what they see and do."""
    observations = observations or {
        "a": Dict(position=POSITION, legal=LEGAL),
        "b": Dict(position=POSITION, noise=POSITION),
    }
    actions = more or {"a": Dict(move=Discrete(3)), "b": Dict(move=Box(-1, 1, (2,)))}
    spec = TWO.replace("IGNORE", head).replace("MASK", mask)
    return composer.compose(spec, observation_space=observations, action_space=actions, seed=0)


def test_a_name_holds_in_every_group_that_has_it():
    model = two("ignore: [noise, legal]\nnormalize: [position]")
    assert [policy.observer.keys for policy in model.policy.policies.values()] == [
        ("position",)
    ] * 2
    model = two("ignore: [b/noise, legal]\nnormalize: [b/position]")
    assert [policy.observer.keys for policy in model.policy.policies.values()] == [
        (),
        ("position",),
    ]


def test_a_distribution_may_be_for_one_group():
    actions = dict.fromkeys("ab", Dict(move=Box(-1, 1, (2,))))
    head = "ignore: [noise, legal]\ndistributions: [{action: b/move, distribution: beta}]"
    kinds = [
        type(p.distributions["move"]).__name__
        for p in two(head, more=actions).policy.policies.values()
    ]
    assert kinds == ["SquashedGaussian", "Beta"]


def test_a_mask_may_be_for_one_group():
    model = two("ignore: [noise]", "a/move: legal")
    seen = {"a": {"position": np.ones((9, 2)), "legal": np.tile([0, 1, 0], (9, 1))}}
    assert set(model.policy.act(seen)["a"]["move"]) == {1}
    assert model.policy["b"].masks == {}


@pytest.mark.parametrize(
    ("head", "mask", "message"),
    [
        (
            "",
            "",
            "<spec>:7:5: the observation 'legal' of 'a' is read by no network; name it under 'ignore' if that is meant\n"
            "<spec>:8:5: the observation 'noise' of 'b' is read by no network; name it under 'ignore' if that is meant",
        ),
        (
            "ignore: [noise, legal, nose]",
            "",
            "<spec>:3:24: ignore names 'nose', which is not in the observation space; did you mean 'noise'?",
        ),
        (
            "normalize: [positoin]",
            "",
            "<spec>:3:13: 'positoin' is not an observation; did you mean 'position'?",
        ),
        (
            "distributions: [{action: a/mvoe, distribution: categorical}]",
            "",
            "<spec>:3:26: no action 'mvoe' in the action space; did you mean 'move'?",
        ),
        (
            "ignore: [noise]",
            "move: legal",
            "<spec>:5:23: 'legal' is not an observation; there is 'position'; '<group>/move' masks one group only",
        ),
        ("", "mvoe: legal", "<spec>:5:17: 'mvoe' is no action; did you mean 'move'?"),
    ],
)
def test_a_name_that_no_group_has_is_refused(head, mask, message):
    with pytest.raises(SpecError) as caught:
        two(head, mask)
    assert str(caught.value) == message


# --- what is wrong ----------------------------------------------------------------------------------------------------


def composed(spec: str, observations, actions=None):
    spaces = {key: Discrete(2) for key in observations}
    return composer.compose(
        spec, observation_space=observations, action_space=actions or spaces, seed=0
    )


NETWORKS = """version: 1
policy:
  networks:
    {0}: &net {{graph: {{x: {{block: dense, in: observation, hidden_units: [4]}}}}, heads: {{in: x}}}}
    {1}: *net
"""
V3, V4 = Box(-1, 1, (3,)), Box(-1, 1, (4,))


@pytest.mark.parametrize(
    ("spec", "observations", "message"),
    [
        (
            NETWORKS.format("speeker", "listener"),
            {"speaker_0": V3, "listener_0": V3},
            "<spec>:4:5: the network 'speeker' serves no actor; did you mean 'speaker'?\n"
            "<spec>:4:5: no network serves 'speaker_0'; there are networks for 'speeker', 'listener'",
        ),
        (
            NETWORKS.format("agent", "agent_1"),
            {"agent_0": V3, "agent_1": V3},
            "<spec>:4:5: 'agent_1' is served by 2 networks, 'agent', 'agent_1'; keep one of them",
        ),
        (
            NETWORKS.format("pick", "place"),
            {"pick": V3, ("place", 0): V3, ("place", 1): V4},
            "<spec>:4:11: the network 'place' serves 2 actors, but the observation spaces of 'place/0' and 'place/1' "
            "differ ('observation': shape is (4,), expected (3,)); "
            "give them networks of their own under 'networks', or write separate: true",
        ),
        (
            AGENT.replace("SEPARATE", "init: orthogonal"),
            {"pick": V3, "place": V4},
            "<spec>:4:3: one network serves all actors, but the observation spaces of 'pick' and 'place' differ "
            "('observation': shape is (4,), expected (3,)); "
            "give them networks of their own under 'networks', or write separate: true",
        ),
        (
            AGENT.replace("SEPARATE", SEPARATE),
            {("look", None): V3},
            "<spec>:4:3: 'separate' needs a known number of agents; it is not known for 'look': leave it out",
        ),
        (
            AGENT.replace("SEPARATE", SEPARATE).replace("hidden_units", "hiden_units"),
            {"a": V3, "b": V3},
            "<spec>:6:45: 'hiden_units' is not a setting of block 'dense'; did you mean 'hidden_units'?",
        ),
        (
            AGENT.replace("SEPARATE", SEPARATE),
            {"a": V3, "b": gymnasium.spaces.Text(3)},
            "<spec>:6:32: block 'latent' gets integers (3,) from 'observation'; dense takes numbers, not integers. "
            "Put a one_hot or embedding block before it.",
        ),
    ],
)
def test_networks_that_do_not_fit_the_actors_are_refused(spec, observations, message):
    with pytest.raises(SpecError) as caught:
        composed(spec, observations)
    assert str(caught.value) == message


def test_networks_need_actors():
    with pytest.raises(SpecError) as caught:
        composer.compose(NETWORKS.format("a", "b"), env="CartPole-v1")
    assert (
        str(caught.value)
        == "<spec>:4:5: networks by step or agent need an environment with steps or agents; this one takes a single network"
    )


def test_separate_needs_agents():
    with pytest.raises(SpecError) as caught:
        composer.compose(AGENT.replace("SEPARATE", SEPARATE), env="CartPole-v1")
    assert str(caught.value) == (
        "<spec>:4:3: 'separate' gives each agent weights of its own, but this environment has no agents; leave it out"
    )


def test_spaces_come_in_one_form():
    with pytest.raises(
        ValueError,
        match=r"^observation_space is a mapping by actor, but action_space is one Space; ",
    ):
        composer.compose(
            AGENT.replace("SEPARATE", ""), observation_space={"a": V3}, action_space=Discrete(2)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o, s: ({"agent_9": o["agent_0"]}, s, None),
            "observations of unknown actors: 'agent_9'; did you mean 'agent_3'?",
        ),
        (
            lambda o, s: (o["agent_0"], s, None),
            "observations come as a dict by actor ('agent_0', 'agent_1', 'agent_2', 'agent_3'), got a ndarray",
        ),
        (
            lambda o, s: ({**o, "agent_1": np.ones((3, 3))}, s, None),
            "for 'agent_1': the state 'memory/h' must have the shape (3, 1, 6), got (2, 1, 6)",
        ),
        (
            lambda o, s: ({**o, "agent_1": np.ones((2, 4))}, s, None),
            "for 'agent_1': observation 'observation' has shape (2, 4), expected (..., 3)",
        ),
        (
            lambda o, s: (o, None, None),
            "this policy has memory; call policy(observations, state, resets), beginning with "
            "initial_state(batch_size)",
        ),
        (
            lambda o, s: (o, {n: v for n, v in s.items() if "_2" not in n}, None),
            "for 'agent_2': the state needs 'memory/h', got nothing",
        ),
        (
            lambda o, s: (o, {**s, "agent_1/memroy/h": s["agent_1/memory/h"]}, None),
            "'agent_1/memroy/h' is not in the state of this policy; did you mean 'agent_1/memory/h'?",
        ),
        (lambda o, s: (o, s, [True]), "for 'agent_0': resets must have the shape (2,), got (1,)"),
        (lambda o, s: (o, s, {"agent_0": [True, False]}), "resets lack 'agent_1'; it is present and has memory"),
        (
            lambda o, s: (o, s, {key: [True, False] for key in ["agent_0", "you"]}),
            "resets of unknown actors: 'you'; there is 'agent_0', 'agent_1', 'agent_2', 'agent_3'",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_a_wrong_call_is_refused_and_changes_nothing(separate, change, message):
    model = agents(MEMORY, separate)
    seen, state = observations(model, (2,)), model.policy.initial_state(2)
    before = {name: value.clone() for name, value in {**state, **model.state_dict()}.items()}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.policy.act(*change(seen, state))
    assert all(
        torch.equal(before[name], value) for name, value in {**state, **model.state_dict()}.items()
    )


def test_agents_of_one_network_come_in_batches_of_one_size():
    model = agents(number=2)
    message = "the observations of one network differ in their leading (batch) axes: 'agent_0' (2,), 'agent_1' (3,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        model.policy({"agent_0": np.ones((2, 3)), "agent_1": np.ones((3, 3))})


def test_steps_may_come_in_batches_of_other_sizes():
    model = pick_and_place()
    state = model.policy.initial_state(2)
    seen = {
        **observations(model, (5,), ["pick"]),
        **observations(model, (2,), [("place", 0), ("place", 1)]),
    }
    logits, _ = model.policy(seen, state)
    assert [own["move"].shape[0] for own in logits.values()] == [5, 2, 2]


def test_a_state_for_a_policy_without_memory_is_refused():
    model = agents()
    with pytest.raises(ValueError, match=r"^this policy has no memory; call it without a state$"):
        model.policy.act(observations(model), {"x": torch.zeros(1)})


def test_an_agent_without_a_state_is_told_how_to_begin():
    model = crowd()
    message = (
        "the state has nothing of 'look/7'; a new actor begins with "
        "initial_state(batch_size, actors=['look/7'])"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.policy.act({("look", 7): np.ones(3)}, model.policy.initial_state())


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda p, o: p.act(o, 3), "a state is a dict of tensors by name, got a int"),
        (
            lambda p, o: p.act(o, p.initial_state(2), "now"),
            "for 'agent_0': 'resets' must be numbers, got a str",
        ),
        (
            lambda p, o: p.initial_state(-2),
            "batch_size is a number, or the sizes of several leading axes, got -2",
        ),
        (
            lambda p, o: p.initial_state("two"),
            "batch_size is a number, or the sizes of several leading axes, got 'two'",
        ),
        (
            lambda p, o: p.unroll({"agent_0": np.ones((2, 0, 3))}, p.initial_state(2)),
            "for 'agent_0': unroll takes sequences (..., T) of at least one step, got (2, 0)",
        ),
        (
            lambda p, o: p.unroll({"agent_0": np.ones(3)}, p.initial_state()),
            "for 'agent_0': unroll takes sequences (..., T) of at least one step, got ()",
        ),
        (
            lambda p, o: p["agent_0"].unroll(np.ones((0, 3)), p["agent_0"].initial_state()),
            "unroll takes sequences (..., T) of at least one step, got (0,)",
        ),
        (
            lambda p, o: p.from_environment({"agent_1": 7}),
            "for 'agent_1': 'action' is 7, outside of Discrete(5)",
        ),
    ],
)
@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_what_no_policy_can_do_is_said_in_words(separate, use, message):
    model = agents(MEMORY, separate)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        use(model.policy, observations(model, (2,)))


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
@pytest.mark.parametrize("key", [None, "agent_1"])
def test_without_weights_nobody_acts(separate, key):
    model = agents(separate=separate, device="meta")
    policy = model.policy if key is None else model.policy[key]
    seen = observations(model) if key is None else np.ones(3)
    message = "this model has no weights yet; call model.materialize(device) first"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.act(seen)
    model.materialize("cpu")
    policy = model.policy if key is None else model.policy[key]
    policy.act(seen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"observation_space": 3, "action_space": Discrete(2)},
            "the observation space is a Space of gymnasium, got a int",
        ),
        (
            {
                "observation_space": {"a": V3, "b": V3},
                "action_space": {"a": Discrete(2), "b": None},
            },
            "the action space of 'b' is a Space of gymnasium, got a NoneType",
        ),
    ],
)
def test_what_is_no_space_is_refused(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        composer.compose(AGENT.replace("SEPARATE", "init: orthogonal"), **given)


def test_agent_counts_are_a_mapping():
    class Steps(gymnasium.Env):
        observation_spaces = {"a": V3}
        action_spaces = {"a": Discrete(2)}
        agent_counts = [2]

    message = "agent_counts is a mapping from steps to numbers, got a list"
    with pytest.raises(ValueError, match=f"^{message}$"):
        composer.compose(AGENT.replace("SEPARATE", "init: orthogonal"), env=Steps())
