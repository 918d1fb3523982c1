"""Actors: steps and agents by key, and which network serves whom."""

import re

import pytest

from composer.errors import Problems, SpecError
from composer.spaces.actors import Actors, counted_spaces, read_actors, serve


def actors(*keys) -> Actors:
    spaces = dict.fromkeys(keys, "space")
    return read_actors(spaces, spaces)


def served(keys: list, *actor_keys) -> tuple[dict, list[str]]:
    problems = Problems()
    networks = {key: ("policy", "networks", str(key)) for key in keys}
    found = serve(actors(*actor_keys), networks, problems, ("policy", "networks"))
    names = {key: [actor.name for actor in members] for key, members in found.items()}
    return names, [str(problem) for problem in problems]


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name", "step", "is_open"),
    [
        (0, "0", None, False),
        ("pick", "pick", None, False),
        (("pick", 1), "pick/1", "pick", False),
        ((0, "left"), "0/left", "0", False),
        (("pick", None), "pick", "pick", True),
    ],
)
def test_an_actor_has_one_flat_name(key, name, step, is_open):
    (actor,) = actors(key)
    assert (actor.name, actor.step, actor.is_open) == (name, step, is_open)


@pytest.mark.parametrize("key", [1.5, "", None, True, (), ("a",), ("a", "b", "c"), (None, 1)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(SpecError) as caught:
        actors(key)
    assert str(caught.value) == f"an actor is a text, a number or (step, agent), got {key!r}"


def test_an_actor_that_no_file_can_hold_is_refused():
    with pytest.raises(SpecError) as caught:
        actors("half\ud800")
    assert str(caught.value) == (
        "the actor 'half\\ud800' holds half of a surrogate pair, which no file can hold; rename it"
    )


@pytest.mark.parametrize("key", ["pick/1", ("pick", 1), ("pick", "1")])
def test_an_actor_is_found_in_either_form(key):
    found = actors(("pick", 0), ("pick", 1)).find(key)
    assert found is not None
    assert found[0] == "pick/1"


def test_agents_that_are_not_counted_are_found_by_any_name():
    both = actors("pick", ("look", None))
    found = [both.find(key) for key in ("look", ("look", 7), "look/x")]
    assert [one and one[0] for one in found] == ["look", "look/7", "look/x"]
    assert both.find(("pick", 7)) is None
    assert both.find("look/") is None


def test_present_keeps_order_and_keys_as_given():
    present = actors(0, 1, "a").entries({"a": 10, 1: 11}, "observations")
    assert [(one.key, one.name, one.value) for one in present] == [("a", "a", 10), (1, "1", 11)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "observations come as a dict by actor ('0', 'agent_1'), got a list"),
        ({"agent_2": 1}, "observations of unknown actors: 'agent_2'; did you mean 'agent_1'?"),
        ({2: 1, "x": 1}, "observations of unknown actors: 2, 'x'; there is '0', 'agent_1'"),
        ({0: 1, "0": 1}, "observations of '0' are given twice, as 0 and '0'"),
    ],
)
def test_values_by_actor_that_are_wrong_are_refused_in_words(values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        actors(0, "agent_1").entries(values, "observations")


# --- spaces by key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observations", "actions", "messages"),
    [
        ({}, {}, ["there are no actors: the mapping of spaces is empty"]),
        (
            {"speaker": 1, "listener": 1},
            {"speeker": 1, "listener": 1},
            [
                "'speaker' has an observation space but no action space; did you mean 'speeker'?",
                "'speeker' has an action space but no observation space; did you mean 'speaker'?",
            ],
        ),
        (
            {0: 1, "0": 1},
            {0: 1},
            ["the observation spaces of 0 and '0' have the same name '0'; rename one"],
        ),
        (
            {"a": 1, ("a", 1): 1},
            {"a": 1, ("a", 1): 1},
            ["'a' stands beside its own part ('a', 1); an actor is one or the other"],
        ),
    ],
)
def test_spaces_that_do_not_belong_together_are_refused(observations, actions, messages):
    with pytest.raises(SpecError) as caught:
        read_actors(observations, actions)
    assert str(caught.value).splitlines() == messages


def test_the_forms_of_keys_may_differ_between_observations_and_actions():
    both = read_actors({("pick", 0): "seen"}, {"pick/0": "done"})
    assert (both["pick/0"].observation_space, both["pick/0"].action_space) == ("seen", "done")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            {"plase": 2},
            "agent_counts speaks of the step 'plase', which has no spaces; did you mean 'place'?",
        ),
        ({"place": 0}, "agent_counts of 'place' is a number of at least 1 or None, got 0"),
        ({"place": True}, "agent_counts of 'place' is a number of at least 1 or None, got True"),
    ],
)
def test_counts_that_say_nothing_are_refused(counts, message):
    with pytest.raises(SpecError) as caught:
        counted_spaces({"place": "space"}, counts)
    assert str(caught.value) == message


# --- who serves whom --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "actor_keys", "expected"),
    [
        ([None], ("a", "b"), {None: ["a", "b"]}),
        (["0", "1"], (0, 1), {"0": ["0"], "1": ["1"]}),
        (["pick"], (("pick", 0), ("pick", 1)), {"pick": ["pick/0", "pick/1"]}),
        (["pick/0", "pick/1"], (("pick", 0), ("pick", 1)), {"pick/0": ["pick/0"], "pick/1": ["pick/1"]}),
        (["look"], (("look", None),), {"look": ["look"]}),
        (
            ["adversary", "agent"],
            ("adversary_0", "adversary_1", "agent_0"),
            {"adversary": ["adversary_0", "adversary_1"], "agent": ["agent_0"]},
        ),
        (
            ["agent_0", "agent_1"],
            ("agent_0", "agent_1"),
            {"agent_0": ["agent_0"], "agent_1": ["agent_1"]},
        ),
        (["fight/archer"], (("fight", "archer_0"),), {"fight/archer": ["fight/archer_0"]}),
        (["good_agent"], ("good_agent_0", "good_agent_12"), {"good_agent": ["good_agent_0", "good_agent_12"]}),
    ],
)  # fmt: skip
def test_a_key_serves_an_actor_else_a_step_else_a_type(keys, actor_keys, expected):
    assert served(keys, *actor_keys) == (expected, [])


def test_a_network_that_serves_nobody_hears_of_a_near_name():
    _, messages = served(["speeker", "listener"], "speaker_0", "listener_0")
    assert messages == [
        "policy.networks.speeker: the network 'speeker' serves no actor; did you mean 'speaker'?",
        "policy.networks: no network serves 'speaker_0'; there are networks for 'speeker', 'listener'",
    ]


def test_an_actor_that_is_served_twice_is_refused():
    _, messages = served(["agent", "agent_1"], "agent_0", "agent_1")
    assert messages == [
        "policy.networks: 'agent_1' is served by 2 networks, 'agent', 'agent_1'; keep one of them"
    ]


def test_many_actors_are_named_in_short():
    _, messages = served(["x"], *range(9))
    assert messages[1] == (
        "policy.networks: no network serves '0', '1', '2', '3', '4', '5' and 3 more; there are networks for 'x'"
    )
