"""A spec as text, file or mapping -> plain data with the position of each value.

The only module that reads YAML. It applies `extends`, overrides and params, in this order, and does not know what the
keys mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import yaml

from composer.errors import Path, Position, Problem, Span, SpecError, format_path
from composer.source.files import (
    MAX_BYTES,
    allowed_folders,
    display_name,
    near_file,
    outside,
    read_text,
    real_path,
)
from composer.source.overlay import merge, set_value
from composer.source.params import escape_params, fill_params
from composer.source.scalars import Scalar, no_space_in_words, parse_scalar, syntax_error_in_words
from composer.source.spans import Index
from composer.source.values import (
    MAX_DEPTH,
    Located,
    Mark,
    check_size,
    from_python,
    mark_of,
    node_at,
    plain,
)
from perception_blocks.registry import UnknownNameError
from perception_blocks.words import describe, did_you_mean, sparing

__all__ = ["TEXT_NAME", "GivenSpec", "NamedSpecs", "Override", "Source", "YamlParser", "dump_flow"]
__all__ += ["dump_yaml", "is_name", "is_yaml", "load_source", "stored_source"]

Override: TypeAlias = "str | tuple[str | Path, object]"
"""``"params.width=128"``, or a path (dotted, or its parts) and a value."""
GivenSpec: TypeAlias = "str | FilePath | Mapping[str, object] | Source"
"""A file, YAML text or a mapping."""
NamedSpecs: TypeAlias = "Callable[[str], GivenSpec]"
"""The spec that is registered under a name, for `extends`. Raises UnknownNameError."""

MAX_EXTENDS = 20  # files, one extending the next
TEXT_NAME = "<spec>"  # the file name in messages about a spec given as text
_NOT_YAML = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
BOM = "\ufeff"
_new_tuple = tuple.__new__
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Source:
    """A spec's resolved ``data`` and the position of each value in its files.

    ``params`` holds the params, already filled in wherever `data` refers to them. Despite its ``problems`` the rest
    could be read; `composer.spec.read.read_spec` raises them together with its own. ``folders`` are where other files
    that the spec names may be. Those of the ``registered`` specs that it is or extends, the last of them, are only for
    what these name themselves. ``is_stored``: the spec is inside of a checkpoint or a run.
    """

    def __init__(
        self,
        root: Located,
        name: str | None,
        files: Iterable[str],
        problems: Iterable[Problem],
        folders: Iterable[str] = (),
        registered: Iterable[str] = (),
        is_stored: bool = False,
    ) -> None:
        self.name = name
        self.is_stored = is_stored
        self.files = tuple(files)
        self._searched, self._registered = tuple(folders), tuple(registered)
        self.folders = (*self._searched, *self._registered)
        self._written = root
        self._index: Index | None = None
        self._problems_written = problems = tuple(problems)
        self._root, param_problems = fill_params(root, name or "")
        self.problems = (*problems, *param_problems)
        self.data: dict[str, Any] = plain(self._root)
        params = self.data.pop("params", {})
        self.params: dict[str, object] = params if isinstance(params, dict) else {}
        self._beside = _files_beside(self._root, self._registered)

    def position(self, path: Path, key: bool = False) -> Position | None:
        """Where the value at ``path``, or its ``key``, is written; else where its nearest ancestor is."""
        while True:
            node, exists = node_at(self._root, path)
            place = node.key_position if key and exists and node.key_position else node.position
            if place is not None or not path:
                return place
            path = path[:-1]

    def span(self, path: Path, key: bool = False) -> Span | None:
        """From where to where the value at ``path``, or its ``key``, is written; it starts at its `position`.

        None where that is no place in a text: an override, or a mapping from Python. Lines and columns count characters
        of the text.
        """
        while True:
            node, exists = node_at(self._root, path)
            span = node.span(key and exists and node.key_position is not None)
            is_placed = span is not None or node.position is not None
            if is_placed or not path:
                return span
            path = path[:-1]

    def at(self, position: Position) -> tuple[Path, bool] | None:
        """The path of the innermost value that is written at ``position``, and whether its key stands there.

        A reference such as ``${params.width}`` is a value of its own place. None outside of all values. Raises nothing
        for a position in another file: there is no value of this spec there.
        """
        if self._index is None:
            self._index = Index(self._written)
        return self._index.at(position)

    def refers(self, path: Path) -> bool:
        """Whether a text at ``path``, or below it, may refer to a param."""
        node, exists = node_at(self._written, path)
        return exists and node.refers

    def value(self, path: Path) -> object:
        """The value at ``path``, of ``params`` too; None where there is none."""
        node, exists = node_at(self._root, path)
        return plain(node) if exists else None

    def written(self, path: Path) -> object:
        """The same as it is written, with its references to params."""
        node, exists = node_at(self._written, path)
        return plain(node) if exists else None

    def with_data(self, data: Mapping[str, object]) -> Source:
        """A spec of the same files with other ``data``, which is written in none of them."""
        folders = self._searched, self._registered
        return Source(from_python(data), self.name, self.files, (), *folders, self.is_stored)

    def overridden(self, overrides: Iterable[Override]) -> Source:
        """The same spec with ``overrides``."""
        problems = list(self._problems_written)
        root = _overridden(self._written, overrides, problems)
        folders = self._searched, self._registered
        return Source(root, self.name, self.files, problems, *folders, self.is_stored)

    def find_file(self, path: str) -> str:
        """The path of a file or folder that a setting names: beside the spec, or in a folder that the caller allows.

        What a registered spec names is beside it, whatever else has the same name. Raises ValueError for one that may
        not be read.
        """
        if self.is_stored:
            raise ValueError(
                f"a spec inside of a file reads no other file, and this one names {path!r}"
            )
        places = [os.path.join(folder, path) for folder in self._searched] or [path]
        if path in self._beside:
            places = [self._beside[path]]
        place = next(filter(os.path.lexists, places), places[0])
        refusal = outside(place, self.folders)
        if refusal:
            raise ValueError(refusal)
        return place

    def to_yaml(self) -> str:
        """The resolved spec as YAML that reads back as the same data; files of registered specs by their full path."""
        return _dump(self.data, flow=None, width=100, texts=self._beside)

    def __repr__(self) -> str:
        return f"Source({self.name or 'a mapping'!r})"


@sparing
def load_source(
    spec: GivenSpec,
    overrides: Iterable[Override] = (),
    allow: Iterable[str] = (),
    named: NamedSpecs | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> Source:
    """Read ``spec``: a file's path, YAML text (any str with a line break), a mapping or an OmegaConf config.

    A file may name others beside and below it, and in the folders that ``allow`` names. A Source is returned with
    ``overrides`` applied. With ``named``, a name without suffix and slash is a registered spec, for ``spec`` itself,
    whose overrides may name files in the current folder, and after `extends`; a file is meant where none has that name.
    ``files`` maps the real paths of files to the text that is read in their place, as an editor has it before it is
    saved; such a file need not exist.

    Raises SpecError for what cannot be read at all.
    """
    if isinstance(overrides, str | Mapping):
        message = f"overrides is a list such as ['params.width=64'], got {describe(overrides)}"
        raise SpecError([Problem(message)])
    if isinstance(spec, Source):
        return spec.overridden(overrides)
    problems: list[Problem] = []
    reader = _Files(problems, allowed_folders(allow), named, files)
    name: str | None = None
    if isinstance(spec, str) and "\n" in spec:
        name = TEXT_NAME
        root = reader.on_named_bases(_parse(spec, name, problems), "a text")
    elif isinstance(spec, str | os.PathLike):
        name = display_name(os.fspath(spec))
        root = reader.load_named(os.fspath(spec), None, ()) if isinstance(spec, str) else None
        if root is not None:  # it is used from here, and so are the files that overrides name
            reader.folders = (real_path(""), *reader.folders)
        else:
            reader.folders = (real_path(os.path.dirname(os.fspath(spec))), *reader.folders)
            root = reader.load(os.fspath(spec), None, ())
    elif isinstance(spec, Mapping):
        root = reader.on_named_bases(from_python(spec), "a mapping")
    else:
        message = f"a spec is a path, YAML text or a mapping, got {describe(spec)}"
        raise SpecError([Problem(message)])
    root = _overridden(root, overrides, problems)
    return Source(root, name, reader.seen, problems, reader.folders, reader.registered)


def stored_source(
    text: str, file: str | os.PathLike[str], overrides: Iterable[Override] = ()
) -> Source:
    """The spec inside of a checkpoint or a run, ``file``: text, even on one line. It may not name other files.

    Raises SpecError for what cannot be read at all.
    """
    problems: list[Problem] = []
    name = f"{display_name(os.fspath(file))}, its spec"
    root = _Files(problems, ()).on_named_bases(
        _parse(text, name, problems), "the text inside of one"
    )
    root = _overridden(root, overrides, problems)
    return Source(root, name, (), problems, is_stored=True)


def _files_beside(root: Located, registered: Iterable[str]) -> dict[str, str]:
    """By the texts that nobody but files in the ``registered`` folders has written: the file of that name there.

    A folder is told from a word by a slash.
    """
    places: dict[str, str] = {}
    others: set[str] = set()
    nodes = [root] if registered else []
    while nodes:
        node = nodes.pop()
        nodes += node.children()
        if not isinstance(node.value, str):
            continue
        written = "" if node.position is None or node.position.line is None else node.position.file
        folder = next((each for each in registered if outside(written, [each]) is None), None)
        if not written or folder is None:
            others.add(node.value)
            continue
        place = os.path.join(folder, node.value)
        if os.path.isfile(place) or ("/" in node.value and os.path.isdir(place)):
            places[node.value] = place
    return {text: place for text, place in places.items() if text not in others}


# --- extends -----------------------------------------------------------------------------------------------------


class _Files:
    """Reads a file and the files it extends, each once; ``seen`` lists them as the user would write them.

    A file that another extends must lie in ``folders``, or be registered: ``named`` knows those, and ``registered`` are
    their folders. ``texts`` has what is read in the place of some files, by their real paths.
    """

    def __init__(
        self,
        problems: list[Problem],
        folders: tuple[str, ...],
        named: NamedSpecs | None = None,
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.seen: list[str] = []
        self.folders = folders
        self.registered: tuple[str, ...] = ()
        self._problems = problems
        self._named = named
        self._texts = texts
        self._merged: dict[str, Located] = {}

    def load(self, path: str, asked_at: Position | None, parents: tuple[str, ...]) -> Located:
        identity = real_path(path)
        self._check_chain(identity, asked_at, parents)
        refusal = outside(path, (*self.folders, *self.registered)) if parents else None
        if refusal:
            raise SpecError([Problem(refusal, ("extends",), asked_at)])
        if identity not in self._merged:
            root = _parse(self._text(path, asked_at), display_name(path), self._problems)
            self.seen.append(display_name(path))
            self._merged[identity] = self._on_its_bases(root, path, (*parents, identity))
        return self._merged[identity]

    def _text(self, path: str, asked_at: Position | None) -> str:
        text = self._texts.get(real_path(path))
        return read_text(path, asked_at) if text is None else text.removeprefix(BOM)

    def load_named(
        self, name: str, asked_at: Position | None, parents: tuple[str, ...]
    ) -> Located | None:
        """The spec that is registered as ``name``; None where that is the path of a file."""
        if self._named is None or not is_name(name):
            return None
        try:
            given = self._named(name)
        except UnknownNameError as error:
            path = os.path.join(os.path.dirname(parents[-1]) if parents else "", name)
            if os.path.exists(path) or real_path(path) in self._texts:
                return None  # reading it says what else it is
            message = f"there is no file {name!r}{near_file(path)}"
            if "did you mean" in str(error):
                message += f"; {error}"
            raise SpecError([Problem(message, ("extends",) if parents else (), asked_at)]) from None
        if isinstance(given, os.PathLike) or (isinstance(given, str) and "\n" not in given):
            self.registered = (*self.registered, real_path(os.path.dirname(os.fspath(given))))
            return self.load(os.fspath(given), asked_at, parents)
        identity = f"{name} (registered)"
        self._check_chain(identity, asked_at, parents)
        if isinstance(given, str):
            root = _parse(given, f"<{name}>", self._problems)
        elif isinstance(given, Mapping):
            root = from_python(given)
        else:
            message = f"{name!r} is registered as {describe(given)}, not as a file, YAML text or a mapping"
            raise SpecError([Problem(message, (), asked_at)])
        return self.on_named_bases(root, f"registered as {name!r}", (*parents, identity))

    def on_named_bases(self, root: Located, what: str, parents: tuple[str, ...] = ()) -> Located:
        """``root``, which is no file but ``what``, on the registered specs that it extends."""
        extends = root.value.get("extends")
        if extends is None:
            return root
        names = extends.value if isinstance(extends.value, list) else [extends]
        if self._named is not None and all(is_name(name.value) for name in names):
            return self._on_its_bases(root, "", parents)
        message = f"'extends' is relative to a file, and this spec is {what}; merge it yourself or use a file"
        raise SpecError([Problem(message, ("extends",), extends.position)])

    def _check_chain(
        self, identity: str, asked_at: Position | None, parents: tuple[str, ...]
    ) -> None:
        if identity in parents:
            chain = [*parents[parents.index(identity) :], identity]
            names = " -> ".join(repr(os.path.basename(name)) for name in chain)
            raise SpecError(
                [Problem(f"files extend each other in a circle: {names}", (), asked_at)]
            )
        if len(parents) >= MAX_EXTENDS:
            message = f"more than {MAX_EXTENDS} files extend one another"
            raise SpecError([Problem(message, ("extends",), asked_at)])

    def _on_its_bases(self, root: Located, path: str, parents: tuple[str, ...]) -> Located:
        extends = root.value.get("extends")
        if extends is None:
            return root
        names = extends.value if isinstance(extends.value, list) else [extends]
        over = root.with_value({k: v for k, v in root.value.items() if k != "extends"})
        base: Located | None = None
        folder = os.path.dirname(path)
        for name in names:
            if not isinstance(name.value, str) or not name.value:
                message = (
                    f"'extends' must be a file name or a list of them, got {describe(name.value)}"
                )
                raise SpecError([Problem(message, ("extends",), name.position)])
            below = self.load_named(name.value, name.position, parents)
            if below is None:
                below = self.load(os.path.join(folder, name.value), name.position, parents)
            base = below if base is None else merge(base, below)
        return over if base is None else merge(base, over)


def is_name(text: object) -> bool:
    """Whether ``text`` may be the name of a registered spec: it has neither a suffix nor a slash.

    >>> is_name("ppo"), is_name("ppo.yaml"), is_name("./ppo")
    (True, False, False)
    """
    return isinstance(text, str) and re.fullmatch(r"[\w-]+", text) is not None


# --- overrides ---------------------------------------------------------------------------------------------------


def _overridden(root: Located, overrides: Iterable[Override], problems: list[Problem]) -> Located:
    for override in overrides:
        root = _apply(root, override, problems)
    return root


def _apply(root: Located, override: Override, problems: list[Problem]) -> Located:
    """``root`` with one override applied; its mistakes go to ``problems``."""
    if isinstance(override, str):
        position = Position(f"--set {override}")
        dotted, equals, text = override.partition("=")
        if not equals:
            problems.append(Problem("lacks a '='; write key=value", (), position))
            return root
        path: Path = tuple(dotted.strip().split("."))
        value = _parse_value(text, position, problems)
    else:
        given, data = override
        path = tuple(given.split(".")) if isinstance(given, str) else tuple(given)
        position = Position(f"--set {format_path(path)}")
        value = from_python(data, position)
    if not path or "" in path:
        message = "needs the path of a key before the '=', such as params.width=64"
        problems.append(Problem(message, (), position))
        return root
    if path == ("extends",):
        message = "'extends' cannot be set from outside; it is read before overrides are"
        problems.append(Problem(message, path, position))
        return root
    return set_value(root, path, value, problems)


def _parse_value(text: str, position: Position, problems: list[Problem]) -> Located:
    syntax_problems: list[Problem] = []
    try:
        root = YamlParser(position.file, syntax_problems).parse(text)
    except SpecError as error:
        syntax_problems += error.problems
        root = None
    if syntax_problems:
        message = f"the value is not valid YAML: {syntax_problems[0].message}"
        problems.append(Problem(message, (), position))
    return Located(None, position) if root is None else _placed(root, position)


def _placed(node: Located, position: Position) -> Located:
    """A copy of ``node`` in which every value has ``position``."""
    if isinstance(node.value, dict):
        return Located({k: _placed(v, position) for k, v in node.value.items()}, position, position)
    if isinstance(node.value, list):
        return Located([_placed(v, position) for v in node.value], position, position)
    return Located(node.value, position, position)


# --- reading YAML ------------------------------------------------------------------------------------------------


def _parse(text: str, name: str, problems: list[Problem]) -> Located:
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


# --- writing YAML ------------------------------------------------------------------------------------------------


class _Dumper(_BaseDumper):
    """Writes text in quotes wherever YAML 1.1 or 1.2 would read it as something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        plain_value = None
        with contextlib.suppress(ValueError):
            plain_value = parse_scalar(data)
        style = None if isinstance(plain_value, str) else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.text)


