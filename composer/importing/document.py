"""A file of another system as data with positions, whatever its form: YAML, Python's syntax tree, or an archive."""

from __future__ import annotations

import os
from functools import cached_property

from composer.importing.python_config import python_mappings
from composer.importing.taken import Refusals, Taken
from composer.source.files import display_name, is_regular
from composer.source.foreign import foreign_text, foreign_yaml
from composer.source.values import Located

__all__ = ["Document"]

_ZIP = b"PK\x03\x04"


class Document:
    """The file at ``path``, read when it is asked for and never executed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.name = display_name(self.path)
        self.refusals = Refusals()

    @cached_property
    def is_python(self) -> bool:
        return self.path.endswith(".py")

    @cached_property
    def is_archive(self) -> bool:
        """Whether it begins as a zip does, as the models of Stable-Baselines3 do."""
        try:
            if not is_regular(self.path):  # a pipe would block
                return False
            with open(self.path, "rb") as file:
                return file.read(len(_ZIP)) == _ZIP
        except OSError:
            return False

    @cached_property
    def data(self) -> Located:
        """The mapping in a YAML file. Raises SpecError."""
        return foreign_yaml(foreign_text(self.path), self.name)

    @cached_property
    def mappings(self) -> dict[str, Located]:
        """What the classes, functions and dicts of a Python file hold, by name. Raises SpecError."""
        return python_mappings(foreign_text(self.path), self.name, self.path)

    def taken(self, node: Located | None = None) -> Taken:
        """The mapping in a YAML file, or ``node``, what is refused of which goes to ``refusals``."""
        return Taken(self.data if node is None else node, (), self.refusals)

    def root(self) -> dict[str, Located]:
        """The top keys of a YAML file; nothing of any other file."""
        return {} if self.is_python or self.is_archive else self.data.value
