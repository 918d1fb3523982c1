import re

import pytest
import torch

from composer.language import ValueHead


def test_it_has_the_layers_that_are_asked_for():
    head = ValueHead(8, hidden_sizes=(6, 4), output_dim=2, activation="tanh", bias_last=True)
    assert [str(layer) for layer in head.mlp] == [
        "Linear(in_features=8, out_features=6, bias=True)", "Tanh()",
        "Linear(in_features=6, out_features=4, bias=True)", "Tanh()",
        "Linear(in_features=4, out_features=2, bias=True)",
    ]  # fmt: skip
    assert head(torch.zeros(3, 5, 8)).shape == (3, 5, 2)


def test_hidden_weights_follow_the_fan_out_and_the_last_ones_are_small():
    head = ValueHead(400, hidden_sizes=(200,))
    first, last = head.mlp[0], head.mlp[2]
    assert first.weight.detach().std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert last.weight.detach().std().item() == pytest.approx(0.02, rel=0.2)
    assert last.bias is None
    assert not first.bias.any()


def test_a_seed_draws_each_weight_by_its_name():
    heads = [ValueHead(8, hidden_sizes=sizes) for sizes in ((4,), (4, 4), (4,))]
    for head, seed in zip(heads, (3, 3, 4), strict=True):
        head.reset_parameters(seed)
    first, longer, other = (head.mlp[0].weight for head in heads)
    assert torch.equal(first, longer)
    assert not torch.equal(first, other)


def test_features_of_half_precision_are_read_in_full():
    assert (
        ValueHead(4, hidden_sizes=())(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype
        == torch.float32
    )


def test_an_unknown_activation():
    message = "'activation' must be one of 'gelu', 'relu', 'tanh', got 'gelo'; did you mean 'gelu'?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ValueHead(4, activation="gelo")
