"""A mapping that notes which of its keys were asked for."""

import pytest

from composer.errors import SpecError
from composer.importing.taken import Taken
from composer.source.foreign import foreign_yaml

TEXT = """\
net:
  name: actor
  mlp: {units: [64, 32], d2rl: no}
  convs: [{filters: 8}, {filters: 16, stride: 2}]
  cnn: null
  odd: ${from.elsewhere}
seed: 1
"""


@pytest.fixture
def top():
    return Taken(foreign_yaml(TEXT, "net.yaml"))


def test_keys_that_nobody_asked_for_are_left_at_any_depth(top):
    assert top.left() == [("net",), ("seed",)]
    net = top.below("net")
    assert net.text("name") == "actor"
    assert net.below("mlp").wholes("units") == [64, 32]
    assert [conv.whole("filters") for conv in net.entries("convs")] == [8, 16]
    assert [".".join(map(str, path)) for path in top.left()] == [
        "net.mlp.d2rl",
        "net.convs.1.stride",
        "net.cnn",
        "net.odd",
        "seed",
    ]


def test_looking_whether_a_key_is_there_asks_for_nothing(top):
    assert "net" in top
    assert len(top) == 2
    assert [*top] == ["net", "seed"]
    assert top.left() == [("net",), ("seed",)]


def test_a_null_counts_as_absent_and_as_asked_for(top):
    net = top.below("net")
    assert not net.has("cnn")
    assert ("net", "cnn") not in top.left()
    assert net.text("cnn", "none") == "none"


def test_what_is_taken_as_plain_data_leaves_nothing_below(top):
    assert top.below("net").plain("convs") == [{"filters": 8}, {"filters": 16, "stride": 2}]
    top.ask("seed", "absent")
    assert [path[-1] for path in top.left()] == ["name", "mlp", "cnn", "odd"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda net: net.whole("name"), "net.yaml:2:3: net.name: must be a whole number of at least 1, got the text 'actor'"),
        (lambda net: net.wholes("mlp"), "net.yaml:3:3: net.mlp: must be a list of whole numbers of at least 1, got a mapping"),
        (lambda net: net.below("mlp").text("activation"), "net.yaml:3:3: net.mlp: 'activation' is missing: a text"),
        (lambda net: net.text("odd"), "net.yaml:6:3: net.odd: '${from.elsewhere}' is filled in from elsewhere; write the value itself"),
        (lambda net: net.below("mlp").whole("d2rl"), "net.yaml:3:26: net.mlp.d2rl: must be a whole number of at least 1, got false"),
        (lambda net: net.entries("convs")[1].text("stride"), "net.yaml:4:39: net.convs.1.stride: must be a text, got the number 2"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_with_its_place(top, ask, message):
    with pytest.raises(SpecError) as error:
        ask(top.below("net"))
    assert str(error.value) == message
