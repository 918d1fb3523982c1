import pytest
import torch

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.elementwise import (
    AddBlock,
    CorrelationBlock,
    GatedSumBlock,
    MultiplyBlock,
)


@pytest.mark.parametrize(("block", "plain"), [(AddBlock, torch.add), (MultiplyBlock, torch.mul)])
def test_inputs_of_one_shape_are_combined_element_by_element(block, plain):
    x, y = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    torch.testing.assert_close(block([(3, 4), (3, 4)])(x, y), plain(x, y))


@pytest.mark.parametrize(("block", "plain"), [(AddBlock, torch.add), (MultiplyBlock, torch.mul)])
def test_broadcasting_never_touches_the_batch(block, plain):
    """A batch as large as a feature axis would hide the mistake."""
    x, y = torch.randn(3, 4), torch.randn(3, 3, 4)
    expected = torch.stack([plain(x[i], y[i, j]) for i in range(3) for j in range(3)])
    torch.testing.assert_close(block([(4,), (3, 4)])(x, y), expected.reshape(3, 3, 4))
    scalar = torch.randn(3)
    expected = torch.stack([plain(scalar[i], x[i]) for i in range(3)])
    torch.testing.assert_close(block([(), (4,)])(scalar, x), expected)


def test_more_than_two_inputs_are_added():
    inputs = [torch.randn(5, 4) for _ in range(3)]
    torch.testing.assert_close(AddBlock([(4,)] * 3)(*inputs), sum(inputs))


@pytest.mark.parametrize(
    ("shapes", "shape"),
    [
        ([(3, 1), (4,)], (3, 4)),
        ([(), (2, 3)], (2, 3)),
        ([(None, 4), (4,)], (None, 4)),
        ([(None, 1), (None, 4), (1, 4)], (None, 4)),
    ],
)
def test_the_output_has_the_shape_that_all_broadcast_to(shapes, shape):
    assert AddBlock(shapes).out_shapes == [shape]


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_gated_sum_is_what_a_loop_over_features_gives(gate):
    block = GatedSumBlock([(4,), (3, 4)], gate=gate)
    x, y = torch.randn(4), torch.randn(3, 4)
    expected = torch.zeros(3, 4)
    for row in range(3):
        scores = block.gates.weight @ torch.cat([x, y[row]]) + block.gates.bias
        for i in range(4):
            pair = torch.stack([scores[i], scores[4 + i]])
            open_ = torch.sigmoid(pair) if gate == "sigmoid" else torch.softmax(pair, 0)
            expected[row, i] = open_[0] * x[i] + open_[1] * y[row, i]
    torch.testing.assert_close(block(x, y), expected)


@pytest.mark.parametrize(("reduce", "letters"), [(False, "bnf,bf->bnf"), (True, "bnf,bf->bn")])
def test_correlation_is_a_product_over_the_last_axis(reduce, letters):
    x, y = torch.randn(5, 3, 4), torch.randn(5, 4)
    block = CorrelationBlock([(3, 4), (4,)], reduce=reduce)
    torch.testing.assert_close(block(x, y), torch.einsum(letters, x, y))


@pytest.mark.parametrize(
    ("block", "shapes", "message"),
    [
        (AddBlock, [(3,), (4,)], "add needs equal or broadcastable shapes, got (3,) and (4,)"),
        (
            MultiplyBlock,
            [(1, 4), (3, 4), (2, 4)],
            "multiply needs equal or broadcastable shapes, got (3, 4) and (2, 4)",
        ),
        (
            AddBlock,
            [(None, 4), (3, 4)],
            "add needs equal or broadcastable shapes, got (?, 4) and (3, 4)",
        ),
        (AddBlock, [], "add takes one input or more"),
        (GatedSumBlock, [()], "gated_sum needs to know how many features it adds, got ()"),
        (
            GatedSumBlock,
            [(3, None)],
            "gated_sum needs to know how many features it adds, got (3, ?)",
        ),
        (CorrelationBlock, [(3,)], "correlation takes two inputs, got (3,)"),
        (
            CorrelationBlock,
            [(3,), (3, 1)],
            "correlation takes two inputs whose last axes have the same size, got (3,) and (3, 1)",
        ),
        (
            CorrelationBlock,
            [(), ()],
            "correlation takes two inputs whose last axes have the same size, got () and ()",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(block, shapes, message):
    with pytest.raises(InputShapeError) as caught:
        block(shapes)
    assert str(caught.value) == message


def test_an_unknown_gate_is_refused():
    with pytest.raises(ValueError, match="'gate' must be one of 'sigmoid', 'softmax', got 'tanh'"):
        GatedSumBlock([(3,)], gate="tanh")  # type: ignore[arg-type]
