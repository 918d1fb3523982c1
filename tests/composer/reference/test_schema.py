"""The JSON Schema takes every good spec, refuses typical mistakes, and knows all that is registered."""

import copy
import json
import re
import sys

import jsonschema
import pytest
import yaml
from jsonschema.exceptions import best_match

from composer.distributions.base import DISTRIBUTIONS
from composer.errors import SpecError
from composer.reference.schema import json_schema
from composer.source.load import load_source
from composer.spec.keys import (
    CRITIC_KEYS,
    NETWORK_KEYS,
    ONE_OF_SEVERAL,
    POLICY_KEYS,
    POLICY_NETWORK_KEYS,
    TOP_KEYS,
)
from composer.spec.model_spec import CRITICS
from composer.spec.nodes import NESTED
from composer.spec.read import read_spec
from composer.spec.template import TEMPLATE_KEYS
from composer.spec.wrapper_names import ONLY_PYTHON, WRAPPERS
from perception_blocks.base_block import PerceptionBlock
from perception_blocks.registry import ACTIVATIONS, BLOCKS, INITIALIZERS
from perception_blocks.settings import settings_of
from tests.helpers.paths import ROOT, TESTS

GOOD = sorted([*(ROOT / "configs").glob("*.yaml"), *(TESTS / "specs" / "good").glob("*.yaml")])
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)

CARTPOLE = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
critic:
  kind: state
  graph:
    latent: {block: dense, in: observation, hidden_units: 64}
