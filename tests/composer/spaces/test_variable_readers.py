"""Every number of a sample of whatever space is where the ports say, alone and in batches."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.spaces.tree import flatten_space
from tests.composer.spaces.test_variable import MIXED


class Samples(gymnasium.Env):
    """Observations drawn from MIXED."""

    observation_space = MIXED
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_what_a_vector_environment_returns_is_a_batch():
    env = gymnasium.vector.SyncVectorEnv([Samples] * 3)
    tree = flatten_space(env.single_observation_space, "observation")
    observation, _ = env.reset(seed=0)
    assert tree.leading(tree.to_tensors(observation, dtype=torch.float32)) == (3,)
    observation = env.step(np.zeros(3, np.int64))[0]
    tensors = tree.to_tensors(observation, dtype=torch.float32)
    assert tree.leading(tensors) == (3,)
    for index in range(3):
        for key in "gos":
            check(tensors, key, MIXED[key], observation[key][index], (index,))
        check(tensors, "t/0", MIXED["t"][0], observation["t"][0][index], (index,))
    env.close()


FIXED = st.one_of(
    st.builds(lambda shape: spaces.Box(-2, 2, tuple(shape)), st.lists(st.integers(1, 3), max_size=2)),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 4), st.integers(-2, 2)),
    st.builds(lambda nvec: spaces.MultiDiscrete(nvec), st.lists(st.integers(1, 3), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 3)),
)  # fmt: skip


def nested(inner):
    return st.one_of(
        st.builds(lambda a, b: spaces.Dict({"a": a, "b": b}), inner, inner),
        st.builds(lambda a, b: spaces.Tuple([a, b]), inner, inner),
        st.builds(lambda a, b: spaces.OneOf([a, b]), inner, inner),
    )


ELEMENTS = st.recursive(FIXED, nested, max_leaves=3)
VARIABLE = st.one_of(
    st.builds(lambda space, stack: spaces.Sequence(space, stack=stack), ELEMENTS, st.booleans()),
    st.builds(spaces.Graph, ELEMENTS, st.one_of(st.none(), ELEMENTS)),
    st.builds(lambda length: spaces.Text(length, min_length=0), st.integers(1, 5)),
)
SPACES = st.recursive(st.one_of(FIXED, VARIABLE), nested, max_leaves=4)


def check(tensors, key, space, sample, at=()):
    """Every number of ``sample`` is where the ports say, and nothing else is real."""
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            check(tensors, f"{key}/{name}", part, sample[name], at)
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            check(tensors, f"{key}/{index}", part, sample[index], at)
    elif isinstance(space, spaces.OneOf):
        index, chosen = sample
        assert tensors[f"{key}/choice"][at] == index
        for other in range(len(space.spaces)):
            mask = tensors.get(f"{key}/{other}:mask")
            if mask is not None and mask[at].dim() == 0:
                assert mask[at] == (other == index)
        check(tensors, f"{key}/{index}", space.spaces[index], chosen, at)
    elif isinstance(space, spaces.Text):
        tokens = tensors[key][at].tolist()
        assert "".join(space.character_list[token - 1] for token in tokens if token) == sample
        assert int(tensors[f"{key}:mask"][at].sum()) == len(sample)
    elif isinstance(space, spaces.Sequence):
        elements = rows(space.feature_space, sample) if space.stack else list(sample)
        check_set(tensors, key, f"{key}:mask", space.feature_space, elements, at)
    elif isinstance(space, spaces.Graph):
        nodes = rows(space.node_space, sample.nodes)
        check_set(tensors, f"{key}/nodes", f"{key}/nodes:mask", space.node_space, nodes, at)
        if space.edge_space is not None:
            edges = [] if sample.edges is None else rows(space.edge_space, sample.edges)
            links = [] if sample.edges is None else sample.edge_links.tolist()
            check_set(tensors, f"{key}/edges", f"{key}/edges:mask", space.edge_space, edges, at)
            assert tensors[f"{key}/edge_links"][at][: len(links)].tolist() == links
    else:
        start = getattr(space, "start", 0)
        expected = torch.as_tensor(np.asarray(sample) - start)
        assert tensors[key][at].to(expected.dtype).equal(expected)


def check_set(tensors, key, mask, space, elements, at):
    assert tensors[mask][at].tolist()[: len(elements)] == [True] * len(elements)
    assert int(tensors[mask][at].sum()) == len(elements)
    for index, element in enumerate(elements):
        check(tensors, key, space, element, (*at, index))


def rows(space, column):
    if isinstance(space, spaces.Dict):
        parts = {name: rows(part, column[name]) for name, part in space.spaces.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    if isinstance(space, spaces.Tuple):
        parts = [rows(part, inner) for part, inner in zip(space.spaces, column, strict=True)]
        return list(zip(*parts, strict=True))
    return list(column)


@settings(max_examples=80, deadline=None)
@given(space=SPACES, seed=st.integers(0, 2**16))
def test_samples_survive(space, seed):
    space = spaces.Dict({"k": space})
    space.seed(seed)
    tree = flatten_space(space, "observation")
    samples = [space.sample() for _ in range(3)]
    for sample in samples:
        tensors = tree.to_tensors(sample, dtype=torch.float32)
        assert tree.leading(tensors) == ()
        check(tensors, "k", space["k"], sample["k"])
    empty = gymnasium.vector.utils.create_empty_array(space, len(samples))
    batch = gymnasium.vector.utils.concatenate(space, samples, empty)
    tensors = tree.to_tensors(batch, dtype=torch.float32)
    assert tree.leading(tensors) == (3,)
    for index, sample in enumerate(samples):
        check(tensors, "k", space["k"], sample["k"], (index,))
    for key, port in tree.ports.items():
        if port.mask is not None:
            mask = tensors[port.mask]
            hidden = ~mask.reshape(*mask.shape, *[1] * (tensors[key].dim() - mask.dim()))
            assert not tensors[key].masked_fill(~hidden, 0).any()
