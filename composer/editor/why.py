"""Why a node has its shapes: its settings and where they are written, and what it reads, back to the observations."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from composer.critic.central import PRESENT
from composer.editor.analysis import Analysis
from composer.editor.checked import NodeFacts
from composer.errors import Path, Position
from composer.network.network import ACTOR
from composer.source.dump import dump_flow
from composer.spec.model_spec import NetworkSpec, NodeSpec
from composer.spec.places import place_of_value
from composer.spec.references import sinks
from perception_blocks.port import Shape, format_shape
from perception_blocks.words import cut, printable

__all__ = ["MOST_NODES", "why"]

MOST_NODES = 200  # that one answer tells of
_WIRING = ("in", "out", "block", "graph")
_PARAM = re.compile(r"\$\{\s*params\.([^{}]+?)\s*\}")
_QUOTED_PARAM = re.compile(r"'(params\.[\w-]+)'")
_LONGEST_VALUE = 60


class _Node(NamedTuple):
    """A node of the spec, as one of the networks that are built of it has it."""

    place: Path
    facts: NodeFacts

    @property
    def key(self) -> tuple[Path, tuple[str, ...]]:
        return self.place, self.facts.path


def why(
    analysis: Analysis, place: Path, *, depth: int | None = None, folder: str | None = None
) -> str:
    """Text that explains the shapes of the node at ``place`` of the spec, a line for each thing.

    First the node, its outputs, its block and the line where it is written; below it, indented, its settings with the
    params, files and overrides that they come from; then, in the same way, the nodes that it reads, and so on. A shape
    is ``?`` where it is not known, and ends in ``?`` where it is guessed past a mistake. ``depth`` is how many nodes
    away from it the answer ends; at most 200 nodes are told of. Files in ``folder`` are named as from there.
    """
    return "\n".join(_Answer(analysis, depth, folder).lines(place))


class _Answer:
    """One answer. It never recurses: a spec may be a chain of thousands of nodes."""

    def __init__(self, analysis: Analysis, depth: int | None, folder: str | None) -> None:
        self._analysis = analysis
        self._depth = depth
        self._folder = folder
        self._told: set[tuple[Path, tuple[str, ...]]] = set()
        self._ancestors = {place[:end] for place in analysis.nodes for end in range(len(place) + 1)}
        self._writers: dict[tuple[tuple[str, ...], str], _Node] = {}
        for where, of_node in analysis.nodes.items():
            for facts in of_node:
                for name in (
                    facts.outputs if facts.path and "heads" not in facts.path[-2:-1] else ()
                ):
                    self._writers.setdefault((facts.path[:-1], name), _Node(where, facts))

    def lines(self, place: Path) -> Iterator[str]:
        first = _Node(place, self._analysis.nodes[place][0])
        stack: list[tuple[_Node | str, int]] = [(first, 0)]
        while stack:
            node, depth = stack.pop()
            indent = "  " * depth
            if isinstance(node, str):
                yield indent + node
                continue
            if node.key in self._told:
                yield f"{indent}{self._title(node)}, see above"
                continue
            if len(self._told) == MOST_NODES:
                yield f"{indent}... and more"
                return
            self._told.add(node.key)
            yield indent + "  ".join([self._title(node, depth == 0), *self._kind(node, depth == 0)])
            yield from (f"{indent}  {line}" for line in self._settings(node.place))
            if self._depth is None or depth < self._depth:
                stack += [(child, depth + 1) for child in reversed(self._reads(node))]

    # --- one node ---

    def _title(self, node: _Node, is_first: bool = False) -> str:
        """Its name and the shapes of its outputs."""
        facts, name = self._facts(node) if is_first else [node.facts], _name(node)
        outputs = {value: shape for each in facts for value, shape in each.outputs.items()}
        mark = "?" if node.facts.guessed else ""
        if not outputs:
            return f"{name} ?"
        if list(outputs) == [name]:
            return f"{name} {_shown(outputs[name])}{mark}"
        shapes = ", ".join(f"{value} {_shown(shape)}{mark}" for value, shape in outputs.items())
        return f"{name}: {shapes}"

    def _facts(self, node: _Node) -> list[NodeFacts]:
        """All that is known of it: one head that is written may stand for several actions."""
        is_shared_head = node.place[-1:] == ("heads",)
        same = self._analysis.nodes[node.place] if is_shared_head else ()
        return [each for each in same if each.path[:1] == node.facts.path[:1]] or [node.facts]

    def _kind(self, node: _Node, is_first: bool) -> Iterator[str]:
        """Its block, and where it is written."""
        facts = node.facts
        counts = [each.parameters for each in self._facts(node)]
        count = sum(number for number in counts if number is not None)
        yield (
            f"{facts.block}, {count:,} parameters"
            if is_first and None not in counts
            else facts.block
        )
        source = self._analysis.index
        yield from filter(None, [self._place(source.position(node.place, key=True))])

    def _settings(self, place: Path) -> Iterator[str]:
        """Each setting that is written, its value, and where it comes from."""
        data = self._analysis.index.value(place)
        for name, value in data.items() if isinstance(data, Mapping) else ():
            if name not in _WIRING and (*place, name) not in self._ancestors:
                yield from self._setting((*place, name), value)

    def _setting(
        self, path: Path, value: object, told: frozenset[str] = frozenset()
    ) -> Iterator[str]:
        """``told`` are the params that led here: those of a spec with mistakes may form a circle."""
        source = self._analysis.index
        written, position = source.written(path), source.position(path)
        shown = [str(path[-1])]
        while isinstance(written, str) and (whole := _PARAM.fullmatch(written)):
            if whole[1] in told:
                break
            told |= {whole[1]}
            shown.append(f"params.{whole[1]}")
            param = ("params", whole[1])
            written, position = source.written(param), source.position(param)
        inner = _params_in(written)
        if inner:
            shown.append(_QUOTED_PARAM.sub(r"\1", _PARAM.sub(r"params.\1", _flow(written))))
        yield "  ".join(
            [" = ".join([*shown, _flow(value)]), *filter(None, [self._place(position)])]
        )
        for name in inner:
            if name not in told:
                param = ("params", name)
                for line in self._setting(param, source.value(param), told | {name}):
                    yield f"  params.{line}"

    def _place(self, position: Position | None) -> str:
        """File and line, or the override."""
        if position is None:
            return ""
        if position.line is None:
            return str(position)
        file = position.file
        if self._folder is not None and os.path.isabs(file) == os.path.isabs(self._folder):
            relative = os.path.relpath(file, self._folder)
            file = file if relative.startswith("..") else relative
        return f"{printable(file)}:{position.line}"

    # --- what it reads ---

    def _reads(self, node: _Node) -> list[_Node | str]:
        """The nodes that write what it reads, and lines on what comes from outside."""
        inner = self._results_inside(node)
        if inner:
            return inner
        reads: dict[object, _Node | str] = {}
        for name, shape in node.facts.inputs.items():
            writer = self._writer(node, name)
            told = f"{name} {_shown(shape)}  {self._origin(node, name)}"
            reads[writer.key if writer else told] = writer or told
        return list(reads.values())

    def _results_inside(self, node: _Node) -> list[_Node | str]:
        """Of a nested graph the nodes that give its outputs."""
        _, nested, _ = self._spec_of(node.place) or (None, None, None)
        if nested is None or nested.graph is None:
            return []
        names = nested.inner_outputs or sinks(nested.graph)
        writers = (
            self._node(each.path, node)
            for each in nested.graph.values()
            if set(each.writes) & set(names)
        )
        return [writer for writer in writers if writer is not None]

    def _writer(self, node: _Node, name: str) -> _Node | None:
        path = node.facts.path
        graph = path[:-2] if path[-2:-1] == ("heads",) else path[:-1]
        if path and (writer := self._writers.get((graph, name))):
            return writer
        spec = self._spec_of(node.place)
        if spec is None:
            return None
        network, _, within = spec
        place = place_of_value(network, within, name)
        for other in () if place else self._analysis.networks:
            if other.path[0] != network.path[0] and name in other.shares:
                place = place_of_value(other, (), name)
        return None if place is None else self._node(place, node)

    def _node(self, place: Path, beside: _Node) -> _Node | None:
        """The node at ``place``, of the network of ``beside`` if there are several."""
        facts = self._analysis.nodes.get(place, ())
        same = [each for each in facts if each.path[:1] == beside.facts.path[:1]]
        return _Node(place, (same or facts)[0]) if facts else None

    def _spec_of(self, place: Path) -> tuple[NetworkSpec, NodeSpec | None, tuple[str, ...]] | None:
        """The network that has the node at ``place``, the node as it is read, and the nested graph that it is in."""
        for network in self._analysis.networks:
            if place[: len(network.path)] != network.path:
                continue
            *within, name = place[len(network.path) + 1 :: 2] or ("",)
            nodes, node = network.graph or {}, None
            for part in (*within, name):
                node = nodes.get(str(part))
                nodes = (node.graph or {}) if node else {}
            return network, node, tuple(map(str, within))
        return None

    def _origin(self, node: _Node, name: str) -> str:
        """What a value is that no node writes."""
        if name.startswith("action/") or name == "action":
            return "an action"
        if name.startswith("previous/"):
            return "what the previous step gave"
        if name == ACTOR and node.place[0] == "policy":
            return "which actor acts"
        if name == PRESENT and node.place[0] == "critic":
            return "which actors are present"
        if node.place[:1] == ("network",):
            return "an input of the network"
        environment = self._analysis.environment
        return f"an observation of {environment}" if environment else "an observation"


def _name(node: _Node) -> str:
    if node.place[-1] == "heads":
        return "heads"
    if node.place[-1] == "_target_":  # a network
        return "/".join(map(str, node.place[:-1]))
    return node.facts.path[-1] if node.facts.path else str(node.place[-1])


def _shown(shape: Shape | None) -> str:
    return "?" if shape is None else format_shape(shape)


def _flow(value: object) -> str:
    """A value as YAML writes it on one line."""
    try:
        text = dump_flow({"x": value}).removeprefix("{x: ").removesuffix("}")
    except ValueError:  # an object from Python
        text = repr(value)
    return cut(text.replace("$${", "${"), _LONGEST_VALUE)


def _params_in(written: object) -> list[str]:
    """The params that a value names in its texts."""
    if isinstance(written, list):
        return list(dict.fromkeys(name for each in written for name in _params_in(each)))
    return _PARAM.findall(written) if isinstance(written, str) else []
