"""What an editor shows of a spec beside its text: hovers, hints, symbols and lenses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from lsprotocol import types as lsp

from composer.editor.analysis import Analysis
from composer.editor.choices import choices
from composer.editor.completion import Known
from composer.editor.facts import NodeFacts
from composer.editor.names import PARAMS
from composer.editor.places import Places
from composer.errors import Path, Position, Span
from composer.reference.help import GRAPHS, describe_block, setting_of_block
from composer.spec.keys import PARTS
from perception_blocks.port import Shape, format_shape
from perception_blocks.registry import BLOCKS

__all__ = ["DRAW", "Described"]

DRAW = "composer.draw"  # the command of the lens
ARROW = "\N{RIGHTWARDS ARROW}"
MOST_LEVELS = 8  # of symbols


class Described:
    """One analysed text: ``file`` is its name in problems, ``places`` are those of the very text."""

    def __init__(self, analysis: Analysis, known: Known, places: Places, file: str) -> None:
        self.analysis = analysis
        self.known = known
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

    # --- hover -----------------------------------------------------------------------------------------------------

    def hover(self, position: Position, schema: Mapping[str, object]) -> lsp.Hover | None:
        """What is known of what stands at a place. Counts FLOPs of a node: not for the loop that reads messages."""
        at = self.analysis.index.at(position)
        if at is None:
            return None
        path, on_key = at
        text = self._of_name(position) or self._of_place(path, on_key, schema)
        span = self._span(path, on_key)
        if not text or span is None:
            return None
        content = lsp.MarkupContent(lsp.MarkupKind.Markdown, text)
        return lsp.Hover(content, self.places.range_of(span))

    def _of_name(self, position: Position) -> str:
        """The shape of a value that is read, or the value of a param."""
        use = self.known.names.at(self.file, position)
        if use is None or use.makes:
            return ""
        if use.scope == PARAMS:
            if use.name not in self.analysis.params:
                return ""
            return f"`params.{use.name}` = {self.analysis.params[use.name]}"
        shape = self.analysis.values.get(use.scope[:-1], {}).get(use.name)
        return "" if shape is None else f"`{use.name}` {format_shape(shape)}"

    def _of_place(self, path: Path, on_key: bool, schema: Mapping[str, object]) -> str:
        node = self._node_at(path)
        if node is not None and path in (node, (*node, "block")):
            return self._of_node(node)
        if node is not None and on_key and len(path) == len(node) + 1:
            line = setting_of_block(self.analysis.nodes[node][0].block, str(path[-1]))
            if line:
                return line
        return self._of_schema(path, schema)

    def _node_at(self, path: Path) -> Path | None:
        return next(
            (p for n in range(len(path), 0, -1) if (p := path[:n]) in self.analysis.nodes), None
        )

    def _of_node(self, path: Path) -> str:
        facts = self.analysis.nodes[path]
        lines = [f"**{path[-1]}** `{facts[0].block}`: {_inputs_and_outputs(facts[0])}"]
        counts = [] if facts[0].parameters is None else [f"{facts[0].parameters:,} parameters"]
        flops = facts[0].flops()
        counts += [] if flops is None else [f"{flops:,} FLOPs for one observation"]
        lines += [", ".join(counts)] if counts else []
        if len({fact.path for fact in facts}) > 1:
            lines.append(f"built {len(facts)} times")
        block = facts[0].block
        if block in BLOCKS or block in GRAPHS:
            lines += ["---", f"```text\n{describe_block(block, 100)}\n```"]
        return "\n\n".join(lines)

    def _of_schema(self, path: Path, schema: Mapping[str, object]) -> str:
        """What the schema says of a key."""
        if not path or not isinstance(path[-1], str):
            return ""
        mappings = []
        value: object = self._data
        for part in path:
            mappings.append(_texts(value))
            value = _below(value, part)
        return choices(schema, path[:-1], mappings, "object").describe(path[-1])

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


def _shape(shape: Shape | None) -> str:
    return "?" if shape is None else format_shape(shape)


def _inputs_and_outputs(facts: NodeFacts) -> str:
    inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in facts.inputs.items())
    outputs = ", ".join(map(format_shape, facts.outputs.values()))
    return f"{inputs or 'nothing'} {ARROW} {outputs or 'not known'}"


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


def _texts(value: object) -> dict[str, str]:
    """The keys of a mapping and its values as texts, as a Cursor has them."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(key): "{"
        if isinstance(child, Mapping)
        else "["
        if isinstance(child, list)
        else str(child)
        for key, child in value.items()
    }


def _below(value: object, part: str | int) -> object:
    if isinstance(value, Mapping):
        return value.get(part)
    return (
        value[part]
        if isinstance(value, list) and isinstance(part, int) and part < len(value)
        else None
    )