"""


def faults(text):
    return list(VALIDATOR.iter_errors(yaml.safe_load(text)))


def test_it_is_a_draft_07_schema_of_plain_values():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_specs_are_valid(path):
    assert faults(path.read_text()) == []


def test_every_registered_name_is_in_it():
    definitions = SCHEMA["definitions"]
    named = definitions["node"]["properties"]["block"]["else"]["else"]["enum"]
    assert set(named) == {*BLOCKS, *NESTED}
    assert all(f"block_{name}" in definitions for name in named)
    assert definitions["activation"]["else"]["else"]["else"]["enum"] == list(ACTIVATIONS)
    assert definitions["initialiser"]["else"]["else"]["enum"] == list(INITIALIZERS)
    in_specs = [name for name in WRAPPERS if name not in ONLY_PYTHON]
    assert definitions["wrapper"]["else"]["else"]["enum"] == in_specs
    rules = definitions["distribution"]["properties"]["distribution"]["else"]["enum"]
    assert rules == list(DISTRIBUTIONS)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_every_setting_of_a_block_is_in_it_with_its_default(name):
    properties = SCHEMA["definitions"][f"block_{name}"]["properties"]
    settings, _ = settings_of(BLOCKS.get(name))
    assert set(settings) <= set(properties)
    for setting in settings.values():
        assert properties[setting.name]["description"]
        if isinstance(setting.default, (bool, int, float, str)):
            assert properties[setting.name]["default"] == setting.default


def test_a_block_registered_later_is_in_it():
    class Later(PerceptionBlock):
        """A block of a plugin."""

        def __init__(self, in_shapes, *, size: int = 3):
            super().__init__(in_shapes)

    BLOCKS.register("later", Later)
    try:
        assert json_schema()["definitions"]["block_later"] == {
            "description": "A block of a plugin.",
            "type": "object",
            "properties": {
                "block": {"const": "later"},
                "init": {"$ref": "#/definitions/initialiser"},
                **{
                    key: SCHEMA["definitions"]["block_dense"]["properties"][key]
                    for key in ("in", "out", "each")
                },
                "size": {
                    "if": {"$ref": "#/definitions/placeholder"},
                    "else": {"type": "integer"},
                    "description": "an integer",
                    "default": 3,
                },
            },
            "additionalProperties": False,
        }
    finally:
        del BLOCKS._entries["later"]


def test_its_keys_are_those_that_the_reader_knows():
    assert set(SCHEMA["properties"]) == set(TOP_KEYS)
    definitions = SCHEMA["definitions"]
    assert {*definitions["critic_network"]["properties"]} == {*NETWORK_KEYS, *ONE_OF_SEVERAL}
    policy, critic = (definitions[role]["else"]["properties"] for role in ("policy", "critic"))
    assert {*policy, "networks"} == {*POLICY_NETWORK_KEYS, *POLICY_KEYS}
    assert {*critic, "networks"} == {*NETWORK_KEYS, *CRITIC_KEYS}
    assert set(definitions["template"]["properties"]) == set(TEMPLATE_KEYS)
    assert critic["kind"]["else"]["enum"] == list(CRITICS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 1", "version: 2"),
        ("version: 1", "version: 1\ncolour: red"),
        ("policy:", "polcy:"),
        ("block: dense", "block: dens"),
        ("block: dense, ", ""),
        ("in: observation, ", ""),
        ("hidden_units: [64, 64], ", ""),
        ("hidden_units: [64, 64]", "hiden_units: [64, 64]"),
        ("hidden_units: [64, 64]", "hidden_units: [64, 0]"),
        ("hidden_units: [64, 64]", "hidden_units: wide"),
        ("hidden_units: [64, 64]", "hidden_units: 1.5"),
        ("activation: tanh", "activation: tahn"),
        ("activation: tanh", "activation: {leaky_relu: {slope: 0.1}}"),
        ("activation: tanh", "dropout: 1.5"),
        ("activation: tanh", "bias: 'no'"),
        ("activation: tanh", "each: 0"),
        ("activation: tanh", "init: orthogonl"),
        ("latent: {block: dense, in: observation, hidden_units: 64}", "3d: {block: flatten, in: x}"),
        ("latent: {block: dense, in: observation, hidden_units: 64}", "a: {same_as: b, in: x, hidden_units: 3}"),
        ("latent: {block: dense, in: observation, hidden_units: 64}", "a: {block: graph, in: x}"),
        ("latent: {block: dense, in: observation, hidden_units: 64}", "a: {block: ensemble, in: x, graph: {}}"),
        ("latent: {block: dense, in: observation, hidden_units: 64}", "a: {block: ensemble, in: x, copies: 0, graph: {}}"),
        ("latent: {block: dense, in: observation, hidden_units: 64}", "a: {block: ensemble, in: x, copies: three, graph: {}}"),
        ("latent: {block: dense, in: observation, hidden_units: 64}", "a: {block: graph, in: x, copies: 3, graph: {}}"),
        ("\n  heads: {in: latent}", ""),
        ("{in: latent}", "latent"),
        ("{in: latent}", "{in: latent, output_unit: 3}"),
        ("{in: latent}", "{move: {output_units: 3}}"),
        ("kind: state", "kind: stat"),
        ("kind: state", "ensemble: 0"),
        ("kind: state", "_target_: my_nets.Critic"),
        ("kind: state", "shares: [latent]"),
        ("policy:", "distributions: [{action: steer, distribution: betta}]\npolicy:"),
        ("policy:", "distributions: [{distribution: beta}]\npolicy:"),
        ("policy:", "texts: {mission: {max_lenght: 64}}\npolicy:"),
        ("policy:", "texts: {mission: {charset: abc}}\npolicy:"),
        ("policy:", "texts: [mission]\npolicy:"),
        ("policy:", "distributions: [{action: steer, distribution: gaussian, log_sdt: learned}]\npolicy:"),
    ],
)  # fmt: skip
def test_a_typical_mistake_is_invalid(old, new):
    assert faults(CARTPOLE) == []
    assert old in CARTPOLE
    assert faults(CARTPOLE.replace(old, new, 1)) != []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[64, 64]", '"${params.width}"'),
        ("[64, 64]", '["${params.width}", 64]'),
        ("tanh", '"${params.activation}"'),
        ("tanh", "torch.nn.Tanh"),
        ("tanh", "{torch.nn.LeakyReLU: {negative_slope: 0.1}}"),
        ("block: dense, in: observation, hidden_units: 64", "block: my_nets.Body, in: x, what: ever"),
        ("block: dense, in: observation, hidden_units: 64", "block: one_hot, in: x"),
        ("{block: dense, in: observation, hidden_units: 64}", "{block: ensemble, in: x, copies: 3, graph: {}}"),
        ("block: dense, in: observation, hidden_units: 64", "same_as: other, in: x, each: 1"),
        ("{in: latent}", "{move: {in: latent}, use: {block: my_nets.Head, in: latent, k: 3}}"),
        ("{in: latent}", "{in: {in: latent}}"),
        ("policy:", "texts: {mission: {max_length: '${params.length}', charset: abc}}\npolicy:"),
        ("version: 1\npolicy:", "extends: base.yaml\npolicy: {graph: {latent: {hidden_units: 3}}}\ncritic:"),
    ],
)  # fmt: skip
def test_what_the_reader_allows_is_valid(old, new):
    assert old in CARTPOLE
    text = CARTPOLE.replace(old, new, 1)
    if "extends" in new:
        text = text.partition("\ncritic:")[0]
    assert faults(text) == []


def test_several_networks_are_valid():
    spec = yaml.safe_load(CARTPOLE)
    network = spec["policy"]
    for networks in ({"first": network, "second": network}, [network]):
        several = {**copy.deepcopy(spec), "policy": {"networks": networks}}
        assert list(VALIDATOR.iter_errors(several)) == []


# --- what is wrong is told of the value ---

BAD = TESTS / "specs" / "bad"
STRUCTURAL = {
    path.stem: path.read_text()
    for path in sorted(BAD.glob("*/*.yaml"))
    if not re.search("^# (set|allow)", path.read_text(), re.MULTILINE)
    and path.stem not in ("alias_of_itself", "alias_bomb")  # data without an end, or nearly
}
# What a schema cannot say: names that refer to others, files, paths that need permission, and YAML's own syntax.
NOT_SAID = re.compile(
    r"reads itself|cycle|circle|no node's output|reaches no output|read by no node|named like|to share|'same_as' must name"
    r"|nothing refers to|unknown param|cannot stand inside a text|outside the allowed|is not a dotted path|is not a full path"
    r"|grows to|is refused|is repeated|merge keys|itself the same|spec may have|'\$\{' without|in a circle"
    r"|is a folder|no file|parts/|has no 'in': name|must be true or false, got the text 'no'|second document"
    r"|value of '&|refer to|syntax|missing|a text cannot|never closed|must be in quotes|out of place|cannot start|expected here"
    r"|escape|anchor|a number of|nested more than|empty|mapping of keys|cannot indent|\[ \]"
)


def structural(name):
    """What the structure of a spec is answered with, without looking at an environment."""
    try:
        read_spec(load_source(next(BAD.glob(f"*/{name}.yaml"))), ["broken_nets", "my_nets"])
    except SpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", STRUCTURAL)
def test_a_bad_structure_is_invalid(name):
    message = structural(name)
    said = [line for line in message.splitlines() if not NOT_SAID.search(line)]
    try:
        found = faults(STRUCTURAL[name])
    except yaml.YAMLError:
        return
    assert found or not said
    check_best_message(STRUCTURAL[name])


def check_best_message(text):
    """It names a value or a key that stands there, and never a way to write the value that nobody tried."""
    data = yaml.safe_load(text)
    error = best_match(VALIDATOR.iter_errors(data))
    if error is None:
        return
    value = data
    for part in error.absolute_path:
        value = value[part]
    keys = [repr(key) for key in value] if isinstance(value, dict) else []
    missing = re.match(r"'(\w+)' is a required property", error.message)
    assert missing or any(text in error.message for text in [repr(value), *keys])
    assert "params" not in error.message or "params" in repr(value)


# --- what another file is changed by ---

CHANGE = """
extends: base.yaml
policy:
  graph:
    latent: {block: dense, hidden_units: 64}
    head: {hidden_units: [3]}
  heads: {move: {output_units: 3}}
