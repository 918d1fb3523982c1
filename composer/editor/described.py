"""What an editor shows of a spec beside its text: hints, symbols and lenses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from lsprotocol import types as lsp

from composer.editor.checked import ARROW, Checked, NodeFacts
from composer.editor.places import Places
from composer.errors import Path, Span
from composer.spec.keys import PARTS
from perception_blocks.words import format_shape

__all__ = ["DRAW", "Described"]

DRAW = "composer.draw"  # the command of the lens
MOST_LEVELS = 8  # of symbols


class Described:
    """One text that was checked: ``file`` is its name in problems, ``places`` are those of the very text."""

    def __init__(self, analysis: Checked, places: Places, file: str) -> None:
        self.analysis = analysis
        self.places = places
        self.file = file

    def _span(self, path: Path, key: bool = False) -> Span | None:
        """Where a value, or its key, stands in this file."""
        span = self.analysis.index.span(path, key)
        return span if span is not None and span.start.file == self.file else None

    @cached_property
    def _data(self) -> Mapping[str, object]:
        params = self.analysis.index.params
        return {**self.analysis.index.data, **({"params": params} if params else {})}

    # --- hints -----------------------------------------------------------------------------------------------------

    def hints(self) -> Iterator[lsp.InlayHint]:
        """Shapes behind nodes and heads."""
        for path, facts in self.analysis.nodes.items():
            label = _shapes_of(path, facts)
            end = self._end_of(path)
            if label and end is not None:
                yield lsp.InlayHint(
                    self.places.at(end),
                    f"{ARROW} {label}",
                    lsp.InlayHintKind.Type,
                    padding_left=True,
                )

    def _end_of(self, path: Path) -> int | None:
        """Behind a value in brackets or on one line; of a block mapping behind its key."""
        span = self._span(path)
        if span is None:
            return None
        start, end = self.places.offset(span.start), self.places.offset(span.end)
        key = self._span(path, True)
        if (
            key is None
            or self.places.text[start : start + 1] == "{"
            or key.start.line == span.end.line
        ):
            return end
        return self.places.offset(key.end) + 1  # the colon

    # --- symbols ---------------------------------------------------------------------------------------------------

    def symbols(self) -> list[lsp.DocumentSymbol]:
        """The keys of the spec, down to nodes."""
        return self._symbols((), self._data, 0)

    def _symbols(self, path: Path, value: object, depth: int) -> list[lsp.DocumentSymbol]:
        symbols = []
        entries = value.items() if isinstance(value, Mapping) else ()
        for name, child in entries:
            place = (*path, str(name))
            key, span = self._span(place, True), self._span(place)
            if key is None or span is None:
                continue
            is_node = path[-1:] == ("graph",)
            symbols.append(
                lsp.DocumentSymbol(
                    str(name) or "''",
                    _kind(place, is_node),
                    self.places.range_of(Span(key.start, max(key.end, span.end))),
                    self.places.range_of(key),
                    self._detail(place, child),
                    children=self._below(place, child, is_node, depth),
                )
            )
        return sorted(symbols, key=lambda symbol: symbol.range.start)

    def _below(
        self, place: Path, child: object, is_node: bool, depth: int
    ) -> list[lsp.DocumentSymbol]:
        is_leaf = is_node and not (isinstance(child, Mapping) and "graph" in child)
        if (
            is_leaf
            or depth >= MOST_LEVELS
            or place[0] not in (*PARTS, "params", "network", "model")
        ):
            return []
        return self._symbols(place, child, depth + 1)

    def _detail(self, place: Path, child: object) -> str | None:
        if facts := self.analysis.nodes.get(place):
            shapes = _shapes_of(place, facts)
            return f"{facts[0].block} {ARROW} {shapes}" if shapes else facts[0].block
        return None if isinstance(child, Mapping | list) or child is None else str(child)

    # --- lenses ----------------------------------------------------------------------------------------------------

    def lenses(self, uri: str) -> Iterator[lsp.CodeLens]:
        """ "draw" and the number of parameters above policy and critic, and why shapes are not known."""
        if self.analysis.unknown:
            top = lsp.Range(lsp.Position(0, 0), lsp.Position(0, 0))
            yield lsp.CodeLens(top, lsp.Command(self.analysis.unknown, ""))
        for part in PARTS:
            key = self._span((part,), True) if part in self._data else None
            if key is None or self.analysis.environment is None:
                continue
            where = self.places.range_of(key)
            yield lsp.CodeLens(where, lsp.Command("draw", DRAW, arguments=[uri]))
            if count := self.analysis.parameters.get(part):
                yield lsp.CodeLens(where, lsp.Command(f"{count:,} parameters", ""))


# --- words ------------------------------------------------------------------------------------------------------------


def _shapes_of(path: Path, facts: tuple[NodeFacts, ...]) -> str:
    """What a node gives; of heads and classes with the names of the outputs."""
    is_named = path[-1] == "_target_" or _is_head(path)
    texts: dict[str, None] = {}
    for fact in facts:
        for name, shape in fact.outputs.items():
            guess = "?" if fact.guessed else ""
            texts[(f"{name} " if is_named else "") + format_shape(shape) + guess] = None
    return ", ".join(texts)


def _is_head(path: Path) -> bool:
    return any(
        part == "heads" and path[depth - 1 : depth] != ("graph",) for depth, part in enumerate(path)
    )


def _kind(path: Path, is_node: bool) -> lsp.SymbolKind:
    if is_node:
        return lsp.SymbolKind.Function
    if path[0] == "params" and len(path) > 1:
        return lsp.SymbolKind.Constant
    return lsp.SymbolKind.Namespace if len(path) == 1 else lsp.SymbolKind.Field
