"""What the client of the language server sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["ClientSettings", "read_settings", "section_of"]

SECTION = "composer"
# Key: the field that it sets, and what its value must be.
_KEYS = {
    "allow": ("allow", "a list of modules"),
    "path": ("path", "a list of folders"),
    "environment": ("environment", "the id of an environment"),
    "makeEnvironments": ("makes_environments", "true or false"),
}


class ClientSettings(NamedTuple):
    """Modules that may be imported, the folders where they lie, and the environment of specs that name none."""

    allow: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    environment: str | None = None
    makes_environments: bool = True


def section_of(given: object) -> Mapping[str, object] | None:
    """Our part of what a client sends, which may be settings of several servers; None where it has nothing for us."""
    if not isinstance(given, Mapping):
        return None
    section = given.get(SECTION)
    if isinstance(section, Mapping):
        return section
    dotted = {
        key.removeprefix(f"{SECTION}."): value
        for key, value in given.items()
        if isinstance(key, str) and key.startswith(f"{SECTION}.")
    }
    if dotted:
        return dotted
    return given if any(key in _KEYS for key in given) else None


def read_settings(given: Mapping[str, object]) -> tuple[ClientSettings, list[str]]:
    """The settings in ``given``, and in words what is wrong with others, which are left out."""
    values: dict[str, object] = {}
    problems = []
    for key, value in given.items():
        if key not in _KEYS:
            near = did_you_mean(str(key), _KEYS) or f"; the settings are {listing(_KEYS)}"
            problems.append(f"unknown setting '{SECTION}.{key}'{near}")
            continue
        name, what = _KEYS[key]
        if (taken := _taken(name, value)) is None and value is not None:
            problems.append(f"the setting '{SECTION}.{key}' must be {what}, got {describe(value)}")
        elif taken is not None:
            values[name] = taken
    return ClientSettings()._replace(**values), problems


def _taken(name: str, value: object) -> object:
    """``value`` as the field ``name`` has it; None where it is of another kind."""
    if name in ("allow", "path"):
        entries = value if isinstance(value, list) else [None]
        return tuple(entries) if all(isinstance(entry, str) for entry in entries) else None
    if name == "environment":
        return value if isinstance(value, str) and value else None
    return value if isinstance(value, bool) else None
