"""What a space does not hold is refused before a cast makes something else of it, arrays and tensors alike."""

import copy
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import GraphInstance
from hypothesis import given, settings
from hypothesis import strategies as st

import composer
from composer.spaces.tree import flatten_space
from composer.spaces.values import OutOfBoundsWarning

INTEGER_DTYPES = [np.int8, np.uint8, np.int16, np.int32, np.int64]

# --- random spaces, and one thing wrong in a value of each ---

shapes = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)


def box(dtype: Any, shape: Any, low: int, width: int) -> spaces.Box:
    return spaces.Box(low, low + width, shape, dtype)


fixed = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)),
    st.builds(lambda n: spaces.MultiDiscrete(n), st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(lambda n: spaces.MultiDiscrete(n, start=[2] * len(n)), st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(box, st.sampled_from(INTEGER_DTYPES), shapes, st.integers(0, 3), st.integers(1, 9)),
    st.builds(lambda shape: spaces.Box(0, 255, shape, np.uint8), shapes),
    st.builds(lambda shape: spaces.Box(0, 1, shape, np.bool_), shapes),  # type: ignore[arg-type]
    st.builds(lambda shape: spaces.Box(-1, 1, shape), shapes),
)  # fmt: skip
variable = st.one_of(
    st.just(spaces.Text(5, charset="abc")),
    st.builds(spaces.Sequence, fixed),
    st.builds(lambda node: spaces.Graph(node, spaces.Discrete(3)), fixed.filter(lambda s: s.shape)),
    st.builds(lambda a, b: spaces.OneOf([a, b]), fixed, fixed),
)
anything = st.recursive(
    st.one_of(fixed, variable),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=2).map(spaces.Tuple),
    ),
    max_leaves=4,
)


def leaves_of(space, value, key="observation", path=()):
    """(flat key, path of parts, space, value) of every part of fixed size, also of those within sets and graphs."""
    name = "/".join(map(str, path)) or key
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for part, inner in parts:
            yield from leaves_of(inner, value[part], key, (*path, part))
    else:
        yield name, path, space, value


def replaced(value, path, new):
    """``value`` with ``new`` at ``path``."""
    if not path:
        return new
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], new)}
    return tuple(replaced(v, path[1:], new) if i == path[0] else v for i, v in enumerate(value))


