import copy
import math
import re
from typing import Any

import pytest
import torch

from perception_blocks.blocks.features import FourierFeaturesBlock, PositionalEncodingBlock


@pytest.mark.parametrize("include_input", [False, True])
def test_fourier_features_are_cosines_and_sines_of_projections(include_input):
    block: Any = FourierFeaturesBlock([(2,)], num_frequencies=3, include_input=include_input)
    x = torch.randn(5, 2)
    rows = []
    for values in x.tolist():
        angles = [
            2 * math.pi * sum(f * v for f, v in zip(frequency, values))
            for frequency in block.frequencies.tolist()
        ]
        rows.append([*values] * include_input + [*map(math.cos, angles), *map(math.sin, angles)])
    torch.testing.assert_close(block(x), torch.tensor(rows), atol=1e-5, rtol=1e-5)


def test_frequencies_have_the_given_scale_and_are_fixed_unless_learned():
    torch.manual_seed(0)
    fixed: Any = FourierFeaturesBlock([(10,)], num_frequencies=1000, scale=3.0)
    assert fixed.frequencies.std().sub(3.0).abs() < 0.1
    assert fixed.frequencies.mean().abs() < 0.1
    assert not list(fixed.parameters())
    assert "frequencies" in fixed.state_dict()
    learned: Any = FourierFeaturesBlock([(10,)], learned=True)
    assert [name for name, _ in learned.named_parameters()] == ["frequencies"]


def test_frequencies_come_from_the_generator_whether_learned_or_not():
    drawn = []
    for learned in (False, True):
        block = FourierFeaturesBlock([(3,)], learned=learned)
        block.reset_parameters(torch.Generator().manual_seed(1))
        drawn.append(block.frequencies.detach())
    assert torch.equal(*drawn)


def test_frequencies_of_a_block_built_on_the_meta_device_can_be_drawn_later():
    with torch.device("meta"):
        block = FourierFeaturesBlock([(3,)])
    other = FourierFeaturesBlock([(3,)])
    block.to_empty(device="cpu")
    for b in (block, other):
        b.reset_parameters(torch.Generator().manual_seed(1))
    assert torch.equal(block.frequencies, other.frequencies)


@pytest.mark.parametrize(("shape", "features"), [((6, 5), 5), ((None, 4), 4)])
def test_fixed_places_are_the_papers(shape, features):
    block: Any = PositionalEncodingBlock([shape])
    table = torch.zeros(6, features, dtype=torch.float64)
    for place in range(6):
        for i in range(features):
            angle = place / 10000 ** (2 * (i // 2) / features)
            table[place, i] = math.cos(angle) if i % 2 else math.sin(angle)
    x = torch.randn(3, 6, features)
    torch.testing.assert_close(block(x), x + table.float(), atol=1e-6, rtol=1e-6)
    assert not block.state_dict()


def test_fixed_places_survive_a_change_of_dtype():
    block: Any = PositionalEncodingBlock([(50, 8)])
    there_and_back = copy.deepcopy(block).bfloat16().float()
    assert torch.equal(there_and_back.places, block.places)


def test_learned_places_are_added_and_trained():
    block: Any = PositionalEncodingBlock([(None, 4)], learned=True, max_length=9)
    x = torch.randn(2, 6, 4)
    torch.testing.assert_close(block(x), x + block.places[:6])
    block(x).sum().backward()
    assert block.places.grad[:6].eq(2).all()
    known: Any = PositionalEncodingBlock([(6, 4)], learned=True)
    assert known.places.shape == (6, 4)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (
            (4,),
            {},
            "positional_encoding takes a sequence (time, features) of known features, got (4,)",
        ),
        (
            (4, None),
            {},
            "positional_encoding takes a sequence (time, features) of known features, got (4, ?)",
        ),
        (
            (None, 4),
            {"learned": True},
            "positional_encoding with learned places needs 'max_length' where the length varies",
        ),
        (
            (6, 4),
            {"learned": True, "max_length": 5},
            "'max_length' is 5, the sequence has 6 steps",
        ),
        (
            (6, 4),
            {"max_length": 9},
            "'max_length' is for learned places; set learned or leave it out",
        ),
    ],
)
def test_places_that_do_not_fit_are_refused_in_words(shape, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PositionalEncodingBlock([shape], **settings)


def test_fourier_features_take_a_vector():
    message = (
        "fourier_features takes one vector (features,), got (3, 4); put a flatten block before it"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        FourierFeaturesBlock([(3, 4)])
