"""The node of a spec that somebody asks about, by its name, its path or its line."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

from composer.editor.analysis import Analysis
from composer.errors import Path, RefusedError, Span, format_path
from composer.source.files import display_name
from perception_blocks.words import few_of, hint

__all__ = ["NoSuchNodeError", "node_at_line", "node_asked", "node_names"]

_LINE = re.compile(r"(?:(.*):)?(\d+)")


class NoSuchNodeError(RefusedError):
    """A spec has no such node, or several; the message says which there are."""


def node_asked(analysis: Analysis, asked: str) -> Path:
    """The path in the spec of the node that is ``asked`` for.

    That is a name (``latent``), a path in the model (``policy/latent``) or in the spec (``policy.graph.latent``), or a
    line of the spec (``14``) or of a file that it extends (``base.yaml:14``). Raises NoSuchNodeError.
    """
    names = node_names(analysis)
    first = {place: name for name, place in reversed(names)}
    places = list(dict.fromkeys(place for name, place in names if name == asked))
    if len(places) == 1:
        return places[0]
    if places:
        message = (
            f"{asked!r} is {few_of(sorted(first[place] for place in places))}: say which of them"
        )
        raise NoSuchNodeError(message)
    if line := _LINE.fullmatch(asked):
        return node_at_line(analysis, int(line[2]), line[1])
    if not analysis.nodes:
        raise NoSuchNodeError(f"there is no node {asked!r}: the spec has no nodes")
    count = Counter(name for name, _ in names)
    clear = [name for name in count if count[name] == 1]  # what one node alone is called
    listed = [first[place] for place in analysis.nodes]
    near = hint(asked, clear, listed=listed, shown=few_of)
    raise NoSuchNodeError(f"there is no node {asked!r}" + near)


def node_names(analysis: Analysis) -> list[tuple[str, Path]]:
    """What each node may be called, with its path in the spec; the clearest name comes first."""
    return list(
        dict.fromkeys((name, place) for place in analysis.nodes for name in _names(analysis, place))
    )


def _names(analysis: Analysis, place: Path) -> Iterator[str]:
    for facts in analysis.nodes[place]:
        if facts.path:
            yield "/".join(facts.path)
    if place[-1] == "_target_":
        yield format_path(place[:-1])
    yield format_path(place)
    for facts in analysis.nodes[place]:
        yield from facts.path[-1:]
        if place[-1] != "_target_":
            yield from facts.outputs
    yield str(place[-1])


def node_at_line(analysis: Analysis, line: int, file: str | None = None) -> Path:
    """The innermost node that is written at ``line`` of the spec, or of the other ``file`` that it extends.

    Raises NoSuchNodeError.
    """
    files = analysis.index.files or (analysis.index.name or "",)
    file = files[0] if file is None else display_name(file)
    if file not in files:
        known = [each for each in files if os.path.basename(each) == os.path.basename(file)]
        if len(known) != 1:
            raise NoSuchNodeError(
                f"the spec is not written in {file!r}" + hint(file, files, "it is in")
            )
        file = known[0]
    spans = {place: span for place in analysis.nodes if (span := _span(analysis, place, file))}
    lines = {place: span.start.line or 0 for place, span in spans.items()}
    around = [
        place for place, span in spans.items() if lines[place] <= line <= (span.end.line or 0)
    ]
    if around:
        return min(around, key=lambda place: (line - lines[place], -len(place)))
    if not spans:
        raise NoSuchNodeError(f"{file}:{line} is in no node; no node is written in this file")
    near = min(lines, key=lambda place: abs(lines[place] - line))
    name = next(name for name, place in node_names(analysis) if place == near)
    message = f"{file}:{line} is in no node; the nearest is {name!r} at line {lines[near]}"
    raise NoSuchNodeError(message)


def _span(analysis: Analysis, place: Path, file: str) -> Span | None:
    """From the key of a node to its end, if both are in ``file``."""
    source = analysis.index
    key, value = source.span(place, key=True), source.span(place)
    if key is None or value is None or not key.start.file == value.start.file == file:
        return None
    return Span(key.start, max(key.end, value.end))
