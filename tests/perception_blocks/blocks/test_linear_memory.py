import math
import re
from typing import Any

import pytest
import torch

from perception_blocks.blocks.linear_memory import LruBlock, MinGruBlock, complex_scan, real_scan
from perception_blocks.init import orthogonal


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13, 100])
def test_the_parallel_scan_is_the_loop(steps):
    a, b, start = torch.rand(5, steps, 3), torch.randn(5, steps, 3), torch.randn(5, 3)
    a[torch.rand(5, steps) < 0.1] = 0.0
    h, expected = start, []
    for t in range(steps):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    torch.testing.assert_close(real_scan(a, b, start), torch.stack(expected, dim=1))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13, 100])
def test_the_parallel_scan_of_complex_numbers_is_the_loop(steps):
    a = torch.polar(torch.rand(5, steps, 3), torch.randn(5, steps, 3))
    b = torch.randn(5, steps, 3, dtype=torch.complex64)
    start = torch.randn(5, 3, dtype=torch.complex64)
    h, expected = start, []
    for t in range(steps):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    pairs = ((value.real, value.imag) for value in (a, b, start))
    real, imag = complex_scan(*pairs)
    torch.testing.assert_close(torch.complex(real, imag), torch.stack(expected, dim=1))


def test_long_memory_neither_overflows_nor_vanishes():
    a, b = torch.full((2, 1000, 1), 0.5), torch.ones(2, 1000, 1)
    h = real_scan(a, b, torch.zeros(2, 1))
    torch.testing.assert_close(h[:, -1], torch.full((2, 1), 2.0))
    forever = real_scan(torch.ones(1, 1000, 1), torch.zeros(1, 1000, 1), torch.ones(1, 1))
    assert (forever == 1).all()


@pytest.mark.parametrize("positive", [False, True])
def test_min_gru_is_the_papers_recurrence(positive):
    block: Any = MinGruBlock([(3,)], hidden_units=4, num_layers=2, positive=positive)
    x, state = torch.randn(7, 3), torch.rand(2, 4)
    output, end = block.unroll(x, {"h": state})
    h = list(state)
    for t in range(7):
        read = x[t]
        for index, layer in enumerate(block.layers):
            gate, candidate = layer.weight.split(4)
            z = torch.sigmoid(gate @ read + layer.bias[:4])
            c = candidate @ read + layer.bias[4:]
            if positive:
                c = torch.where(c >= 0, c + 0.5, torch.sigmoid(c))
            h[index] = (1 - z) * h[index] + z * c
            read = h[index]
        torch.testing.assert_close(output[t], read)
    torch.testing.assert_close(end["h"], torch.stack(h))
    assert not positive or (output > 0).all()


def test_min_gru_dropout_acts_between_layers():
    block = MinGruBlock([(3,)], hidden_units=4, num_layers=2, dropout=1.0).train()
    x, state = torch.randn(5, 7, 3), block.initial_state(5)
    torch.testing.assert_close(block.unroll(x, state)[0], block.unroll(x + 1, state)[0])


def test_min_gru_normalises_each_layers_output():
    block = MinGruBlock([(3,)], hidden_units=4, layer_norm=True)
    output = block(torch.randn(50, 3) * 10)
    torch.testing.assert_close(output.mean(-1), torch.zeros(50), atol=1e-5, rtol=0)


def test_an_initialiser_draws_gate_and_candidate_each_by_itself():
    block: Any = MinGruBlock([(4,)], hidden_units=4)
    block.initializer = orthogonal
    block.reset_parameters(torch.Generator().manual_seed(0))
    for matrix in block.layers[0].weight.chunk(2):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4))


def test_lru_is_the_papers_recurrence_in_complex_numbers():
    block: Any = LruBlock([(3,)], hidden_units=4, state_units=6)
    decay = torch.exp(-torch.exp(block.log_decay))
    a = torch.polar(decay, torch.exp(block.log_phase))
    b = torch.complex(*block.inward.weight.chunk(2))
    c_real, c_imag = block.outward.weight.chunk(2, dim=1)
    c = torch.complex(c_real, -c_imag)
    x, state = torch.randn(7, 3), torch.randn(2, 6)
    output, end = block.unroll(x, {"real": state[0], "imag": state[1]})
    h = torch.complex(state[0], state[1])
    for t in range(7):
        h = a * h + torch.exp(block.log_gain) * (b @ torch.complex(x[t], torch.zeros(3)))
        y = (c @ h).real + block.skip(x[t])
        torch.testing.assert_close(output[t], y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.complex(end["real"], end["imag"]), h, atol=1e-5, rtol=1e-5)


def test_lru_starts_in_its_ring_with_a_gain_that_keeps_the_state_in_size():
    block = LruBlock(
        [(3,)], hidden_units=2, state_units=2000, min_radius=0.5, max_radius=0.9, max_phase=0.3
    )
    radius, phase = torch.exp(-torch.exp(block.log_decay)), torch.exp(block.log_phase)
    assert 0.499 < radius.min() < 0.51
    assert 0.89 < radius.max() < 0.901
    assert phase.max() < 0.301
    torch.testing.assert_close(radius.square().mean(), torch.tensor(0.53), atol=0.01, rtol=0)
    expected = torch.sqrt(1 - radius.square())
    torch.testing.assert_close(torch.exp(block.log_gain), expected)


def test_lru_weights_are_finite_at_the_edges_of_the_ring():
    block = LruBlock([(3,)], hidden_units=2, state_units=5000)
    for name, parameter in block.named_parameters():
        assert torch.isfinite(parameter).all(), name


@pytest.mark.parametrize(
    ("block", "shape", "settings", "message"),
    [
        (
            MinGruBlock,
            (5, 3),
            {},
            "min_gru takes one vector (features,), got (5, 3); put a flatten block before it",
        ),
        (
            MinGruBlock,
            (3,),
            {"dropout": 0.1},
            "'dropout' acts between layers, of which min_gru has one; raise num_layers or leave it out",
        ),
        (
            LruBlock,
            (5, 3),
            {},
            "lru takes one vector (features,), got (5, 3); put a flatten block before it",
        ),
        (
            LruBlock,
            (3,),
            {"min_radius": 0.9, "max_radius": 0.5},
            "'min_radius' is 0.9, above 'max_radius' 0.5",
        ),
        (
            LruBlock,
            (3,),
            {"max_phase": 7},
            f"'max_phase' must be a number between 0 and {2 * math.pi:g}, got 7",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(block, shape, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        block([shape], hidden_units=4, **settings)
