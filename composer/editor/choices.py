"""What may be written at a place of a spec, by the JSON Schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from composer.errors import Path

__all__ = ["Choices", "choices"]

Schema = Mapping[str, object]
Keys = Mapping[str, str]  # of the mapping that is typed, with the texts of their values

_MOST_REFERENCES = 30  # from definition to definition
_BRANCHES = {True: ("then",), False: ("else",), None: ("then", "else")}


@dataclass
class Choices:
    """The keys that a mapping may have, each with its schemas, and the values that are listed.

    ``only`` are the keys that a closed mapping has (None: it is open), ``refused`` those that it may not have.
    ``others`` are the schemas of keys that are not listed, ``items`` of a list's entries.
    """

    keys: dict[str, list[Schema]] = field(default_factory=dict)
    values: list[object] = field(default_factory=list)
    only: set[str] | None = None
    refused: set[str] = field(default_factory=set)
    others: list[Schema] = field(default_factory=list)
    items: list[Schema] = field(default_factory=list)
    description: str = ""

    @property
    def names(self) -> list[str]:
        """The keys, in the order of the schema."""
        return [
            name
            for name in self.keys
            if name not in self.refused and (self.only is None or name in self.only)
        ]

    def describe(self, name: str) -> str:
        """What the schema says of the key ``name``."""
        texts = (schema.get("description") for schema in self.keys.get(name, ()))
        return next((text for text in texts if isinstance(text, str)), "")

    def admits(self, keys: Keys) -> bool:
        """Whether a mapping with ``keys`` can be of this form."""
        return not any(
            key in self.refused or (self.only is not None and key not in self.only) for key in keys
        )

    def join(self, other: Choices, only: Callable, refused: Callable) -> None:
        for name, schemas in other.keys.items():
            self.keys.setdefault(name, []).extend(schemas)
        self.values += [value for value in other.values if value not in self.values]
        self.others += other.others
        self.items += other.items
        self.description = self.description or other.description
        self.only = only(self.only, other.only)
        self.refused = refused(self.refused, other.refused)


def choices(
    schema: Schema, path: Path, mappings: Sequence[Keys], kind: str | None = None
) -> Choices:
    """What may stand at ``path``, by ``schema``; ``kind`` is the JSON type of what is typed there, if it is known.

    ``mappings`` has the keys of the mapping at each beginning of ``path``, which decide between the schema's cases:
    ``mappings[0]`` those of the document. Where a mapping is not known yet, every case counts.
    """
    schemas: list[Schema] = [schema]
    for depth, part in enumerate(path):
        is_entry = isinstance(part, int)
        here = _all(schemas, schema, _at(mappings, depth), "array" if is_entry else "object")
        schemas = here.items if is_entry else here.keys.get(part) or here.others
    return _all(schemas, schema, _at(mappings, len(path)), kind)


def _at(mappings: Sequence[Keys], depth: int) -> Keys:
    return mappings[depth] if depth < len(mappings) else {}


def _all(schemas: Sequence[Schema], root: Schema, keys: Keys, kind: str | None) -> Choices:
    """What all of ``schemas`` allow together to a value with ``keys``; ``kind``: its JSON type, if it is known."""
    result = Choices()
    for schema in schemas:
        _add(result, _expand(schema, root, keys, kind, 0))
    return result


def _add(result: Choices, other: Choices) -> None:
    """Narrow ``result`` to what ``other`` allows too."""
    result.join(other, _narrowed, set.union)


def _narrowed(first: set[str] | None, second: set[str] | None) -> set[str] | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def _widened(first: set[str] | None, second: set[str] | None) -> set[str] | None:
    return None if first is None or second is None else first | second


def _either(cases: Sequence[Choices], keys: Keys) -> Choices:
    """What any of ``cases`` allows; those that the keys which are there do not fit are left out."""
    fitting = [case for case in cases if case.admits(keys)] or list(cases)
    result = Choices(only=fitting[0].only, refused=fitting[0].refused) if fitting else Choices()
    for case in fitting:
        result.join(case, _widened, set.intersection)
    return result


def _expand(schema: Schema, root: Schema, keys: Keys, kind: str | None, depth: int) -> Choices:
    result = Choices()
    if depth > _MOST_REFERENCES:
        return result
    result.description = str(schema.get("description") or "")
    _take_keys(result, schema)
    _take_values(result, schema)

    def expanded(part: object) -> Choices:
        known = part if isinstance(part, Mapping) else {}
        return _expand(known, root, keys, kind, depth + 1)

    if "$ref" in schema:
        _add(result, expanded(_definition(schema, root)))
    for part in _schemas(schema.get("allOf")):
        _add(result, expanded(part))
    for word in ("anyOf", "oneOf"):
        if cases := [expanded(part) for part in _schemas(schema.get(word))]:
            _add(result, _either(cases, keys))
    if "if" in schema:
        names = _BRANCHES[_holds(schema["if"], keys, kind)]
        if any(name in schema for name in names):
            _add(result, _either([expanded(schema.get(name)) for name in names], keys))
    return result


def _definition(schema: Schema, root: Schema) -> object:
    definitions = root["definitions"]
    assert isinstance(definitions, Mapping)
    return definitions[str(schema["$ref"]).rpartition("/")[2]]


def _schemas(value: object) -> Iterator[Schema]:
    for part in value if isinstance(value, list) else ():
        if isinstance(part, Mapping):
            yield part


def _take_keys(result: Choices, schema: Schema) -> None:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    for name, part in properties.items():
        if isinstance(part, Mapping) and part.get("not") == {}:
            result.refused.add(name)
        else:
            result.keys[name] = [part] if isinstance(part, Mapping) else []
    more = schema.get("additionalProperties")
    if more is False:
        result.only = set(properties)
    elif isinstance(more, Mapping):
        result.others.append(more)
    named = schema.get("propertyNames")
    if isinstance(named, Mapping) and isinstance(named.get("enum"), list):
        result.only = _narrowed(result.only, set(named["enum"]))


def _take_values(result: Choices, schema: Schema) -> None:
    examples = schema.get("examples")
    listed = schema.get("enum", examples)
    result.values += listed if isinstance(listed, list) else []
    if "const" in schema:
        result.values.append(schema["const"])
    if schema.get("type") == "boolean":
        result.values += [True, False]
    items = schema.get("items")
    if isinstance(items, Mapping):
        result.items.append(items)


def _holds(test: object, keys: Keys, kind: str | None) -> bool | None:
    """Whether the condition of a case is true of a mapping with ``keys``; None where that is not known yet."""
    if not isinstance(test, Mapping):
        return None
    if "$ref" in test:  # a param, which may stand anywhere
        return False
    answers: list[bool | None] = []
    if "type" in test and kind is not None:
        kinds = test["type"]
        answers.append(kind in kinds if isinstance(kinds, list) else kind == kinds)
    elif "type" in test or "pattern" in test:
        answers.append(None)
    if cases := [_holds(part, keys, kind) for part in _schemas(test.get("anyOf"))]:
        answers.append(True if True in cases else None if None in cases else False)
    properties = test.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    for name, part in properties.items():
        if isinstance(part, Mapping) and "const" in part:
            answers.append(keys.get(name) == part["const"])
    required = test.get("required")
    if any(name not in keys for name in (required if isinstance(required, list) else ())):
        answers.append(None)  # it may be written yet
    return False if False in answers else None if None in answers else True
