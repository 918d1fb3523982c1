"""What an editor proposes at the cursor: keys and values by the JSON Schema, and names of the spec."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from composer.editor.choices import choices
from composer.editor.cursor import Cursor
from composer.editor.names import Names
from composer.errors import Path
from composer.spec.keys import PARTS
from perception_blocks.words import Shape, format_shape

__all__ = ["Known", "Proposal", "Reference", "proposals"]

Shapes: TypeAlias = Mapping[str, "Shape | None"]

_PARAM = re.compile(r"(?<!\$)\$\{\s*(params\.)?([^{}]*)$")
_READ = ("in", "same_as", "shares")
_OBSERVED = ("observations", "ignore", "normalize")
_MODEL_PATHS = ("freeze",)
_KEYS_ARE_MODEL_PATHS = ("weights", "learning_rate_scale")


class Reference(NamedTuple):
    """What may be written: the JSON Schema, and of each block or kind of graph its summary and its settings' lines."""

    schema: Mapping[str, object]
    summaries: Mapping[str, str] = {}
    settings: Mapping[str, Mapping[str, str]] = {}


class Known(NamedTuple):
    """What was known of the spec when it was last understood: values by network or nested graph, and params."""

    values: Mapping[Path, Shapes] = {}
    params: Mapping[str, object] = {}
    names: Names = Names({})


class Proposal(NamedTuple):
    """``insert`` replaces the last ``replaces`` characters before the cursor. ``kind`` is key, value, name or block."""

    label: str
    kind: str
    insert: str
    replaces: int
    detail: str = ""


def proposals(reference: Reference, cursor: Cursor, known: Known) -> list[Proposal]:
    """What may be typed at ``cursor``, of what begins with its prefix."""
    if (match := _PARAM.search(cursor.prefix)) is not None:
        return list(_params(match, known))
    if cursor.key is None:
        found = list(_keys(reference, cursor, known))
    else:
        found = list(_names(cursor, known)) or list(_values(reference, cursor))
        if not found and cursor.in_block_list:
            found = list(_keys_of_entry(reference.schema, cursor))
    return [each for each in found if each.label.startswith(cursor.prefix)]


# --- params -----------------------------------------------------------------------------------------------------------


def _params(match: re.Match[str], known: Known) -> Iterator[Proposal]:
    prefix, typed = match.groups()
    for name, value in known.params.items():
        label = name if prefix else f"params.{name}"
        if label.startswith(typed):
            yield Proposal(label, "name", label, len(typed), str(value))


# --- keys -------------------------------------------------------------------------------------------------------------


def _keys(reference: Reference, cursor: Cursor, known: Known) -> Iterator[Proposal]:
    allowed = choices(reference.schema, cursor.path, cursor.mappings, "object")
    settings = reference.settings.get(cursor.beside.get("block", ""), {})
    for name in allowed.names:
        if name not in cursor.beside:
            detail = settings.get(name, "").partition(": ")[2] or allowed.describe(name)
            yield _key(cursor, name, detail)
    if cursor.path[-1:] and cursor.path[0] in _KEYS_ARE_MODEL_PATHS:
        for path in _model_paths(known.names):
            if path not in cursor.beside:
                yield _key(cursor, path, "")


def _keys_of_entry(schema: Mapping[str, object], cursor: Cursor) -> Iterator[Proposal]:
    """The keys of the mapping that begins behind a dash."""
    path = (*cursor.path, str(cursor.key), 0)
    allowed = choices(schema, path, cursor.mappings, "object")
    for name in allowed.names:
        yield _key(cursor, name, allowed.describe(name))


def _key(cursor: Cursor, name: str, detail: str) -> Proposal:
    insert = name if cursor.before_colon else f"{name}: "
    return Proposal(name, "key", insert, len(cursor.prefix), detail)


# --- values -----------------------------------------------------------------------------------------------------------


