import copy
import pickle
import re

import pytest
import torch
from torch import nn

from perception_blocks.base_block import (
    InputShapeError,
    MemoryBlock,
    PerceptionBlock,
    block_label,
    block_name,
)
from perception_blocks.blocks.dense import DenseBlock
from perception_blocks.port import Port, as_port, format_shape
from perception_blocks.settings import PositiveInt


class Double(PerceptionBlock):
    """A user's block that declares nothing."""

    def __init__(self, in_shapes, *, times: PositiveInt = 2):
        super().__init__(in_shapes)
        self.times = times

    def forward(self, x_F):
        return torch.cat([x_F] * self.times, dim=-1)


class Total(MemoryBlock):
    """A user's block with memory: the sum of all it has read."""

    def __init__(self, in_shapes):
        super().__init__(in_shapes, out_shapes=in_shapes)
        self.state_shapes = {"sum": in_shapes[0]}

    def advance(self, x, state):
        total = state["sum"] + x
        return total, {"sum": total}


def test_a_users_block_is_measured_once_and_keeps_its_shapes():
    block = Double([(3,)])
    assert block.out_shapes == [(6,)]
    assert block.out_shapes is block.out_shapes
    assert pickle.loads(pickle.dumps(block)).out_shapes == [(6,)]


def test_a_users_settings_are_checked_against_their_annotations():
    with pytest.raises(ValueError, match="'times' must be a positive integer, got 0"):
        Double([(3,)], times=0)
    with pytest.raises(ValueError, match="'time' is not a setting of block 'Double'"):
        Double([(3,)], **{"time": 2})


def test_shapes_given_by_name_are_checked_too():
    with pytest.raises(ValueError, match="block 'dense' needs the setting 'hidden_units'"):
        DenseBlock(in_shapes=[(3,)], **{})


def test_ports_may_stand_for_shapes():
    assert Double([Port((3,))]).in_shapes == [(3,)]


def test_names_in_messages():
    assert block_name(DenseBlock) == "dense"
    assert block_label(Double([(3,)])) == "block 'Double'"
    assert block_label(nn.ReLU()) == "block 'torch.nn.ReLU'"


class Fixed(PerceptionBlock):
    """Has a constant that no checkpoint holds."""

    steps: torch.Tensor

    def __init__(self, in_shapes):
        super().__init__(in_shapes, out_shapes=in_shapes)
        self.register_buffer("steps", torch.zeros(3), persistent=False)
        self.fill_constants()

    def fill_constants(self):
        self.steps.copy_(torch.tensor([1.0, 2.0, 3.0], device="cpu"))

    def forward(self, x):
        return x * self.steps


def test_constants_survive_the_meta_device():
    with torch.device("meta"):
        network = nn.Sequential(Fixed([(3,)]))
    network.to_empty(device="cpu")
    assert network(torch.ones(3)).tolist() == [1.0, 2.0, 3.0]
    assert network.bfloat16()(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("leading", [(), (2,), (5, 2), (0, 2)])
def test_memory_of_a_users_block_unrolls_and_resets(leading):
    block = Total([(3,)])
    x = torch.randn(*leading, 6, 3)
    resets = torch.rand(*leading, 6) < 0.4
    state = block.initial_state(*leading)
    output, end = block.unroll(x, state, resets)
    total = torch.zeros(*leading, 3)
    for t in range(6):
        total = total.masked_fill(resets[..., t, None], 0.0) + x[..., t, :]
        torch.testing.assert_close(output[..., t, :], total)
    torch.testing.assert_close(end["sum"], total)


def test_memory_copies_and_its_zero_state_follows_the_input():
    block = copy.deepcopy(Total([(3,)]))
    zero = block.zero_state(torch.ones(5, 3, dtype=torch.float64))
    assert (zero["sum"].shape, zero["sum"].dtype) == ((5, 3), torch.float64)


def test_a_memory_block_must_say_how_it_advances():
    class Empty(MemoryBlock): ...

    with pytest.raises(TypeError, match=re.escape("Empty must define advance(x, state)")):
        Empty([(3,)], out_shapes=[(3,)])(torch.ones(3))


def test_an_input_shape_error_pickles_and_keeps_names_whole():
    error = InputShapeError("it takes one", {0: (3,), 2: (None,)}, "drop {2}")
    assert str(error) == "it takes one, got (3,) and (?,); drop input 3"
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    names = ["{0}", "b", "a'b"]
    assert again.render(names) == (
        "gets (3,) from '{0}' and (?,) from \"a'b\"; it takes one. Drop \"a'b\"."
    )


def test_ports_print_what_matters():
    assert str(Port((3, None))) == "(3, ?)"
    assert str(Port((), torch.int64, 5)) == "integers ()"
    assert str(Port((4,), torch.uint8)) == "uint8 (4,)"
    assert format_shape(()) == "()"
    assert as_port([3, 4]) == Port((3, 4))
