import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.residual_dense import ResidualDenseBlock


def scrambled(block):
    """Norms with weights that matter."""
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).add(1e-5).sqrt()
    return centred / spread * layer.weight + layer.bias


def test_simba_normalises_what_a_pair_reads_and_the_sum_of_all():
    block: Any = scrambled(ResidualDenseBlock([(3,)], hidden_units=4, num_blocks=3))
    x = torch.randn(5, 3)
    h = block.stem(x)
    for pair in block.pairs:
        h = h + pair.narrow(torch.relu(pair.wide(norm(h, pair.norm))))
    assert block.last_norm is not None
    torch.testing.assert_close(block(x), norm(h, block.last_norm))
    assert block.pairs[0].wide.out_features == 16


def test_bronet_normalises_each_layer():
    block: Any = scrambled(
        ResidualDenseBlock([(3,)], hidden_units=4, form="bronet", activation="elu")
    )
    x = torch.randn(5, 3)
    h = functional.elu(norm(block.stem(x), block.stem_norm))
    for pair in block.pairs:
        inner = functional.elu(norm(pair.wide(h), pair.wide_norm))
        h = h + norm(pair.narrow(inner), pair.narrow_norm)
    torch.testing.assert_close(block(x), h)
    assert block.pairs[0].wide.out_features == 4


@pytest.mark.parametrize("form", ["simba", "bronet"])
def test_expansion_is_the_width_inside_of_a_pair(form):
    block: Any = ResidualDenseBlock([(3,)], hidden_units=4, form=form, expansion=2, num_blocks=1)
    assert len(block.pairs) == 1
    assert block.pairs[0].wide.out_features == 8


def test_a_shape_that_does_not_fit_is_refused_in_words():
    message = (
        "residual_dense takes one vector (features,), got (3, 8); put a flatten block before it"
    )
    with pytest.raises(InputShapeError, match=re.escape(message)):
        ResidualDenseBlock([(3, 8)], hidden_units=4)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'form' must be one of 'simba', 'bronet', got 'simb'"):
        ResidualDenseBlock([(3,)], hidden_units=4, form="simb")  # type: ignore[arg-type]
