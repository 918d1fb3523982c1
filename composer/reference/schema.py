"""The JSON Schema (draft-07) of specs, so that editors complete and check them; made from the live registries."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from composer.distributions.base import DISTRIBUTIONS
from composer.spaces.kinds import KINDS
from composer.spec.action_model import (
    ATTENTION,
    HEAD_ACTIVATIONS,
    INPUTS,
    MODEL_KEYS,
    MODEL_PRECISIONS,
)
from composer.spec.keys import BESIDE_MODEL, PREVIOUS, RECALLED, TOP_KEYS
from composer.spec.model_spec import CRITICS
from composer.spec.nodes import NESTED
from composer.spec.parallel import PRECISION_KEYS, PRECISIONS
from composer.spec.template import GIVEN_KINDS, TEMPLATE_KEYS
from composer.spec.top_level import VERSION
from composer.spec.wrapper_names import ONLY_PYTHON, WRAPPERS
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
PART = "part_of_"  # begins the names of definitions of one file's share, where another file has the rest
PARAM = r"\$\{\s*params\.[^{}]+\}"

TEXT: Schema = {"type": "string", "minLength": 1}
PLACEHOLDER: Schema = {"type": "string", "pattern": PARAM, "description": "A value from params."}
# An argument of a class is no node and no mapping of nodes: such a key is a misspelt one.
_NODE: Schema = {"type": "object", "required": ["in"]}
NO_NODES: Schema = {
    "not": {"anyOf": [_NODE, {"type": "object", "minProperties": 1, "additionalProperties": _NODE}]}
}
NOTHING: Schema = {"not": {}}  # unlike false, it is reported with the path of what it refuses
COUNT: Schema = {"type": "integer", "minimum": 1}
_NOT_BESIDE_MODEL = [key for key in TOP_KEYS if key not in BESIDE_MODEL]
DOTTED_PATH: Schema = {"type": "string", "pattern": DOTTED}


def json_schema() -> Schema:
    """The JSON Schema of every spec that `read_spec` accepts, as a dict."""
    keys = _top_keys()
    text = "The values it reads: a name, a list, or a mapping from arguments to names."
    inputs = _if({"type": "object"}, _names_to(TEXT), _one_or_list(TEXT))
    return {
        "$schema": DRAFT,
        "title": "Perception composer spec",
        "type": "object",
        "properties": dict.fromkeys(keys, True),
        "additionalProperties": False,
        "if": {"required": ["extends"]},
        "then": {"properties": {key: _or_null(schema) for key, schema in _top_keys(PART).items()}},
        "else": {
            "properties": keys,
            "required": ["version"],
            **_if(
                _has("model"),
                {"properties": dict.fromkeys(_NOT_BESIDE_MODEL, NOTHING)},
                {"required": ["policy"]},
            ),
        },
        "definitions": {
            "placeholder": PLACEHOLDER,
            "activation": _named(ACTIVATIONS, 0, dotted=True),
            "function": _named(FUNCTIONS, 1),
            "initialiser": _named(INITIALIZERS, 2),
            "wrapper": _named(WRAPPERS, 1, without=ONLY_PYTHON),
            "inputs": _said(text, inputs),
            "distribution": _distribution(),
            **_networks_and_nodes(""),
            **_networks_and_nodes(PART),
            **{f"block_{name}": _block(name) for name in sorted(BLOCKS)},
            **{f"block_{name}": _nested_graph(name) for name in NESTED},
        },
    }


def _networks_and_nodes(part: str) -> dict[str, Schema]:
    """Definitions of the mappings that are merged with another file's where a spec ``extends`` it.

    There are two of each. With ``part``, which is then in their names, they say what one of the files may hold: the
    other file may hold required keys, null removes a key, and the keys of a mapping are checked only where this file
    decides which there are.
    """
    separate = {"separate": _said("One network for each agent.", _value({"type": "boolean"}))}
    shares = {"shares": _said("Values that the critic may read.", _names())}
    text = "How the policy is used; the first wrapper is innermost."
    policy_keys = {"action_mask": _names_to(TEXT), "wrap": _said(text, _list(_ref("wrapper")))}
    critic_keys = {
        "kind": _value({"enum": list(CRITICS)}),
        "stack": _value({"type": "boolean"}),
        "ensemble": _value(COUNT),
        "normalize_value": _value({"type": "boolean"}),
    }
    definitions = {
        "graph": _names_to(_or_null(_ref("node", part)) if part else _ref("node"), NODE_NAME),
        "node": _node(part),
        "head": _head(part),
        "heads": _heads(part),
        "template": _template(part),
        "template_node": _template_node(part),
        "policy_network": _network({**shares, **separate}, part),
        "critic_network": _network(separate, part),
        "policy": _networks({**policy_keys, **separate}, shares, "policy_network", part),
        "critic": _networks({**critic_keys, **separate}, {}, "critic_network", part),
    }
    return {part + name: schema for name, schema in definitions.items()}


# --- the parts of a spec ----------------------------------------------------------------------------------------------


def _top_keys(part: str = "") -> dict[str, Schema]:
    params = _names_to({"type": ["number", "string", "boolean", "null", "array"]})
    return {
        "version": {"enum": [VERSION], "description": "The version of the format."},
        "environment": _said("The id of the gymnasium environment it is for.", TEXT),
        "params": _said('Values that "${params.name}" stands for anywhere below.', params),
        "extends": _said(
            "The file of a spec that this one changes, or several.", _one_or_list(TEXT)
        ),
        "distributions": _list(_ref("distribution")),
        "ignore": _said("Observations that are left unread on purpose.", _names()),
        "normalize": _said("Observations and groups to normalise by running statistics.", _names()),
        "texts": _texts(),
        PREVIOUS: _said("What of the last step becomes observations.", _names(RECALLED)),
        "extensions": _said("Modules to import first; the caller must allow them.", _names()),
        "freeze": _said(
            "Parts of the model that are not trained, such as policy/screen.", _names()
        ),
        "weights": _said("Files with the first weights of parts of the model.", _names_to(TEXT)),
        "learning_rate_scale": _said(
            "Factors of the learning rate by part of the model.",
            _names_to(_value({"type": "number", "exclusiveMinimum": 0})),
        ),
        "state_names": _said(
            "Names of states such as policy/memory/h, for hosts and exported files.",
            _names_to(TEXT),
        ),
        "parallel": _or_null(_parallel()),
        "policy": _ref("policy", part),
        "critic": _or_null(_ref("critic", part)),
        "model": _or_null(_action_model(part)),
    }


def _action_model(part: str) -> Schema:
    """An action model in the place of policy and critic."""
    yes_or_no, size = _value({"type": "boolean"}), _or_null(_value(COUNT))
    inputs = _object(dict.fromkeys(INPUTS, _value(TEXT)))
    units = _value({"type": "array", "items": _value(COUNT)})
    head = _object({"hidden_units": units, "activation": _value({"enum": list(HEAD_ACTIVATIONS)})})
    positive = {"type": "number", "exclusiveMinimum": 0}
    targets = _value({"type": "array", "items": TEXT, "uniqueItems": True, "minItems": 1})
    lora = {"rank": _value(COUNT), "alpha": _or_null(_value(positive))}
    lora |= {"targets": _or_null(targets), "path": _or_null(_value(TEXT))}
    pair = {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2}
    numbers = [int(word) for word in MODEL_PRECISIONS if word.isdigit()]
    precisions = [*MODEL_PRECISIONS, *numbers, "null", None]
    keys: Schema = dict.fromkeys(MODEL_KEYS, True) | {
        "model_type": _said("The name that register_hf gave it.", _value(TEXT)),
        "model_path": _said("A local folder with config.json and safetensors.", _value(TEXT)),
        "config": _said("Settings of the model type, for new weights.", {"type": "object"}),
        "inputs": _said("Which observation is the image, and which the text.", inputs),
        "action_token_len": _said("How many tokens an action has.", size),
        "action_chunks_len": _said("How many actions are chosen at once.", size),
        "unnorm_key": _said("Whose statistics scale the actions.", _or_null(_value(TEXT))),
        "precision": _value({"enum": precisions}),
        "attn_implementation": _or_null(_value({"enum": list(ATTENTION)})),
        "value_head": _if({"type": "object"}, head, _or_null(yes_or_no)),
        "lora": _or_null(_object(lora)),
        "freeze": _said("Paths of modules that are not trained.", _names()),
        "image_size": _or_null(_if({"type": "array"}, pair, _value(COUNT))),
        "trust_remote_code": _value({"const": False}),
        "lora_path": _or_null(_value(TEXT)),
    }
    keys |= dict.fromkeys(("micro_batch_size", "val_micro_batch_size", "lora_rank"), size)
    keys |= dict.fromkeys(("hidden_size", "vocab_size"), size)
    keys |= dict.fromkeys(("gradient_checkpointing", "low_cpu_mem_usage", "is_lora"), yes_or_no)
    keys["add_value_head"] = yes_or_no
    ways = [{"required": [way]} for way in ("model_path", "config")]
    needs = {} if part else {"required": ["model_type"], "oneOf": ways}
    return {**_object(keys), **needs}


def _texts() -> Schema:
    length = _said("The longest length, in characters.", _value(COUNT))
    charset = _said("All its characters; printable ASCII unless given.", TEXT)
    text = _object({"max_length": length, "charset": charset}, ["max_length"])
    what = "The length and characters of texts whose space does not say them, by observation."
    return _said(what, _names_to(text))


def _parallel() -> Schema:
    word: Schema = {"enum": list(PRECISIONS)}
    both = _object({key: _value(word) for key in PRECISION_KEYS})
    keys = {
        "data": _said(
            "How many processes share the batch.", _value({"anyOf": [{"const": "auto"}, COUNT]})
        ),
        "tensor": _said("How many processes share each matrix.", _value(COUNT)),
        "precision": _said(
            "The dtype of calculations and of sums of gradients.",
            _or_null(_if({"type": "object"}, both, _value(word))),
        ),
        "units": _said("Further classes that are sharded by themselves.", _names()),
        "gradient_checkpointing": _said("Recompute layers backward.", _value({"type": "boolean"})),
        "offload": _said("Keep parameters on the CPU.", _value({"type": "boolean"})),
    }
    return _said("How composer.parallel spreads the model over processes.", _object(keys))


def _network(more: dict[str, Schema], part: str) -> Schema:
    """One network, which may have the keys of ``more`` too; one that may have `shares` is a policy's."""
    init = _ref("initialiser")
    keys = {
        "graph": _ref("graph", part),
        "_target_": _said("A class of your own; its arguments stand beside it.", DOTTED_PATH),
        "template": _ref("template", part),
        "heads": _ref("heads", part),
        "observations": _said("Observations and groups that it may see; by default all.", _names()),
        "init": _if(_has("body", "heads"), _object(dict.fromkeys(("body", "heads"), init)), init),
        **more,
    }
    only_these: Schema = {"propertyNames": {"enum": list(keys)}}
    if part:
        arguments = {"properties": dict.fromkeys(keys, True), "additionalProperties": NO_NODES}
        only_these = _if(_has("graph", "template", "heads"), only_these, arguments)
        keys = {key: _or_null(schema) for key, schema in keys.items()}
    else:
        ways = [{"required": [way]} for way in ("graph", "_target_", "template")]
        only_these |= {"oneOf": ways, **_needs_heads(of_policy="shares" in more)}
    alone = dict.fromkeys(("graph", "template", "heads"), NOTHING)
    return {
        "type": "object",
        "properties": keys,
        **_if({"required": ["_target_"]}, {"properties": alone}, only_these),
    }


