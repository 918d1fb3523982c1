import re
import subprocess
import sys
from typing import Literal

import pytest
import torch

import composer.model  # noqa: F401 - whose imports register every kind of critic
from composer.critic.base import CRITICS
from composer.distributions.base import DISTRIBUTIONS
from composer.training.trainer import TRAINERS
from perception_blocks import registry
from perception_blocks.registry import (
    ACTIVATIONS,
    BLOCKS,
    INITIALIZERS,
    MissingExtraError,
    NameTakenError,
    Registry,
    UnknownNameError,
)
from perception_blocks.settings import mismatch
from perception_blocks.synonyms import SYNONYMS, folded
from perception_blocks.words import describe, did_you_mean, near_name
from tests.helpers.registries import registries


@pytest.fixture
def shapes():
    return Registry("shape")


def test_a_class_is_found_by_its_name(shapes):
    @shapes.register("circle")
    class Circle: ...

    assert shapes.get("circle") is Circle
    assert shapes.name_of(Circle) == "circle"
    assert list(shapes) == ["circle"]
    assert "circle" in shapes
    assert len(shapes) == 1


def test_a_lazy_entry_is_imported_when_asked_for(shapes):
    shapes.register("decimal", "decimal:Decimal")
    import decimal

    assert shapes.name_of(decimal.Decimal) == "decimal"  # known before it is imported
    assert shapes.get("decimal") is decimal.Decimal


def test_a_taken_name_is_refused_in_words(shapes):
    shapes.register("a", "decimal:Decimal")
    message = (
        "the shape name 'a' of fractions:Fraction is taken by decimal:Decimal; "
        "choose another, or pass replace=True"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes.register("a", "fractions:Fraction")
    shapes.register("a", "fractions:Fraction", replace=True)
    assert shapes.get("a").__name__ == "Fraction"


REGISTRIES = [
    BLOCKS,
    CRITICS,
    DISTRIBUTIONS,
    TRAINERS,
    ACTIVATIONS,
    INITIALIZERS,
    Registry("shape"),
]


@pytest.mark.parametrize("names", REGISTRIES, ids=lambda names: names.kind)
def test_a_decorator_without_parentheses_is_refused(names):
    class Circle: ...

    example = f"my_{names.kind.replace(' ', '_')}"
    for name, got in [(Circle, describe(Circle)), (3, "the number 3"), (None, "nothing (null)")]:
        with pytest.raises(TypeError) as caught:
            names.register(name)
        assert str(caught.value) == (
            f"register takes a {names.kind} name first, such as @register({example!r}), got {got}"
        )


@pytest.mark.parametrize("name", ["", "a b/c", "3d", "a-b", "a.b", "a/b", "a\n"])
@pytest.mark.parametrize("entry", [None, object], ids=["decorator", "call"])
def test_a_name_that_is_no_identifier_is_refused(shapes, name, entry):
    with pytest.raises(ValueError, match="name has only") as caught:
        shapes.register(name, entry)
    assert str(caught.value) == (
        "a shape name has only letters, digits and underscores, and no digit first, such as 'my_shape'; "
        f"got {name!r}"
    )
    assert len(shapes._entries) == 0


def test_hyphens_are_for_names_that_others_publish(shapes):
    shapes = Registry("data set", hyphens=True)
    shapes.register("math-code", "x:Y")
    assert "math-code" in shapes
    with pytest.raises(ValueError, match="name has only") as error:
        shapes.register("math code", "x:Y")
    assert str(error.value) == (
        "a data set name has only letters, digits, hyphens and underscores, and no digit first, such as "
        "'my_data_set'; got 'math code'"
    )


def test_a_lazy_entry_and_the_class_itself_are_the_same(shapes):
    import decimal

    shapes.register("a", "decimal:Decimal")
    shapes.register("a", decimal.Decimal)
    assert shapes.get("a") is decimal.Decimal


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("circel", "unknown shape 'circel'; did you mean 'circle'?"),
        ("zzz", "unknown shape 'zzz'; known are 'circle'"),
    ],
)
def test_an_unknown_name_suggests_a_near_one(shapes, name, message):
    shapes.register("circle", object)
    with pytest.raises(UnknownNameError) as caught:
        shapes.get(name)
    assert str(caught.value) == message


def test_a_missing_library_names_its_extra(shapes):
    shapes.register("llama", "no_such_library.models:Llama", extra="llm")
    message = (
        "shape 'llama' needs 'no_such_library'; install it with: "
        'pip install "perception-composer[llm]"'
    )
    with pytest.raises(MissingExtraError, match=re.escape(message)):
        shapes.get("llama")


