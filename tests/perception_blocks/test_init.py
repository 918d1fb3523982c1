import re
from typing import Any

import pytest
import torch
from torch import nn

from perception_blocks.base_block import PerceptionBlock
from perception_blocks.init import (
    derive_seed,
    draw_parameters,
    initializer,
    linear_layer,
    local_generator,
)
from perception_blocks.registry import INITIALIZERS


def drawn(rule, *shape):
    tensor = torch.empty(*shape)
    with torch.no_grad():
        draw: Any = initializer(rule)
        draw(tensor, local_generator(0))
    return tensor


def test_orthogonal_has_orthonormal_rows():
    weight = drawn({"orthogonal": {"gain": 2.0}}, 4, 8)
    torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(4))


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 2, 2)])
def test_normc_gives_every_unit_the_same_norm(shape):
    weight = drawn({"normc": {"norm": 0.1}}, *shape)
    torch.testing.assert_close(weight.reshape(4, -1).norm(dim=1), torch.full((4,), 0.1))


@pytest.mark.parametrize(
    ("rule", "std"),
    [
        ("xavier_uniform", (2 / 600) ** 0.5),
        ("xavier_normal", (2 / 600) ** 0.5),
        ("kaiming_uniform", (2 / 400) ** 0.5),
        ("kaiming_normal", (2 / 400) ** 0.5),
        ("fan_in_uniform", (1 / 1200) ** 0.5),
        ({"fan_in_uniform": {"gain": 3**0.5}}, (1 / 400) ** 0.5),
        ({"trunc_normal": {"std": 0.1}}, 0.088),
        ("zeros", 0.0),
    ],
)
def test_the_spread_is_the_published_one(rule, std):
    assert drawn(rule, 200, 400).std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("name", [n for n in INITIALIZERS if n != "default"])
def test_each_initialiser_depends_on_its_generator_alone(name):
    state = torch.random.get_rng_state()
    assert torch.equal(drawn(name, 4, 8), drawn(name, 4, 8))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_default_is_torchs_own():
    assert initializer(None) is None
    assert initializer("default") is None
    assert initializer({"default": {}}) is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("orthogonol", "unknown initialiser 'orthogonol'; did you mean 'orthogonal'?"),
        (
            {"orthogonal": {"gian": 1}},
            "'gian' is not a setting of initialiser 'orthogonal'; did you mean 'gain'?",
        ),
        (
            {"orthogonal": {"gain": "big"}},
            "'gain' must be a number, got 'big'",
        ),
        (3, "an initialiser is a name or {name: {setting: value}}, got 3"),
        (
            {"orthogonal": 2},
            "an initialiser is a name or {name: {setting: value}}, got {'orthogonal': 2}",
        ),
    ],
)
def test_unknown_rules_are_refused_in_words(rule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        initializer(rule)


LAYERS = [
    nn.Linear(4, 3),
    nn.Conv2d(4, 3, 2),
    nn.ConvTranspose1d(4, 3, 2),
    nn.Embedding(4, 3),
    nn.LSTM(4, 3),
    nn.GRUCell(4, 3),
    nn.LayerNorm(4),
    nn.GroupNorm(2, 4),
    nn.BatchNorm2d(4),
    nn.PReLU(),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("rule", [None, "orthogonal"])
def test_every_parameter_of_a_torch_layer_is_drawn(layer, rule):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    draw_parameters(layer, 0, initializer(rule))
    assert all(torch.isfinite(parameter).all() for parameter in layer.parameters())


@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 50), lambda: nn.Conv2d(6, 40, 3)])
def test_without_a_rule_the_spread_is_that_of_torch(make):
    ours, theirs = make(), make()
    draw_parameters(ours, 0)
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        assert mine.abs().max().item() == pytest.approx(other.abs().max().item(), rel=0.25)


def test_a_rule_is_for_weights_and_biases_are_zero():
    module: Any = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    draw_parameters(module, 0, initializer("orthogonal"))
    assert not module[0].bias.any()
    assert module[1].weight.tolist() == [1.0] * 4


def test_a_weight_depends_on_its_own_name_only():
    small: Any = nn.ModuleDict({"a": nn.Linear(4, 3)})
    large: Any = nn.ModuleDict({"b": nn.Linear(9, 9), "a": nn.Linear(4, 3)})
    draw_parameters(small, 7)
    draw_parameters(large, 7)
    assert torch.equal(small["a"].weight, large["a"].weight)
    draw_parameters(large, 8)
    assert not torch.equal(small.a.weight, large.a.weight)


def test_a_weight_is_the_same_in_every_dtype():
    single, double = nn.Linear(4, 3), nn.Linear(4, 3).double()
    draw_parameters(single, 0)
    draw_parameters(double, 0)
    assert torch.equal(single.weight.double(), double.weight)


def test_running_statistics_start_anew():
    norm: Any = nn.BatchNorm1d(3)
    norm(torch.randn(5, 3))
    draw_parameters(norm, 0)
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()


def test_what_is_on_meta_is_left_there():
    layer = nn.Linear(4, 3, device="meta")
    draw_parameters(layer, 0, initializer("orthogonal"))
    assert layer.weight.is_meta


class Scaled(PerceptionBlock):
    """Holds a parameter itself, and a block that holds another."""

    def __init__(self, in_shapes, *, inner=None):
        super().__init__(in_shapes, out_shapes=in_shapes)
        self.scale = nn.Parameter(torch.full((3,), 5.0))
        self.inner = inner

    def draw_parameter(self, name, tensor, generator):
        tensor.normal_(generator=generator)

    def adjust_parameters(self):
        self.scale.mul_(0.0 if self.inner is None else 1.0)


class Kept(PerceptionBlock):
    """Holds a parameter and says nothing about it."""

    def __init__(self, in_shapes):
        super().__init__(in_shapes, out_shapes=in_shapes)
        self.scale = nn.Parameter(torch.full((3,), 5.0))


def test_a_block_draws_its_own_parameters_and_has_the_last_word():
    block: Any = Scaled([(3,)], inner=Scaled([(3,)]))
    block.reset_parameters(torch.Generator().manual_seed(0))
    assert block.scale.unique().numel() == 3
    assert not block.inner.scale.any()


def test_a_parameter_that_nobody_draws_stays_as_built():
    block = Kept([(3,)])
    block.reset_parameters()
    assert block.scale.tolist() == [5.0] * 3


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(0, "a", "b"), derive_seed(0, "ab", ""), derive_seed(1, "a", "b")}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_is_what_the_constructor_of_torch_makes(bias):
    torch.manual_seed(0)
    expected = nn.Linear(7, 5, bias=bias)
    torch.manual_seed(0)
    layer = linear_layer(7, 5, bias=bias)
    assert type(layer) is nn.Linear
    assert repr(layer) == repr(expected)
    assert list(vars(layer)) == list(vars(expected))
    for name, tensor in expected._parameters.items():
        assert tensor is None or torch.equal(layer._parameters[name], tensor)
    assert layer.state_dict().keys() == expected.state_dict().keys()
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in layer.parameters())
