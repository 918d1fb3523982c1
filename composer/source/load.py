"""A spec as text, file or mapping -> plain data with the position of each value.

It applies `extends`, overrides and params, in this order, and does not know what the keys mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, TypeAlias

from composer.errors import Path, Position, Problem, Span, SpecError, format_path
from composer.source.dump import dump_yaml
from composer.source.extends import SpecFiles
from composer.source.files import (
    allowed_folders,
    display_name,
    outside,
    real_path,
)
from composer.source.overlay import set_value
from composer.source.params import fill_params
from composer.source.parse import YamlParser, parse_mapping
from composer.source.spans import Index
from composer.source.values import Located, from_python, node_at, plain
from perception_blocks.words import describe, sparing

__all__ = ["TEXT_NAME", "GivenSpec", "NamedSpecs", "Override", "Source", "load_source"]
__all__ += ["stored_source"]

Override: TypeAlias = "str | tuple[str | Path, object]"
"""``"params.width=128"``, or a path (dotted, or its parts) and a value."""
GivenSpec: TypeAlias = "str | FilePath | Mapping[str, object] | Source"
"""A file, YAML text or a mapping."""
NamedSpecs: TypeAlias = "Callable[[str], GivenSpec]"
"""The spec that is registered under a name, for `extends`. Raises UnknownNameError."""

TEXT_NAME = "<spec>"  # the file name in messages about a spec given as text


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

    def walk(self) -> Iterator[tuple[Path, Located]]:
        """Every value with its path, outer ones first."""
        waiting: list[tuple[Path, Located]] = [((), self._root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            if isinstance(node.value, dict):
                waiting += [((*path, key), child) for key, child in node.value.items()]
            elif isinstance(node.value, list):
                waiting += [((*path, index), child) for index, child in enumerate(node.value)]

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
        return dump_yaml(self.data, self._beside)

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
    reader = SpecFiles(problems, allowed_folders(allow), named, files)
    name: str | None = None
    if isinstance(spec, str) and "\n" in spec:
        name = TEXT_NAME
        root = reader.on_named_bases(parse_mapping(spec, name, problems), "a text")
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
    root = SpecFiles(problems, ()).on_named_bases(
        parse_mapping(text, name, problems), "the text inside of one"
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
