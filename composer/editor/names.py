"""The names of a spec: where nodes, outputs and params are named, and where they are used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from composer.errors import Path, Position, Span
from composer.source.scalars import parse_scalar
from composer.source.values import Located
from composer.spec.keys import PARTS
from composer.spec.nodes import NESTED
from perception_blocks.dag import node_name_problem
from perception_blocks.words import describe

__all__ = ["OBSERVATIONS", "PARAMS", "Names", "Use", "Written"]

OBSERVATIONS: Path = ("observations",)  # where names are that no node writes
PARAMS: Path = ("params",)
_HEADS = "heads"
_LISTS_OF_OBSERVATIONS = ("ignore", "normalize")
_KEYS_ARE_PATHS = ("weights", "learning_rate_scale", "state_names")
_REFERENCE = re.compile(r"\$\$\{|\$\{\s*params\.(?P<name>[^{}]+?)\s*\}")
_PARAM = re.compile(r"[^\s{}.\[\],:#\"'&*!|>%@`-][^\s{}\[\],:#\"'.]*")


def _why_no_text(name: str) -> str | None:
    """Why ``name`` without quotes is no text in YAML; None where it is one."""
    try:
        value = parse_scalar(name)
    except ValueError as error:
        return str(error)
    return None if isinstance(value, str) else f"{name!r} is no name: YAML reads {describe(value)}"


class Written(NamedTuple):
    """What one file says: its values before `extends` and params, and its lines."""

    root: Located
    lines: Sequence[str]


class Use(NamedTuple):
    """A name where it stands: ``scope`` is the path of the graph that knows it, `PARAMS` or `OBSERVATIONS`."""

    scope: Path
    name: str
    file: str
    span: Span
    makes: bool  # whether it is named here


@dataclass
class _Scope:
    """A graph: what each node reads and writes."""

    reads: dict[str, list[str]] = field(default_factory=dict)
    writes: dict[str, list[str]] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)  # of a nested graph


class Names:
    """All names of the files that make up a spec, by their real paths."""

    def __init__(self, files: Mapping[str, Written]) -> None:
        self.uses: list[Use] = []
        self.scopes: dict[Path, _Scope] = {}
        self._same: dict[tuple[Path, str], tuple[Path, str]] = {}
        self._shares: dict[str, list[Path]] = {}  # by name the graphs that share it
        collectors = [_Collector(self, file, written) for file, written in files.items()]
        for collector in collectors:
            collector.networks()
        for collector in collectors:
            collector.others()
        self._resolve()

    # --- questions -------------------------------------------------------------------------------------------------

    def at(self, file: str, position: Position) -> Use | None:
        """The name at ``position`` of ``file``."""
        place = (position.line, position.column)
        for use in self.uses:
            if use.file == file and use.span.start[1:] <= place <= use.span.end[1:]:
                return use
        return None

    def all_of(self, use: Use) -> list[Use]:
        """Every place where the name of ``use`` stands, in the order of the files."""
        home = self._home(use.scope, use.name)
        places: dict[tuple[str, Span], Use] = {}
        for other in self.uses:
            if self._home(other.scope, other.name) == home:
                known = places.get((other.file, other.span))
                if known is None or other.makes:
                    places[other.file, other.span] = other
        return list(places.values())

    def definitions_of(self, use: Use) -> list[Use]:
        return [other for other in self.all_of(use) if other.makes]

    def why_not_renamed(self, use: Use) -> str | None:
        """Why the name of ``use`` is not the spec's to change, or None."""
        if use.scope[-1:] == (_HEADS,):
            return f"{use.name!r} is an action of the environment, which gives it its name"
        if not self.definitions_of(use):
            if use.scope == PARAMS:
                return f"the spec has no param {use.name!r}"
            return f"{use.name!r} is no node of the spec: it is an observation, which the environment names"
        return None

    def why_not_called(self, use: Use, new: str, observations: Iterable[str] = ()) -> str | None:
        """Why the name of ``use`` cannot become ``new``, or None; ``observations`` are those of the environment."""
        if new == use.name:
            return None
        if use.scope == PARAMS:
            if not _PARAM.fullmatch(new):
                return f"{new!r} is no name of a param: write letters, digits and '_'"
            taken = {other.name for other in self.uses if other.scope == PARAMS and other.makes}
            used = f"the spec has a param {new!r} already" if new in taken else None
            return used or _why_no_text(new)
        problem = node_name_problem(new) or _why_no_text(new)
        if problem:
            return problem
        for scope in dict.fromkeys(each.scope for each in self.all_of(use)):
            if new in self.values_of(scope) or new in self.scopes.get(scope, _Scope()).writes:
                return f"{new!r} is taken: the graph has a node or an output of this name already"
        if new in observations or any(
            other.name == new and self._home(other.scope, new)[0] == OBSERVATIONS
            for other in self.uses
        ):
            return f"{new!r} is taken: an observation has this name"
        return None

    def values_of(self, scope: Path) -> list[str]:
        """The values that the nodes of a graph, or its inputs, have: what other nodes can read."""
        graph = self.scopes.get(scope, _Scope())
        return list(
            dict.fromkeys([*graph.inputs, *(n for names in graph.writes.values() for n in names)])
        )

    def dependents(self, scope: Path, node: str) -> set[str]:
        """The values of ``node`` and of every node that depends on it: what it cannot read."""
        graph = self.scopes.get(scope, _Scope())
        values, waiting = {node}, [node]
        while waiting:
            written = graph.writes.get(waiting.pop(), [])
            values.update(written)
            for other, reads in graph.reads.items():
                if other not in values and not values.isdisjoint(reads):
                    values.add(other)
                    waiting.append(other)
        return values

    # --- one name in several graphs --------------------------------------------------------------------------------

    def _home(self, scope: Path, name: str) -> tuple[Path, str]:
        home = (scope, name)
        while home in self._same:
            home = self._same[home]
        return home

    def join(self, first: tuple[Path, str], second: tuple[Path, str]) -> None:
        """Both are one name, as an input of a nested graph that has its name outside too."""
        one, other = self._home(*first), self._home(*second)
        if one != other:
            self._same[one] = other

    def share(self, scope: Path, name: str) -> None:
        self._shares.setdefault(name, []).append(scope)

    def _resolve(self) -> None:
        """Find what is read and written nowhere in its graph: the critic may read what the policy shares."""
        made = {(use.scope, use.name) for use in self.uses if use.makes}
        for name, scopes in self._shares.items():
            for scope in scopes[1:]:  # the critic has one name for all of them
                self.join((scope, name), (scopes[0], name))
        for use in self.uses:
            key = (use.scope, use.name)
            if key in made or use.scope.count("graph") != 1 or use.scope[-1:] == (_HEADS,):
                continue
            if use.scope[0] != PARTS[0] and use.name in self._shares:
                self.join(key, (self._shares[use.name][0], use.name))
            elif self._home(*key) not in made:
                self.join(key, (OBSERVATIONS, use.name))
        places: dict[tuple[str, Span], tuple[Path, str]] = {}
        for use in self.uses:  # what an alias repeats stands in one place
            self.join((use.scope, use.name), places.setdefault((use.file, use.span), use[:2]))