def limits_of(space):
    """The lowest and the highest number of a space of integers; None for others."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    if isinstance(space, spaces.Box) and space.dtype.kind != "f":
        return space.low.astype(np.int64), space.high.astype(np.int64)
    return None


def wrong_numbers(space, value):
    """By what is wrong with it, numbers that a space of fixed size does not hold."""
    array = np.asarray(value)
    if array.shape:
        yield "shape", np.zeros((*array.shape[:-1], array.shape[-1] + 1), array.dtype)
    limits = limits_of(space)
    if limits is None or not array.size:
        return
    low, high = (np.broadcast_to(np.asarray(limit, np.int64), array.shape) for limit in limits)
    yield "above", high + 1
    yield "below", low - 1
    yield "far", np.full(array.shape, 2**40)
    yield "fraction", low + 0.5
    yield "nan", np.full(array.shape, np.nan)
    yield "infinite", np.full(array.shape, np.inf, np.float32)


def wrong_values(space, value):
    """By what is wrong with it, values that ``space`` does not hold."""
    yield "none", None
    yield "object", object()
    if isinstance(space, spaces.Text):
        yield from {"number": 3, "charset": "xyz", "length": "a" * 6}.items()
        return
    yield "text", "far left"
    if isinstance(space, spaces.Sequence):
        element = space.feature_space.sample()
        for what, numbers in wrong_numbers(space.feature_space, element):
            yield what, (element, numbers)
    elif isinstance(space, spaces.Graph):
        for what, numbers in wrong_numbers(space.node_space, value.nodes[0]):
            nodes = np.stack([numbers] * len(value.nodes))
            yield what, GraphInstance(nodes, value.edges, value.edge_links)
        if value.edge_links is not None and len(value.edge_links):
            for what, links in (("edge of a half", 0.5), ("edge to nowhere", len(value.nodes))):
                yield what, GraphInstance(value.nodes, value.edges, value.edge_links * 0 + links)
    elif isinstance(space, spaces.OneOf):
        index, chosen = value
        yield "no such part", (2, chosen)
        yield "half a part", (0.5, chosen)
        for what, numbers in wrong_numbers(space.spaces[index], chosen):
            yield what, (index, numbers)
    else:
        yield from wrong_numbers(space, value)


def as_tensors(value):
    """The same with tensors in place of arrays and numbers of numpy."""
    if isinstance(value, dict):
        return {key: as_tensors(part) for key, part in value.items()}
    if isinstance(value, GraphInstance):
        return GraphInstance(*map(as_tensors, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(as_tensors, value))
    return torch.as_tensor(value) if isinstance(value, (np.ndarray, np.generic)) else value


def read(tree, value):
    return tree.to_tensors(value, dtype=torch.float32)


@settings(max_examples=60, deadline=None)
@given(anything, st.integers(0, 99))
def test_what_a_space_does_not_hold_is_refused_by_its_key(space, seed):
    space = copy.deepcopy(space)
    space.seed(seed)
    tree = flatten_space(space, "observation")
    value = space.sample()
    arrays, tensors = read(tree, value), read(tree, as_tensors(value))
    assert all(arrays[key].equal(tensors[key]) for key in tree.leaves)
    for key, path, part, own in leaves_of(space, value):
        for what, wrong in wrong_values(part, own):
            told = []
            for form in (wrong, as_tensors(wrong)):
                with pytest.raises(ValueError, match=re.escape(f"'{key}")) as error:
                    read(tree, replaced(value, path, form))
                told.append(str(error.value))
            assert what in ("shape", "object") or told[0].replace("ndarray", "Tensor") == told[1]
    if isinstance(space, spaces.Dict):
        first = next(iter(space.spaces))
        with pytest.raises(ValueError, match=f"'{first}"):
            read(tree, {name: part for name, part in value.items() if name != first})
        with pytest.raises(ValueError, match="'surplus' is not in the observation space"):
            read(tree, {**value, "surplus": 0})


# --- wherever a model reads ---

SPACE = spaces.Dict(gear=spaces.Discrete(3, start=1), legal=spaces.MultiBinary(2), screen=spaces.Box(0, 255, (2,), np.uint8))  # fmt: skip
MOVE = spaces.Discrete(2, start=1)
MEMORY: Any = {"template": {"memory": {"block": "gru", "hidden_units": 4}}}
WRONG = [
    ("gear", 4, "'gear' is 4, outside of Discrete(3, start=1)"),
    ("gear", 1.5, "'gear' is 1.5, outside of Discrete(3, start=1)"),
    ("gear", np.nan, "'gear' is nan, outside of Discrete(3, start=1)"),
    ("legal", [1, 2], "'legal' is 2 at index (1,), outside of MultiBinary(2)"),
    ("legal", [0.5, 1], "'legal' is 0.5 at index (0,), outside of MultiBinary(2)"),
    ("screen", [255, 256], "'screen' is 256 at index (1,), outside of Box(0, 255, (2,), uint8); pass values as the space has them, whole and unscaled, or compose with the space of what you pass"),
    ("screen", [0.25, 1.0], "'screen' is 0.25 at index (0,), outside of Box(0, 255, (2,), uint8); pass"),
]  # fmt: skip


def compose(policy, critic, space=SPACE, action=MOVE):
    spec = {"version": 1, "policy": policy, "critic": critic}
    return composer.compose(spec, observation_space=space, action_space=action, seed=0)


def refused(message, call, *arguments, **keywords):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(*arguments, **keywords)


@pytest.fixture(scope="module")
def model():
    return compose(MEMORY, MEMORY)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["arrays", "tensors"])
@pytest.mark.parametrize(("key", "wrong", "message"), WRONG, ids=lambda value: str(value)[:12])
def test_no_way_into_a_model_leads_past_it(model, make, batched, key, wrong, message):
    good = {"gear": 1, "legal": [1, 1], "screen": [0, 255]}
    rows = [good, {**good, key: wrong}] if batched else [{**good, key: wrong}]
    seen = {k: make([row[k] for row in rows] if batched else rows[0][k]) for k in good}
    if batched:
        message = re.sub(r"is (\S+)( at index \((.*?),?\))?,", _second_row, message)
    policy, critic = model.policy, model.critic
    state, values = (p.initial_state((2,) if batched else ()) for p in (policy, critic))
    for call in (policy.act, policy, policy.distribution, policy.lower().act, policy.lower()):
        refused(message, call, seen, state)
    refused(message, critic, seen, values)
    refused(message, model, seen, model.initial_state((2,) if batched else ()))
    wrapped = composer.model_wrap(policy, "hidden_state", state_num=2)
    refused(message, wrapped, seen, data_id=None if batched else [0])


def _second_row(found):
    inner = f"1, {found[3]}" if found[3] else "1,"
    return f"is {found[1]} at index ({inner}),"


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["arrays", "tensors"])
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [([1, 2], "2 at index (1,)"), ([0.5, 1], "0.5 at index (0,)"), ([np.nan, 1], "nan at index (0,)"), ([-1, 1], "-1 at index (0,)")],
)  # fmt: skip
def test_masks_and_resets_are_zeros_and_ones(model, make, wrong, shown):
    seen = {"gear": np.array([1, 1]), "legal": np.ones((2, 2)), "screen": np.zeros((2, 2))}
    state, mask = model.policy.initial_state(2), make([wrong] * 2)
    shown_in_rows = shown.replace("(", "(0, ").replace(",)", ")")
    for policy in (model.policy, model.policy.lower()):
        refused(f"mask is {shown_in_rows}, expected 0 or 1", policy.act, seen, state, mask=mask)
        refused(f"resets is {shown}, expected 0 or 1", policy.act, seen, state, make(wrong))
    critic, values = model.critic, model.critic.initial_state(2)
    refused(f"resets is {shown}, expected 0 or 1", critic, seen, values, make(wrong))
    assert model.policy.act(seen, state, make([1.0, 0.0]), mask=make([[0.0, 1.0]] * 2))[0].tolist() == [2, 2]  # fmt: skip


def test_a_mask_that_the_environment_gives_is_zeros_and_ones():
    """Its space may be one of floats, which are not looked at as observations."""
    space = spaces.Dict(x=spaces.Box(-1, 1, (2,)), legal=spaces.Box(0, 1, (2,)))
    graph = {
        "graph": {"seen": {"block": "dense", "in": "x", "hidden_units": [4]}},
        "heads": {"in": "seen"},
    }
    policy = {**graph, "action_mask": {"action": "legal"}}
    acting = compose(policy, {"template": {}}, space).policy
    for wrong in (0.5, np.nan):
        seen = {"x": np.zeros(2), "legal": np.array([1.0, wrong])}
        message = f"the mask of action 'action' is {wrong} at index (1,), expected 0 or 1"
        refused(message, acting.act, seen)
        refused(message, acting.lower().act, seen)
        refused(message, acting.act, seen, mask=[1, 1])


@pytest.mark.parametrize(
    ("wrong", "shown"), [(0, "0"), (3, "3"), (1.5, "1.5"), (np.nan, "nan"), (-0.5, "-0.5")]
)
def test_actions_of_the_environment_are_those_of_its_space(model, wrong, shown):
    for value in (wrong, np.asarray(wrong), torch.as_tensor(wrong)):
        message = f"'action' is {shown}, outside of Discrete(2, start=1)"
        refused(message, model.policy.from_environment, value)


def test_a_critic_takes_actions_as_they_are_drawn():
    """Choices from zero; numbers of a Box of integers are rounded only on their way to the environment."""
    space = spaces.Box(-1, 1, (2,))
    critic = {"kind": "state_action", "template": {}}
    action = spaces.Dict(a=spaces.Discrete(2, start=1), b=spaces.Box(0, 9, (1,), np.int32))
    model = compose({"template": {}}, critic, space, action)
    seen = torch.zeros(2)
    drawn = model.policy.distribution(seen).sample()
    assert model.critic(seen, drawn)["q_value"].shape == (1,)
    assert model.critic(seen, {"a": torch.tensor(0), "b": torch.tensor([4.5])})["q_value"].shape == (1,)  # fmt: skip
    for wrong in (2, 0.5):
        message = (
            f"'a' is {wrong}, outside of Discrete(2, start=1) counted from 0; "
            "policy.from_environment(action) counts an environment's action from zero"
        )
        refused(message, model.critic, seen, {**drawn, "a": torch.tensor(wrong)})


@pytest.mark.parametrize("wrong", [torch.int32, torch.float64, torch.bool])
def test_a_state_of_another_dtype_is_refused(model, wrong):
    seen = {"gear": 1, "legal": [1, 1], "screen": [0, 255]}
    name = str(wrong).removeprefix("torch.")
    state = {key: value.to(wrong) for key, value in model.policy.initial_state().items()}
    message = (
        f"the state 'memory/h' must be float32, got {name}; begin with initial_state(batch_size)"
    )
    for policy in (model.policy, model.policy.lower()):
        refused(message, policy.act, seen, state)


def test_padded_values_are_looked_at_too():
    space = spaces.Dict(
        cards=spaces.Sequence(spaces.MultiDiscrete([4, 3])), word=spaces.Text(3, charset="ab")
    )
    tree = flatten_space(space, "observation")
    good = read(tree, {"cards": ((1, 2), (0, 0)), "word": "ab"})
    for key, wrong, message in [
        ("cards", [[1, 2], [0, 3]], "'cards' is 3 at index (1, 1), outside of padded values of Sequence("),
        ("cards", [[1, 2], [0, 0.5]], "'cards' is 0.5 at index (1, 1), outside of padded values of Sequence("),
        ("cards:mask", [1, 2], "'cards:mask' is 2 at index (1,), expected 0 or 1"),
        ("cards:mask", [1, np.nan], "'cards:mask' is nan at index (1,), expected 0 or 1"),
        ("word", [1, 2, 3], "'word' is 3 at index (2,), outside of padded values of Text("),
    ]:  # fmt: skip
        for make in (np.asarray, torch.as_tensor):
            refused(message, read, tree, {**good, key: make(wrong)})


# --- what is not refused ---


def test_floats_beyond_their_bounds_pass_and_are_told_once():
    space = spaces.Dict(speed=spaces.Box(-1, 1, (2,)), free=spaces.Box(-np.inf, np.inf, (2,)))
    message = (
        "observation 'speed' is 1.5 at index (1,), beyond the bounds of Box(-1.0, 1.0, (2,), float32); "
        "the network reads it unchanged. This warning is given once"
    )
    for make in (np.asarray, torch.as_tensor):
        tree = flatten_space(space, "observation")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            within = {"speed": make([0.1, -1.0]), "free": make([1e9, np.nan])}
            read(tree, within)
        beyond = {**within, "speed": make([0.0, 1.5])}
        with pytest.warns(OutOfBoundsWarning, match=f"^{re.escape(message)}$"):
            assert read(tree, beyond)["speed"].tolist() == [0.0, 1.5]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(8):
                read(tree, beyond)


def test_a_policy_that_is_lowered_tells_of_floats_beyond_their_bounds():
    space = spaces.Box(-1, 1, (2,))
    policy = compose({"template": {}}, {"template": {}}, space).policy.lower()
    with pytest.warns(OutOfBoundsWarning, match="observation 'observation' is 1.5 at index"):
        policy.act(np.array([0.0, 1.5], np.float32))


@pytest.mark.parametrize("call", ["act", "logits", "lowered"])
def test_the_warning_is_of_the_line_that_gave_the_value(call):
    policy = compose({"template": {}}, {"template": {}}, spaces.Box(-1, 1, (2,))).policy
    take = {"act": policy.act, "logits": policy, "lowered": policy.lower().act}[call]
    with pytest.warns(OutOfBoundsWarning) as warned:
        take(np.array([0.0, 1.5], np.float32))
    assert [warning.filename for warning in warned] == [__file__]


def test_whole_numbers_of_any_dtype_pass():
    tree = flatten_space(SPACE, "observation")
    good = {"gear": 3, "legal": [1, 0], "screen": [0, 255]}
    for dtype in (np.float32, np.float64, np.int64, np.int16):
        values = {key: np.asarray(value, dtype) for key, value in good.items()}
        assert read(tree, values)["screen"].tolist() == [0, 255]
    for dtype in (torch.bfloat16, torch.float16, torch.int32):
        values = {key: torch.tensor(value, dtype=dtype) for key, value in good.items()}
        assert read(tree, values)["gear"].item() == 2
    assert read(tree, {**good, "legal": [True, False]})["legal"].tolist() == [1, 0]


def test_nothing_is_looked_at_where_code_is_traced():
    """Else each call would count, and be compiled anew."""
    space = spaces.Dict(gear=spaces.Discrete(3), speed=spaces.Box(-1, 1, (2,)))
    tree = flatten_space(space, "observation")
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(lambda value: read(tree, value), backend=backend, fullgraph=True)
    for _ in range(5):
        compiled({"gear": torch.tensor(7), "speed": torch.ones(2) * 3})
    assert len(compilations) == 1


def test_logits_that_are_no_numbers_name_the_observation_that_is_none():
    space = spaces.Dict(a=spaces.Box(-np.inf, np.inf, (2,)), b=spaces.Box(-np.inf, np.inf, (3,)))
    policy = compose({"template": {}}, {"template": {}}, space).policy
    seen = {"a": np.zeros(2), "b": np.array([0.0, np.nan, 0.0])}
    message = "the state and the weights; the observation 'b' is nan at index (1,)"
    for act in (policy.act, policy.distribution, policy.lower().act):
        refused(message, act, seen)
    seen = {key: torch.as_tensor(np.stack([value] * 2)) for key, value in seen.items()}
    refused(message.replace("(1,)", "(0, 1)"), policy.act, seen)
