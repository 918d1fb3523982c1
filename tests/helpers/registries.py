"""All registries of names of both packages, which each test gets as they were before it."""

import importlib
import re

from tests.helpers.paths import ROOT

__all__ = ["registries"]

_MADE = re.compile(r"^(\w+) = (?:Model)?Registry\(", re.M)


def registries():
    """Every module-level registry; found in the sources, so that none is forgotten."""
    files = [
        file for name in ("perception_blocks", "composer") for file in (ROOT / name).rglob("*.py")
    ]
    return [
        getattr(
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts)), name
        )
        for file in sorted(files)
        for name in _MADE.findall(file.read_text())
    ]
