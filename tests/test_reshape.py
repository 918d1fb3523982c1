import pytest
import torch

from perception_blocks.block import InputShapeError
from perception_blocks.port import Port
from perception_blocks.reshape import FlattenBlock


@pytest.mark.parametrize(
    ("shape", "num_dims", "out_shape"),
    [
        ((2, 3, 4), None, (24,)),
        ((2, 3, 4), 2, (2, 12)),
        ((2, 3, 4), 1, (2, 3, 4)),
        ((), None, (1,)),
        ((2, None, 4), 2, (2, None)),
        ((None, 3, 4), 2, (None, 12)),
    ],
)
def test_flatten_joins_axes_from_the_right(shape, num_dims, out_shape):
    assert FlattenBlock([shape], num_dims=num_dims).out_shapes == [out_shape]


def test_leading_axes_stay():
    x = torch.randn(5, 6, 2, 3, 4)
    assert torch.equal(FlattenBlock([(2, 3, 4)])(x), x.reshape(5, 6, 24))


def test_more_axes_than_there_are_is_refused_in_words():
    with pytest.raises(InputShapeError) as caught:
        FlattenBlock([(3, 4)], num_dims=3)
    assert str(caught.value) == (
        "flatten with num_dims=3 needs 3 axes or more, got (3, 4); lower num_dims or leave it out"
    )


def test_kind_and_bounds_are_passed_on():
    block = FlattenBlock([(2, 2)])
    counts = Port((2, 2), torch.int64, (2, 3, 4, 5))
    assert block.out_ports([counts]) == [Port((4,), torch.int64, (2, 3, 4, 5))]
    bounded = Port((2, 2), torch.uint8, low=((0, 0), (0, 1)), high=255)
    (port,) = block.out_ports([bounded])
    assert (port.dtype, port.low, port.high) == (torch.uint8, (0.0, 0.0, 0.0, 1.0), 255)
