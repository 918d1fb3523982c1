"""Wrappers that keep something between calls: memory, a second model, observations."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import composer
from perception_blocks import GtrxlBlock
from tests.test_wrappers_samples import Echo


class Counter(nn.Module):
    """Adds 1 to the state of each row, and says what it was."""

    def forward(self, data):
        before = list(data["prev_state"])
        return {"seen": before, "next_state": [(state or 0) + 1 for state in before]}


def counting(**settings):
    return composer.model_wrap(Counter(), "hidden_state", state_num=4, **settings)


def stored(model):
    return list(model.states.values())


# --- hidden_state -----------------------------------------------------------------------------------------------------


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


# --- target and teacher -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.fill(value)

    def fill(self, value):
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.fill_(value)

    def forward(self, data):
        return {"logit": self.norm(self.layer(data["x"]))}


def weights(model):
    return model.layer.weight.flatten()[0].item()


@pytest.mark.parametrize("setting", [{"freq": 3}, {"update_kwargs": {"freq": 3}}])
def test_assign_copies_on_every_freqth_update(setting):
    model = Net(0.0)
    target = composer.model_wrap(model, "target", update_type="assign", **setting)
    seen = []
    for step in range(1, 8):
        model.fill(step)
        target.update(model.state_dict())
        seen.append(weights(target))
    assert seen == [0, 0, 3, 3, 3, 6, 6]


def test_direct_copies_now_and_counts_anew():
    model = Net(0.0)
    target = composer.model_wrap(model, "target", freq=3)
    seen = []
    for step in range(1, 8):
        model.fill(step)
        target.update(model.state_dict(), direct=step == 2)
        seen.append(weights(target))
    assert seen == [0, 2, 2, 2, 5, 5, 5]


def test_momentum_moves_by_theta():
    model = Net(0.0)
    target = composer.model_wrap(model, "target", update_type="momentum", theta=0.25)
    model.fill(4.0)
    target.update(model.state_dict())
    assert weights(target) == 1.0
    target.update(model)
    assert weights(target) == 1.75
    target.update(model, direct=True)
    assert weights(target) == 4.0


@pytest.mark.parametrize(
    ("buffers", "mean", "count"), [("copy", 4, 4), ("blend", 1, 4), ("keep", 0, 0)]
)
def test_buffers_follow_as_asked(buffers, mean, count):
    model = Net(0.0)
    target = composer.model_wrap(
        model, "target", update_type="momentum", theta=0.25, buffers=buffers
    )
    model.fill(4.0)
    target.update(model.state_dict())
    assert target.norm.running_mean.tolist() == [mean, mean]
    assert target.norm.num_batches_tracked == count


def test_a_target_is_a_frozen_copy():
    model = Net(1.0)
    target = composer.model_wrap(model, "target", freq=1)
    model.fill(2.0)
    assert weights(target) == 1.0
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    x = torch.ones(2, 2, requires_grad=True)
    assert target({"x": x})["logit"].requires_grad  # gradients still flow through it


def test_a_state_dict_that_does_not_fit_changes_nothing():
    model = Net(1.0)
    target = composer.model_wrap(model, "target", freq=1)
    before = copy.deepcopy(target.state_dict())
    wrong = {**Net(2.0).state_dict(), "layer.weight": torch.zeros(3, 3)}
    with pytest.raises(
        ValueError, match=r"(?s)the state_dict does not fit the target: .*layer\.weight"
    ):
        target.update(wrong)
    with pytest.raises(
        ValueError, match="update takes a state_dict or the model itself, got a int"
    ):
        target.update(3)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "update_type 'assign' needs the setting 'freq' (a positive integer)"),
        (
            {"update_type": "momentum"},
            "update_type 'momentum' needs the setting 'theta' (a number between 0 and 1)",
        ),
        (
            {"freq": 1, "theta": 0.5},
            "'theta' is not a setting of update_type 'assign'; it has 'freq'",
        ),
        ({"update_kwargs": {"freq": 0}}, "'freq' must be a positive integer, got 0"),
        ({"update_type": "copy"}, "'update_type' must be one of 'assign', 'momentum', got 'copy'"),
        (
            {"freq": 1, "buffers": "no"},
            "'buffers' must be one of 'copy', 'blend', 'keep', got 'no'",
        ),
    ],
)
def test_wrong_settings_of_a_target_are_said(settings, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        composer.model_wrap(Net(0.0), "target", **settings)


def test_the_count_of_updates_is_reset_only_if_asked():
    model = Net(0.0)
    target = composer.model_wrap(model, "target", freq=2)
    target.update(model)
    target.reset()
    model.fill(1.0)
    target.reset(target_update_count=0)
    target.update(model)
    assert weights(target) == 0.0
    target.update(model)
    assert weights(target) == 1.0


def test_a_teacher_is_frozen_and_beside_the_model():
    teacher, data = Net(1.0), {"x": torch.ones(3, 2)}
    model = composer.model_wrap(Net(2.0), "teacher", teacher=teacher)
    expected = copy.deepcopy(teacher).eval()(data)["logit"]
    output = model(data)
    torch.testing.assert_close(output["teacher_logit"], expected)
    assert output["logit"].requires_grad
    assert not output["teacher_logit"].requires_grad
    teacher.fill(5.0)
    model.train()
    torch.testing.assert_close(model(data)["teacher_logit"], expected)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_may_keep_a_memory_of_its_own():
    class Student(nn.Module):
        def forward(self, data):
            return {"logit": data["x"]}

    class Teacher(Counter):
        def forward(self, data):
            output = super().forward(data)
            return {**output, "logit": torch.tensor(output["next_state"])}

    teacher = composer.model_wrap(Teacher(), "hidden_state", state_num=2)
    model = composer.model_wrap(Student(), "teacher", teacher=teacher)
    data = {"x": torch.zeros(2)}
    model(data)
    with pytest.raises(TypeError, match="data_id"):
        model(data, data_id=[1])  # the student has nobody who knows it
    assert model(data)["teacher_logit"].tolist() == [2, 3]
    model.reset()
    assert model(data)["teacher_logit"].tolist() == [1, 1]


# --- transformers -----------------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """The logit of each step: twice what it reads."""

    def forward(self, seq):
        seq = seq if isinstance(seq, Tensor) else seq["x"]
        return {"logit": 2 * seq}


def observations(steps, batch=2):
    return [torch.full((batch, 1), float(t + 1)) for t in range(steps)]


def test_the_last_observations_are_kept_first_in_first_out():
    model = composer.model_wrap(Steps(), "transformer_input", seq_len=3)
    seen = []
    for x in observations(5):
        output = model(x)
        assert output["logit"].tolist() == (2 * x).tolist()
        seen.append(output["input_seq"][:, 0, 0].tolist())
    assert seen == [[1, 0, 0], [1, 2, 0], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    whole = model(observations(1)[0], only_last_logit=False)
    assert whole["logit"].flatten(1).tolist() == [[8, 8], [10, 10], [2, 2]]


def test_only_the_environments_in_data_id_go_on():
    model = composer.model_wrap(Steps(), "transformer_input", seq_len=3)
    model(torch.zeros(3, 1))
    output = model(torch.tensor([[7.0], [5.0]]), data_id=[2, 0])
    assert output["logit"].flatten().tolist() == [14, 10]
    assert output["input_seq"].squeeze(-1).tolist() == [[0, 0, 0], [5, 0, 7], [0, 0, 0]]
    model.reset(data_id=[2])
    assert model(torch.ones(3, 1))["input_seq"].squeeze(-1).tolist() == [
        [0, 0, 1],
        [5, 1, 0],
        [1, 0, 0],
    ]
    model.reset()
    assert model(torch.ones(1, 1))["input_seq"].flatten().tolist() == [1, 0, 0]


def test_observations_may_be_dicts():
    model = composer.model_wrap(Steps(), "transformer_input", seq_len=2)
    output = model({"x": torch.ones(2, 3)})
    assert output["input_seq"]["x"].shape == (2, 2, 3)
    assert output["logit"].shape == (2, 3)


def test_wrong_observations_are_said_and_nothing_changes():
    model = composer.model_wrap(Steps(), "transformer_input", seq_len=2)
    model(torch.ones(2, 1))
    for wrong, keywords, error, message in (
        (torch.ones(3, 1), {}, ValueError, "got 3 observations for 2 environments"),
        (torch.ones(2, 4), {}, ValueError, "observations had the shape (1,) so far, got (4,)"),
        (
            {"x": torch.ones(2, 1)},
            {},
            ValueError,
            "observations had the shape (1,) so far, got a dict",
        ),
        (torch.ones(1, 1), {"data_id": [2]}, KeyError, "'data_id' names 2; there are the slots 0"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            model(wrong, **keywords)
    model.forward(torch.full((2, 1), 2.0))
    assert model.obs_memory[:, 0, 0].tolist() == [1, 2]


def test_a_model_without_logit_takes_the_observation_back():
    class NoLogit(nn.Module):
        def forward(self, seq):
            return {"value": seq}

    model = composer.model_wrap(NoLogit(), "transformer_input", seq_len=2)
    with pytest.raises(ValueError, match="'transformer_input' reads 'logit'"):
        model(torch.ones(2, 1))
    assert model.obs_memory is None


def test_segments_are_run_one_by_one_and_joined():
    calls = []

    class Watched(Steps):
        def forward(self, seq):
            calls.append(seq.flatten().tolist())
            return super().forward(seq)

    model = composer.model_wrap(Watched(), "transformer_segment", seq_len=2)
    output = model(torch.arange(1.0, 6.0).reshape(5, 1, 1))
    assert calls == [[1, 2], [3, 4], [5, 0]]
    assert output["logit"].flatten().tolist() == [2, 4, 6, 8, 10, 0]
    with pytest.raises(ValueError, match="'transformer_segment' needs at least one step"):
        model(torch.zeros(0, 1, 1))


class Gtrxl(nn.Module):
    """Our gtrxl block as a model that holds its memory, a dict with the environments first."""

    def __init__(self):
        super().__init__()
        self.block = GtrxlBlock([(3,)], hidden_units=8, num_heads=2, num_layers=2, memory_length=4)
        self.block.reset_parameters(torch.Generator().manual_seed(0))
        self.state = {}

    def reset_memory(self, batch_size=None, state=None):
        self.state = self.block.initial_state(batch_size) if state is None else state

    def get_memory(self):
        return self.state

    def forward(self, seq):
        output, self.state = self.block.unroll(seq.transpose(0, 1), self.state)
        return {"logit": output.transpose(0, 1)}


def test_each_phase_keeps_its_own_transformer_memory():
    torch.manual_seed(0)
    model, x, y = Gtrxl(), torch.randn(6, 2, 3), torch.randn(3, 2, 3)
    alone = composer.model_wrap(Gtrxl(), "transformer_memory", batch_size=2, batch_axis=0)
    expected = torch.cat([alone(x[:3])["logit"], alone(x[3:])["logit"]])
    collect = composer.model_wrap(model, "transformer_memory", batch_size=2, batch_axis=0)
    learn = composer.model_wrap(model, "transformer_memory", batch_size=2, batch_axis=0)
    first = collect(x[:3])["logit"]
    fresh = learn(y)["logit"]
    second = collect(x[3:])["logit"]
    torch.testing.assert_close(torch.cat([first, second]), expected)
    learn.reset()
    torch.testing.assert_close(learn(y)["logit"], fresh)


def test_the_memory_of_some_environments_begins_anew():
    model = composer.model_wrap(Gtrxl(), "transformer_memory", batch_size=3, batch_axis=0)
    x = torch.randn(2, 3, 3)
    fresh = model(x)["logit"]
    model.reset(data_id=[0, 2])
    assert model.memory["filled"].sum(-1).tolist() == [0, 2, 0]
    again = model(x)["logit"]
    torch.testing.assert_close(again[:, [0, 2]], fresh[:, [0, 2]])
    assert not torch.allclose(again[:, 1], fresh[:, 1])
    with pytest.raises(KeyError, match="'data_id' names 3"):
        model.reset(data_id=[3])


def test_a_memory_that_is_a_tensor_has_its_environments_second_to_last():
    class Sum(nn.Module):
        def reset_memory(self, batch_size=None, state=None):
            self.memory = torch.zeros(1, 2, batch_size, 3) if state is None else state

        def get_memory(self):
            return self.memory

        def forward(self, x):
            self.memory += x
            return {"logit": self.memory}

    model = composer.model_wrap(Sum(), "transformer_memory", batch_size=2)
    model(1.0)
    model.reset(data_id=[1])
    assert model.memory[0, 0].tolist() == [[1, 1, 1], [0, 0, 0]]
    message = "'transformer_memory' needs a model with 'reset_memory', which Echo does not have"
    with pytest.raises(ValueError, match=re.escape(message)):
        composer.model_wrap(Echo(), "transformer_memory", batch_size=2)
