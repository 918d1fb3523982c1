"""``"${params.width}"`` anywhere in a spec becomes the value of ``params: {width: 64}``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from composer.errors import Path, Position, Problem
from composer.source.values import Located, check_size
from perception_blocks.dag import Dag, DagNode
from perception_blocks.words import describe, did_you_mean, listing, near_name, suggest

__all__ = ["escape_params", "fill_params"]

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_MAX_TEXT = 10_000  # texts that hold texts that hold texts double in length each time


def fill_params(root: Located, file: str) -> tuple[Located, list[Problem]]:
    """``root`` with every reference replaced by its param's value, and the problems of the references.

    A text that is one reference becomes the param's value, with its type, and keeps its own position; a reference
    within a text is replaced by the value as text; ``$${`` stands for ``${``. A value from an override has the
    position of the override everywhere. Params may refer to params. A param that nothing refers to is a problem if it
    is written in ``file`` itself: a file that `extends` names may offer more than is used.
    """
    params = root.value.get("params")
    filler = _Filler({**(root.removed or {}), **((params and params.removed) or {})})
    if params is not None:
        root = root.with_value({**root.value, "params": filler.read(params)})
    filled = {
        key: value if key == "params" else filler.fill(value, (key,))
        for key, value in root.value.items()
    }
    filler.report_unused(file)
    result = root.with_value(filled)
    check_size(result, root.position, "the spec with its params filled in")
    return result, filler.problems


def _dag(reads: Mapping[str, Iterable[str]]) -> Dag:
    return Dag((DagNode(name, tuple(others)) for name, others in reads.items()), None, None)


def escape_params(text: str) -> str:
    """``text`` as a spec must write it to have it read back unchanged."""
    return text.replace("${", "$${")


class _Filler:
    """The params of one document, and which of them are used."""

    def __init__(self, removed: Mapping[str, Position | None]) -> None:
        self.problems: list[Problem] = []
        self._removed = removed
        self._values: dict[str, Located] = {}
        self._used: set[str] = set()

    def read(self, node: Located) -> Located:
        """Note the params, each after those it refers to; returns them filled in."""
        if not isinstance(node.value, dict):
            self._add(("params",), node, f"'params' must be a mapping, got {describe(node.value)}")
            return node
        self._values = dict(node.value)
        cyclic: set[str] = set()
        for name in self._order(node, cyclic):
            self._check_value(name)
            if name not in cyclic:
                self._values[name] = self.fill(node.value[name], ("params", name))
        return node.with_value(dict(self._values))

    def _check_value(self, name: str) -> None:
        for path, node in _scalars(self._values[name], ("params", name)):
            if not isinstance(node.value, str | int | float | bool | None):
                message = (
                    f"the param {name!r} must be a number, a text, true, false, null or a list of them, "
                    f"got {describe(node.value)}"
                )
                self._add(path, node, message)
                return

    def _order(self, params: Located, cyclic: set[str]) -> list[str]:
        """The names in an order in which each can be filled; names in a circle are noted and added to ``cyclic``."""
        reads = {
            name: [other for other in _references(node) if other in params.value]
            for name, node in params.value.items()
        }
        for cycle in _dag(reads).cycles():
            names = " -> ".join(repr(name) for name in [cycle[0], *reversed(cycle)])
            first = min(cycle, key=list(params.value).index)
            message = f"the params refer to each other in a circle: {names}"
            self._add(("params", first), params.value[first], message)
            cyclic.update(cycle)
        reads = {
            name: [] if name in cyclic else [other for other in others if other not in cyclic]
            for name, others in reads.items()
        }
        dag = _dag(reads)
        if dag.cycles():  # there are more than are reported at once
            cyclic.update(reads)
            return list(reads)
        return [node.name for node in dag.order()]

    def fill(self, node: Located, path: Path) -> Located:
        """``node`` with its references replaced; nodes without any are kept as they are."""
        if not node.refers:
            return node
        if isinstance(node.value, dict):
            value = {key: self.fill(child, (*path, key)) for key, child in node.value.items()}
        elif isinstance(node.value, list):
            value = [self.fill(child, (*path, i)) for i, child in enumerate(node.value)]
        else:
            filled = self._fill_text(node, path)
            check_size(filled, node.position, f"the value of {node.value!r}")
            return filled
        return node.with_value(value)

    def _fill_text(self, node: Located, path: Path) -> Located:
        text = node.value
        whole = _REFERENCE.fullmatch(text)
        if whole and whole[1] is not None:
            param = self._look_up(whole[1], node, path)
            if param is None:
                return node
            # An override names no line, and the line of the reference is not where the value was given.
            overridden = param.position is not None and param.position.line is None
            if overridden:
                places = (param.position, node.key_position, None, node.key_end_mark)
                return Located(param.value, *places)
            return node.with_value(param.value)
        return node.with_value(self._text_with_values(node, path))

    def _text_with_values(self, node: Located, path: Path) -> str:
        text = node.value
        parts = []
        end = 0
        for match in _REFERENCE.finditer(text):
            parts += [text[end : match.start()], self._text_of(match, node, path)]
            end = match.end()
        parts.append(text[end:])
        length = sum(map(len, parts))
        if length > _MAX_TEXT:
            message = f"the text grows to {length} characters; the limit is {_MAX_TEXT}"
            self._add(path, node, message)
            short = "".join(part[:100] for part in parts[:100])
            return short[:100]  # what refers to it need not be reported as well
        return "".join(parts)

    def _text_of(self, match: re.Match[str], node: Located, path: Path) -> str:
        if match[0] == "$${":
            return "${"
        if match[1] is None:
            message = f"{describe(node.value)} has a '${{' without its '}}'; write '$${{' for the characters themselves"
            self._add(path, node, message)
            return match[0]
        param = self._look_up(match[1], node, path)
        if param is None:
            return match[0]
        if isinstance(param.value, list | dict):
            message = f"{match[0]!r} is {describe(param.value)} and cannot stand inside a text"
            self._add(path, node, message)
            return match[0]
        return param.value if isinstance(param.value, str) else json.dumps(param.value)

    def _look_up(self, reference: str, node: Located, path: Path) -> Located | None:
        prefix, _, name = reference.strip().partition(".")
        if prefix == "params" and name in self._values:
            self._used.add(name)
            return self._values[name]
        written = "${" + reference + "}"
        if prefix == "params" and name:
            hint = self._removal(name) or did_you_mean(name, self._values) or self._known()
            message = f"unknown param {name!r} in {written!r}" + hint
        else:
            meant = near_name(f"params.{reference}", [f"params.{name}" for name in self._values])
            message = f"{written!r} is no reference; only '${{params.NAME}}' is"
            if meant:
                message += suggest(written, f"${{{meant}}}")
        self._add(path, node, message)
        return None

    def _removal(self, name: str) -> str:
        by = self._removed.get(name) or self._removed.get("params")
        how = "an empty value and null remove a key"
        return f"; {str(by)!r} removed it: {how}; give it a value" if by else ""

    def _known(self) -> str:
        if not self._values:
            return "; the spec has no params"
        return f"; the params are {listing(self._values)}"

    def report_unused(self, file: str) -> None:
        """Note each param that nothing refers to, unless a broken reference may be the reason."""
        if self.problems:
            return
        for name, node in self._values.items():
            written_in = node.key_position or node.position
            foreign = (
                written_in is not None and written_in.line is not None and written_in.file != file
            )
            if name not in self._used and not foreign:
                hint = f'; use it as "${{params.{name}}}" or remove it'
                # An override names no line: it was meant for a param of the file.
                if written_in is not None and written_in.line is None:
                    hint = did_you_mean(name, self._used) or hint
                message = f"nothing refers to the param {name!r}" + hint
                problem = Problem(message, ("params", name), written_in, key=True)
                self.problems.append(problem)

    def _add(self, path: Path, node: Located, message: str) -> None:
        self.problems.append(Problem(message, path, node.position))


def _scalars(node: Located, path: Path) -> Iterator[tuple[Path, Located]]:
    if isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _scalars(child, (*path, index))
    else:
        yield path, node


def _references(node: Located) -> Iterator[str]:
    if isinstance(node.value, str):
        for match in _REFERENCE.finditer(node.value):
            prefix, _, name = (match[1] or "").strip().partition(".")
            if prefix == "params":
                yield name
    for child in node.children():
        yield from _references(child)