def _values(reference: Reference, cursor: Cursor) -> Iterator[Proposal]:
    schema, path = reference.schema, (*cursor.path, str(cursor.key))
    listed = choices(schema, path, cursor.mappings).values
    listed += choices(schema, (*path, 0), cursor.mappings).values
    if cursor.key == "block" and "template" in cursor.path:
        listed += reference.summaries
    for word in dict.fromkeys(map(_word, listed)):
        is_block = cursor.key == "block" and word in reference.summaries
        detail = reference.summaries[word] if is_block else ""
        yield _value(cursor, word, "block" if is_block else "value", detail)


def _word(value: object) -> str:
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _value(cursor: Cursor, word: str, kind: str, detail: str) -> Proposal:
    insert = f" {word}" if cursor.after_colon else word
    return Proposal(word, kind, insert, len(cursor.prefix), detail)


# --- names of the spec ------------------------------------------------------------------------------------------------


def _names(cursor: Cursor, known: Known) -> Iterator[Proposal]:
    for name, shape in _names_for(cursor, known).items():
        yield _value(cursor, name, "name", "" if shape is None else format_shape(shape))


def _names_for(cursor: Cursor, known: Known) -> Shapes:
    """The names that may stand at the cursor, with their shapes where they are known."""
    key = cursor.path[-1] if cursor.path[-1:] in (("in",), ("action_mask",)) else cursor.key
    if key in _OBSERVED or key == "action_mask":
        return _observations(known, cursor.path)
    if key in _MODEL_PATHS and not cursor.path:
        return dict.fromkeys(_model_paths(known.names))
    scope = _scope(cursor.path) if key in _READ or key == "out" else None
    if scope is None:
        return {}
    node = cursor.path[len(scope)] if cursor.path[: len(scope)] == scope else None
    if key == "out":  # of a nested graph its inner values
        inner = (*scope, node, "graph") if isinstance(node, str) else ()
        return _readable(known, inner) if inner in known.names.scopes else {}
    refused = known.names.dependents(scope, node) if isinstance(node, str) else set()
    if key == "same_as":
        names = known.names.scopes[scope].writes if scope in known.names.scopes else ()
        return {name: None for name in names if name != node}
    readable = _readable(known, scope)
    if key == "shares":
        made = known.names.values_of(scope)
        return {name: shape for name, shape in readable.items() if name in made}
    return {name: shape for name, shape in readable.items() if name not in refused}


def _readable(known: Known, scope: Path) -> Shapes:
    """The values of a graph: its nodes' and those that it is given."""
    written = dict.fromkeys(known.names.values_of(scope))
    if scope[:-1] in known.values or scope.count("graph") > 1:
        return {**written, **known.values.get(scope[:-1], {})}
    return {**written, **_observations(known, ())}  # a network that is new


def _observations(known: Known, path: Path) -> Shapes:
    """The observations of the network at ``path``, or of all networks."""
    found: dict[str, Shape | None] = {}
    for network, values in known.values.items():
        if "graph" in network or (path and network[: len(path)] != path[: len(network)]):
            continue
        made = {*known.names.values_of((*network, "graph"))}
        found.update((name, shape) for name, shape in values.items() if name not in made)
    return found


def _scope(path: Path) -> Path | None:
    """The graph whose names are read at ``path``, which leads into a node, a head or a network."""
    for depth in range(len(path) - 1, 0, -1):
        if path[depth] == "graph" and len(path) > depth + 1:
            return path[: depth + 1]
        if path[depth] == "heads":
            return (*path[:depth], "graph")
    return (*path, "graph") if path[:1] and path[0] in PARTS else None


def _model_paths(names: Names) -> Iterable[str]:
    """Parts of the model, such as policy/screen."""
    for scope, graph in names.scopes.items():
        parts = [str(part) for part in scope[:-1] if part not in ("graph", "networks")]
        if scope.count("graph") == 1:
            yield "/".join(parts)
        for node in graph.writes:
            yield "/".join([*parts, node])
