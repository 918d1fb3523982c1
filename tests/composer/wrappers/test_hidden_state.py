"""The wrapper that keeps the state of a memory between calls, for each environment in its slot."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import composer


class Counter(nn.Module):
    """Adds 1 to the state of each row, and says what it was."""

    def forward(self, data):
        before = list(data["prev_state"])
        return {"seen": before, "next_state": [(state or 0) + 1 for state in before]}


def counting(**settings):
    return composer.model_wrap(Counter(), "hidden_state", state_num=4, **settings)


def stored(model):
    return list(model.states.values())


def test_slots_are_read_and_stored_as_data_id_and_valid_id_say():
    model = counting(init_fn=int)
    model({})
    assert stored(model) == [1, 1, 1, 1]
    model({}, data_id=[1, 3])
    assert stored(model) == [1, 2, 1, 2]
    output = model({}, data_id=[0, 1], valid_id=[1])
    assert stored(model) == [1, 3, 1, 2]
    assert output == {"seen": [1, 2]}


def test_slots_may_come_in_any_order():
    model = counting()
    model.reset(state=[10, 20, 30, 40])
    assert model({}, data_id=torch.tensor([2, 0]))["seen"] == [30, 10]
    assert stored(model) == [11, 20, 31, 40]
    assert model({}, data_id=[], valid_id=[])["seen"] == []


def test_reset_of_all_of_some_and_to_given_states():
    model = counting()
    model({})
    model.reset(data_id=[2])
    assert stored(model) == [1, 1, None, 1]
    model.reset(data_id=[3, 0], state=[7, 8])
    assert stored(model) == [8, 1, None, 7]
    model.reset()
    assert stored(model) == [None] * 4


def test_previous_states_come_out_if_asked_for():
    model = counting(save_prev_state=True)
    model({})
    assert model({}, data_id=[1])["prev_state"] == [1]


@pytest.mark.parametrize(
    "state",
    [
        torch.ones(2),
        {"h": torch.ones(2), "c": [torch.ones(1, dtype=torch.float64)]},
        (torch.ones(2), np.ones(3, np.float32)),
        [torch.ones(2), 1],
        3.0,
    ],
    ids=str,
)
def test_previous_states_of_empty_slots_are_zeros_so_that_rows_collate(state):
    class Keep(nn.Module):
        def forward(self, data):
            return {"next_state": [state for _ in data["prev_state"]]}

    model = composer.model_wrap(Keep(), "hidden_state", state_num=3, save_prev_state=True)
    model({}, data_id=[1])
    previous = model({})["prev_state"]
    rows = torch.utils.data.default_collate(previous)  # which takes no None, nor other shapes
    leaves, whole = tree_leaves(rows), tree_leaves(torch.utils.data.default_collate([state] * 3))
    for leaf, full in zip(leaves, whole, strict=True):
        assert leaf.dtype == full.dtype
        assert leaf.equal(full * torch.tensor([0, 1, 0]).reshape(3, *[1] * (full.dim() - 1)))


def test_the_input_and_the_models_output_stay_as_they_were():
    data = {"x": 1}
    counting()(data)
    assert data == {"x": 1}
    output = {"next_state": [1, 2, 3, 4]}

    class Fixed(nn.Module):
        def forward(self, data):
            return output

    composer.model_wrap(Fixed(), "hidden_state", state_num=4)({})
    assert output == {"next_state": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    "state",
    [
        None,
        [torch.ones(2), torch.zeros(1)],
        {"h": torch.ones(2), "c": [torch.zeros(1), (torch.ones(1), None)]},
        (torch.ones(2), torch.ones(2)),
    ],
)
def test_a_state_may_be_a_list_a_dict_a_tuple_or_none(state):
    class Keep(nn.Module):
        def forward(self, data):
            return {"next_state": [copy.deepcopy(state) for _ in data["prev_state"]]}

    model = composer.model_wrap(Keep(), "hidden_state", state_num=2)
    model({})
    torch.testing.assert_close(model.states, {0: state, 1: state})


def test_a_tensor_of_states_is_one_a_row_and_stored_without_its_graph():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, data):
            return {"next_state": torch.stack(data["prev_state"]) + self.weight}

    model = composer.model_wrap(
        Linear(), "hidden_state", state_num=3, init_fn=lambda: torch.zeros(2)
    )
    model({})
    model({}, data_id=[1])
    assert [state.tolist() for state in stored(model)] == [[1, 1], [2, 2], [1, 1]]
    assert not any(state.requires_grad for state in stored(model))


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"data_id": [4]}, KeyError, "'data_id' names 4; there are the slots 0 to 3"),
        ({"data_id": [-1, "a"]}, KeyError, "'data_id' names -1, 'a'; there are the slots 0 to 3"),
        ({"data_id": [True]}, KeyError, "'data_id' names True; there are the slots 0 to 3"),
        ({"data_id": 1}, ValueError, "'data_id' must be a list of slots, got 1"),
        ({"data_id": [1, 1]}, ValueError, "'data_id' names a slot twice: [1, 1]"),
        ({"valid_id": [9]}, KeyError, "'valid_id' names 9; there are the slots 0 to 3"),
        (
            {"data_id": [0, 1], "valid_id": [2]},
            ValueError,
            "'valid_id' names 2, not in this batch of [0, 1]",
        ),
    ],
)
def test_wrong_ids_are_said_and_nothing_changes(keywords, error, message):
    model = counting()
    model({})
    with pytest.raises(error) as caught:
        model({}, **keywords)
    assert str(caught.value) == message
    assert stored(model) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"next_state": [1, 2]}, "there must be one state a row, here 4, got 2"),
        ({"next_state": {"h": 1}}, "states must be a list of one a row, here 4, got a dict"),
        (
            {"logit": 1},
            "'hidden_state' reads 'next_state' of the model's output, which has 'logit'",
        ),
        (3, "'hidden_state' needs a model that returns a dict, got a int"),
    ],
)
def test_wrong_states_are_said_and_nothing_changes(returned, message):
    class Wrong(nn.Module):
        def forward(self, data):
            return returned

    model = composer.model_wrap(Wrong(), "hidden_state", state_num=4)
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        model({})
    assert stored(model) == [None] * 4


def test_wrong_resets_change_nothing():
    model = counting()
    model({})
    for error, keywords in (
        (KeyError, {"data_id": [7]}),
        (ValueError, {"data_id": [1], "state": [1, 2]}),
        (ValueError, {"sate": [1]}),
    ):
        with pytest.raises(error):
            model.reset(**keywords)
    assert stored(model) == [1, 1, 1, 1]


def test_an_input_that_is_no_dict_is_refused():
    message = "'hidden_state' puts 'prev_state' into the input, which must be a dict, got a list"
    with pytest.raises(ValueError, match=re.escape(message)):
        counting()([1])
    with pytest.raises(ValueError, match="'init_fn' must be a function without arguments, got 'x'"):
        counting(init_fn="x")


def test_what_fails_further_out_is_taken_back():
    class Bad(Counter):
        def forward(self, data):
            logit, mask = torch.zeros(4, 2), torch.zeros(4, 2)
            return {**super().forward(data), "logit": logit, "action_mask": mask}

    model = composer.model_wrap(Bad(), "hidden_state", state_num=4)
    model = composer.model_wrap(model, "argmax_sample")
    with pytest.raises(ValueError, match="without a legal action in row 0"):
        model({})
    assert stored(model) == [None] * 4
