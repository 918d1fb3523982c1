import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn

from perception_blocks.activations import make_activation, make_activations
from perception_blocks.registry import ACTIVATIONS


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_each_name_computes_what_torchs_module_does(name):
    x = torch.randn(5, 4)
    torch.testing.assert_close(make_activation(name)(x), ACTIVATIONS.get(name)()(x))


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_each_name_pickles(name):
    x = torch.randn(5, 4)
    activation = make_activation(name)
    torch.testing.assert_close(pickle.loads(pickle.dumps(activation))(x), activation(x))


@pytest.mark.parametrize(
    "activation",
    [
        {"leaky_relu": {"negative_slope": 0.1}},
        {"torch.nn.LeakyReLU": {"negative_slope": 0.1}},
        nn.LeakyReLU(0.1),
    ],
)
def test_settings_are_given_to_the_activation(activation):
    assert make_activation(activation)(torch.tensor(-1.0)) == pytest.approx(-0.1)


@pytest.mark.parametrize("activation", ["torch.nn.Tanh", nn.Tanh, torch.tanh])
def test_classes_and_functions_are_taken(activation):
    assert make_activation(activation)(torch.tensor(0.5)) == torch.tanh(torch.tensor(0.5))


def test_learned_activations_have_parameters_of_their_own():
    made: Any = make_activations("prelu", 3, "relu")
    first, second, plain = made
    assert first.weight is not second.weight
    assert torch.equal(plain(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))


def test_a_ready_module_is_copied():
    mine = nn.PReLU()
    assert make_activation(mine) is not mine


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("rleu", "unknown activation 'rleu'; did you mean 'relu'?"),
        ({"relu": {"slope": 1}}, "'slope' is not a setting of activation 'relu'; it has 'inplace'"),
        (
            {"leaky_relu": {"negative_slope": "x"}},
            "'negative_slope' must be a number, got 'x'",
        ),
        (
            "torch.nn.ReLUU",
            "there is no module class 'torch.nn.ReLUU'; did you mean 'torch.nn.ReLU'?",
        ),
        (
            "os.system",
            "an activation is named like 'relu' or 'torch.nn.ReLU', got 'os.system'; "
            "register other classes in perception_blocks.registry.ACTIVATIONS",
        ),
        (
            "torch.nn.GLU",
            "activation 'torch.nn.GLU' turns (3, 6) into (3, 3); an activation keeps the shape",
        ),
        ("torch.nn.Linear", "activation 'torch.nn.Linear' needs the setting 'in_features'"),
        ("torch.nn.functional.relu", "an activation is named like 'relu' or 'torch.nn.ReLU'"),
        (dict, "an activation class is an nn.Module, got dict"),
    ],
)
def test_what_is_no_activation_is_refused_in_words(activation, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_activation(activation)
