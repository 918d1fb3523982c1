"""The keys that files of models and of experiments have in common, and what one notes of the others."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeGuard

from composer.errors import Path, Problems
from composer.source.load import Source
from composer.spec.fields import Fields
from composer.spec.keys import PARTS, PREVIOUS, RECALLED
from composer.trust import check_trusted
from perception_blocks.words import describe, did_you_mean, listing, near_name, suggest

__all__ = ["VERSION", "check_version", "is_network", "params_meant", "read_extensions"]
__all__ += ["read_paths", "read_previous", "without_other_files"]

VERSION = 1
NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


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


def read_previous(top: Fields) -> tuple[str, ...]:
    """What of the last step becomes observations: "action", "reward", both or nothing."""
    names = top.texts(PREVIOUS)
    for index, name in enumerate(top.values[PREVIOUS] if names else ()):  # type: ignore[arg-type]
        if isinstance(name, str) and name not in RECALLED:
            message = f"{PREVIOUS!r} may hold {listing(RECALLED)}, got {name!r}"
            top.problems.add((PREVIOUS, index), message + did_you_mean(name, RECALLED))
    return tuple(name for name in RECALLED if name in names)


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


def read_paths(top: Fields) -> dict[str, Any]:
    """`freeze`, `weights`, `learning_rate_scale` and `state_names`: what is said of parts of the model, by paths."""
    freeze = top.texts("freeze")
    for index, path in enumerate(freeze):
        _check_path(top, path, ("freeze", index))
    expected = "a mapping from paths to files, such as {policy/screen: encoder.safetensors}"
    weights = top.text_mapping("weights", expected)
    for path in weights:
        _check_path(top, path, ("weights", path), key=True)
    return {
        "freeze": freeze,
        "weights": weights,
        "learning_rate_scale": _scales(top, freeze),
        "state_names": _state_names(top),
    }


def _state_names(top: Fields) -> dict[str, str]:
    key = "state_names"
    expected = "a mapping from states to names, such as {policy/memory/h: recurrent_state}"
    names = top.text_mapping(key, expected)
    first: dict[str, str] = {}
    for path, name in names.items():
        _check_path(top, path, (key, path), key=True)
        if not NAME.fullmatch(name):
            message = f"{name!r} is no name of a state; write it with letters, digits and '_', such as recurrent_state"
            top.problems.add((key, path), message)
        elif name in first:
            message = f"{name!r} is the name of {first[name]!r} too; choose another"
            top.problems.add((key, path), message)
        first.setdefault(name, path)
    return names


def _scales(top: Fields, freeze: Collection[str]) -> dict[str, float]:
    key, scales = "learning_rate_scale", {}
    expected = "a mapping from paths to factors, such as {policy/screen: 0.1}"
    frozen, lengths = {*freeze}, {len(each) for each in freeze}
    for path, value in top.mapping(key, expected).items():
        place = (key, path)
        _check_path(top, path, place, key=True)
        if not _is_factor(value):
            way_out = "; to train nothing of it, name it under 'freeze'" if value == 0 else ""
            message = f"a factor of {key!r} is a positive number, got {describe(value)}{way_out}"
            top.problems.add(place, message)
        elif any(path[:n] in frozen and path[n : n + 1] in ("", "/") for n in lengths):
            message = f"{path!r} is frozen, so it has no learning rate; leave it out here or under 'freeze'"
            top.problems.add(place, message, key=True)
        else:
            scales[path] = float(value)
    return scales


def _is_factor(value: object) -> TypeGuard[int | float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < math.inf


def _check_path(top: Fields, path: object, place: Path, *, key: bool = False) -> None:
    """Note a path that cannot name a part of any model."""
    first, *rest = str(path).split("/")
    if first not in PARTS:
        near = near_name(first, PARTS)
        message = f"a path begins with 'policy' or 'critic', such as policy/{first}; got {path!r}"
        if near:
            message = f"{path!r} is no path" + suggest(str(path), "/".join([near, *rest]))
        top.problems.add(place, message, key=key)
    elif first == "critic" and top.values.get("critic") is None:
        top.problems.add(
            place, f"{path!r} is part of a critic, which the spec does not have", key=key
        )
    elif not all(rest):
        message = f"{path!r} is no path; write it as 'policy/screen', without a slash at the end"
        top.problems.add(place, message, key=key)
