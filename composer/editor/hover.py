"""What is said of what stands at a place of a spec, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from composer.editor.analysis import Analysis
from composer.editor.checked import ARROW, Hover, NodeFacts
from composer.editor.choices import choices
from composer.editor.names import PARAMS, Use
from composer.errors import Path, Position
from composer.reference.help import GRAPHS, describe_block, setting_of_block
from perception_blocks.registry import BLOCKS
from perception_blocks.words import Shape, format_shape

__all__ = ["hover_at"]

Schema: TypeAlias = Mapping[str, object]


def hover_at(
    analysis: Analysis, position: Position, use: Use | None, schema: Callable[[], Schema]
) -> Hover | None:
    """What is known of what stands at ``position``, where the name ``use`` stands. Counts FLOPs of a node."""
    at = analysis.index.at(position)
    if at is None:
        return None
    path, on_key = at
    text = _of_name(analysis, use) or _of_place(analysis, path, on_key, schema)
    span = analysis.index.span(path, on_key)
    if not text or span is None or span.start.file != position.file:
        return None
    return Hover(text, span)


def _of_name(analysis: Analysis, use: Use | None) -> str:
    """The shape of a value that is read, or the value of a param."""
    if use is None or use.makes:
        return ""
    if use.scope == PARAMS:
        if use.name not in analysis.params:
            return ""
        return f"`params.{use.name}` = {analysis.params[use.name]}"
    shape = analysis.values.get(use.scope[:-1], {}).get(use.name)
    return "" if shape is None else f"`{use.name}` {format_shape(shape)}"


def _of_place(analysis: Analysis, path: Path, on_key: bool, schema: Callable[[], Schema]) -> str:
    node = next(
        (place for n in range(len(path), 0, -1) if (place := path[:n]) in analysis.nodes), None
    )
    if node is not None and path in (node, (*node, "block")):
        return _of_node(node, analysis.nodes[node])
    if node is not None and on_key and len(path) == len(node) + 1:
        line = setting_of_block(analysis.nodes[node][0].block, str(path[-1]))
        if line:
            return line
    return _of_schema(analysis, path, schema())


def _of_node(path: Path, facts: tuple[NodeFacts, ...]) -> str:
    block = facts[0].block
    lines = [f"**{path[-1]}** `{block}`: {_inputs_and_outputs(facts[0])}"]
    counts = [] if facts[0].parameters is None else [f"{facts[0].parameters:,} parameters"]
    flops = facts[0].flops()
    counts += [] if flops is None else [f"{flops:,} FLOPs for one observation"]
    lines += [", ".join(counts)] if counts else []
    if len({fact.path for fact in facts}) > 1:
        lines.append(f"built {len(facts)} times")
    if block in BLOCKS or block in GRAPHS:
        lines += ["---", f"```text\n{describe_block(block, 100)}\n```"]
    return "\n\n".join(lines)


def _inputs_and_outputs(facts: NodeFacts) -> str:
    inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in facts.inputs.items())
    outputs = ", ".join(map(format_shape, facts.outputs.values()))
    return f"{inputs or 'nothing'} {ARROW} {outputs or 'not known'}"


def _shape(shape: Shape | None) -> str:
    return "?" if shape is None else format_shape(shape)


def _of_schema(analysis: Analysis, path: Path, schema: Schema) -> str:
    """What the schema says of a key."""
    if not path or not isinstance(path[-1], str):
        return ""
    params = analysis.index.params
    value: object = {**analysis.index.data, **({"params": params} if params else {})}
    mappings = []
    for part in path:
        mappings.append(_texts(value))
        value = _below(value, part)
    return choices(schema, path[:-1], mappings, "object").describe(path[-1])


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
