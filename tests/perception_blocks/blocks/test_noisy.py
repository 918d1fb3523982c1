from typing import Any

import pytest
import torch

from perception_blocks.blocks.noisy import NoisyDenseBlock, NoisyLinear
from perception_blocks.init import orthogonal


def test_eval_mode_has_no_noise_and_moves_no_random_state():
    block: Any = NoisyDenseBlock([(3,)], hidden_units=[8, 4], last_activation="identity").eval()
    x, before = torch.randn(5, 3), torch.random.get_rng_state()
    expected = block.linears[1].mean(torch.relu(block.linears[0].mean(x)))
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(before, torch.random.get_rng_state())


def test_each_forward_draws_fresh_noise_that_a_seed_reproduces():
    block: Any = NoisyDenseBlock([(3,)], hidden_units=4).train()
    x = torch.randn(5, 3)
    torch.manual_seed(7)
    first, second = block(x), block(x)
    assert not torch.allclose(first, second)
    torch.manual_seed(7)
    assert torch.equal(block(x), first)
    assert torch.equal(block(x), second)


def test_the_noise_is_the_same_for_the_whole_batch():
    block: Any = NoisyDenseBlock([(3,)], hidden_units=4).train()
    x = torch.randn(3).expand(6, 2, 3)
    output = block(x)
    torch.testing.assert_close(output, output[0, 0].expand(6, 2, 4))


def test_the_noise_is_a_product_of_one_number_per_input_and_one_per_output():
    layer: Any = NoisyLinear(6, 5, True, 0.5).train()
    for tensor in layer.mean.parameters():
        torch.nn.init.zeros_(tensor)
    torch.nn.init.ones_(layer.weight_sigma)
    torch.nn.init.ones_(layer.bias_sigma)
    torch.manual_seed(3)
    bias = layer(torch.zeros(6))
    torch.manual_seed(3)
    noise = layer(torch.eye(6)) - bias  # (inputs, outputs)
    assert torch.linalg.matrix_rank(noise, atol=1e-4) == 1
    torch.testing.assert_close(noise / bias, (noise / bias)[:, :1].expand(6, 5))


def test_the_noise_has_the_moments_of_the_paper():
    """f(e) = sign(e) sqrt|e| has mean 0 and variance E|e| = sqrt(2 / pi); a weight's noise has its square."""
    layer: Any = NoisyLinear(4, 4, True, 0.5).train()
    for tensor in layer.mean.parameters():
        torch.nn.init.zeros_(tensor)
    torch.nn.init.ones_(layer.weight_sigma)
    torch.nn.init.ones_(layer.bias_sigma)
    torch.manual_seed(0)
    zero, one = torch.zeros(4), torch.tensor([1.0, 0, 0, 0])
    with torch.no_grad():
        biases = torch.stack([layer(zero) for _ in range(5000)])
        outputs = torch.stack([layer(one) for _ in range(5000)])  # weight noise plus bias noise
    assert biases.mean().abs() < 0.02
    assert biases.var().sub((2 / torch.pi) ** 0.5).abs() < 0.03
    # var(o * (i + 1)) with independent i, o of mean 0
    assert outputs.var().sub((2 / torch.pi) ** 0.5 * (1 + (2 / torch.pi) ** 0.5)).abs() < 0.06


def test_sigma_starts_at_its_share_of_the_root_of_the_inputs():
    block: Any = NoisyDenseBlock([(16,)], hidden_units=4, sigma=0.4)
    for name in ("weight_sigma", "bias_sigma"):
        tensor = getattr(block.linears[0], name)
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.1))


def test_an_initialiser_draws_the_means_and_leaves_the_noise():
    block: Any = NoisyDenseBlock([(4,)], hidden_units=4)
    block.initializer = orthogonal
    block.reset_parameters(torch.Generator().manual_seed(0))
    weight = block.linears[0].mean.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4))
    assert (block.linears[0].weight_sigma == 0.25).all()


def test_gradients_reach_the_noise():
    block: Any = NoisyDenseBlock([(3,)], hidden_units=4, activation="tanh").train()
    block(torch.randn(5, 3)).sum().backward()
    assert block.linears[0].weight_sigma.grad.abs().sum() > 0


def test_sigma_must_be_positive():
    with pytest.raises(ValueError, match="'sigma' must be a positive number, got 0"):
        NoisyDenseBlock([(3,)], hidden_units=4, sigma=0)