def _needs_heads(of_policy: bool) -> Schema:
    """A policy's graph needs heads beside it, a critic's only where it has no nodes."""
    graph = {} if of_policy else {"properties": {"graph": {"type": "object", "maxProperties": 0}}}
    return _if({"required": ["graph"], **graph}, {"required": ["heads"]})


def _networks(keys: dict[str, Schema], alone: dict[str, Schema], member: str, part: str) -> Schema:
    """A policy or critic with its ``keys``: one network, which may have the keys ``alone``, or several."""
    if part:
        keys = {key: _or_null(schema) for key, schema in keys.items()}
    listed = {"type": "array", "items": _ref(member, part), "minItems": 1}
    by_name = {**_names_to(_ref(member, part)), "minProperties": 1}
    networks = _if({"type": "array"}, listed, by_name)
    several = {"properties": {**keys, "networks": networks}, "additionalProperties": False}
    return {
        "type": "object",
        **_if({"required": ["networks"]}, several, _network({**keys, **alone}, part)),
    }


def _heads(part: str) -> Schema:
    text = "One head for every action ({in: latent}), or a mapping from actions to heads."
    head = _ref("head", part)
    if part:  # whether there is one for every action may stand in the other file
        return _said(text, _names_to(_if({"type": "object"}, head)))
    for_all = {"required": ["in"], "properties": {"in": {"type": ["string", "array"]}}}
    mapping = {"type": "object", "minProperties": 1}
    return _said(text, {**mapping, **_if(for_all, head, {"additionalProperties": head})})


