"""Wrappers that keep a second model: targets and teachers."""

import copy
import re

import pytest
import torch
from torch import nn

import composer
from tests.composer.wrappers.test_hidden_state import Counter


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
