"""The keys that files of models and of experiments have in common, and what one notes of the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from composer.errors import Problems
from composer.source.load import Source
from composer.spec.fields import Fields
from composer.trust import check_trusted
from perception_blocks.words import describe, listing, near_name

__all__ = ["VERSION", "check_version", "is_network", "params_meant", "read_extensions"]
__all__ += ["without_other_files"]

VERSION = 1


def is_network(data: Mapping[str, object]) -> bool:
    """Whether a spec describes a network without actions, as `composer.compose_network` builds them."""
    return "network" in data and not data.keys() & {"policy", "critic", "model"}


def without_other_files(
    source: Source, known: Collection[str], problems: Problems, what: str = "a spec"
) -> dict[str, object]:
    """The data without the keys of files that are not specs: no message may show their content."""
    by_file: dict[str, list[str]] = {}
    for key in source.data:
        position = source.position((key,), key=True)
        if position is not None and position.line is not None:
            by_file.setdefault(position.file, []).append(key)
    data = dict(source.data)
    for file, keys in by_file.items():
        if any(near_name(key, known) for key in keys):
            continue
        message = f"{file!r} is no {what.partition(' ')[2]}: it has none of {what}'s keys ({listing(known)})"
        problems.add((keys[0],), message, key=True)
        data = {key: value for key, value in data.items() if key not in keys}
    return data


def check_version(top: Fields, misspelt: bool, what: str = "spec") -> None:
    """Note a version that is missing, unless its key is ``misspelt``, and one that is not ours."""
    if "version" not in top:
        if not misspelt:
            top.problems.add((), f"the {what} has no 'version'; write version: {VERSION}")
    elif top.values["version"] is True or top.values["version"] != VERSION:
        got = describe(top.values["version"])
        top.note("version", f"'version' must be {VERSION}, the only version yet, got {got}")


def read_extensions(top: Fields, allow: Iterable[str]) -> tuple[str, ...]:
    """Modules that are imported before anything is built, each of which the caller must allow."""
    names = top.texts("extensions")
    for index, name in enumerate(names):
        problem = check_trusted(name, allow)
        if problem:
            top.problems.add(("extensions", index), problem)
    return names


def params_meant(source: Source, known: Collection[str]) -> dict[str, str]:
    """For unknown keys of overrides, the params that were probably meant: ``--set width=3`` means params.width."""
    places = {key: source.position((key,), key=True) for key in source.data if key not in known}
    overridden = [key for key, place in places.items() if place and place.line is None]
    near = {
        key: near_name(key, source.params)
        for key in overridden
        if not near_name(key, known, "key") or key in source.params
    }
    return {key: f"params.{name}" for key, name in near.items() if name}
