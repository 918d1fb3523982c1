"""Good specs with random mistakes: what comes out is a model or a SpecError, never anything else."""

import copy
import re
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st

import composer
from composer.errors import SpecError
from composer.source.dump import dump_yaml
from composer.source.load import load_source
from perception_blocks.registry import ACTIVATIONS, BLOCKS, FUNCTIONS, INITIALIZERS
from tests.helpers.paths import CONFIGS, ROOT, TESTS

COMPLEX = (
    Dict(inventory=Box(-1, 1, (16,)), screen=Box(0, 255, (64, 64, 3), np.uint8)),
    Dict(move=Discrete(4), use=MultiBinary(16)),
)
EVERYTHING = (
    Dict(
        colours=MultiDiscrete([3, 4]), kind=Discrete(5, start=1), legal=MultiBinary(3),
        rows=Box(-1, 1, (6, 5)), speed=Box(-1, 1, (2,)),
    ),
    Tuple([Discrete(3), Box(-1, 1, (2, 2))]),
)  # fmt: skip
SPACES = {
    "everything": EVERYTHING,
    "cartpole": (Box(-1, 1, (4,)), Discrete(2)),
    "complex": COMPLEX,
    "complex_shared": COMPLEX,
    "complex_template": COMPLEX,
    "continuous": (Box(-np.inf, np.inf, (8,)), Box(-1, 1, (3,))),
    "mixed_lstm": COMPLEX,
    "pixels": (Box(0, 255, (4, 84, 84), np.uint8), Discrete(3)),
    "steps": (
        {"pick": Box(-1, 1, (4,)), "place": Box(-1, 1, (4,))},
        {"pick": Discrete(2), "place": Discrete(3)},
    ),
}
STEPS = """
version: 1
params: {width: 8}
normalize: [pick/observation]
policy:
  networks:
    pick: {template: {trunk: {block: dense, hidden_units: 8}}, shares: [trunk]}
    place:
      graph: {latent: {block: dense, in: observation, hidden_units: "${params.width}"}}
      heads: {in: latent}
      observations: [observation]
      init: orthogonal
critic:
  kind: delta_state
  normalize_value: true
  networks:
    pick: {template: {}}
    place: {graph: {value: {block: linear_output, in: observation, output_units: 1}}}
"""
TEXTS = {
    "everything": (TESTS / "specs" / "good" / "everything.yaml").read_text(),
    "steps": STEPS,
    **{
        name: (CONFIGS / f"{name}.yaml").read_text()
        for name in SPACES
        if name not in ("everything", "steps")
    },
}
# The spaces are given; an environment would only be looked up.
TEXTS = {
    name: re.sub("^environment:.*$", "", text, flags=re.MULTILINE) for name, text in TEXTS.items()
}

LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")  # what YAML takes for the end of a line
names = st.sampled_from(sorted(TEXTS))


def outcome(spec, name):
    """Compose ``spec`` for the spaces of the example called ``name``; whatever is no SpecError passes through."""
    observation_space, action_space = SPACES[name]
    try:
        return composer.compose(
            spec,
            observation_space=observation_space,
            action_space=action_space,
            device="meta",
            seed=0,
        )
    except SpecError as error:
        outside = [
            p for p in error.problems if isinstance(spec, str) and not is_inside(p.position, spec)
        ]
        if outside:
            raise RuntimeError(f"{outside} of {spec!r}") from error
        return error


def is_inside(position, text):
    """Whether a place is one of ``text``: a character of it, or the end of a line."""
    if position is None or position.line is None:
        return True
    lines = LINE_BREAK.split(text)
    lines = lines[:-1] if lines[-1] == "" else lines
    return (
        1 <= position.line <= len(lines)
        and 1 <= position.column <= len(lines[position.line - 1]) + 1
    )


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_specs_are_good_before_they_are_spoilt(name):
    assert isinstance(outcome(TEXTS[name], name), composer.Model)


# --- mutations of the data ---