class _Collector:
    """Reads the names of one file."""

    def __init__(self, names: Names, file: str, written: Written) -> None:
        self._names = names
        self._file = file
        self._root, self._lines = written

    def networks(self) -> None:
        for part in (*PARTS, "network"):
            if part in self._children(self._root):
                self._network(self._root.value[part], (part,))

    def others(self) -> None:
        """The names beside the networks, some of which are names of nodes."""
        top = self._children(self._root)
        for key in _LISTS_OF_OBSERVATIONS:
            self._read(top.get(key), OBSERVATIONS)
        for key in self._children(top.get("texts")):
            self._key(top["texts"].value[key], OBSERVATIONS, key, makes=False)
        for name, value in self._children(top.get("params")).items():
            self._key(value, PARAMS, name)
        for value in _scalars(top.get("freeze")):
            self._model_path(str(value.value), value.span())
        for key in _KEYS_ARE_PATHS:
            for path, value in self._children(top.get(key)).items():
                self._model_path(path, value.span(key=True))
        for value in _scalars(self._root):
            if value.refers:
                self._references(value.alias or value.span())

    def _children(self, node: Located | None) -> dict[str, Located]:
        return node.value if node is not None and isinstance(node.value, dict) else {}

    def _network(self, network: Located, path: Path) -> None:
        keys = self._children(network)
        for name, member in self._members(keys.get("networks")):
            self._network(member, (*path, "networks", name))
        scope = (*path, "graph")
        if "graph" in keys:
            self._graph(keys["graph"], scope)
        heads = self._children(keys.get(_HEADS))
        if "in" in heads and not isinstance(heads["in"].value, dict):
            self._read(heads["in"], scope)
        else:
            for action, head in heads.items():
                self._key(head, (*path, _HEADS), action)
                self._read(self._children(head).get("in"), scope)
                self._read(self._children(head).get("same_as"), (*path, _HEADS))
        for name in self._read(keys.get("shares"), scope):
            self._names.share(scope, name)
        self._read(keys.get("observations"), OBSERVATIONS)
        self._read(keys.get("action_mask"), OBSERVATIONS)

    def _members(self, networks: Located | None) -> Iterable[tuple[str | int, Located]]:
        if networks is not None and isinstance(networks.value, list):
            return enumerate(networks.value)
        return self._children(networks).items()

    def _graph(self, graph: Located, scope: Path) -> None:
        known = self._names.scopes.setdefault(scope, _Scope())
        for name, node in self._children(graph).items():
            self._key(node, scope, name)
            keys = self._children(node)
            is_nested = "graph" in keys or ("block" in keys and keys["block"].value in NESTED)
            inner = (*scope, name, "graph") if is_nested else None
            reads = self._inputs(keys.get("in"), scope, inner)
            known.reads[name] = reads or known.reads.get(name, [])
            writes = self._outputs(keys.get("out"), scope, inner)
            if writes is not None:
                known.writes[name] = writes
            known.writes.setdefault(name, [name])  # another file may say it
            self._read(keys.get("same_as"), scope)
            if "graph" in keys:
                self._graph(keys["graph"], (*scope, name, "graph"))

    def _inputs(self, value: Located | None, scope: Path, inner: Path | None) -> list[str]:
        names = self._read(value, scope)
        if inner is not None and value is not None:
            graph = self._names.scopes.setdefault(inner, _Scope())
            for name, outer in self._children(value).items():
                self._key(outer, inner, name)
                graph.inputs.append(name)
            if not isinstance(value.value, dict):  # names that are the same inside
                for name in names:
                    self._names.join((inner, name), (scope, name))
                    graph.inputs.append(name)
        return names

    def _outputs(self, value: Located | None, scope: Path, inner: Path | None) -> list[str] | None:
        """The values that a node writes; None: its name."""
        if value is None:
            return None
        if inner is None:
            return self._read(value, scope, makes=True)
        if isinstance(value.value, dict):
            for name, inside in value.value.items():
                self._key(inside, scope, name)
            self._read(value, inner)
            return list(value.value)
        names = self._read(value, inner)
        for name in names:
            self._names.join((scope, name), (inner, name))
        return names

    # --- single places ---------------------------------------------------------------------------------------------

    def _read(self, value: Located | None, scope: Path, makes: bool = False) -> list[str]:
        """Note the names in ``value``, a text or several; returns them."""
        names = []
        for scalar in _scalars(value):
            name = scalar.value
            if isinstance(name, str) and not scalar.refers and not (makes and name == "_"):
                self._add(scope, name, scalar.alias or scalar.span(), makes)
                names.append(name)
        return names

    def _key(self, value: Located, scope: Path, name: str, makes: bool = True) -> None:
        self._add(scope, name, value.span(key=True), makes)

    def _add(self, scope: Path, name: str, span: Span | None, makes: bool) -> None:
        if span is not None and (inside := self._without_quotes(span, name)) is not None:
            self._names.uses.append(Use(scope, name, self._file, inside, makes))

    def _without_quotes(self, span: Span, name: str) -> Span | None:
        """The place of the very name; None where it is written with escapes."""
        text = self._text(span)
        start = text.find(name)
        if start < 0 or text.strip("\"'") != name:
            return None
        return _part(span, start, start + len(name))

    def _text(self, span: Span) -> str:
        (_, line, first), (_, last_line, last) = span
        if line is None or first is None or last is None or line != last_line:
            return ""
        return self._lines[line - 1][first - 1 : last - 1] if line <= len(self._lines) else ""

    def _model_path(self, path: str, span: Span | None) -> None:
        """The nodes in a path such as ``policy/screen``, ``policy/archer/memory`` or ``policy/memory/h``."""
        if span is None or path not in self._text(span):
            return
        start, scope = self._text(span).index(path), ()
        for depth, part in enumerate(path.split("/")):
            place = _part(span, start, start + len(part))
            start += len(part) + 1
            if depth == 0:
                scope: Path = (part, "graph")
            elif part in self._names.scopes.get(scope, _Scope()).writes:
                self._names.uses.append(Use(scope, part, self._file, place, False))
                scope = (*scope, part, "graph")
            elif depth == 1:
                scope = (path.partition("/")[0], "networks", part, "graph")

    def _references(self, span: Span | None) -> None:
        """The params in a text."""
        if span is None or span.start.line is None or span.end.line is None:
            return
        for line in range(span.start.line, span.end.line + 1):
            text = self._lines[line - 1] if line <= len(self._lines) else ""
            first = (span.start.column or 1) - 1 if line == span.start.line else 0
            last = (span.end.column or 1) - 1 if line == span.end.line else len(text)
            for match in _REFERENCE.finditer(text, first, last):
                if name := match["name"]:
                    whole = Span(
                        Position(span.start.file, line, 1),
                        Position(span.start.file, line, 1),
                    )
                    place = _part(whole, match.start("name"), match.end("name"))
                    self._names.uses.append(Use(PARAMS, name, self._file, place, False))


def _part(span: Span, start: int, end: int) -> Span:
    """The characters from ``start`` to ``end`` of what begins at a span."""
    file, line, column = span.start
    return Span(*(Position(file, line, (column or 1) + offset) for offset in (start, end)))


def _scalars(node: Located | None) -> Iterator[Located]:
    """The scalars of a value, without keys."""
    if node is None:
        return
    below = node.children()
    if not below and node.value is not None and not isinstance(node.value, dict | list):
        yield node
    for child in below:
        yield from _scalars(child)
