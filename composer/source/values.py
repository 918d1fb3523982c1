"""A document as a tree that remembers where each value and each key was written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from composer.errors import Path, Position, Problem, Span, SpecError
from perception_blocks.words import describe

__all__ = ["MAX_DEPTH", "MAX_SIZE", "Located", "Mark", "check_size", "from_python", "mark_of"]
__all__ += ["node_at", "plain"]

MAX_DEPTH = 50
MAX_BITS = 1000  # of an integer; YAML's have at most 300 digits
MAX_SIZE = 300_000  # values after aliases and params are filled in; a spec of 5,000 blocks has about 60,000


_BITS = 32  # of a column

Mark: TypeAlias = int
"""Line and column of an end, counted from 0, in one number: an object of each would cost a fifth of reading."""


@dataclass(slots=True, init=False)  # not frozen: a spec of 10,000 blocks has 100,000 of them
class Located:
    """A scalar, or a dict or list of Located values. It never changes, so two places may hold the same one.

    It is written from ``position`` up to ``end``, and the key that leads here from ``key_position`` up to ``key_end``;
    the ends stay marks until they are asked for. Of an alias these are the places of the value that it repeats, and
    ``alias`` is its own. ``size`` and ``depth`` count this value and all below it; ``refers`` says whether a text in it
    may refer to a param. ``removed`` has the keys of a mapping that overrides removed, and the override.
    """

    value: Any  # dict[str, Located], list[Located], or a scalar
    position: Position | None = None
    key_position: Position | None = None
    end_mark: Mark | None = field(default=None, repr=False, compare=False)
    key_end_mark: Mark | None = field(default=None, repr=False, compare=False)
    alias: Span | None = field(default=None, repr=False, compare=False)
    removed: Mapping[str, Position | None] | None = field(default=None, repr=False, compare=False)
    size: int = 1
    depth: int = 1
    refers: bool = False

    def __init__(
        self,
        value: Any,
        position: Position | None = None,
        key_position: Position | None = None,
        end_mark: Mark | None = None,
        key_end_mark: Mark | None = None,
        alias: Span | None = None,
        removed: Mapping[str, Position | None] | None = None,
    ) -> None:
        self.value, self.position, self.key_position = value, position, key_position
        self.end_mark, self.key_end_mark = end_mark, key_end_mark
        self.alias, self.removed = alias, removed
        self.size = self.depth = 1
        self.refers = False
        if isinstance(value, str):
            self.refers = "${" in value
        elif isinstance(value, dict | list) and value:
            below = value.values() if isinstance(value, dict) else value
            self.size += sum([child.size for child in below])
            self.depth += max([child.depth for child in below])
            self.refers = any(child.refers for child in below)

    def children(self) -> list[Located]:
        if isinstance(self.value, dict):
            return list(self.value.values())
        return self.value if isinstance(self.value, list) else []

    @property
    def end(self) -> Position | None:
        return _end(self.position, self.end_mark)

    @property
    def key_end(self) -> Position | None:
        return _end(self.key_position, self.key_end_mark)

    def span(self, key: bool = False) -> Span | None:
        """Where the value, or its ``key``, is written; None where it is written in no file."""
        start, end = (self.key_position, self.key_end) if key else (self.position, self.end)
        return None if start is None or end is None else Span(start, end)

    def with_value(self, value: Any) -> Located:
        """Another value, in the same place."""
        places = (self.position, self.key_position, self.end_mark, self.key_end_mark, self.alias)
        return Located(value, *places, self.removed)

    def under_key_of(self, other: Located) -> Located:
        """The same value, reached by the key of ``other``."""
        places = (self.position, other.key_position, self.end_mark, other.key_end_mark)
        return Located(self.value, *places, other.alias)


def mark_of(line: int, column: int) -> Mark:
    return line << _BITS | column


def _end(start: Position | None, mark: Mark | None) -> Position | None:
    if start is None or mark is None:
        return None
    return Position(start.file, (mark >> _BITS) + 1, (mark & (1 << _BITS) - 1) + 1)


def check_size(node: Located, where: Position | None, what: str) -> None:
    """Raise SpecError if ``node`` is too large or too deep for a spec."""
    if node.size > MAX_SIZE:
        message = f"{what} grows to {node.size} values; a spec may have {MAX_SIZE}"
        raise SpecError([Problem(message, (), where)])
    if node.depth > MAX_DEPTH:
        message = f"{what} is nested {node.depth} deep; a spec may be nested {MAX_DEPTH} deep"
        raise SpecError([Problem(message, (), where)])


def plain(node: Located) -> Any:
    """The value as fresh dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def node_at(root: Located, path: Path) -> tuple[Located, bool]:
    """The node at ``path`` and True, or its nearest ancestor and False."""
    node = root
    for part in path:
        values = node.value
        if isinstance(values, list):
            exists = isinstance(part, int) and 0 <= part < len(values)
        else:
            exists = isinstance(values, dict) and part in values
        if not exists:
            return node, False
        node = node.value[part]
    return node, True


def from_python(value: object, position: Position | None = None, path: Path = ()) -> Located:
    """Mappings, lists and tuples as Located values; anything else (a class, a callable, a module) stays as it is.

    ``path`` leads to ``value``. Raises SpecError for keys that are no text, and for what is nested too deep, as a
    container within itself is.
    """
    if len(path) > MAX_DEPTH:
        message = f"nested more than {MAX_DEPTH} deep; does a container hold itself?"
        raise SpecError([Problem(message, path[:3], position)])
    value = _without_omegaconf(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                message = f"the key {key!r} must be a text, got {describe(key)}"
                raise SpecError([Problem(message, path, position)])
        children = {key: from_python(v, position, (*path, key)) for key, v in value.items()}
        return Located(children, position)
    if isinstance(value, list | tuple):
        parts = [from_python(v, position, (*path, i)) for i, v in enumerate(value)]
        return Located(parts, position)
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        message = f"a number of {value.bit_length()} bits is too long"
        raise SpecError([Problem(message, path, position)])
    return Located(value, position)


def _without_omegaconf(value: object) -> object:
    """Plain containers in place of OmegaConf's, with OmegaConf's interpolations resolved and params left as they are.

    OmegaConf would fill in ``${params.width}`` as well, but before an override of ``params.width`` is applied.
    """
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is None or not omegaconf.OmegaConf.is_config(value):
        return value
    try:
        raw = omegaconf.OmegaConf.to_container(value, resolve=False)
        done = omegaconf.OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    except omegaconf.errors.OmegaConfBaseException as error:
        raise SpecError([Problem(f"OmegaConf cannot resolve the spec: {error}")]) from error
    return _keep_params(raw, done)


def _keep_params(raw: object, done: object) -> object:
    if isinstance(raw, dict) and isinstance(done, dict):
        return {key: _keep_params(raw[key], done[key]) for key in raw}
    if isinstance(raw, list) and isinstance(done, list):
        return [_keep_params(r, d) for r, d in zip(raw, done, strict=True)]
    return raw if isinstance(raw, str) and "${params." in raw else done