def is_yaml(text: str) -> bool:
    """Whether ``text`` is YAML at all, whatever it says."""
    try:
        for _ in yaml.parse(text, Loader=_PARSER):
            pass
    except yaml.YAMLError:
        return False
    return True


def dump_yaml(data: object) -> str:
    """``data`` (dicts, lists, texts, numbers, true, false, null) as YAML that `load_source` reads back as the same.

    Raises ValueError for anything else, by its path.
    """
    return _dump(data, flow=None, width=100)  # innermost mappings and lists on one line


def dump_flow(data: Mapping[str, object]) -> str:
    """``data`` as YAML on one line: ``{block: dense, in: observation}``. Raises ValueError as `dump_yaml` does."""
    return _dump(data, flow=True, width=2**31 - 1).strip()  # never breaks a line


def _dump(
    data: object, flow: bool | None, width: int, texts: Mapping[str, str] = MappingProxyType({})
) -> str:
    """``texts`` has what is written in place of some texts."""
    settings = {"sort_keys": False, "allow_unicode": True, "width": width}
    plain_data = _writable(data, (), texts)
    return yaml.dump(plain_data, Dumper=_Dumper, default_flow_style=flow, **settings)


def _writable(value: object, path: Path, texts: Mapping[str, str]) -> object:
    if isinstance(value, Mapping):
        return {key: _writable(child, (*path, key), texts) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(child, (*path, index), texts) for index, child in enumerate(value)]
    if isinstance(value, str):
        return escape_params(texts.get(value, str(value)))
    if value is None or type(value) in (bool, int, float):
        return value
    where = f"{format_path(path)!r} is" if path else "the value is"
    raise ValueError(f"{where} {describe(value)}, which YAML cannot hold")
