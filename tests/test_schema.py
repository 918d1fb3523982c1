"""The JSON Schema takes every good spec, refuses typical mistakes, and knows all that is registered."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from composer.distributions import DISTRIBUTIONS
from composer.model_spec import CRITIC_KINDS
from composer.nodes import NESTED
from composer.schema import json_schema
from composer.spec import CRITIC_KEYS, NETWORK_KEYS, POLICY_KEYS, POLICY_NETWORK_KEYS, TOP_KEYS
from composer.template_spec import TEMPLATE_KEYS
from composer.wrappers.names import ONLY_PYTHON, WRAPPERS
from perception_blocks.block import PerceptionBlock
from perception_blocks.registry import ACTIVATIONS, BLOCKS, INITIALIZERS
from perception_blocks.settings import settings_of

TESTS = Path(__file__).parent
GOOD = sorted([*(TESTS.parent / "configs").glob("*.yaml"), *(TESTS / "good_specs").glob("*.yaml")])
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
    named = definitions["node"]["properties"]["block"]["anyOf"][0]["enum"]
    assert set(named) == {*BLOCKS, *NESTED}
    assert all(f"block_{name}" in definitions for name in named)
    assert definitions["activation"]["anyOf"][0]["enum"] == list(ACTIVATIONS)
    assert definitions["initialiser"]["anyOf"][0]["enum"] == list(INITIALIZERS)
    in_specs = [name for name in WRAPPERS if name not in ONLY_PYTHON]
    assert definitions["wrapper"]["anyOf"][0]["enum"] == in_specs
    rules = definitions["distribution"]["properties"]["distribution"]["anyOf"][0]["enum"]
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
                    "anyOf": [{"type": "integer"}, {"$ref": "#/definitions/placeholder"}],
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
    assert set(definitions["network"]["properties"]) == set(NETWORK_KEYS)
    policy, critic = (definitions[role]["else"]["properties"] for role in ("policy", "critic"))
    assert {*policy, "networks"} == {*POLICY_NETWORK_KEYS, *POLICY_KEYS}
    assert {*critic, "networks"} == {*NETWORK_KEYS, *CRITIC_KEYS}
    assert set(definitions["template"]["properties"]) == set(TEMPLATE_KEYS)
    assert critic["kind"]["anyOf"][0]["enum"] == list(CRITIC_KINDS)


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
