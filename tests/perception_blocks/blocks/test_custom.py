import functools
import re

import pytest
import torch

from perception_blocks.blocks.custom import FunctionalBlock, function_label
from perception_blocks.registry import FUNCTIONS


def halves(x, *, at=1):
    return x[..., :at], x[..., at:]


def test_a_function_sees_one_batch_axis():
    block = FunctionalBlock([(3, 4)], function=lambda x: x.mean(1))
    assert block.out_shapes == [(4,)]
    x = torch.randn(5, 2, 3, 4)
    torch.testing.assert_close(block(x), x.mean(2))
    torch.testing.assert_close(block(x[0, 0]), x[0, 0].mean(0))


def test_settings_are_handed_on_and_outputs_may_be_many():
    block = FunctionalBlock([(3,)], function=halves, at=2)
    assert block.out_shapes == [(2,), (1,)]
    first, second = block(torch.randn(5, 2, 3))
    assert (first.shape, second.shape) == ((5, 2, 2), (5, 2, 1))


@pytest.mark.parametrize(
    ("name", "expected"), [("add", 5.0), ("multiply", 6.0), ("mean", 2.5), ("identity", 2.0)]
)
def test_registered_functions(name, expected):
    inputs = [torch.tensor([2.0]), torch.tensor([3.0])][: 1 if name == "identity" else 2]
    block = FunctionalBlock([(1,)] * len(inputs), function=name)
    assert block(*inputs).tolist() == [expected]
    assert block.name == name


def test_a_registered_function_is_known_by_its_name_even_when_given_itself():
    assert FunctionalBlock([(1,)], function=FUNCTIONS.get("add")).name == "add"


@pytest.mark.parametrize(
    ("function", "label"),
    [
        (torch.relu, "relu"),
        (halves, "halves"),
        (functools.partial(halves, at=2), "partial(halves, at=2)"),
        (torch.nn.Tanh(), "Tanh"),
        (functools.partial(torch.mul, 2), "partial(mul, 2)"),
    ],
)
def test_a_function_prints_in_a_few_words(function, label):
    assert function_label(function) == label


def test_a_lambda_prints_its_place():
    block = FunctionalBlock([(3,)], function=lambda x: x)
    assert re.search(r"function=lambda at test_custom.py:\d+", repr(block))


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        ([(3,)], {"function": "ad"}, "'function' names the unknown function 'ad'"),
        ([(3,)], {"function": "os.system"}, "'function' names the unknown function 'os.system'"),
        ([(3,)], {"function": 3}, "'function' must be the name of a function, got 3"),
        ([(3,)], {}, "block 'functional' needs the setting 'function' (the name of a function)"),
        (
            [(3,)],
            {"function": halves, "att": 2},
            "'att' is not a setting of function 'halves'; did you mean 'at'?",
        ),
        (
            [(3,), (3,)],
            {"function": halves},
            "function 'halves' takes one input at most, got 2",
        ),
        ([(3,), (4,)], {"function": "add"}, "add needs inputs of one shape, got (3,) and (4,)"),
        (
            [(3,)],
            {"function": lambda x: x.sum()},
            "block 'functional' returned () for a batch of 11; "
            "the first axis of the output must be the batch axis of the input",
        ),
        (
            [(3,)],
            {"function": lambda x: 1},
            "block 'functional' returned a value of type int; a tensor is needed",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(shapes, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FunctionalBlock(shapes, **settings)


def test_an_error_inside_a_function_says_where_it_was():
    def broken(x):
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        FunctionalBlock([(3,)], function=broken)
    assert caught.value.__notes__ == ["in function 'broken', called with a batch of [(3,)]"]
