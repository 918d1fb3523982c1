"""The JSON Schema of settings by their annotations, and the few forms that schemas of specs are made of."""

from __future__ import annotations

import contextlib
import json
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from perception_blocks.registry import Registry
from perception_blocks.settings import Named, Range, Setting, describe, settings_of

__all__ = [
    "DOTTED_PATH",
    "NOTHING",
    "TEXT",
    "Schema",
    "described",
    "has_one_of",
    "if_then",
    "list_of",
    "mapping_of",
]
__all__ += ["named_in", "names_list", "names_to", "one_or_list", "or_null", "or_param"]
__all__ += ["properties_of", "ref", "settings_of_function", "when"]

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
DOTTED_PATH: Schema = {"type": "string", "pattern": r"^[^\W\d]\w*(\.[^\W\d]\w*)+$"}
NOTHING: Schema = {"not": {}}  # unlike false, it is reported with the path of what it refuses


# --- settings ---------------------------------------------------------------------------------------------------------


def properties_of(settings: Mapping[str, Setting]) -> dict[str, Schema]:
    return {name: _property(setting) for name, setting in settings.items()}


def _property(setting: Setting) -> Schema:
    schema = {**or_param(_typed(setting.annotation)), "description": describe(setting.annotation)}
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
            return ref(note.registry.kind)
        if isinstance(note, Range):
            names = ("minimum", "maximum")
            if note.exclusive:
                names = ("exclusiveMinimum", "exclusiveMaximum")
            limits = zip(names, (note.low, note.high))
            schema |= {name: limit for name, limit in limits if math.isfinite(limit)}
    return schema


def _array(item: object) -> Schema:
    return {"type": "array", "items": or_param(_typed(item))}


def named_in(
    registry: Registry, skip: int, dotted: bool = False, without: Collection[str] = ()
) -> Schema:
    """A name, or {name: {setting: value}}."""
    names = [name for name in registry if name not in without]
    settings = {name: mapping_of(*settings_of_function(registry.get(name), skip)) for name in names}
    known: Schema = {"enum": names}
    mapping = {"minProperties": 1, "maxProperties": 1, **mapping_of(settings)}
    if dotted:
        mapping["additionalProperties"] = {"type": "object"}
        known = if_then(
            {"type": "string", "pattern": r"\."}, {"pattern": r"^torch\.nn\.[A-Z]\w*$"}, known
        )
    return if_then({"type": "object"}, mapping, or_param(known))


def settings_of_function(
    function: Callable[..., object], skip: int
) -> tuple[dict[str, Schema], list[str], bool]:
    settings, takes_any = settings_of(function, skip)
    required = [setting.name for setting in settings.values() if setting.required]
    return properties_of(settings), required, takes_any


# --- schemas of schemas -----------------------------------------------------------------------------------------------


def ref(name: str, part: str = "") -> Schema:
    return {"$ref": f"#/definitions/{part}{name}"}


def described(description: str, schema: Schema) -> Schema:
    return {**schema, "description": description}


def if_then(condition: Schema, then: Schema, otherwise: Schema | None = None) -> Schema:
    """Unlike anyOf, it reports errors of the case that applies, and of no other."""
    return {"if": condition, "then": then, **({"else": otherwise} if otherwise is not None else {})}


def or_param(schema: Schema) -> Schema:
    """``schema``, or a param that stands for it."""
    return {"if": ref("placeholder"), "else": schema} if schema else {}


def or_null(schema: Schema) -> Schema:
    return {"if": {"type": "null"}, "else": schema}


def one_or_list(item: Schema) -> Schema:
    return if_then({"type": "array"}, {"items": item, "minItems": 1}, item)


def names_list(known: Sequence[str] = ()) -> Schema:
    """A list of names, each once, of those that are ``known`` if that is given."""
    item: Schema = {"enum": list(known)} if known else TEXT
    return or_param({"type": "array", "items": item, "uniqueItems": True})


def has_one_of(*keys: str) -> Schema:
    return {"type": "object", "anyOf": [{"required": [key]} for key in keys]}


def list_of(item: Schema) -> Schema:
    return or_param({"type": "array", "items": item})


def names_to(schema: Schema, pattern: str = "") -> Schema:
    names = {"propertyNames": {"pattern": pattern}} if pattern else {}
    return {"type": "object", "additionalProperties": schema, **names}


def mapping_of(
    properties: dict[str, Schema] | None = None, required: Sequence[str] = (), more: bool = False
) -> Schema:
    """A mapping with ``properties`` and, unless ``more``, no others; without any it is free."""
    if properties is None:
        return {"type": "object"}
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": more}
    return {**schema, "required": list(required)} if required else schema


def when(key: str, value: str, schema: Schema) -> Schema:
    """``schema`` holds where ``key`` is ``value``."""
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": schema}
