"""What is worth knowing of a run beside its task: where its spec came from, and which versions trained it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from composer import __version__
from composer.source.load import Override
from composer.training.trainer import TRAINERS, Task
from perception_blocks.registry import EXTRAS

__all__ = ["about_run"]


def about_run(task: Task, file: str | None, overrides: Sequence[Override]) -> dict[str, Any]:
    """The name of the spec's ``file``, the ``overrides`` of it, and the versions of what trains it."""
    extra = TRAINERS.extra_of(task.trainer)
    libraries = ["torch", "gymnasium", "numpy", *(EXTRAS.get(extra, []) if extra else [])]
    versions = {name: version for name in libraries if (version := _version(name)) is not None}
    return {
        "file": file,
        "overrides": [each if isinstance(each, str) else list(map(str, each)) for each in overrides],
        "versions": {
            "composer": __version__, "python": platform.python_version(), **versions,
        },
    }  # fmt: skip


def _version(library: str) -> str | None:
    """The version of an import name; libraries are distributed under it, or with dashes."""
    for name in (library, library.replace("_", "-"), f"{library.replace('_', '-')}-lib"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
