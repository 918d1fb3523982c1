"""A view has the tensors and children of its origin, whatever is done to the one or the other."""

import copy
import io

import pytest
import torch
from torch import nn

from composer.network.registries import TENSORS, RegistryView


class Origin(nn.Module):
    """A module that counts how often it was moved itself."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)
        self.layer = nn.Linear(2, 2)
        self.moved = 0

    def _apply(self, fn, recurse=True):
        self.moved += 1
        return super()._apply(fn, recurse)


def view_of(origin, *registries):
    view = RegistryView()
    view.view(origin, *registries)
    return view


def same(view, origin):
    assert [n for n, _ in view.named_parameters()] == [n for n, _ in origin.named_parameters()]
    assert all(a is b for a, b in zip(view.parameters(), origin.parameters(), strict=True))
    assert all(a is b for a, b in zip(view.buffers(), origin.buffers(), strict=True))
    assert view.state_dict().keys() == origin.state_dict().keys()


CHANGES = {
    "nothing": lambda module: None,
    "to": lambda module: module.to(torch.float64),
    "a parameter": lambda module: module.register_parameter("more", nn.Parameter(torch.ones(1))),
    "a buffer": lambda module: module.register_buffer("seen", torch.ones(1), persistent=False),
    "a child": lambda module: module.add_module("child", nn.Linear(1, 1)),
    "no layer": lambda module: module.__delattr__("layer"),
    "frozen": lambda module: module.requires_grad_(False),
    "loaded": lambda module: module.load_state_dict(module.state_dict(), assign=True),
}


@pytest.mark.parametrize("by_view", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_done_to_one_is_done_to_both(change, by_view):
    origin = Origin()
    view = view_of(origin)
    change(view if by_view else origin)
    same(view, origin)


def test_moving_and_the_mode_go_through_the_origin():
    origin = Origin()
    view = view_of(origin)
    view.double()
    assert origin.moved == 1
    assert not view.eval().training
    assert not origin.training
    assert not origin.layer.training


def test_the_origin_is_no_child():
    origin = Origin()
    assert list(view_of(origin).children()) == [origin.layer]


@pytest.mark.parametrize("copied", ["deepcopy", "saved"])
def test_a_copy_is_a_view_of_a_copy(copied):
    view = view_of(Origin())
    if copied == "deepcopy":
        twin = copy.deepcopy(view)
    else:
        file = io.BytesIO()
        torch.save(view, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    same(twin, twin._origin)
    assert twin.weight is not view.weight


def test_a_view_of_tensors_alone_has_children_of_its_own():
    origin = Origin()
    view = view_of(origin, TENSORS)
    view.add_module("layer", nn.Linear(3, 3))
    assert view.weight is origin.weight
    assert view.layer is not origin.layer


def test_a_view_of_nothing_is_a_module():
    view = RegistryView()
    view.add_module("layer", nn.Linear(2, 2))
    assert view.double().eval().layer.weight.dtype == torch.float64


def test_an_attribute_that_is_named_like_a_child_leaves_the_child():
    origin = Origin()
    view = view_of(origin)
    view.layer = "a word"
    assert view._modules["layer"] is origin.layer
    assert view.get_submodule("layer") is origin.layer
    assert view.layer == "a word"
