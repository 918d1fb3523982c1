"""Specs that extend others: files, and specs that are registered under a name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from composer.errors import Position, Problem, SpecError
from composer.source.files import display_name, near_file, outside, read_text, real_path
from composer.source.overlay import merge
from composer.source.parse import BOM, parse_mapping
from composer.source.values import Located, from_python
from perception_blocks.registry import UnknownNameError
from perception_blocks.words import describe

__all__ = ["SpecFiles", "is_name"]

Named: TypeAlias = Callable[[str], object]  # as composer.source.load.NamedSpecs
MAX_EXTENDS = 20  # files, one extending the next


class SpecFiles:
    """Reads a file and the files it extends, each once; ``seen`` lists them as the user would write them.

    A file that another extends must lie in ``folders``, or be registered: ``named`` knows those, and ``registered`` are
    their folders. ``texts`` has what is read in the place of some files, by their real paths.
    """

    def __init__(
        self,
        problems: list[Problem],
        folders: tuple[str, ...],
        named: Named | None = None,
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
            root = parse_mapping(
                self._text(path, asked_at, parents), display_name(path), self._problems
            )
            self.seen.append(display_name(path))
            self._merged[identity] = self._on_its_bases(root, path, (*parents, identity))
        return self._merged[identity]

    def _text(self, path: str, asked_at: Position | None, parents: tuple[str, ...]) -> str:
        text = self._texts.get(real_path(path))
        return read_text(path, asked_at, parents) if text is None else text.removeprefix(BOM)

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
            message = f"there is no file {name!r}{near_file(path, parents)}"
            if "did you mean" in str(error):
                message += f"; {error}"
            raise SpecError([Problem(message, ("extends",) if parents else (), asked_at)]) from None
        if isinstance(given, os.PathLike) or (isinstance(given, str) and "\n" not in given):
            self.registered = (*self.registered, real_path(os.path.dirname(os.fspath(given))))
            return self.load(os.fspath(given), asked_at, parents)
        identity = f"{name} (registered)"
        self._check_chain(identity, asked_at, parents)
        if isinstance(given, str):
            root = parse_mapping(given, f"<{name}>", self._problems)
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
