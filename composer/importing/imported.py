"""What became of a configuration: a spec, and all that is not in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from composer.errors import Path, Position, Problem, SpecError, format_path
from composer.importing.taken import BASE, CLASS, Taken
from composer.source.dump import dump_flow
from composer.source.files import MAX_BYTES
from composer.source.values import Located
from perception_blocks.words import printable

__all__ = ["Imported", "finished"]

ORDER = ("version", "environment", "distributions", "normalize", "policy", "critic")  # of the keys
WIDEST = 120  # characters of a node's line
_LONG = ("policy", "critic", "graph")  # mappings of several lines


@dataclass
class Imported:
    """The networks of a configuration as a spec, and what of the file is not in it.

    ``spec`` is data for `composer.compose`. ``notes`` say what differs. ``left`` are the paths of the keys about the
    networks that were not taken over, ``training`` those about training, which never are.

    ``weights`` are pairs for `composer.adopt_weights`: the name of a tensor or a module here, and there. Names there
    are those in a checkpoint of that library, whose nested mappings are joined by dots. ``"rnn#1"`` is the second layer
    of a recurrent module (``weight_ih_l1``), ``"mu+sigma"`` are both, one below the other, ``"log(std)"`` is its
    logarithm.
    """

    spec: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    training: list[str] = field(default_factory=list)
    weights: list[tuple[str, str]] = field(default_factory=list)
    kind: str = ""
    file: str = ""

    def note(self, text: str) -> None:
        """Add what differs to the ``notes``, once."""
        if text not in self.notes:
            self.notes.append(text)

    def differences(self, verbose: bool = False) -> list[str]:
        """A line for each difference and each key that was not taken over, and the number of keys of training.

        With ``verbose`` a line for each of those, too.
        """
        lines = [f"differs: {note}" for note in self.notes]
        lines += [f"not taken over: {path}" for path in self.left]
        if self.training:
            keys = "key" if len(self.training) == 1 else "keys"
            lines.append(f"{len(self.training)} {keys} of training not taken over")
            lines += [f"  {path}" for path in self.training] if verbose else []
        return lines

    def to_yaml(self, environment: str | None = None, *, verbose: bool = False) -> str:
        """The spec as YAML, below comments with the `differences`. Raises SpecError if it is too large for a file."""
        more = {} if environment is None else {"environment": environment}
        spec = {**self.spec, **more}
        spec = {key: spec[key] for key in (*ORDER, *spec) if key in spec}
        written = "\n".join(_written(spec)) + "\n"
        source = (
            f"From {os.path.basename(self.file)}, a configuration of {self.kind}."
            if self.file
            else ""
        )
        lines = [*([source] if source else []), *self.differences(verbose)]
        text = "".join(f"# {printable(line)}\n" for line in lines) + written
        if len(text.encode()) > MAX_BYTES:
            message = f"the spec would be larger than {MAX_BYTES:,} bytes, too large for a spec"
            raise SpecError([Problem(message, (), Position(self.file, 1, 1))])
        return text


def _written(data: Mapping[str, Any], margin: str = "", above: str = "") -> Iterator[str]:
    """``data`` as lines of YAML, with one node of a graph on each."""
    for key, value in data.items():
        is_long = key in _LONG or above == "graph"
        line = f"{margin}{dump_flow({key: value})[1:-1]}"
        if key in _LONG and isinstance(value, Mapping) and value:
            yield from ([""] if not margin else [])
            yield f"{margin}{key}:"
            yield from _written(value, f"{margin}  ", key)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield f"{margin}{key}:"
            yield from (f"{margin}  - {dump_flow(each)}" for each in value)
        elif is_long and len(line) > WIDEST and isinstance(value, Mapping):
            yield f"{margin}{key}:"
            yield from (f"{margin}  {dump_flow({k: v})[1:-1]}" for k, v in value.items())
        else:
            yield line


def finished(imported: Imported, top: Taken, training: Iterable[Path]) -> Imported:
    """``imported`` with the keys of ``top`` that nobody asked for; those of ``training`` apart."""
    beginnings = [*training]
    for path in top.left():
        if any(path[: len(beginning)] == beginning for beginning in beginnings):
            imported.training += [format_path(leaf) for leaf in _leaves(top, path)]
        else:
            imported.left.append(format_path(path))
    return imported


def _leaves(top: Taken, path: Path) -> list[Path]:
    """The paths of the scalars and lists at and below ``path``."""
    node: Located = top.node
    for part in path[len(top.path) :]:
        node = node.value[part]
    if not (isinstance(node.value, dict) and node.value):
        return [path]
    return [
        leaf
        for key in node.value
        if key not in (BASE, CLASS)
        for leaf in _leaves(top, (*path, key))
    ]
