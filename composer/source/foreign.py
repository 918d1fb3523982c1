"""The YAML of other libraries as plain data with positions: YAML 1.1 as they read it, within the limits of a spec.

What a spec refuses but those libraries accept is read here as they read it: 'yes' and 'no', merge keys '<<', keys that
are numbers, and the last of repeated keys. Tags are refused: nothing is made by its name.
"""

from __future__ import annotations

import os
from typing import Any

import yaml

from composer.errors import Position, Problem, SpecError
from composer.source.files import as_utf8, display_name, no_file
from composer.source.parse import YamlParser
from composer.source.scalars import Scalar
from composer.source.values import Located, check_size, mark_of
from perception_blocks.words import describe

__all__ = ["MAX_BYTES", "foreign_bytes", "foreign_text", "foreign_yaml"]

MAX_BYTES = 1024 * 1024
_WORDS = {"yes": True, "on": True, "no": False, "off": False}  # of YAML 1.1
_MERGE = "<<"


def foreign_bytes(path: str | os.PathLike[str], most: int = MAX_BYTES) -> bytes:
    """The file at ``path``. Raises SpecError for what is no regular file, or larger than ``most`` bytes."""
    name = display_name(os.fspath(path))
    problem, data = no_file(os.fspath(path)), b""
    if problem is None:
        try:
            with open(path, "rb") as file:
                data = file.read(most + 1)
        except OSError as error:
            problem = f"{name!r} cannot be read: {error.strerror}"
    if problem is None and len(data) > most:
        problem = f"{name!r} is larger than {most:,} bytes, too large for a configuration"
    if problem:
        raise SpecError([Problem(problem)])
    return data


def foreign_text(path: str | os.PathLike[str]) -> str:
    """The text of the file at ``path``. Raises SpecError for anything but a text file of at most `MAX_BYTES`."""
    return as_utf8(foreign_bytes(path), display_name(os.fspath(path)))


def foreign_yaml(text: str, name: str) -> Located:
    """The mapping that ``text`` of the file ``name`` holds, with its positions. Raises SpecError."""
    problems: list[Problem] = []
    root = _ForeignParser(name, problems).parse(text)
    if root is not None:
        root = _merged(root)
    if root is None or not isinstance(root.value, dict):
        kind = "nothing" if root is None else describe(root.value)
        message = f"a configuration is a mapping of keys to values, got {kind}"
        problems.append(Problem(message, (), Position(name, 1, 1)))
    if problems:
        raise SpecError(problems)
    assert root is not None
    check_size(root, root.position, "the document")
    return root


class _ForeignParser(YamlParser):
    """Reads what the libraries accept; what they refuse, or would make an object of, it refuses."""

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        if event.tag is not None:
            self._refuse_tag(event)
        position, value = self._at(event.start_mark), event.value
        if event.implicit[0] and not self._awaits_key():
            value = self._scalar(value, position)
        end = mark_of(event.end_mark.line, event.end_mark.column)
        self._put(value, position, end, event.anchor)

    def _scalar(self, text: str, position: Position | None) -> Scalar:
        word = _WORDS.get(text.lower())
        return super()._scalar(text, position) if word is None else word

    def _checked_key(self, parent: Any, node: Located) -> Located:
        if isinstance(node.value, str):
            return node
        self._note(node.position, f"a key is a text, got {describe(node.value)}")
        return Located(None, node.position, end_mark=node.end_mark)

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
        message = f"the tag {tag!r} is refused: nothing of the file is made by its name"
        self._note(self._at(event.start_mark), message)


def _merged(node: Located) -> Located:
    """``node`` with the mappings after merge keys '<<' merged in; keys that are written out win."""
    if isinstance(node.value, list):
        value: Any = [_merged(child) for child in node.value]
    elif isinstance(node.value, dict):
        value = {key: _merged(child) for key, child in node.value.items() if key != _MERGE}
        merge = node.value.get(_MERGE)
        merge = None if merge is None else _merged(merge)
        bases = [] if merge is None else merge.value if isinstance(merge.value, list) else [merge]
        for base in bases:
            if not isinstance(base.value, dict):
                message = f"a merge key '<<' takes a mapping, got {describe(base.value)}"
                raise SpecError([Problem(message, (), base.position)])
            value = {**base.value, **value}
    else:
        return node
    return node.with_value(value)
