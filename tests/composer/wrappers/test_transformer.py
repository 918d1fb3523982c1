"""Wrappers that keep the observations of steps before, and the memory of transformers."""

import re

import pytest
import torch
from torch import Tensor, nn

import composer
from perception_blocks import GtrxlBlock
from tests.composer.wrappers.test_samples import Echo


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
        (torch.ones(2, 4), {}, ValueError, "observations had the shape (1,) before, got (4,)"),
        (
            {"x": torch.ones(2, 1)},
            {},
            ValueError,
            "observations had the shape (1,) before, got a dict",
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
