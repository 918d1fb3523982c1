import itertools
import re
from typing import Any

import pytest
import torch
from torch import nn

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.recurrent import GruBlock, LstmBlock, LstmLastStepBlock, RnnBlock
from perception_blocks.init import orthogonal

KINDS = [(LstmBlock, nn.LSTM), (GruBlock, nn.GRU), (RnnBlock, nn.RNN)]


def torch_twin(block, kind, features, **settings):
    """Torch's own module with the weights of ``block``."""
    layers = len(block.layers)
    twin = kind(features, block.hidden_units, num_layers=layers, batch_first=True, **settings)
    state = {}
    for index, layer in enumerate(block.layers):
        for name, tensor in layer.state_dict().items():
            state[name.replace("_l0", f"_l{index}")] = tensor
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_unroll_is_torchs_module(ours, theirs):
    block = ours([(3,)], hidden_units=4, num_layers=2)
    twin = torch_twin(block, theirs, 3)
    x = torch.randn(5, 7, 3)
    state = {name: torch.randn(5, *shape) for name, shape in block.state_shapes.items()}
    start = tuple(s.transpose(0, 1).contiguous() for s in state.values())
    expected, ends = twin(x, start if len(start) == 2 else start[0])
    output, end = block.unroll(x, state)
    torch.testing.assert_close(output, expected)
    for ours_end, theirs_end in zip(end.values(), ends if len(start) == 2 else [ends]):
        torch.testing.assert_close(ours_end, theirs_end.transpose(0, 1))


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_window_is_read_from_zero(ours, theirs, bidirectional):
    block = ours([(7, 3)], hidden_units=4, num_layers=2, bidirectional=bidirectional)
    twin = torch_twin(block, theirs, 3, bidirectional=bidirectional)
    x = torch.randn(5, 7, 3)
    torch.testing.assert_close(block(x), twin(x)[0])
    assert block.state_shapes == {}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_step_is_the_final_state_of_each_direction(bidirectional):
    block = LstmLastStepBlock([(7, 3)], hidden_units=4, num_layers=2, bidirectional=bidirectional)
    twin = torch_twin(block, nn.LSTM, 3, bidirectional=bidirectional)
    x = torch.randn(5, 7, 3)
    _, (h, _) = twin(x)
    last = [h[-2], h[-1]] if bidirectional else [h[-1]]
    torch.testing.assert_close(block(x), torch.cat(last, dim=-1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_rnn_takes_another_nonlinearity(bidirectional):
    block = RnnBlock([(7, 3)], hidden_units=4, nonlinearity="relu", bidirectional=bidirectional)
    twin = torch_twin(block, nn.RNN, 3, nonlinearity="relu", bidirectional=bidirectional)
    x = torch.randn(5, 7, 3)
    torch.testing.assert_close(block(x), twin(x)[0])


def test_a_window_of_any_length_where_the_shape_leaves_it_open():
    block = GruBlock([(None, 3)], hidden_units=4)
    assert block.out_shapes == [(None, 4)]
    assert block(torch.randn(2, 9, 3)).shape == (2, 9, 4)


@pytest.mark.parametrize("kind", [LstmBlock, GruBlock, RnnBlock])
def test_dropout_acts_between_layers_in_both_ways_of_running(kind):
    block = kind([(3,)], hidden_units=4, num_layers=2, dropout=1.0).train()
    x, state = torch.randn(5, 7, 3), block.initial_state(5)
    for run in (block.unroll, lambda x, s: block.step(x[:, 0], s)):
        first, _ = run(x, state)
        second, _ = run(x + 1, state)
        torch.testing.assert_close(first, second)  # all that the second layer read was dropped
    block.eval()
    assert not torch.allclose(block.unroll(x, state)[0], block.unroll(x + 1, state)[0])


def test_layer_norm_acts_on_each_layers_output():
    block: Any = LstmBlock([(3,)], hidden_units=4, num_layers=2, layer_norm=True)
    output = block(torch.randn(50, 3))
    torch.testing.assert_close(output.mean(-1), torch.zeros(50), atol=1e-5, rtol=0)
    assert len(block.norms) == 2


@pytest.mark.parametrize("leading", list(itertools.product([(), (2,)], [0, 1, 3])))
def test_states_have_the_declared_shapes(leading):
    block = LstmBlock([(3,)], hidden_units=4, num_layers=2)
    sizes = (*leading[0], leading[1])
    x, state = torch.randn(*sizes, 3), block.initial_state(*sizes)
    assert {n: tuple(s.shape) for n, s in state.items()} == {
        "h": (*sizes, 2, 4),
        "c": (*sizes, 2, 4),
    }
    _, end = block.step(x, state)
    assert {n: s.shape for n, s in end.items()} == {n: s.shape for n, s in state.items()}


def test_running_does_not_change_the_given_state():
    block = LstmBlock([(3,)], hidden_units=4)
    state = {name: torch.ones(5, 1, 4) for name in block.state_shapes}
    block.unroll(torch.randn(5, 7, 3), state, torch.rand(5, 7) < 0.5)
    assert all(torch.equal(s, torch.ones(5, 1, 4)) for s in state.values())


def test_an_initialiser_draws_each_gate_by_itself():
    block: Any = GruBlock([(4,)], hidden_units=4)
    block.initializer = orthogonal
    block.reset_parameters(torch.Generator().manual_seed(0))
    for gate in block.layers[0].weight_hh_l0.chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(4))
    assert not block.layers[0].bias_hh_l0.any()


@pytest.mark.parametrize(
    ("block", "shape", "settings", "message"),
    [
        (
            LstmBlock,
            (3, 8, 8),
            {},
            "lstm takes one step (features,) or a window (time, features), got (3, 8, 8); "
            "put a flatten block before it",
        ),
        (GruBlock, (5, None), {}, "gru needs to know how many features it reads, got (5, ?)"),
        (GruBlock, (0, 3), {}, "gru needs at least one step, got (0, 3)"),
        (
            LstmBlock,
            (3,),
            {"bidirectional": True},
            "lstm cannot be bidirectional step by step, got (3,); "
            "give it a window (time, features), or leave bidirectional out",
        ),
        (
            LstmLastStepBlock,
            (3,),
            {},
            "lstm_last_step takes a window (time, features), got (3,); an lstm block takes one step at a time",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(block, shape, settings, message):
    with pytest.raises(InputShapeError) as caught:
        block([shape], hidden_units=4, **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_units": 4, "dropout": 0.1},
            "'dropout' acts between layers, of which lstm has one; raise num_layers or leave it out",
        ),
        ({"hidden_units": [4]}, "'hidden_units' must be a positive integer, got [4]"),
        ({"hidden_size": 4}, "'hidden_size' is not a setting of block 'lstm'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LstmBlock([(3,)], **settings)


@pytest.mark.parametrize("kind", [LstmBlock, GruBlock, RnnBlock])
def test_an_ensemble_runs_as_one_vmapped_call(kind):
    members = [kind([(3,)], hidden_units=4) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    x, resets = torch.randn(5, 7, 3), torch.rand(5, 7) < 0.4
    state = members[0].initial_state(5)

    def run(parameters, buffers):
        args = (x, state, resets)
        output, _ = torch.func.functional_call(
            members[0], (parameters, buffers), args, {"unroll": True}
        )
        return output

    together = torch.func.vmap(run)(parameters, buffers)
    for member, output in zip(members, together):
        torch.testing.assert_close(output, member.unroll(x, state, resets)[0])
