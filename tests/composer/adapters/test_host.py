"""What hosts store is read back as the model and the environment have it, in each form."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

import composer
from composer.adapters.host import FlatEnv, HostActions, HostObservations
from composer.spaces.tree import flatten_space
from tests.helpers.sb3_agents import NESTED, NESTED_ACTIONS, Walk

# Not in sorted order, which gymnasium keeps for an ordered mapping of keywords.
UNSORTED = spaces.Dict(
    zeal=spaces.Box(-1, 1, (2,)),
    body=spaces.Dict(wrist=spaces.Discrete(4, start=2), arm=spaces.Box(-1, 1, (2, 2))),
    able=spaces.MultiDiscrete([2, 3]),
)
OBSERVED = {
    "nested": (NESTED, ("note",)),
    "unsorted": (UNSORTED, ()),
    "one Box": (spaces.Box(-1, 1, (2, 3)), ()),
    "one Discrete": (spaces.Discrete(5, start=-1), ()),
    "bits": (spaces.Dict(on=spaces.MultiBinary([2, 2])), ()),
}
TAKEN = {
    "nested": NESTED_ACTIONS,
    "unsorted": UNSORTED,
    "one Box": spaces.Box(-2, 2, (3,)),
    "one Discrete": spaces.Discrete(5, start=-1),
    "several choices": spaces.MultiDiscrete([2, 3, 4]),
}


def batch(space, count=3):
    space.seed(0)
    return [space.sample() for _ in range(count)]


@pytest.mark.parametrize("as_vector", [False, True])
@pytest.mark.parametrize("name", OBSERVED)
def test_observations_that_are_stored_are_read_as_they_were(name, as_vector):
    space, ignore = OBSERVED[name]
    tree = flatten_space(space, "observation", ignore)
    host = HostObservations(tree, "it", as_vector=as_vector)
    samples = batch(space)
    stored = [host.flat(sample) if host.is_flat else sample for sample in samples]
    assert all(host.space.contains(row) for row in stored)
    if isinstance(host.space, spaces.Dict):
        rows = {k: torch.as_tensor(np.stack([row[k] for row in stored])) for k in host.space}
    else:
        rows = torch.as_tensor(np.stack(stored))
    read = tree.to_tensors(host.read(rows), dtype=torch.float32)
    for i, sample in enumerate(samples):
        expected = tree.to_tensors(sample, dtype=torch.float32)
        assert_close({key: value[i] for key, value in read.items()}, expected)


def test_a_vector_has_the_keys_of_each_dict_in_sorted_order():
    host = HostObservations(flatten_space(UNSORTED, "observation"), "it", as_vector=True)
    arm, wrist = np.full((2, 2), 0.5, np.float32), 3
    sample = {
        "zeal": np.ones(2, np.float32),
        "body": {"wrist": wrist, "arm": arm},
        "able": np.array([1, 2]),
    }
    assert host.flat(sample).tolist() == [1, 2, 0.5, 0.5, 0.5, 0.5, 3, 1, 1]
    assert host.flat(sample).dtype == np.float32
    read = host.read(torch.as_tensor(host.flat(sample)).expand(2, 4, -1), leading=(2, 4))
    assert {key: tuple(value.shape) for key, value in read.items()} == {
        "able": (2, 4, 2), "body/arm": (2, 4, 2, 2), "body/wrist": (2, 4), "zeal": (2, 4, 2),
    }  # fmt: skip


@pytest.mark.parametrize("as_vector", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_actions_that_are_stored_are_taken_as_they_were(name, as_vector):
    space = TAKEN[name]
    tree = flatten_space(space, "action")
    host = HostActions(tree, as_vector=as_vector)
    assert host.is_flat or not as_vector
    samples = batch(space)
    flat = [tree.to_tensors(sample, dtype=torch.float32) for sample in samples]
    drawn = {key: torch.stack([each[key] for each in flat]) for key in tree.leaves}
    stored = host.to_host(drawn if not tree.is_single else drawn["action"])
    back = host.from_host(stored, torch.float32, (3,))
    assert_close(back if not tree.is_single else {"action": back}, drawn)
    if host.is_flat:
        assert stored.shape[1:] == host.space.shape
        assert stored.dtype == torch.float32
        for row, sample in zip(stored, samples, strict=True):
            taken = host.to_environment(row.numpy())
            assert space.contains(taken)
            assert_close(
                tree.to_tensors(taken, dtype=torch.float32),
                tree.to_tensors(sample, dtype=torch.float32),
            )


def test_a_batch_of_actions_is_taken_at_once():
    host = HostActions(flatten_space(TAKEN["several choices"], "action"), as_vector=True)
    rows = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    assert host.to_environment(rows).tolist() == [[1, 2, 3], [0, 0, 1]]


def test_what_varies_in_size_is_refused_with_the_name_of_the_host():
    space = spaces.Dict(
        a=spaces.Sequence(spaces.Box(-1, 1, (2,)), stack=True), b=spaces.Discrete(2)
    )
    message = (
        "rsl_rl stores observations of one size, but these vary: 'a' (?, 2), 'a:mask' (?,); "
        "pad them in a wrapper of the environment, or name them under 'ignore'"
    )
    for as_vector in (False, True):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            HostObservations(flatten_space(space, "observation"), "rsl_rl", as_vector=as_vector)


class FarTensor(torch.Tensor):
    """A tensor that says it is on an accelerator, whose values are looked at only after a copy."""

    is_cpu = False

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("as_vector", [False, True])
@pytest.mark.parametrize("wrong", [3.0, -1.0, 0.5, float("nan")])
def test_numbers_that_are_no_choice_are_refused_in_the_first_batch(wrong, as_vector):
    space = spaces.Dict(
        kind=spaces.Discrete(3), many=spaces.MultiDiscrete([3, 3]), seen=spaces.Box(-9, 9, (2,))
    )
    spec = {"version": 1, "policy": {"template": {}}}
    policy = composer.compose(
        spec, observation_space=space, action_space=spaces.Discrete(2), seed=0
    ).policy
    host = HostObservations(policy.observer.tree, "it", as_vector=as_vector)

    def rows(kind):
        parts = {
            "kind": torch.tensor([0.0, kind]),
            "many": torch.zeros(2, 2),
            "seen": torch.full((2, 2), wrong if as_vector else 0.0).nan_to_num(0.0),
        }
        if not as_vector:
            return parts
        return torch.cat([part.reshape(2, -1) for part in parts.values()], -1)

    shown = f"{wrong:.6g}"
    message = f"^'kind' is {shown} at index \\(1,\\), outside of Discrete\\(3\\)$"
    with pytest.raises(ValueError, match=message):  # by the model itself
        policy(host.read(rows(wrong)))
    policy(host.read(rows(2.0)))
    far = HostObservations(policy.observer.tree, "it", as_vector=as_vector)

    def afar(values):
        if isinstance(values, dict):
            return {key: value.as_subclass(FarTensor) for key, value in values.items()}
        return values.as_subclass(FarTensor)

    with pytest.raises(ValueError, match=message):
        far.read(afar(rows(wrong)))
    far.read(afar(rows(2.0)))
    far.read(afar(rows(wrong)))  # later batches are not waited for


@pytest.mark.parametrize("as_vector", [False, True])
def test_an_environment_is_made_flat_for_a_host(as_vector):
    env = Walk(NESTED, NESTED_ACTIONS)
    observed = HostObservations(
        flatten_space(NESTED, "observation", ["note"]), "it", as_vector=as_vector
    )
    taken = HostActions(flatten_space(NESTED_ACTIONS, "action"), as_vector=as_vector)
    flat = FlatEnv(env, observed, taken)
    assert flat.model_spaces == (NESTED, NESTED_ACTIONS)
    observation, _ = flat.reset(seed=0)
    assert flat.observation_space.contains(observation)
    flat.action_space.seed(0)
    observation, *_ = flat.step(np.clip(flat.action_space.sample(), -1, 1))
    assert flat.observation_space.contains(observation)