def _template(part: str) -> Schema:
    node = _ref("template_node", part)
    keys = [key for key in TEMPLATE_KEYS if key not in ("by_name", "kinds")]
    named = {
        "by_name": _names_to(_or_null(node) if part else node),
        "kinds": _names_to({"enum": list(GIVEN_KINDS)}),
    }
    return _object({**dict.fromkeys(keys, _or_null(node)), **named})


def _distribution() -> Schema:
    """An entry of `distributions`."""
    keys = {"action": TEXT, "space": {"enum": list(KINDS)}}
    keys["distribution"] = _value({"enum": list(DISTRIBUTIONS)})
    keys["optional"] = _said("Whether it may match no action.", _value({"type": "boolean"}))
    no_action = {"properties": {"action": NOTHING}}
    return {
        "type": "object",
        "properties": keys,
        "required": ["distribution"],
        **_if({"required": ["space"]}, no_action, {"required": ["action"]}),
        "allOf": [
            _when(
                "distribution", name, _object({**keys, **_settings(DISTRIBUTIONS.get(name), 1)[0]})
            )
            for name in DISTRIBUTIONS
        ],
    }


# --- nodes ------------------------------------------------------------------------------------------------------------


def _wiring(*, nested: bool = False) -> dict[str, Schema]:
    """``nested``: of a node that holds a graph, whose outputs may get other names."""
    out = _one_or_list(TEXT)
    return {
        "in": _ref("inputs"),
        "out": _if({"type": "object"}, _names_to(TEXT), out) if nested else out,
        "each": _value(COUNT),
    }


