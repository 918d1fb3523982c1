"""Packages whose attributes are imported when they are first asked for (PEP 562).

``import composer`` then costs nothing: a command line that only checks a file's structure never waits for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

from perception_blocks.registry import MissingExtraError, extra_for
from perception_blocks.words import did_you_mean

__all__ = ["lazy_attributes"]


def lazy_attributes(
    package: str,
    homes: Mapping[str, str],
    submodules: tuple[str, ...] = (),
    extra: str | None = None,
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package``.

    ``homes`` gives, for each module of the package, the names that come from it, separated by blanks; ``submodules``
    are modules that are themselves attributes. Where a library is not installed that the ``extra`` brings, the error
    says so. A name must not equal a submodule's: importing that would replace it.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}
    public = sorted([*home_of, *submodules])

    def get(name: str) -> object:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            message = f"module {package!r} has no attribute {name!r}{did_you_mean(name, public)}"
            # With its name set, Python adds no second guess.
            raise AttributeError(message, name=name)
        try:
            value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        except ImportError as error:
            message = extra_for(error, package, extra) if extra else None
            if message is None:
                raise
            raise MissingExtraError(message) from error
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return get, directory
