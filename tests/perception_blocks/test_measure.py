import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from perception_blocks.base_block import PerceptionBlock
from perception_blocks.measure import measure, measure_lengths, output_shapes
from perception_blocks.port import Port


class Counting(nn.Module):
    """Everything that measuring must not touch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        np.random.rand()
        random.random()
        return self.norm(x) + torch.rand_like(x)


def test_measuring_moves_nothing():
    module = Counting().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    states = torch.random.get_rng_state(), np.random.get_state(legacy=True), random.getstate()
    assert output_shapes(measure_lengths(module, [Port((3,))]), "it") == ([(3,)], True)
    assert module.training
    assert module.norm.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert repr(np.random.get_state(legacy=True)) == repr(states[1])
    assert random.getstate() == states[2]


class Nonzero(nn.Module):
    """Cannot run on the meta device."""

    def forward(self, x):
        return x[:, : 1 + len(x.sum().nonzero())]


class OnTheHost(nn.Module):
    """Cannot run on fake tensors either."""

    def forward(self, x):
        return x[:, : int(x.sum().item() > 1e9) + 2]


@pytest.mark.parametrize(("module", "shape"), [(Nonzero(), (1,)), (OnTheHost(), (2,))])
def test_what_cannot_run_on_meta_is_measured_all_the_same(module, shape):
    assert output_shapes(measure_lengths(module, [Port((4,))]), "it") == ([shape], True)


def test_modules_on_meta_are_measured_where_they_are():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 3), OnTheHost())
    assert output_shapes(measure_lengths(module, [Port((4,))]), "it")[0] == [(2,)]
    assert module[0].weight.is_meta


def test_integers_are_measured_as_integers():
    module = nn.Embedding(5, 3)
    assert measure(module, [Port((2,), torch.int64, 5)]).shape == (11, 2, 3)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Identity(), (None, 4), (None, 4)),
        (nn.Conv1d(4, 2, 3), (4, None), (2, None)),
        (nn.AdaptiveAvgPool1d(6), (4, None), (4, 6)),
    ],
)
def test_what_depends_on_a_varying_length_varies(module, shape, expected):
    assert output_shapes(measure_lengths(module, [Port(shape)]), "it")[0] == [expected]


class Flat(nn.Module):
    def forward(self, x):
        return x.reshape(-1)


class Text(nn.Module):
    def forward(self, x):
        return "text"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Flat(),
            "it returned (44,) for a batch of 11; the first axis of the output must be the batch axis of the input",
        ),
        (Text(), "it returned a value of type str; a tensor is needed"),
    ],
)
def test_outputs_that_are_none_are_refused_in_words(module, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        output_shapes(measure_lengths(module, [Port((4,))]), "it")


class Squeezed(nn.Module):
    def forward(self, x):
        return x.squeeze()


class Crossed(nn.Module):
    def forward(self, x):
        return x @ x.T


class FirstRow(nn.Module):
    def forward(self, x):
        return x[0]


class NotAlone(nn.Module):
    """It says itself that it needs several rows."""

    def forward(self, x):
        assert len(x) > 1
        return x


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (
            Squeezed(),
            (4,),
            "it returned (4,) for a batch of 1; the first axis of the output must be the batch axis of the input, "
            "of a single sample too: squeeze(-1) keeps it, squeeze() does not",
        ),
        (
            Crossed(),
            (4,),
            "it returned (1, 1) for a batch of 1 and (11, 11) for a batch of 11; what it returns for a sample must not "
            "depend on the others",
        ),
        (
            FirstRow(),
            (11,),
            "it returned (11,) for a batch of 1; the first axis of the output must be the batch axis of the input, "
            "of a single sample too: squeeze(-1) keeps it, squeeze() does not",
        ),
    ],
)
def test_what_goes_wrong_for_one_sample_only_is_refused(module, shape, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        output_shapes(measure_lengths(module, [Port(shape)]), "it")


@pytest.mark.parametrize(
    "module",
    [
        NotAlone(),
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.Sequential(nn.Unflatten(1, (4, 1)), nn.GroupNorm(2, 4), nn.Flatten()),
    ],
)
def test_what_is_right_for_one_sample_or_says_itself_that_it_is_not_is_no_mistake(module):
    assert output_shapes(measure_lengths(module, [Port((4,))]), "it")[0] == [(4,)]


def test_advice_for_one_sample_can_be_followed():
    class Value(nn.Module):
        def forward(self, x):
            return x.sum(1, keepdim=True).squeeze(-1)

    assert output_shapes(measure_lengths(Value(), [Port((4,))]), "it")[0] == [()]


class Lazy(nn.Module):
    """Its layers learn their sizes from the first forward."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
        self.unused = None

    def forward(self, x):
        return self.net(x)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers_get_their_weights_by_being_measured(monkeypatch):
    """Where there is one thread, they are drawn from the states of the process; other tests may have left threads."""
    monkeypatch.setattr("perception_blocks.random_states.threading.active_count", lambda: 1)
    module, again = Lazy(), Lazy()
    torch.manual_seed(3)
    assert output_shapes(measure_lengths(module, [Port((4,))]), "it")[0] == [(2,)]
    assert type(module.net[0]) is nn.Linear
    assert module.net[0].weight.shape == (8, 4)
    assert all(inner.training for inner in module.modules())
    torch.manual_seed(3)
    again(torch.zeros(2, 4))
    for one, other in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_that_forward_does_not_reach_is_refused():
    module = Lazy()
    module.unused = nn.LazyLinear(3)
    message = "forward of Lazy does not reach 'unused.weight', 'unused.bias'; give its lazy layer its sizes"
    with pytest.raises(ValueError, match=re.escape(message)):
        measure(module, [Port((4,))])


def test_the_error_is_that_of_real_tensors():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        measure(nn.Linear(3, 2), [Port((4,))])


class Windowed(PerceptionBlock):
    """A user's block of two outputs, not declared."""

    def forward(self, x):
        return x.mean(-2), x


def test_a_block_that_declares_no_shapes_is_measured():
    assert Windowed([(None, 4)]).out_shapes == [(4,), (None, 4)]
