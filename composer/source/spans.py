"""From a place in a file to the value of the spec that is written there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from composer.errors import Path, Position, Span
from composer.source.values import Located

__all__ = ["Index"]


class Index:
    """The places of all keys and values of a spec, in all of its files."""

    def __init__(self, root: Located) -> None:
        # Of what begins at one place the outer comes before the inner; sorting keeps that order.
        entries = sorted(_entries(root, ()), key=lambda entry: entry[0].start.order)
        self._entries = entries
        self._starts = [span.start.order for span, _, _ in entries]

    def at(self, position: Position) -> tuple[Path, bool] | None:
        """The path of the innermost value at ``position`` and False, or, of the key there, its path and True.

        None where there is no value at all. A place right behind a value belongs to it, unless another begins there.
        """
        last = bisect_right(self._starts, position.order)
        for index in range(last - 1, -1, -1):
            span, path, on_key = self._entries[index]
            if span.holds(position):
                return path, on_key
            if span.start.file != position.file:
                return None
        return None


def _entries(node: Located, path: Path) -> Iterator[tuple[Span, Path, bool]]:
    """The span of each value, of each key (True) and of each alias, outer ones first."""
    if span := node.span(key=True):
        yield span, path, True
    if node.alias:
        yield node.alias, path, False
        return  # what it repeats belongs to the anchor
    if span := node.span():
        yield span, path, False
    children = node.value if isinstance(node.value, dict) else {}
    if isinstance(node.value, list):
        children = dict(enumerate(node.value))
    for key, child in children.items():
        yield from _entries(child, (*path, key))
