"""A text that is not whole yet as it was probably meant: only to know shapes from it, never to complain about it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from composer.errors import Position, Problem
from composer.source.parse import is_yaml

__all__ = ["mended_data", "mended_texts"]

MOST_TRIED = 12  # texts
# What a node or a spec is not itself without.
_NEEDED = ("block", "in", "graph", "policy", "critic", "heads", "networks", "version", "template")
_OPEN = {"{": "}", "[": "]"}


def mended_texts(text: str, at: Position | None) -> Iterator[str]:
    """``text``, which is no YAML from ``at`` on, with brackets closed that were left open, else without a line.

    Lines keep their numbers. All that is given is YAML.
    """
    lines = text.split("\n")
    near = min(len(lines), at.line or 1) - 1 if at else len(lines) - 1
    numbers = list(dict.fromkeys(n for n in (near, near - 1, near - 2, len(lines) - 1) if n >= 0))
    tried = (
        "\n".join([*lines[:number], line, *lines[number + 1 :]])
        for number, line in _mended_lines(lines, numbers)
    )
    for trial, _ in zip(tried, range(MOST_TRIED * len(numbers))):
        if is_yaml(trial):
            yield trial


def _mended_lines(lines: list[str], numbers: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Lines to try in the place of others: first what keeps most of them."""
    for number in numbers:
        line = lines[number]
        closing, quote = _left_open(line)
        body = line + quote
        if closing:
            body = re.sub(r"[,:]?\s*$", "", body)
        yield from ((number, body + end) for end in (closing, f": null{closing}"))
        if not closing:
            yield number, line + ": null"
        cut = re.sub(r"[,{\[][^,{\[]*$", "", line)  # without what stands after the last comma
        if cut != line and closing:
            yield number, cut + _left_open(cut)[0]
    for number in numbers:
        yield number, ""


def _left_open(line: str) -> tuple[str, str]:
    """What closes the brackets of ``line``, and its quote."""
    closing: list[str] = []
    quote = ""
    for index, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and line[:index].rstrip()[-1:] in ("", ":", ",", "[", "{"):
            quote = character
        elif character == "#" and line[:index][-1:] in ("", " "):
            break
        elif character in _OPEN:
            closing.append(_OPEN[character])
        elif closing and character == closing[-1]:
            closing.pop()
    return "".join(reversed(closing)), quote


def mended_data(
    data: Mapping[str, Any], params: Mapping[str, object], problems: Iterable[Problem]
) -> dict[str, Any] | None:
    """``data`` of a spec as it was probably meant, by what its ``problems`` say; None where they say nothing.

    What has a near name gets it; any other setting at fault is left out.
    """
    mended = copy.deepcopy({**data})
    changed = [_mend(mended, params, problem) for problem in problems if problem.path]
    return mended if any(changed) else None


def _mend(data: Any, params: Mapping[str, object], problem: Problem) -> bool:
    """Whether ``data`` could be changed at the place of ``problem``."""
    *outer, last = problem.path
    holder = data
    for part in outer:
        try:
            holder = holder[part]
        except (KeyError, IndexError, TypeError):
            return False
    if isinstance(holder, list):
        return isinstance(last, int) and last < len(holder) and _mend_item(holder, last, problem)
    if not isinstance(holder, dict) or last not in holder:
        return False
    near, word = problem.instead, problem.word
    value = holder[last]
    if near and problem.key:
        items = list(holder.items())
        holder.clear()
        holder.update((near if key == last else key, item) for key, item in items)
    elif near and isinstance(value, str) and "${" in value:
        holder[last] = params.get(re.sub(r"\W|params\.", "", near), near)
    elif near and isinstance(value, str):
        holder[last] = near
    elif near and isinstance(value, list):
        holder[last] = [near if item == word else item for item in value]
    elif near and isinstance(value, dict):
        holder[last] = {key: near if item == word else item for key, item in value.items()}
    elif last in _NEEDED or last == "params":
        return False
    else:
        del holder[last]
    return True


def _mend_item(items: list[Any], index: int, problem: Problem) -> bool:
    if problem.instead and isinstance(items[index], str):
        items[index] = problem.instead
    else:
        del items[index]
    return True
