"""The YAML of other libraries is read as they read it: YAML 1.1, as PyYAML has it."""

import pytest
import yaml

from composer.errors import SpecError
from composer.source.foreign import foreign_yaml
from composer.source.values import plain

MERGED = """\
base: &base {units: [64, 64], activation: elu, more: {a: 1}}
other: &other {activation: relu, gain: 2}
net: {<<: *base, units: [8]}
both:
  <<: [*other, *base]
  gain: 3
"""


@pytest.mark.parametrize(
    "text",
    [
        MERGED,
        "a: yes\nb: No\nc: off\nd: ON\ne: 'yes'\n",
        "a: 1\na: 2\n",
        "a: &x [1, 2]\nb: *x\n",
        "a: {b: , c: ~}\nd: 1.5\ne: 0x10\n",
    ],
)
def test_it_is_what_pyyaml_reads(text):
    assert plain(foreign_yaml(text, "a.yaml")) == yaml.safe_load(text)


def test_a_number_without_a_point_is_a_number_here():
    """PyYAML reads a text; those who wrote it meant, and OmegaConf reads, a number."""
    assert plain(foreign_yaml("lr: 3e-4\n", "a.yaml")) == {"lr": 3e-4}


def test_values_of_merged_mappings_keep_their_places():
    root = foreign_yaml(MERGED, "a.yaml")
    net = root.value["net"].value
    assert str(net["units"].position) == "a.yaml:3:25"
    assert str(net["activation"].position) == "a.yaml:1:43"


def test_every_mistake_of_a_file_is_told_at_once():
    with pytest.raises(SpecError) as error:
        foreign_yaml("a: !!set {b}\nc: !x 1\n", "a.yaml")
    assert str(error.value).splitlines() == [
        "a.yaml:1:4: the tag '!!set' is refused: nothing of the file is made by its name",
        "a.yaml:2:4: the tag '!x' is refused: nothing of the file is made by its name",
    ]
