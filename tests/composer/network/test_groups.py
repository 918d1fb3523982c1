"""Actors that share a policy act in one batch; the answers are those of each alone."""

import re

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

from composer.policy.structured import PolicyBatch
from tests.helpers.structured_models import MEMORY, PLACE, agents

RICH = Dict(camera=Box(-1, 1, (2, 2)), parts=Tuple([Discrete(3, start=1), Box(-1, 1, ())]))
RICH_ACTION = Dict(move=Discrete(4, start=2), grip=Box(-2, 3, ()), keys=MultiBinary(3))
TEMPLATE = """
version: 1
policy: {template: {memory: {block: gru, hidden_units: 4}}}
"""


@pytest.fixture
def decided(monkeypatch):
    """How many actors have decided together, in each call that tried."""
    found = []
    decide = PolicyBatch.decide

    def counted(batch, masks, temperature):
        result = decide(batch, masks, temperature)
        found.append(len(batch.calls) if result else 0)
        return result

    monkeypatch.setattr(PolicyBatch, "decide", counted)
    return found


@pytest.mark.parametrize("as_tensors", [False, True])
def test_actions_and_states_are_those_of_each_alone(as_tensors, decided):
    model = agents(TEMPLATE, observation=RICH, action=RICH_ACTION)
    observations = {name: RICH.sample() for name in model.policy.actors.names}
    if as_tensors:
        for value in observations.values():
            value["camera"] = torch.from_numpy(value["camera"])
            value["parts"] = tuple(map(torch.as_tensor, value["parts"]))
    state, resets = model.policy.initial_state(), dict.fromkeys(observations, np.array(False))
    state = {name: torch.randn_like(value) for name, value in state.items()}
    actions, after = model.policy.act(observations, state, resets, deterministic=True)
    assert decided == [4]
    for name, observation in observations.items():
        policy = model.policy[name]
        own = {"memory/h": state[f"{name}/memory/h"]}
        action, own = policy.act(observation, own, deterministic=True)
        torch.testing.assert_close(after[f"{name}/memory/h"], own["memory/h"])
        assert as_tensors or RICH_ACTION.contains(actions[name])
        for key, part in action.items():
            assert type(part) is type(actions[name][key])
            assert part.shape == actions[name][key].shape
            assert part.dtype == actions[name][key].dtype
            np.testing.assert_allclose(part, actions[name][key], rtol=1e-5, atol=1e-6)


def test_a_seeded_generator_gives_the_same_actions_again():
    model = agents(action=Box(-1, 1, (3,)))
    observations = {name: PLACE.sample() for name in model.policy.actors.names}
    first, second = (
        model.policy.act(observations, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    for name in observations:
        np.testing.assert_array_equal(first[name], second[name])
    assert not np.array_equal(first["agent_0"], first["agent_1"])


def test_masks_of_all_are_applied_to_each(decided):
    model = agents()
    observations = {name: PLACE.sample() for name in model.policy.actors.names}
    masks = {name: np.arange(5) == row for row, name in enumerate(observations)}
    actions = model.policy.act(observations, mask=masks)
    assert decided == [4]
    assert list(actions.values()) == [0, 1, 2, 3]
    named = {name: {"action": mask} for name, mask in masks.items()}
    assert model.policy.act(observations, mask=named) == actions


UNLIKE = {
    "kinds": {"agent_0": np.zeros(3, np.float32), "agent_1": torch.zeros(3)},
    "dtypes": {"agent_0": np.zeros(3, np.float32), "agent_1": np.zeros(3)},
    "lists": {"agent_0": [0.0, 0.0, 0.0], "agent_1": [0.0, 0.0, 0.0]},
}


@pytest.mark.parametrize("name", UNLIKE)
def test_observations_that_are_unlike_are_read_one_by_one(name, decided):
    observations = UNLIKE[name]
    actions = agents().policy.act(observations)
    assert decided == [0 if name == "kinds" else 2]  # tensors are answered by tensors
    for key, value in observations.items():
        assert isinstance(actions[key], torch.Tensor) == isinstance(value, torch.Tensor)


def test_a_mask_for_some_is_for_them_only(decided):
    observations = {"agent_0": np.zeros(3), "agent_1": np.zeros(3)}
    mask = np.array([False, False, True, False, False])
    assert agents().policy.act(observations, mask={"agent_1": mask})["agent_1"] == 2
    assert decided == [0]


def test_a_batch_of_masks_for_batches_of_observations(decided):
    observations = {name: np.zeros((5, 3)) for name in ("agent_0", "agent_1", "agent_2")}
    mask = np.arange(5) == 3
    actions = agents().policy.act(observations, mask=dict.fromkeys(observations, mask))
    assert decided == [0]
    assert all((own == 3).all() for own in actions.values())


def test_rows_of_one_observation_are_not_taken_for_observations():
    """Four of (3,), where each is (4, 3): side by side they would look like one."""
    model = agents(TEMPLATE, observation=Box(-1, 1, (4, 3)))
    rows = {name: np.zeros(3, np.float32) for name in model.policy.actors.names}
    text = "for 'agent_0': observation 'observation' has shape (3,), expected (..., 4, 3)"
    with pytest.raises(ValueError, match=re.escape(text)):
        model.policy.act(rows, model.policy.initial_state())


def test_what_is_wrong_is_said_of_whom_and_nothing_is_drawn():
    model = agents(MEMORY, number=3)
    observations = {name: PLACE.sample() for name in model.policy.actors.names}
    observations["agent_1"][0] = np.nan
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with pytest.raises(ValueError, match="for 'agent_1': the logits of action 'action' are NaN"):
        model.policy.act(observations, model.policy.initial_state(), generator=generator)
    assert torch.equal(generator.get_state(), before)
