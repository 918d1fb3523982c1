"""Whatever stands where a mask is false changes nothing: neither results nor gradients, not even NaN."""

from typing import Any

import pytest
import torch
from torch import Tensor

from perception_blocks import BLOCKS

N = 6
MASK = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1], [0] * 6]) > 0
ADJACENCY = (N, N)
CASES: list[tuple[str, list[tuple[int, ...]], str, dict[str, Any]]] = [
    ("masked_global_pooling", [(N, 8)], "mask", {"pooling": "mean"}),
    ("masked_global_pooling", [(N, 8)], "mask", {"pooling": "sum"}),
    ("masked_global_pooling", [(N, 8)], "mask", {"pooling": "max"}),
    ("deep_set", [(N, 8)], "mask", {"hidden_units": [8, 4], "pooling": "max", "norm": "layer"}),
    ("deep_set", [(N, 8)], "mask", {"hidden_units": [8, 4], "pooling": "mean"}),
    ("attention_pooling", [(N, 8)], "mask", {"num_seeds": 2, "num_heads": 2}),
    ("point_net", [(N, 8)], "mask", {"hidden_units": [8, 4], "input_transform": True}),
    ("point_net", [(N, 8)], "mask", {"hidden_units": [8, 4], "feature_transform": True}),
    ("self_attention_seq", [(N, 8)], "key_padding_mask", {"num_heads": 2}),
    ("self_attention_seq", [(N, 8)], "key_padding_mask", {"causal": True}),
    ("transformer_encoder", [(N, 8)], "key_padding_mask", {"num_layers": 2}),
    ("transformer_encoder", [(N, 8)], "key_padding_mask", {"causal": True}),
    ("cross_attention", [(8,), (N, 8)], "key_padding_mask", {"num_heads": 2}),
    ("cross_attention", [(3, 8), (N, 8)], "key_padding_mask", {}),
    ("multi_head_attention", [(3, 8), (N, 8), (N, 4)], "key_padding_mask", {"num_heads": 2}),
    ("graph_conv", [(N, 8), ADJACENCY], "mask", {"hidden_units": [8, 4]}),
    ("graph_attention", [(N, 8), ADJACENCY], "mask", {"hidden_units": [8, 4], "num_heads": 2}),
]


def spoiled(x: Tensor, value: float) -> Tensor:
    """``x`` with ``value`` in all that belongs to an element that does not exist."""
    exists = MASK
    if x.shape[1:] == ADJACENCY:
        exists = MASK[:, :, None] & MASK[:, None, :]
    elif x.shape[1] != N:
        return x.clone()
    exists = exists.reshape(*exists.shape, *[1] * (x.dim() - exists.dim()))
    return torch.where(exists, x, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize(("name", "shapes", "argument", "settings"), CASES)
def test_padding_changes_neither_results_nor_gradients(
    name: str,
    shapes: list[tuple[int, ...]],
    argument: str,
    settings: dict[str, Any],
    value: float,
) -> None:
    block = BLOCKS.get(name)([*shapes, (N,)], **settings)
    inputs = [torch.rand(4, *shape) for shape in shapes]
    expected, gradients = result_and_gradients(block, inputs, argument)
    got, got_gradients = result_and_gradients(block, [spoiled(x, value) for x in inputs], argument)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got_gradients, gradients)


def result_and_gradients(
    block: torch.nn.Module, inputs: list[Tensor], argument: str
) -> tuple[Tensor, list[Tensor]]:
    """What the block makes of real elements, and the gradients of its parameters and inputs."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = block(*inputs, **{argument: MASK})
    if y.shape[1] == N:
        y = y[MASK]
    targets = [*block.parameters(), *inputs]
    gradients = torch.autograd.grad(y.square().sum(), targets, materialize_grads=True)
    return y, list(gradients)


def test_pixels_that_may_not_be_looked_at_do_not_spoil_others() -> None:
    block = BLOCKS.get("self_attention_conv")([(4, 2, 3), (2, 3)])
    torch.nn.init.ones_(block.gain)
    x, seen = torch.rand(2, 4, 2, 3), torch.tensor([[1, 0, 1], [1, 1, 0]]) > 0
    y = block(torch.where(seen, x, float("nan")), seen.expand(2, 2, 3))
    torch.testing.assert_close(y[..., seen], block(x, seen.expand(2, 2, 3))[..., seen])


def test_edges_that_do_not_exist_may_name_any_node() -> None:
    block = BLOCKS.get("adjacency")([(3, 2), (None, 2), (None,)])
    edges = torch.tensor([[[0, 1], [2, 0], [-1, 99]]])
    matrix = block(torch.zeros(1, 3, 2), edges, torch.tensor([[True, True, False]]))
    assert matrix.tolist() == [[[0, 0, 1], [1, 0, 0], [0, 0, 0]]]