def test_a_missing_library_without_an_extra_is_an_import_error(shapes):
    shapes.register("llama", "no_such_library.models:Llama")
    with pytest.raises(ModuleNotFoundError):
        shapes.get("llama")


@pytest.mark.parametrize("name", list(BLOCKS))
def test_every_built_in_block_exists_and_knows_its_name(name):
    assert BLOCKS.name_of(BLOCKS.get(name)) == name


def test_names_are_checked_without_torch():
    code = (
        "import sys; from perception_blocks.registry import BLOCKS; "
        "assert 'dense' in BLOCKS and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class _Point:
    name, value = "broken", "broken:plugin"

    def load(self):
        raise RuntimeError("no luck")


def test_a_broken_plugin_is_a_warning(monkeypatch):
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    monkeypatch.setattr(registry, "_installed_plugins", lambda: [_Point()])
    message = "plugin 'broken' (broken:plugin) could not be loaded: no luck"
    with pytest.warns(UserWarning, match=re.escape(message)):
        assert "zzz" not in Registry("thing")


class _ClashingPoint:
    name, value = "copycat", "copycat:blocks"

    def load(self):
        BLOCKS.register("dense", "copycat:Dense")


def test_a_plugin_that_takes_a_name_is_an_error_each_time(monkeypatch):
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    monkeypatch.setattr(registry, "_installed_plugins", lambda: [_ClashingPoint()])
    message = (
        "plugin 'copycat' (copycat:blocks): the block name 'dense' of copycat:Dense is taken by "
        "perception_blocks.blocks.dense:DenseBlock; choose another, or pass replace=True"
    )
    for _ in range(2):
        with pytest.raises(NameTakenError, match=re.escape(message)):
            list(BLOCKS)
    assert "dense" in BLOCKS


def test_near_names():
    assert near_name("dens", ["dense", "lstm"]) == "dense"
    assert near_name("zzz", ["dense"]) is None
    assert did_you_mean("dens", ["dense"]) == "; did you mean 'dense'?"
    assert did_you_mean("zzz", ["dense"]) == ""


REGISTRIES = {
    registry.kind: registry
    for registry in (ACTIVATIONS, BLOCKS, INITIALIZERS, DISTRIBUTIONS, CRITICS, TRAINERS)
}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_what_others_call_an_entry_is_suggested_and_not_accepted(kind):
    registry = REGISTRIES[kind]
    for other, name in SYNONYMS[kind].items():
        found = (
            registry.get(name)
            if name in registry
            else getattr(torch.nn, name.removeprefix("torch.nn."))
        )
        assert isinstance(found, type) or callable(found)
        if folded(other) not in map(folded, registry):  # a name of our own is that one
            assert other not in registry
            assert registry.hint(other) == f"; did you mean {name!r}?"


@pytest.mark.parametrize(
    ("kind", "words"),
    {
        "activation": "swish->silu ReLU->relu LeakyReLU->leaky_relu hard_swish->hardswish linear->identity",
        "block": "Linear->dense fc->dense mlp->dense conv2d->strided_conv cnn->nature_cnn embed->embedding "
        "LayerNorm->torch.nn.LayerNorm LSTMCell->lstm GRU->gru gat->graph_attention dens->dense",
        "initialiser": "xavier->xavier_uniform Glorot->xavier_uniform he->kaiming_uniform he_normal->kaiming_normal",
        "distribution": "normal->gaussian tanh_normal->squashed_gaussian Categorical->categorical",
        "critic kind": "q_function->state_action value->state",
    }.items(),
)
def test_the_usual_words_lead_to_ours(kind, words):
    for pair in words.split():
        other, name = pair.split("->")
        assert REGISTRIES[kind].hint(other) == f"; did you mean {name!r}?"


def test_the_learning_rate_by_its_short_name_is_suggested():
    assert (
        did_you_mean("lr", ["gamma", "learning_rate"], "setting")
        == "; did you mean 'learning_rate'?"
    )


def test_a_loss_by_its_other_name_is_suggested():
    assert mismatch(Literal["l2", "smooth_l1"], "huber") == (
        "must be one of 'l2', 'smooth_l1', got 'huber'; did you mean 'smooth_l1'?"
    )


@pytest.mark.parametrize("run", ["first", "second"])
def test_what_a_test_registers_is_gone_after_it(run):
    """In every registry of both packages."""
    for each in registries():
        assert "left_over" not in each, each
        if isinstance(each, Registry):
            each.register("left_over", type(run, (), {}))
        else:
            each.register("left_over", vocabulary=f"{run}.txt")
