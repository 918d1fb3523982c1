import pytest
import torch

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.combine import ConcatBlock
from perception_blocks.port import Port


def test_concat_joins_along_a_feature_axis():
    block = ConcatBlock([(2, 3), (4, 3)], dim=-2)
    x, y = torch.randn(5, 2, 3), torch.randn(5, 4, 3)
    torch.testing.assert_close(block(x, y), torch.cat([x, y], dim=1))


def test_varying_axes_are_passed_on():
    assert ConcatBlock([(None, 3), (None, 4)]).out_shapes == [(None, 7)]
    assert ConcatBlock([(None, 3), (2, 3)], dim=-2).out_shapes == [(None, 3)]


@pytest.mark.parametrize(
    ("shapes", "dim", "message", "rendered"),
    [
        (
            [(16,), (8, 4, 4)],
            -1,
            "concat needs equal shapes but for the last axis, got (16,) and (8, 4, 4); "
            "add a flatten block after input 2",
            "gets (16,) from 'a' and (8, 4, 4) from 'b'; concat needs equal shapes but for the last axis. "
            "Add a flatten block after 'b'.",
        ),
        (
            [(2, 3), (4, 3)],
            -1,
            "concat needs equal shapes but for the last axis, got (2, 3) and (4, 3); "
            "add a flatten block after input 1 and input 2",
            "gets (2, 3) from 'a' and (4, 3) from 'b'; concat needs equal shapes but for the last axis. "
            "Add a flatten block after 'a' and 'b'.",
        ),
        (
            [(2, 3), (2, 3), (2, 4)],
            -2,
            "concat needs equal shapes but for axis -2, got (2, 3) and (2, 4)",
            "gets (2, 3) from 'a' and (2, 4) from 'c'; concat needs equal shapes but for axis -2.",
        ),
        (
            [(3,), ()],
            -1,
            "concat along dim -1 needs one axis or more, got (); "
            "put a flatten block (numbers) or a one_hot block (integers) after input 2",
            "gets () from 'b'; concat along dim -1 needs one axis or more. "
            "Put a flatten block (numbers) or a one_hot block (integers) after 'b'.",
        ),
        (
            [(None, 3), (2, 3)],
            -1,
            "concat needs equal shapes but for the last axis, got (?, 3) and (2, 3)",
            "gets (?, 3) from 'a' and (2, 3) from 'b'; concat needs equal shapes but for the last axis.",
        ),
        (
            [],
            -1,
            "concat takes one input or more",
            "gets no input; concat takes one input or more.",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(shapes, dim, message, rendered):
    with pytest.raises(InputShapeError) as caught:
        ConcatBlock(shapes, dim=dim)
    assert str(caught.value) == message
    assert caught.value.render(["a", "b", "c"]) == rendered


def test_a_positive_dim_is_refused():
    with pytest.raises(ValueError, match="'dim' must be a negative integer, got 0"):
        ConcatBlock([(3,)], dim=0)


def test_integers_and_numbers_do_not_mix():
    ports = [Port((3,)), Port((2,), torch.int64, 5)]
    with pytest.raises(InputShapeError) as caught:
        ConcatBlock.check_ports(ports)
    assert str(caught.value) == (
        "concat takes either numbers or integers, got (3,) and integers (2,); "
        "put a one_hot or embedding block after input 2"
    )


@pytest.mark.parametrize(
    ("counts", "joined"),
    [((5, 5), 5), ((5, (3, 4)), (5, 5, 3, 4)), ((5, None), None)],
)
def test_integers_keep_their_numbers_of_values(counts, joined):
    ports = [Port((2,), torch.int64, count) for count in counts]
    (port,) = ConcatBlock([p.shape for p in ports]).out_ports(ports)
    assert port.is_integer
    assert port.cardinality == joined


def test_what_holds_an_unscaled_part_is_unscaled():
    ports = [Port((2,)), Port((2,), torch.uint8)]
    (port,) = ConcatBlock([p.shape for p in ports]).out_ports(ports)
    assert port.dtype == torch.uint8
