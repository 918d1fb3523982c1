"""blend: parameters move by tau, buffers as asked, and what does not go together is refused whole."""

import copy
import re

import pytest
import torch
from torch import nn

import composer
from composer.checkpoint.blending import blend


def net(fill: float) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(fill)
    return module


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.25, 0.75, 1.0])
def test_parameters_move_by_tau(tau):
    target, source = net(1.0), net(3.0)
    assert blend(target, source, tau) is target
    for own in target.parameters():
        torch.testing.assert_close(own, torch.full_like(own, 1 + 2 * tau))
        assert own.requires_grad
        assert own.grad_fn is None
    assert all((tensor == 3).all() for tensor in source.parameters())


@pytest.mark.parametrize(
    ("buffers", "mean", "count"), [("copy", 3.0, 3), ("blend", 1.5, 3), ("keep", 1.0, 1)]
)
def test_buffers_are_copied_blended_or_kept(buffers, mean, count):
    target = blend(net(1.0), net(3.0), 0.25, buffers=buffers)
    norm = target[1]
    assert (norm.running_mean == mean).all()
    assert norm.num_batches_tracked == count  # a whole number is never between two


def test_tau_1_copies_exactly_even_over_infinity():
    target, source = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(target.weight, torch.inf)
    blend(target, source, 1.0)
    assert torch.equal(target.weight, source.weight)


def test_dtypes_may_differ():
    target, source = net(1.0).half(), net(3.0).double()
    blend(target, source, 0.25)
    assert target[0].weight.dtype == torch.float16
    assert (target[0].weight == 1.5).all()


def test_shared_parameters_move_once():
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    target[1].weight = target[0].weight
    source = copy.deepcopy(target)
    with torch.no_grad():
        target[0].weight.fill_(0.0)
        source[0].weight.fill_(1.0)
    blend(target, source, 0.5)
    assert (target[0].weight == 0.5).all()


def test_what_is_frozen_or_used_in_a_graph_can_be_blended():
    target, source = net(1.0).requires_grad_(False), net(3.0)
    blend(target, source, 0.5)
    assert (target[0].weight == 2).all()
    assert not target[0].weight.requires_grad


def test_every_difference_is_named_and_nothing_changes():
    target = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    source = nn.Sequential(nn.Linear(2, 4), nn.Identity(), nn.Linear(1, 1, bias=False))
    before = copy.deepcopy(target.state_dict())
    message = (
        "target and source differ:\n"
        "  parameter '0.weight' has the shape (3, 2) in the target and (4, 2) in the source\n"
        "  parameter '0.bias' has the shape (3,) in the target and (4,) in the source\n"
        "  parameter '1.weight' is only in the target\n"
        "  parameter '1.bias' is only in the target\n"
        "  parameter '2.weight' is only in the source\n"
        "  buffer '1.running_mean' is only in the target\n"
        "  buffer '1.running_var' is only in the target\n"
        "  buffer '1.num_batches_tracked' is only in the target"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        blend(target, source, 0.5)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize("tau", [-0.1, 1.5, float("nan")])
def test_tau_is_between_0_and_1(tau):
    with pytest.raises(ValueError, match=re.escape(f"tau must be between 0 and 1, got {tau!r}")):
        blend(net(1.0), net(3.0), tau)


def test_an_unknown_way_with_buffers_suggests_the_right_one():
    message = "buffers must be one of 'copy', 'blend', 'keep', got 'kepp'; did you mean 'keep'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        blend(net(1.0), net(3.0), 0.5, buffers="kepp")  # type: ignore[arg-type]


def test_a_composed_model_blends_as_a_whole():
    network = {"template": {}}
    spec = {"version": 1, "environment": "CartPole-v1", "policy": network, "critic": network}
    target, source = composer.compose(spec, seed=1), composer.compose(spec, seed=2)
    start = copy.deepcopy(target.state_dict())
    composer.blend(target, source, 0.1)
    for name, value in source.state_dict().items():
        expected = start[name] + 0.1 * (value - start[name])
        torch.testing.assert_close(target.state_dict()[name], expected)