critic:
  ensemble: 3
  template: {trunk: {hidden_units: 8}, memory: null}
distributions: [{action: steer, distribution: beta}]
"""


@pytest.mark.parametrize(
    "text",
    [
        CHANGE,
        "extends: [a.yaml, b.yaml]",
        "extends: base.yaml\ncritic: null\npolicy: {hidden_units: [64], activation: tanh}",
        "extends: base.yaml\npolicy: {graph: {latent: null, more: {in: x}}}",
        "extends: base.yaml\npolicy: {networks: {select: {heads: {in: x}}}}",
        "extends: base.yaml\nparams: {width: 3}",
        "extends: base.yaml\npolicy: {_target_: my_nets.Policy, sizes: {in: 3}}",
    ],
)
def test_a_part_of_a_spec_is_valid(text):
    assert faults(text) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("policy:", "polcy:"),
        ("policy:", "version: 2\npolicy:"),
        ("  graph:", "  grph:"),
        ("heads:", "hedas:"),
        ("hidden_units: 64", "hiden_units: 64"),
        ("hidden_units: 64", "hidden_units: 0"),
        ("block: dense", "block: dens"),
        ("ensemble: 3", "ensembel: 3"),
        ("ensemble: 3", "ensemble: 0"),
        ("trunk:", "trnk:"),
        ("trunk: {", "trunk: {block: dense, activatoin: tanh, "),
        ("distribution: beta", "distribution: betta"),
        ("extends: base.yaml", "extends: 3"),
        ("extends: base.yaml", "extends: []"),
    ],
)
def test_a_misspelt_part_of_a_spec_is_invalid(old, new):
    assert old in CHANGE
    assert faults(CHANGE.replace(old, new, 1)) != []


def test_nodes_under_a_misspelt_key_are_no_arguments_of_a_class():
    assert faults("extends: base.yaml\npolicy: {hedas: {move: {in: latent}}}") != []
    assert faults("extends: base.yaml\npolicy: {hedas: {in: latent}}") != []


# --- classes of allowed modules ---

NETWORKS = """
import sys
from typing import Literal
from torch import nn
class Inner(nn.Module):
    def __init__(self, units: int):
        super().__init__()
