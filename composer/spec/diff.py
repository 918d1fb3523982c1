"""The differences between two specs, key by key, in the order of the first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from composer.errors import Path, format_path
from perception_blocks.words import MOST_CHARACTERS, readable

__all__ = ["diff_specs"]


def diff_specs(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """One line for each difference: ``-`` only in the first, ``+`` only in the second, ``~`` another value.

    >>> diff_specs({"policy": {"graph": {"a": {"in": "x"}}}}, {"policy": {"graph": {"a": {"in": "y"}}}})
    ["~ policy.graph.a.in: 'x' -> 'y'"]
    """
    return list(_differences(first, second, ()))


def _differences(first: object, second: object, path: Path) -> Iterator[str]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in [*first, *(key for key in second if key not in first)]:
            inner = (*path, key)
            if key not in second:
                yield f"- {format_path(inner)}: {_show(first[key])}"
            elif key not in first:
                yield f"+ {format_path(inner)}: {_show(second[key])}"
            else:
                yield from _differences(first[key], second[key], inner)
    elif first != second or type(first) is not type(second):
        yield f"~ {format_path(path)}: {_show(first)} -> {_show(second)}"


def _show(value: object) -> str:
    constant = value is None or isinstance(value, bool | dict | list)
    return readable(json.dumps(value, default=str) if constant else repr(value), MOST_CHARACTERS)
