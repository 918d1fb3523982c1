"""What is remembered of a file from check to check: modules, and the last facts of nodes beside the nodes' own text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from composer.editor.checked import NodeFacts, NodesByPath
from composer.editor.module_cache import ModuleCache
from composer.errors import Path, Span
from composer.source.load import Source

__all__ = ["Memory"]

MOST_CHECKS = 200  # that a node is remembered after the last one that knew it
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")


class _Last(NamedTuple):
    text: str  # of the node, its name before it
    facts: tuple[NodeFacts, ...]
    environment: str | None
    check: int


@dataclass
class Memory:
    """What is remembered of one file."""

    modules: ModuleCache = field(default_factory=ModuleCache)
    _last: dict[Path, _Last] = field(default_factory=dict)

    def remember(
        self, nodes: NodesByPath, source: Source, text: str, environment: str | None
    ) -> None:
        """Remember the facts of ``nodes`` of ``text``, which ``source`` was read from, and forget old ones."""
        check = self.modules.checks
        self._last = {
            path: last for path, last in self._last.items() if last.check >= check - MOST_CHECKS
        }
        lines = _LINE_BREAK.split(text)
        for path, facts in nodes.items():
            if not facts[0].outputs:
                continue
            key, value = source.span(path, key=True), source.span(path)
            if key is None or value is None or not source.name == key.start.file == value.end.file:
                continue  # it is written elsewhere
            node_text = _between(lines, Span(key.start, value.end))
            self._last[path] = _Last(node_text, facts, environment, check)

    def recall(self, text: str, environment: str | None) -> NodesByPath:
        """The last facts, as guesses, of the nodes whose own text is still in ``text``."""
        return {
            path: tuple(each.as_guess() for each in last.facts)
            for path, last in self._last.items()
            if environment in (None, last.environment) and _stands_in(last.text, text)
        }


def _between(lines: list[str], span: Span) -> str:
    first, last = (span.start.line or 1) - 1, (span.end.line or 1) - 1
    begin, end = (span.start.column or 1) - 1, (span.end.column or 1) - 1
    if first == last:
        return lines[first][begin:end]
    return "\n".join([lines[first][begin:], *lines[first + 1 : last], lines[last][:end]])


def _stands_in(part: str, text: str) -> bool:
    """Whether ``part`` stands in ``text`` and ends there as it did, not within a longer word."""
    start = text.find(part)
    while start >= 0:
        if text[start + len(part) : start + len(part) + 1] in ("", "\n", "\r", " ", ",", "}"):
            return True
        start = text.find(part, start + 1)
    return False
