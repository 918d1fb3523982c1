"""A plain layer is applied without its call; what somebody hung on it is never passed over."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from perception_blocks import DenseBlock, LinearOutputBlock
from perception_blocks.direct import convolution, is_plain, linear


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def with_hook(layer):
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def with_pre_hook(layer):
    layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return layer


def with_its_own_forward(layer):
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)
    return layer


def normed(layer):
    return parametrizations.weight_norm(layer)


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", amount=0.5)


CHANGES = [with_hook, with_pre_hook, with_its_own_forward, normed, pruned]


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_layer_is_not_called_and_gives_the_same(bias):
    layer, x = nn.Linear(4, 3, bias=bias), torch.randn(5, 4)
    assert is_plain(layer, nn.Linear)
    assert torch.equal(linear(layer, x), layer(x))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_layer_does_what_its_call_does(change):
    layer, x = change(nn.Linear(4, 3)), torch.randn(5, 4)
    assert torch.equal(linear(layer, x), layer(x))


CONVOLUTIONS = [
    nn.Conv1d(3, 4, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (3, 2), dilation=2, groups=2, bias=False),
    nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
    nn.Conv3d(2, 3, 2, padding="valid"),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_a_convolution_gives_what_its_call_gives(layer):
    x = torch.randn(2, layer.in_channels, *[9] * (layer.weight.dim() - 2))
    assert torch.equal(convolution(layer, x), layer(x))


def halved_hook(layer):
    layer.register_forward_hook(lambda module, inputs, output: output / 2)
    return layer


@pytest.mark.parametrize(
    "change", [halved_hook, normed, pruned], ids=lambda change: change.__name__
)
def test_a_changed_convolution_does_what_its_call_does(change):
    layer, x = change(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 9, 9)
    assert torch.equal(convolution(layer, x), layer(x))


def test_another_class_and_a_compiled_call_are_not_plain():
    assert not is_plain(Doubled(4, 3), nn.Linear)
    compiled = nn.Linear(4, 3)
    compiled.compile(backend="eager")
    assert not is_plain(compiled, nn.Linear)


def test_hooks_on_all_modules_see_the_layer():
    seen = []
    handle = register_module_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    try:
        DenseBlock([(4,)], hidden_units=[8, 8])(torch.randn(2, 4))
    finally:
        handle.remove()
    assert seen == [nn.Linear, nn.Linear, DenseBlock]


def test_backward_hooks_of_a_layer_inside_a_block_fire():
    block, seen = LinearOutputBlock([(4,)], output_units=2), []
    block.linear.register_full_backward_hook(lambda module, inputs, outputs: seen.append(module))
    block(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert seen == [block.linear]


def test_a_layer_that_was_replaced_is_used():
    block, x = DenseBlock([(4,)], hidden_units=[8]), torch.randn(2, 4)
    before = block(x)
    doubled = Doubled(4, 8)
    doubled.load_state_dict(block.linears[0].state_dict())
    block.linears[0] = doubled
    assert torch.allclose(block(x), 2 * before)
