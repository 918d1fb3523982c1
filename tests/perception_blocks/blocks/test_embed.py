import re

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn import functional

import composer
from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.embed import EmbeddingBlock, OneHotBlock
from perception_blocks.port import Port


def test_one_hot_adds_an_axis():
    x = torch.randint(5, (7, 2, 3))
    block = OneHotBlock([(2, 3)], num_embeddings=5)
    assert block.out_shapes == [(2, 3, 5)]
    torch.testing.assert_close(block(x), functional.one_hot(x, 5).float())


def test_one_hot_of_several_ranges_stands_side_by_side():
    block = OneHotBlock([(2, 2)], num_embeddings=(3, 2, 1, 4))
    x = torch.tensor([[2, 0], [0, 3]])
    assert block.out_shapes == [(10,)]
    assert block(x).tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 0, 1]


def test_one_hot_out_of_range_is_all_zero():
    assert not OneHotBlock([()], num_embeddings=3)(torch.tensor([3, -1])).any()


def test_embeddings_of_several_ranges_share_no_vector():
    block = EmbeddingBlock([(2,)], num_embeddings=(3, 2), embedding_dim=4)
    rows = block(torch.tensor([[0, 0], [1, 1], [2, 1]]))
    torch.testing.assert_close(rows[:, 0], block.table.weight[:3])
    torch.testing.assert_close(rows[:2, 1], block.table.weight[3:])


def test_nothing_but_the_table_is_saved():
    assert list(EmbeddingBlock([(2,)], num_embeddings=(3, 2), embedding_dim=4).state_dict()) == [
        "table.weight"
    ]
    assert not OneHotBlock([(2,)], num_embeddings=(3, 2)).state_dict()


@pytest.mark.parametrize("counts", [(3,), (3, 2, 2)])
def test_as_many_ranges_as_elements(counts):
    with pytest.raises(InputShapeError) as caught:
        OneHotBlock([(2,)], num_embeddings=counts)
    assert str(caught.value) == (
        f"one_hot has {len(counts)} num_embeddings, one for each integer it reads, got (2,); "
        "give as many, or one number for all"
    )


def test_without_a_number_of_values_it_is_asked_for():
    message = "block 'embedding' needs the setting 'num_embeddings'"
    with pytest.raises(ValueError, match=message):
        EmbeddingBlock([()], **{"embedding_dim": 4})


def test_numbers_are_refused_in_words():
    with pytest.raises(InputShapeError) as caught:
        OneHotBlock.check_ports([Port((4,))])
    assert str(caught.value) == (
        "one_hot takes integers that stand for choices, got (4,); numbers, also the integers of a Box, "
        "go straight into a dense block; choices come from a Discrete or MultiDiscrete space"
    )


def test_a_box_of_integers_holds_numbers():
    spec = """
    version: 1
    policy:
      graph: {vectors: {block: embedding, in: observation, num_embeddings: 9, embedding_dim: 2}}
      heads: {in: vectors}
    """
    spaces = {"observation_space": Box(0, 8, (3,), np.int64), "action_space": Discrete(2)}
    message = (
        "block 'vectors' gets (3,) from 'observation'; embedding takes integers that stand for choices. "
        "Numbers, also the integers of a Box, go straight into a dense block; choices come from a "
        "Discrete or MultiDiscrete space."
    )
    with pytest.raises(composer.SpecError, match=re.escape(message)):
        composer.compose(spec, **spaces)