class Policy(nn.Module):
    \"\"\"Reads maps.\"\"\"
    def __init__(self, obs_shapes, action_logits_shapes, units: int, mode: Literal["wide", "deep"] = "wide", anything=None):
        super().__init__()
class Free(nn.Module):
    def __init__(self, obs_shapes, **settings):
        super().__init__()
"""


@pytest.fixture(scope="module")
def of_targets(tmp_path_factory):
    """The schema with the classes of an allowed module, which imports nothing of a module beside it."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "schema_nets.py").write_text(NETWORKS)
    (folder / "schema_others.py").write_text(NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        schema = json_schema(["schema_nets"])
    assert "schema_others" not in sys.modules
    jsonschema.Draft7Validator.check_schema(schema)
    return schema


def test_networks_of_an_allowed_module_are_proposed(of_targets):
    assert of_targets["definitions"]["target"]["examples"] == [
        "schema_nets.Free",
        "schema_nets.Policy",
    ]
    assert "examples" not in json_schema()["definitions"]["target"]


def test_the_arguments_of_a_class_are_those_of_its_signature(of_targets):
    _, rule = of_targets["definitions"]["arguments"]["allOf"]
    arguments = rule["then"]
    assert list(arguments["properties"]) == ["units", "mode", "anything"]
    assert arguments["required"] == ["units"]
    assert arguments["description"] == "Reads maps."
    assert arguments["properties"]["mode"]["else"] == {"enum": ["wide", "deep"]}
    assert arguments["properties"]["mode"]["default"] == "wide"


@pytest.mark.parametrize(
    ("policy", "holds"),
    [
        ("{_target_: schema_nets.Policy, units: 3}", True),
        ("{_target_: schema_nets.Policy, units: '${params.width}', mode: deep, anything: [1]}", True),
        ("{_target_: schema_nets.Policy, units: 3, observations: [a], wrap: []}", True),
        ("{networks: [{_target_: schema_nets.Policy, units: 3}]}", True),
        ("{_target_: schema_nets.Free, whatever: {a: 1}}", True),
        ("{_target_: schema_others.Policy, whatever: 3}", True),
        ("{_target_: schema_nets.Policy}", False),
        ("{_target_: schema_nets.Policy, unit: 3, units: 3}", False),
        ("{_target_: schema_nets.Policy, units: wide}", False),
        ("{_target_: schema_nets.Policy, units: 3, mode: flat}", False),
        ("{networks: [{_target_: schema_nets.Policy, units: 3, mod: deep}]}", False),
    ],
)  # fmt: skip
def test_arguments_of_a_class_are_checked(of_targets, policy, holds):
    validator = jsonschema.Draft7Validator(of_targets)
    spec = yaml.safe_load(f"version: 1\npolicy: {policy}")
    assert validator.is_valid(spec) is holds
    change = yaml.safe_load(f"extends: base.yaml\npolicy: {policy}")
    is_only_incomplete = policy == "{_target_: schema_nets.Policy}"
    assert validator.is_valid(change) is (holds or is_only_incomplete)


def test_a_module_that_is_not_there_is_told():
    with pytest.raises(SpecError, match="there is no module 'no_such_nets'"):
        json_schema(["no_such_nets"])
