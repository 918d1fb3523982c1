"""YAML text -> values with their places, by the rules of YAML 1.2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from composer.errors import Position, Problem, Span, SpecError
from composer.source.files import MAX_BYTES
from composer.source.scalars import Scalar, no_space_in_words, parse_scalar, syntax_error_in_words
from composer.source.values import MAX_DEPTH, Located, Mark, check_size, mark_of
from perception_blocks.words import describe, did_you_mean

__all__ = ["BOM", "YamlParser", "is_yaml", "parse_mapping"]

BOM = "\ufeff"
_NOT_YAML = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_new_tuple = tuple.__new__


def is_yaml(text: str) -> bool:
    """Whether ``text`` is YAML at all, whatever it says."""
    try:
        for _ in yaml.parse(text, Loader=_PARSER):
            pass
    except yaml.YAMLError:
        return False
    return True


@dataclass
class _Open:
    """A mapping or a list that is being read. ``key`` is the mapping's key that waits for its value.

    A key of value None is wrong: its value is read and dropped.
    """

    children: dict[str, Located] | list[Located]
    position: Position
    anchor: str | None
    end: Mark | None = None  # of what was read last
    key: Located | None = None
    plain: bool = False  # whether the key stands without quotes
    flow: bool = False  # whether it is written in { }
    number: Scalar = None  # the key, where it is a number
    unbracketed: list[Scalar] | None = None  # the values of a list whose brackets are missing


class YamlParser:
    """YAML events -> Located values, by the rules of YAML 1.2. Never recurses, and never makes an object by its tag.

    What is wrong with one value goes to ``problems``; what is wrong with the whole document raises SpecError.
    """

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self._name = name
        self._problems = problems
        self._open: list[_Open] = []
        self._anchors: dict[str, Located | None] = {}  # None while the value is being read
        self._root: Located | None = None
        self._documents = 0

    def parse(self, text: str) -> Located | None:
        """The document's value, or None when there is no document."""
        self._refuse_control_characters(text)
        take: dict[type, Callable[[Any], None]] = {
            yaml.DocumentStartEvent: self._take_document,
            yaml.MappingStartEvent: self._take_start,
            yaml.SequenceStartEvent: self._take_start,
            yaml.MappingEndEvent: self._take_end,
            yaml.SequenceEndEvent: self._take_end,
            yaml.ScalarEvent: self._take_scalar,
            yaml.AliasEvent: self._take_alias,
        }
        try:
            for event in yaml.parse(text, Loader=_PARSER):
                if handle := take.get(type(event)):
                    handle(event)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or str(error)
            marks = [getattr(error, name, None) for name in ("problem_mark", "context_mark")]
            places = [(mark.line, mark.column) if mark else None for mark in marks]
            message, (line, column) = syntax_error_in_words(text, reason, *places)
            position = Position(self._name, line + 1, column + 1)
            raise SpecError([*self._problems, Problem(message, (), position)]) from None
        return self._root

    def _take_document(self, event: yaml.Event) -> None:
        self._documents += 1
        if self._documents > 1:
            self._fail(event, "a second document starts here; a spec is one document")

    def _take_end(self, event: yaml.Event) -> None:
        done = self._open.pop()
        # A block ends with its last value; its event comes at the next key, past blank lines and comments.
        end = _end(event) if done.flow else done.end
        node = self._put(done.children, done.position, end, done.anchor)
        check_size(node, done.position, "the document")

    def _take_start(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._open) >= MAX_DEPTH:
            self._fail(event, f"nested more than {MAX_DEPTH} deep")
        if event.tag is not None:
            self._refuse_tag(event)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        opened = _Open({} if is_mapping else [], self._at(event.start_mark), event.anchor)
        opened.flow = bool(event.flow_style)
        self._open.append(opened)
        if event.anchor:
            self._anchors[event.anchor] = None

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        if event.tag is not None:
            self._refuse_tag(event)
        position = self._at(event.start_mark)
        value = event.value
        if event.implicit[0]:
            if value == "<<" and self._awaits_key():
                message = (
                    "merge keys '<<' are no part of YAML 1.2; write the keys out, or use 'extends'"
                )
                self._note(position, message)
                self._open[-1].key = Located(None, position, end_mark=_end(event))
                return
            value = self._scalar(value, position)
        if self._awaits_key():
            self._open[-1].plain = event.implicit[0]
        elif event.implicit[0] and event.value == "" and self._is_slip():
            return
        self._put(value, position, _end(event), event.anchor)

    def _take_alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self._anchors:
            near = did_you_mean(str(event.anchor), self._anchors)
            message = f"no anchor '&{event.anchor}' comes before '*{event.anchor}'"
            self._fail(event, message + near)
        node = self._anchors[event.anchor]
        if node is None:
            self._fail(event, f"the value of '&{event.anchor}' holds itself")
        else:
            alias = Span(self._at(event.start_mark), self._at(event.end_mark))
            self._put(node.value, node.position, node.end_mark, None, alias)
            if self._open:
                self._open[-1].end = _end(event)

    def _put(
        self,
        value: object,
        position: Position | None,
        end: Mark | None,
        anchor: str | None,
        alias: Span | None = None,
    ) -> Located:
        """Add a finished value to the mapping or list that holds it; returns it, located."""
        parent = self._open[-1] if self._open else None
        key = None if parent is None else parent.key
        if key is None:
            node = Located(value, position, None, end, None, alias)
        else:
            node = Located(value, position, key.position, end, key.end_mark, alias)
        if anchor:
            self._anchors[anchor] = node
        if parent is None:
            self._root = node
            return node
        parent.end = end
        if isinstance(parent.children, list):
            parent.children.append(node)
        elif key is None:
            parent.key = self._checked_key(parent, node)
        else:
            if key.value is not None:
                parent.children[key.value] = node
            parent.key = None
        return node

    def _scalar(self, text: str, position: Position | None) -> Scalar:
        """The value of an unquoted ``text``; for a number that is too long, the text itself, and a problem."""
        try:
            return parse_scalar(text)
        except ValueError as error:
            self._note(position, str(error))
            return text

    def _is_slip(self) -> bool:
        """Whether the key without a value is a slip such as 'block:dense' or '(64, 64)'; if so, note it."""
        parent = self._open[-1] if self._open else None
        if parent is None or isinstance(parent.children, list) or not parent.plain:
            return False
        key, parent.key = parent.key, None
        if key is None or key.value is None:
            self._note_missing_brackets(parent, key)
            return True
        if self._is_tuple(parent, key.value):
            return True
        name, colon, text = key.value.partition(":")
        if colon and text and name.isidentifier() and name not in parent.children:
            self._note(key.position, no_space_in_words(key.value), name)
            value = self._scalar(text, key.position)
            places = (key.position, key.position, key.end_mark, key.end_mark)
            parent.children[name] = Located(value, *places)
            return True
        parent.key = key
        return False

    def _note_missing_brackets(self, parent: _Open, key: Located | None) -> None:
        """Where numbers follow a value, as in ``{units: 64, 64}``, note that a list was meant.

        After a list it belongs to the list: ``{units: [64], 64}``.
        """
        assert isinstance(parent.children, dict)
        name, last = next(reversed(parent.children.items()), ("", None))
        noted = self._problems[-1] if self._problems else None
        if last is None or key is None or noted is None or not parent.flow or parent.number is None:
            return
        begun = [v.value for v in last.value] if isinstance(last.value, list) else [last.value]
        if noted.position != key.position or not all(map(_may_begin_list, begun)):
            return
        values = [*(parent.unbracketed or begun), parent.number]
        parent.unbracketed = values
        del self._problems[-1]  # of the key, and of the values before it
        if len(values) > len(begun) + 1:
            del self._problems[-1]
        self._note(last.position, f"a list is written in [ ]; write {json.dumps(values)}", name)

    def _is_tuple(self, parent: _Open, key: object) -> bool:
        """Whether ``key`` continues a list in parentheses that began in the value before it."""
        assert isinstance(parent.children, dict)
        name, last = next(reversed(parent.children.items()), ("", None))
        if last is None or not str(last.value).startswith("(") or ")" in str(last.value):
            return False
        if isinstance(key, str) and not key.endswith(")"):
            return False
        message = "a list is written in [ ], not in ( )"
        if all((p.position, p.message) != (last.position, message) for p in self._problems):
            self._note(last.position, message, name)
        return True

    def _checked_key(self, parent: _Open, node: Located) -> Located:
        """The key, or a key of value None where it is repeated or is no text."""
        assert isinstance(parent.children, dict)
        if isinstance(node.value, str) and node.value not in parent.children:
            parent.unbracketed = None
            return node
        if isinstance(node.value, str):
            first = parent.children[node.value].key_position
            message = f"the key {node.value!r} is repeated; it is first given at {first}"
            self._note(node.position, message, node.value, is_key=True)
        elif not self._is_tuple(parent, node.value):
            parent.number = node.value if _is_number(node.value) else None
            quote = "" if node.children() else "; put it in quotes"
            self._note(node.position, f"a key must be a text, got {describe(node.value)}{quote}")
        return Located(None, node.position, end_mark=node.end_mark)

    def _awaits_key(self) -> bool:
        last = self._open[-1] if self._open else None
        return last is not None and isinstance(last.children, dict) and not last.key

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
        way_out = "a spec holds plain values only, quote a text instead"
        self._note(self._at(event.start_mark), f"the tag {tag!r} is refused; {way_out}")

    def _refuse_control_characters(self, text: str) -> None:
        match = _NOT_YAML.search(text)
        if match:
            lines = _LINE_BREAK.split(text[: match.start()])
            what = f"the character U+{ord(match[0]):04X}"
            message = f"{what} has no place in YAML; is this a text file?"
            position = Position(self._name, len(lines), len(lines[-1]) + 1)
            raise SpecError([Problem(message, (), position)])

    def _at(self, mark: yaml.Mark) -> Position:
        # What Position() does, in half the time: reading makes one for each value.
        return _new_tuple(Position, (self._name, mark.line + 1, mark.column + 1))

    def _note(
        self, position: Position | None, message: str, *key: str, is_key: bool = False
    ) -> None:
        """Note ``message`` at the value that is being read, or at its ``key``, which may be itself at fault."""
        path: list[str | int] = []
        for part in self._open:
            if isinstance(part.children, list):
                path.append(len(part.children))
            elif part.key is not None and part.key.value is not None:
                path.append(part.key.value)
        self._problems.append(Problem(message, (*path, *key), position, key=is_key))

    def _fail(self, event: yaml.Event, message: str) -> NoReturn:
        raise SpecError([*self._problems, Problem(message, (), self._at(event.start_mark))])


def _end(event: yaml.Event) -> Mark:
    return mark_of(event.end_mark.line, event.end_mark.column)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)  # true and false too


def _may_begin_list(value: object) -> bool:
    return _is_number(value) or (isinstance(value, str) and value.startswith("${"))


def parse_mapping(text: str, name: str, problems: list[Problem]) -> Located:
    """The mapping that ``text`` holds. Raises SpecError."""
    if len(text) > MAX_BYTES:
        message = f"the spec is longer than {MAX_BYTES} characters, too long for a spec"
        raise SpecError([Problem(message, (), Position(name, 1, 1))])
    yaml_problems: list[Problem] = []
    root = YamlParser(name, yaml_problems).parse(text)
    if root is not None and not isinstance(root.value, dict | None):
        # No word of it: it may be any file.
        kind = "a list" if isinstance(root.value, list) else "a single value"
        message = f"a spec must be a mapping of keys to values, got {kind}"
        raise SpecError([*problems, Problem(message, (), root.position)])
    problems += yaml_problems
    if root is None or root.value is None:
        message = "the spec is empty; `composer init ENV` writes one to start from"
        raise SpecError([*problems, Problem(message, (), Position(name, 1, 1))])
    return root
