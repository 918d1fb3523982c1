"""The JSON Schema (draft-07) of specs, so that editors complete and check them; made from the live registries."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from composer.distributions import DISTRIBUTIONS
from composer.model_spec import CRITIC_KINDS
from composer.nodes import NESTED
from composer.space_kinds import KINDS
from composer.spec import VERSION
from composer.template_spec import GIVEN_KINDS, TEMPLATE_KEYS
from composer.wrappers.names import ONLY_PYTHON, WRAPPERS
from perception_blocks.registry import (
    ACTIVATIONS,
    BLOCKS,
    FUNCTIONS,
    INITIALIZERS,
    MissingExtraError,
    Registry,
)
from perception_blocks.settings import Named, Range, Setting, describe, settings_of

__all__ = ["json_schema"]

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
NODE_NAME = r"^(?!(_|training)$)[A-Za-z_][A-Za-z0-9_]*$"
DOTTED = r"^[^\W\d]\w*(\.[^\W\d]\w*)+$"
PARAM = r"\$\{\s*params\.[^{}]+\}"

TEXT: Schema = {"type": "string", "minLength": 1}
PLACEHOLDER: Schema = {"type": "string", "pattern": PARAM, "description": "A value from params."}
COUNT: Schema = {"type": "integer", "minimum": 1}
DOTTED_PATH: Schema = {"type": "string", "pattern": DOTTED}


def json_schema() -> Schema:
    """A dict of plain values that describes every spec that `read_spec` takes."""
    keys = _top_keys()
    return {
        "$schema": DRAFT,
        "title": "Perception composer spec",
        "type": "object",
        "properties": dict.fromkeys(keys, True),
        "additionalProperties": False,
        # What a spec takes over by `extends` is not known here.
        "if": {"required": ["extends"]},
        "else": {"properties": keys, "required": ["version", "policy"]},
        "definitions": {
            "placeholder": PLACEHOLDER,
            "activation": _named(ACTIVATIONS, 0, dotted=True),
            "function": _named(FUNCTIONS, 1),
            "initialiser": _named(INITIALIZERS, 2),
            "wrapper": _named(WRAPPERS, 1, without=ONLY_PYTHON),
            "inputs": _inputs(),
            "graph": _names_to(_ref("node"), NODE_NAME),
            "node": _node(),
            "head": _head(),
            "heads": _heads(),
            "template": _template(),
            "template_node": _template_node(),
            "distribution": _distribution(),
            "network": _network({}),
            "policy_network": _network({**_shares(), **_separate()}),
            "critic_network": _network(_separate()),
            "policy": _networks({**_policy_keys(), **_separate()}, _shares(), "policy_network"),
            "critic": _networks({**_critic_keys(), **_separate()}, {}, "critic_network"),
            **{f"block_{name}": _block(name) for name in sorted(BLOCKS)},
            **{f"block_{name}": _nested_graph(name) for name in NESTED},
        },
    }


# --- the parts of a spec ----------------------------------------------------------------------------------------------


def _top_keys() -> dict[str, Schema]:
    return {
        "version": {"const": VERSION, "description": "The version of the format."},
        "environment": _said("The id of the gymnasium environment it is for.", TEXT),
        "params": _said('Values that "${params.name}" stands for anywhere below.', _object()),
        "extends": _said("The file of a spec that this one changes.", TEXT),
        "distributions": _list(_ref("distribution")),
        "ignore": _said("Observations that are left unread on purpose.", _list(TEXT)),
        "normalize": _said("Observations to normalise by running statistics.", _list(TEXT)),
        "texts": _texts(),
        "policy": _ref("policy"),
        "critic": {"anyOf": [_ref("critic"), {"type": "null"}]},
    }


def _texts() -> Schema:
    length = _said("The longest length, in characters.", _value(COUNT))
    charset = _said("All its characters; printable ASCII unless given.", TEXT)
    text = _object({"max_length": length, "charset": charset}, ["max_length"])
    what = "The length and characters of texts whose space does not say them, by observation."
    return _said(what, _names_to(text))


def _policy_keys() -> dict[str, Schema]:
    return {
        "action_mask": _names_to(TEXT),
        "wrap": _said(
            "How the policy is used; the first wrapper is innermost.", _list(_ref("wrapper"))
        ),
    }


def _critic_keys() -> dict[str, Schema]:
    return {
        "kind": _value({"enum": list(CRITIC_KINDS)}),
        "stack": _value({"type": "boolean"}),
        "ensemble": _value(COUNT),
        "normalize_value": _value({"type": "boolean"}),
    }


def _shares() -> dict[str, Schema]:
    return {"shares": _said("Values that the critic may read.", _list(TEXT))}


def _separate() -> dict[str, Schema]:
    return {"separate": _said("One network for each agent.", _value({"type": "boolean"}))}


def _network(more: dict[str, Schema]) -> Schema:
    """One network, which may have the keys of ``more`` too."""
    keys = {
        "graph": _ref("graph"),
        "_target_": _said("A class of your own; its arguments stand beside it.", DOTTED_PATH),
        "template": _ref("template"),
        "heads": _ref("heads"),
        "observations": _said("What it may see; by default everything.", _list(TEXT)),
        "init": {"anyOf": [_ref("initialiser"), _object(_parts_of_init())]},
        **more,
    }
    return {
        "type": "object",
        "oneOf": [{"required": [way]} for way in ("graph", "_target_", "template")],
        "properties": keys,
        "if": {"required": ["_target_"]},
        "else": {"propertyNames": {"enum": list(keys)}},
    }


def _networks(own: dict[str, Schema], alone: dict[str, Schema], member: str) -> Schema:
    """A policy or critic with its ``own`` keys: one network, which may have the keys ``alone``, or several."""
    networks = {"anyOf": [_list(_ref(member)), _names_to(_ref(member))]}
    return {
        "type": "object",
        "if": {"required": ["networks"]},
        "then": {"properties": {**own, "networks": networks}, "additionalProperties": False},
        "else": _network({**own, **alone}),
    }


def _parts_of_init() -> dict[str, Schema]:
    return {"body": _ref("initialiser"), "heads": _ref("initialiser")}


def _heads() -> Schema:
    return {
        "type": "object",
        "minProperties": 1,
        "description": "One head for every action ({in: latent}), or a mapping from actions to heads.",
        "if": {"required": ["in"], "properties": {"in": {"type": ["string", "array"]}}},
        "then": _ref("head"),
        "else": {"additionalProperties": _ref("head")},
    }


def _template() -> Schema:
    node = {"anyOf": [_ref("template_node"), {"type": "null"}]}
    keys = [key for key in TEMPLATE_KEYS if key not in ("by_name", "kinds")]
    named = {
        "by_name": _names_to(_ref("template_node")),
        "kinds": _names_to({"enum": list(GIVEN_KINDS)}),
    }
    return _object({**dict.fromkeys(keys, node), **named})


def _distribution() -> Schema:
    """An entry of `distributions`."""
    subject = {"action": TEXT, "space": {"enum": list(KINDS)}}
    known = {"distribution": {"anyOf": [{"enum": list(DISTRIBUTIONS)}, _ref("placeholder")]}}
    return {
        "type": "object",
        "properties": {**subject, **known},
        "required": ["distribution"],
        "oneOf": [{"required": ["action"]}, {"required": ["space"]}],
        "allOf": [
            _when("distribution", name, _object({**subject, **known, **_settings(family, 1)[0]}))
            for name, family in ((name, DISTRIBUTIONS.get(name)) for name in DISTRIBUTIONS)
        ],
    }


# --- nodes ------------------------------------------------------------------------------------------------------------


def _inputs() -> Schema:
    kinds = [TEXT, {"type": "array", "items": TEXT, "minItems": 1}, _names_to(TEXT)]
    text = "The values it reads: a name, a list, or a mapping from arguments to names."
    return {"anyOf": kinds, "description": text}


def _wiring() -> dict[str, Schema]:
    return {
        "in": _ref("inputs"),
        "out": {"anyOf": [TEXT, _list(TEXT), _names_to(TEXT)]},
        "each": _value(COUNT),
    }


def _node() -> Schema:
    names = {"enum": [*sorted(BLOCKS), *NESTED]}
    block = {"anyOf": [names, DOTTED_PATH, _ref("placeholder")]}
    shared = {**_wiring(), "same_as": TEXT}
    return {
        "type": "object",
        "properties": {**shared, "block": block, "init": _ref("initialiser")},
        "required": ["in"],
        "oneOf": [{"required": ["block"]}, {"required": ["same_as"]}],
        "allOf": _per_block(),
        "if": {"required": ["same_as"]},
        "then": _object(shared),
    }


def _head() -> Schema:
    """A node whose block is linear_output unless it says otherwise; how wide a head is need not be said."""
    node = {
        "if": {"anyOf": [{"required": ["block"]}, {"required": ["same_as"]}]},
        "then": _ref("node"),
        "else": _ref("block_linear_output"),
    }
    return {
        "type": "object",
        "required": ["in"],
        "if": {"properties": {"block": {"const": "dueling"}}, "required": ["block"]},
        "then": {**_block("dueling"), "required": ["in"]},
        "else": node,
    }


def _template_node() -> Schema:
    """A template wires its blocks itself."""
    return {
        "type": "object",
        "properties": {"in": False, "out": False, "same_as": False},
        "required": ["block"],
        "allOf": _per_block(),
    }


def _per_block() -> list[Schema]:
    return [_when("block", name, _ref(f"block_{name}")) for name in (*sorted(BLOCKS), *NESTED)]


def _block(name: str) -> Schema:
    """A node with the block ``name``."""
    keys = {"block": {"const": name}, "init": _ref("initialiser"), **_wiring()}
    try:
        block = BLOCKS.get(name)
    except MissingExtraError:  # its settings are known where its library is
        return {"type": "object"}
    settings, takes_any = settings_of(block)
    required = [s.name for s in settings.values() if s.required and s.name not in block.from_ports]
    return {
        "description": (inspect.getdoc(block) or "").partition("\n")[0].replace("``", ""),
        **_object({**keys, **_properties(settings)}, required, takes_any),
    }


def _nested_graph(name: str) -> Schema:
    """A node that holds a graph; an ensemble has several copies of it."""
    keys = {"block": {"const": name}, "init": True, "graph": _ref("graph"), **_wiring()}
    if name != "ensemble":
        return _object(keys, ["graph", "in"])
    copies = _said("How many there are, each with its own weights.", _value(COUNT))
    return _object({**keys, "copies": copies}, ["graph", "copies", "in"])


# --- settings ---------------------------------------------------------------------------------------------------------


def _properties(settings: Mapping[str, Setting]) -> dict[str, Schema]:
    return {name: _property(setting) for name, setting in settings.items()}


def _property(setting: Setting) -> Schema:
    schema = {**_value(_typed(setting.annotation)), "description": describe(setting.annotation)}
    if not setting.required:
        with contextlib.suppress(TypeError, ValueError):  # a default that no file can hold
            schema["default"] = json.loads(json.dumps(setting.default, allow_nan=False))
    return schema


def _typed(annotation: Any) -> Schema:
    """The schema of an annotation; what it cannot say allows everything."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(args[0], args[1:])
    if origin in (Union, types.UnionType):
        return {"anyOf": [_typed(arg) for arg in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and args and Ellipsis not in args:
        return {**_array(args[0]), "minItems": len(args), "maxItems": len(args)}
    if (origin or annotation) in (Sequence, list, tuple):
        return _array(args[0] if args else Any)
    if (origin or annotation) in (Mapping, dict):
        return {"type": "object"}
    simple = {str: "string", bool: "boolean", int: "integer", float: "number"}
    simple[type(None)] = "null"
    return {"type": simple[annotation]} if annotation in simple else {}


def _annotated(base: Any, notes: tuple[Any, ...]) -> Schema:
    schema = _typed(base)
    for note in notes:
        if isinstance(note, Named):
            return _ref(note.registry.kind)
        if isinstance(note, Range):
            names = ("minimum", "maximum")
            if note.exclusive:
                names = ("exclusiveMinimum", "exclusiveMaximum")
            limits = zip(names, (note.low, note.high))
            schema |= {name: limit for name, limit in limits if math.isfinite(limit)}
    return schema


def _array(item: Any) -> Schema:
    return {"type": "array", "items": _value(_typed(item))}


def _named(
    registry: Registry, skip: int, dotted: bool = False, without: Collection[str] = ()
) -> Schema:
    """A name, or {name: {setting: value}}."""
    names = [name for name in registry if name not in without]
    settings = {name: _object(*_settings(registry.get(name), skip)) for name in names}
    paths = [{"type": "string", "pattern": r"^torch\.nn\.[A-Z]\w*$"}] if dotted else []
    mapping = {"minProperties": 1, "maxProperties": 1, **_object(settings)}
    if dotted:
        mapping["additionalProperties"] = {"type": "object"}
    return {"anyOf": [{"enum": names}, *paths, mapping, _ref("placeholder")]}


def _settings(function: Callable[..., Any], skip: int) -> tuple[dict[str, Schema], list[str], bool]:
    settings, takes_any = settings_of(function, skip)
    required = [setting.name for setting in settings.values() if setting.required]
    return _properties(settings), required, takes_any


# --- schemas of schemas -----------------------------------------------------------------------------------------------


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _said(description: str, schema: Schema) -> Schema:
    return {**schema, "description": description}


def _value(schema: Schema) -> Schema:
    """``schema``, or a param that stands for it."""
    return {"anyOf": [schema, _ref("placeholder")]} if schema else {}


def _list(item: Schema) -> Schema:
    return _value({"type": "array", "items": item})


def _names_to(schema: Schema, pattern: str = "") -> Schema:
    names = {"propertyNames": {"pattern": pattern}} if pattern else {}
    return {"type": "object", "additionalProperties": schema, **names}


def _object(
    properties: dict[str, Schema] | None = None, required: Sequence[str] = (), more: bool = False
) -> Schema:
    """A mapping with ``properties`` and, unless ``more``, no others; without any it is free."""
    if properties is None:
        return {"type": "object"}
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": more}
    return {**schema, "required": list(required)} if required else schema


def _when(key: str, value: str, schema: Schema) -> Schema:
    """``schema`` holds where ``key`` is ``value``."""
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": schema}
