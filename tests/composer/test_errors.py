"""A problem says where it is, what to write instead, and what else explains it."""

import pickle

import pytest
from gymnasium.spaces import Box, Dict, Discrete

from composer.errors import Position, Problem, Problems, Span, SpecError
from composer.model import compose
from perception_blocks.words import Suggestion, did_you_mean, suggest


def problems_of(spec, **spaces) -> tuple[Problem, ...]:
    observations = Dict({name: Box(0, 1, shape) for name, shape in spaces.items()})
    with pytest.raises(SpecError) as caught:
        compose(spec, observation_space=observations, action_space=Discrete(2), device="meta")
    return caught.value.problems


# --- near names ---


def test_a_problem_has_its_near_name_as_data():
    problem = Problem("unknown block 'dens'" + did_you_mean("dens", ["dense", "lstm"]))
    assert problem.message == "unknown block 'dens'; did you mean 'dense'?"
    assert (problem.word, problem.instead) == ("dens", "dense")
    assert str(problem) == problem.message
    assert type(str(problem)) is str


def test_a_problem_without_a_near_name_has_none():
    problem = Problem("unknown block 'xyz'" + did_you_mean("xyz", ["dense"]))
    assert (problem.word, problem.instead) == (None, None)
    quoted = Problem(
        "the text \"x'; did you mean 'y'?\" is too long"
    )  # what a user wrote is no advice
    assert quoted.instead is None


def test_a_suggestion_goes_through_exceptions_and_text_around_it():
    near = suggest("dens", "dense")
    message = "node 'a': " + str(ValueError("unknown block 'dens'" + near)) + "!"
    assert message == "node 'a': unknown block 'dens'; did you mean 'dense'?!"
    assert isinstance(message, Suggestion)
    assert (message.word, message.instead) == ("dens", "dense")
    assert not isinstance(f"unknown{near}", Suggestion)


def test_equal_problems_stay_equal_and_go_between_processes():
    plain = Problem("unknown 'a'; did you mean 'b'?", ("x",), Position("a.yaml", 1, 2))
    near = Problem("unknown 'a'" + suggest("a", "b"), ("x",), Position("a.yaml", 1, 2), key=True)
    assert near == plain
    assert hash(near) == hash(plain)
    copy = pickle.loads(pickle.dumps(SpecError([near]))).problems[0]
    assert copy == near
    assert (copy.word, copy.instead, copy.key) == ("a", "b", True)


def test_a_problem_knows_whether_its_key_is_at_fault():
    spec = {"version": 1, "polcy": {}, "policy": {"template": {}, "heads": 3}}
    by_path = {problem.path: problem.key for problem in problems_of(spec, x=(4,))}
    assert by_path[("polcy",)] is True
    assert by_path[("policy", "heads")] is False


def test_a_repeated_key_and_an_unused_param_are_at_fault_as_keys():
    text = "version: 1\nversion: 1\nparams: {a: 1}\npolicy: {template: {}}\n"
    repeated, unused = problems_of(text, x=(4,))
    assert repeated.message == "the key 'version' is repeated; it is first given at <spec>:1:1"
    assert (
        unused.message == "nothing refers to the param 'a'; use it as \"${params.a}\" or remove it"
    )
    assert repeated.key
    assert unused.key


# --- what explains a problem ---


def graph(**nodes) -> dict:
    return {"version": 1, "policy": {"graph": nodes, "heads": {"in": "last"}}}


def test_the_inputs_of_a_wrong_shape_are_related():
    spec = graph(
        scaled={"block": "torch.nn.ReLU", "in": "screen"},
        last={"block": "add", "in": ["scaled", "state"]},
    )
    (problem,) = problems_of(spec, screen=(3, 8, 8), state=(4,))
    assert problem.path == ("policy", "graph", "last", "in")
    assert problem.related == (
        (("policy", "graph", "scaled"), "'scaled' gives (3, 8, 8)"),
        (("environment",), "'state' gives (4,)"),
    )


def test_an_input_of_a_nested_graph_is_related_to_what_writes_it_outside():
    nested = {
        "block": "graph",
        "in": {"x": "flat", "y": "screen"},
        "graph": {
            "inner": {"block": "flatten", "in": "y"},
            "sum": {"block": "add", "in": ["x", "inner"]},
        },
    }
    spec = graph(flat={"block": "dense", "in": "state", "hidden_units": [4]}, last=nested)
    (problem,) = problems_of(spec, screen=(3, 8, 8), state=(4,))
    assert problem.related == (
        (("policy", "graph", "flat"), "'x' gives (4,)"),
        (("policy", "graph", "last", "graph", "inner"), "'inner' gives (192,)"),
    )


def test_problems_pass_what_is_related_on():
    problems = Problems()
    problems.add(("a",), "wrong", related=[(("b",), "'b' gives (4,)")])
    assert [problem.related for problem in problems] == [((("b",), "'b' gives (4,)"),)]


def test_a_span_holds_the_place_of_a_cursor_behind_it():
    span = Span(Position("a.yaml", 1, 5), Position("a.yaml", 2, 3))
    assert [span.holds(Position("a.yaml", 1, column)) for column in (4, 5, 80)] == [
        False,
        True,
        True,
    ]
    assert [span.holds(Position("a.yaml", 2, column)) for column in (3, 4)] == [True, False]
    assert not span.holds(Position("b.yaml", 1, 6))