WORDS = [
    *BLOCKS, *ACTIVATIONS, *FUNCTIONS, *INITIALIZERS, "graph", "torch.nn.Linear", "torch.nn.LSTM", "torch.nn.Flatten",
    "torch.nn.ReLU", "torch.nn.Sequential", "torch.nn.MultiheadAttention", "os.system", "observation", "screen", "rows", "_",
    "", "x", "in", "out", "block", "each", "same_as", "heads", "policy", "value", "latent", "forward", "same", "${params.width}",
    "hidden_units", "num_layers", "categorical", "gaussian", "beta", "bernoulli", "first", "last", "train", "self", "a/b", "é",
]  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.sampled_from([0.5, -1.0, 1e-3, float("nan")]),
    st.sampled_from([float("inf"), 10**20, -(10**20)]), st.sampled_from(WORDS), st.text(max_size=3),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(data):
    """(container, key) of every value in ``data``."""
    if isinstance(data, (dict, list)):
        for key, value in list(data.items()) if isinstance(data, dict) else list(enumerate(data)):
            yield data, key
            yield from places(value)


def mutate(data, draw):
    """One random change somewhere in ``data``."""
    everywhere = list(places(data))
    if not everywhere:
        return
    container, key = draw(st.sampled_from(everywhere), label="place")
    kind = draw(st.sampled_from(["replace", "copy", "drop", "rename", "add", "wrap"]))
    if kind == "replace":
        container[key] = draw(values)
    elif kind == "copy":
        other, name = draw(st.sampled_from(everywhere))
        container[key] = copy.deepcopy(other[name])
    elif kind == "drop":
        del container[key]
    elif kind == "wrap":
        container[key] = [container[key]]
    elif isinstance(container, list):
        container.append(draw(values))
    elif kind == "rename":
        container[draw(st.sampled_from(WORDS))] = container.pop(key)
    else:
        container[draw(st.sampled_from(WORDS))] = draw(values)


EXAMPLES = pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.full)])


@EXAMPLES
def test_a_spec_with_changed_values_is_a_model_or_a_spec_error(examples):
    settings(max_examples=examples)(given(st.data())(change_values))()


def change_values(data):
    name = data.draw(names)
    spec = load_source(TEXTS[name]).data
    spec = copy.deepcopy(spec)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(spec, data.draw)
    outcome(spec, name)


# --- every value of every key ---

KINDS = [None, -3, "zzz", [None], {"zzz": {"zzz": 1}}]
MORE_KINDS = [
    True, 0, 10**30, 0.5, float("nan"), float("inf"), "", "None", "(64, 64)", "${params.width}", [], [0], ["zzz", "zzz"],
    [[1]], {}, {"in": "zzz"}, {"block": "dense"}, {"block": 3, "in": 3},
]  # fmt: skip
KINDS += [pytest.param(kind, marks=pytest.mark.full) for kind in MORE_KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_value_of_another_kind_is_answered_at_its_place(kind):
    """Each value of the spec that has all keys, and of one with networks by step, replaced by one that is no such thing."""
    for name in ("everything", "steps"):
        for path in paths(load_source(TEXTS[name]).data):
            spec = copy.deepcopy(load_source(TEXTS[name]).data)
            container = spec
            for key in path[:-1]:
                container = container[key]
            container[path[-1]] = kind
            outcome(dump_yaml(spec), name)


def paths(data):
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield [key]
        yield from ([key, *rest] for rest in paths(value))


# --- mutations of the text ---


@EXAMPLES
def test_a_spec_with_changed_text_is_a_model_or_a_spec_error(examples):
    settings(max_examples=examples)(given(st.data())(change_text))()


def change_text(data):
    name = data.draw(names)
    text = TEXTS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        inserted = data.draw(
            st.text(max_size=2)
            | st.sampled_from([text[end : end + 30], "\n", "  ", "- ", ": ", "{", "]", "&a ", "*a", "!!t "])
        )  # fmt: skip
        text = text[:start] + inserted + text[end:]
    outcome(text + "\n#", name)  # one line would be taken for a file


# --- specs, checkpoints and runs, each case in a process with limits ---


@pytest.mark.parametrize(
    ("seconds", "first"), [(8, 0), pytest.param(1800, 100_000, marks=pytest.mark.full)]
)
def test_every_mutation_is_a_model_or_a_refusal_within_its_limits(seconds, first):
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.fuzzing", str(seconds), str(first)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