def _node(part: str) -> Schema:
    names = {"enum": [*sorted(BLOCKS), *NESTED]}
    block = _value(_if({"pattern": r"\."}, DOTTED_PATH, names))
    shared = {**_wiring(nested=True), "same_as": TEXT}
    if part:
        settings = {"block": block, "same_as": TEXT, "graph": _or_null(_ref("graph", part))}
        return {"type": "object", "properties": settings, "allOf": _per_block(part)}
    return {
        "type": "object",
        "properties": {
            **shared,
            "block": block,
            "init": _ref("initialiser"),
            "graph": _ref("graph"),
        },
        "required": ["in"],
        "allOf": _per_block(part),
        **_if({"required": ["same_as"]}, _object(shared), {"required": ["block"]}),
    }


def _head(part: str) -> Schema:
    """A node whose block is linear_output unless it says otherwise; how wide a head is need not be said."""
    if part:
        return _node(part)
    node = _if(_has("block", "same_as"), _ref("node"), _ref("block_linear_output"))
    dueling = {"properties": {"block": {"const": "dueling"}}, "required": ["block"]}
    return {"type": "object", "required": ["in"], **_if(dueling, _ref("block_dueling"), node)}


def _template_node(part: str) -> Schema:
    """A template wires its blocks itself."""
    return {
        "type": "object",
        "properties": dict.fromkeys(("in", "out", "same_as"), NOTHING),
        "allOf": _per_block(part),
        **({} if part else {"required": ["block"]}),
    }


def _per_block(part: str) -> list[Schema]:
    """The settings that each block takes and, without ``part``, the ones that it requires."""
    names = (*sorted(BLOCKS), *NESTED)
    rules = [_when("block", name, _ref(f"block_{name}")) for name in names]
    if not part:
        needs = {name: _required_by(name) for name in names}
        rules += [_when("block", name, {"required": keys}) for name, keys in needs.items() if keys]
    return rules


def _required_by(name: str) -> list[str]:
    """The settings that the block ``name`` must be given."""
    if name in NESTED:
        return ["graph", "copies"] if name == "ensemble" else ["graph"]
    try:
        block = BLOCKS.get(name)
    except MissingExtraError:  # its settings are known where its library is
        return []
    settings, _ = settings_of(block)
    return [s.name for s in settings.values() if s.required and s.name not in block.from_ports]


def _block(name: str) -> Schema:
    """A node with the block ``name``."""
    keys = {"block": {"const": name}, "init": _ref("initialiser"), **_wiring()}
    try:
        block = BLOCKS.get(name)
    except MissingExtraError:  # its settings are known where its library is
        return {"type": "object"}
    settings, takes_any = settings_of(block)
    return {
        "description": (inspect.getdoc(block) or "").partition("\n")[0].replace("``", ""),
        **_object({**keys, **_properties(settings)}, more=takes_any),
    }


def _nested_graph(name: str) -> Schema:
    """A node that holds a graph; an ensemble has several copies of it."""
    keys = {"block": {"const": name}, "init": True, "graph": True, **_wiring(nested=True)}
    if name == "ensemble":
        keys["copies"] = _said("How many there are, each with its own weights.", _value(COUNT))
    return _object(keys)


# --- settings ---------------------------------------------------------------------------------------------------------


def _properties(settings: Mapping[str, Setting]) -> dict[str, Schema]:
    return {name: _property(setting) for name, setting in settings.items()}


def _property(setting: Setting) -> Schema:
    schema = {**_value(_typed(setting.annotation)), "description": describe(setting.annotation)}
    if not setting.required:
        with contextlib.suppress(TypeError, ValueError):  # a default that no file can hold
            schema["default"] = json.loads(json.dumps(setting.default, allow_nan=False))
    return schema


def _typed(annotation: object) -> Schema:
    """The schema of an annotation; an annotation that no schema can say allows everything."""
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


def _annotated(base: object, notes: tuple[object, ...]) -> Schema:
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


def _array(item: object) -> Schema:
    return {"type": "array", "items": _value(_typed(item))}


def _named(
    registry: Registry, skip: int, dotted: bool = False, without: Collection[str] = ()
) -> Schema:
    """A name, or {name: {setting: value}}."""
    names = [name for name in registry if name not in without]
    settings = {name: _object(*_settings(registry.get(name), skip)) for name in names}
    known: Schema = {"enum": names}
    mapping = {"minProperties": 1, "maxProperties": 1, **_object(settings)}
    if dotted:
        mapping["additionalProperties"] = {"type": "object"}
        known = _if(
            {"type": "string", "pattern": r"\."}, {"pattern": r"^torch\.nn\.[A-Z]\w*$"}, known
        )
    return _if({"type": "object"}, mapping, _value(known))


def _settings(
    function: Callable[..., object], skip: int
) -> tuple[dict[str, Schema], list[str], bool]:
    settings, takes_any = settings_of(function, skip)
    required = [setting.name for setting in settings.values() if setting.required]
    return _properties(settings), required, takes_any


# --- schemas of schemas -----------------------------------------------------------------------------------------------


def _ref(name: str, part: str = "") -> Schema:
    return {"$ref": f"#/definitions/{part}{name}"}


def _said(description: str, schema: Schema) -> Schema:
    return {**schema, "description": description}


def _if(condition: Schema, then: Schema, otherwise: Schema | None = None) -> Schema:
    """Unlike anyOf, it reports errors of the case that applies, and of no other."""
    return {"if": condition, "then": then, **({"else": otherwise} if otherwise is not None else {})}


def _value(schema: Schema) -> Schema:
    """``schema``, or a param that stands for it."""
    return {"if": _ref("placeholder"), "else": schema} if schema else {}


def _or_null(schema: Schema) -> Schema:
    return {"if": {"type": "null"}, "else": schema}


def _one_or_list(item: Schema) -> Schema:
    return _if({"type": "array"}, {"items": item, "minItems": 1}, item)


def _names(known: Sequence[str] = ()) -> Schema:
    """A list of names, each once, of those that are ``known`` if that is given."""
    item: Schema = {"enum": list(known)} if known else TEXT
    return _value({"type": "array", "items": item, "uniqueItems": True})


def _has(*keys: str) -> Schema:
    return {"type": "object", "anyOf": [{"required": [key]} for key in keys]}


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
