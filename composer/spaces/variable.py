"""Spaces whose values vary in size - Sequence, Graph, Text, OneOf - as ports under flat keys.

A mask is true for real elements. Padding is zero, and a set or graph without elements is one padded element long, so
that no block meets an empty axis. `variable_readers` makes these tensors and masks:

    space at the key ``k``            flat keys
    Sequence(Box((F,)))               k (None, F); k:mask (None,)
    Sequence(Dict(a=..., b=...))      k/a (None, ...), k/b (None, ...); k:mask (None,)
    Text(L)                           k (L,), 0 where the text has ended; k:mask (L,)
    Graph(node_space, edge_space)     k/nodes (None, ...), k/nodes:mask (None,); with an edge_space also
                                      k/edges (None, ...), k/edge_links (None, 2), k/edges:mask (None,)
    OneOf([first, second])            k/choice (); k/0 and k/1, zero where not chosen; k/0:mask (), k/1:mask ()
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeGuard

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.errors import Path
from composer.spaces.kinds import (
    KINDS,
    Kind,
    Leaf,
    as_numbers,
    as_tensor,
    format_space,
    kind_of,
    look_at,
    watched,
)
from composer.spaces.values import FLAGS, IntegerRange
from composer.spaces.variable_readers import (
    CompoundReader,
    FixedReader,
    GraphReader,
    OneOfReader,
    Reader,
    SetReader,
    TextReader,
    described,
    is_mask,
    shape_of,
    typed,
)
from composer.spec.keys import is_within
from perception_blocks.port import Port, format_shape
from perception_blocks.words import did_you_mean

__all__ = ["ReaderMaker", "VariableSpace", "collision", "declared_text"]


VARIABLE = (spaces.Sequence, spaces.Graph, spaces.Text, spaces.OneOf)
PRINTABLE = string.printable.strip() + " "


class VariableSpace:
    """A space of varying size within an observation: its leaves, and its values as padded tensors."""

    def __init__(
        self, key: str, path: Path, space: Space, reader: Reader, ignored: Collection[str] = ()
    ) -> None:
        """``ignored`` are flat keys that get no leaf; neither does a mask that masks nothing."""
        self.key = key
        self.path = path
        self._space = space
        self._reader = reader
        ports = {k: port for k, port in reader.ports.items() if is_mask(port) or k not in ignored}
        used = {port.mask for port in ports.values()}
        shown = format_space(space)  # once: it may have thousands of parts
        self.leaves = {
            k: _padded_leaf(k, path, space, port, shown)
            for k, port in ports.items()
            if k in used or not is_mask(port)
        }

    def is_padded(self, value: object) -> TypeGuard[Mapping[str, object]]:
        """Whether ``value`` is a dict of padded tensors by flat key, not a value of the space."""
        return isinstance(value, Mapping) and any(k in value for k in self.leaves if k != self.key)

    def fits(self, value: object) -> bool:
        """Whether ``value`` has the form of a single, unbatched one of the space."""
        return self._reader.fits(value)

    def read(
        self, value: object, dtype: torch.dtype, device: torch.device | str | None
    ) -> dict[str, Tensor]:
        """A value of the space, or tuples of them (any leading axes), by flat key and padded to the longest.

        Raises ValueError for what is neither.
        """
        samples, leading = self._samples(value)
        tensors = self._reader.read(samples, dtype)
        return {
            key: tensors[key].reshape((*leading, *tensors[key].shape[1:])).to(device)
            for key in self.leaves
        }

    def read_padded(
        self,
        values: Mapping[str, object],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> dict[str, Tensor]:
        """Padded values by flat key, as `read` returns them (any leading axes), in the model's dtypes.

        Raises ValueError for a wrong shape, and for a mask without the axes of what it masks.
        """
        tensors: dict[str, Tensor] = {}
        for key, leaf in self.leaves.items():
            if key in values:
                numbers = as_numbers(key, values[key])
                look_at(leaf, numbers)
                tensors[key] = typed(as_tensor(key, numbers, device), leaf.port, dtype)
        for key, tensor in tensors.items():
            port = self.leaves[key].port
            mask = tensors.get(port.mask or "")
            if mask is None:
                continue
            masked_axes = len(self.leaves[port.mask].port.shape)  # type: ignore[index]
            expected = tensor.shape[: tensor.dim() - len(port.shape) + masked_axes]
            if mask.shape != expected:
                raise ValueError(
                    f"{key!r} has shape {format_shape(tensor.shape)}, its mask {port.mask!r} has "
                    f"{format_shape(mask.shape)}, expected {format_shape(expected)}"
                )
        return tensors

    def _samples(self, value: object) -> tuple[list[object], tuple[int, ...]]:
        """The values of the space in nested tuples, lists or arrays of them, and the axes of the nesting."""
        if self._reader.fits(value):
            return [value], ()
        if not self._may_hold(value):
            raise ValueError(
                f"{self.key!r} must be a value of {format_space(self._space)} or a batch of them, "
                f"got {described(value)}"
            )
        parts = [self._samples(part) for part in value]
        inner = parts[0][1] if parts else ()
        if any(leading != inner for _, leading in parts):
            raise ValueError(f"the parts of the batch {self.key!r} differ in their leading axes")
        return [sample for samples, _ in parts for sample in samples], (len(parts), *inner)

    def _may_hold(self, value: object) -> TypeGuard[Iterable[object]]:
        """Whether ``value`` is a batch, judged by its first part."""
        while isinstance(value, (tuple, list, np.ndarray, Tensor)) and shape_of(value) != ():
            if len(value) == 0 or self._reader.fits(value[0]):
                return True
            value = value[0]
        return False


def _padded_leaf(key: str, path: Path, space: Space, port: Port, shown: str) -> Leaf:
    """The leaf of a padded tensor; its range includes the zeros of the padding, and choices count from 0.

    Messages call the space ``shown``.
    """
    if is_mask(port):
        return Leaf(key, path, space, port, "mask", integers=FLAGS)
    integers = None
    where = f"padded values of {shown}"
    if port.cardinality is not None:
        integers = _counted(port, f"outside of {where}, counted from 0")
    elif port.dtype == torch.uint8:
        integers = IntegerRange(0, 255, f"outside of {where}", torch.uint8)
    elif port.is_integer:
        integers = IntegerRange(0, np.iinfo(np.int64).max, f"outside of {where}, counted from 0")
    return Leaf(key, path, space, port, "variable", integers=integers)


def _counted(port: Port, expected: str) -> IntegerRange:
    """The range of choices that count from 0."""
    if isinstance(port.cardinality, int):
        return IntegerRange(0, port.cardinality - 1, expected)
    element = [size for size in port.shape if size is not None]
    high = np.array(port.cardinality).reshape(element) - 1
    return IntegerRange(np.zeros_like(high), high, expected)


class ReaderMaker:
    """Makes the readers of one space's parts.

    ``ignored`` are flat keys; ``texts`` are the spaces that replace the ones at their keys. ``problems`` collects the
    parts that cannot be read, ``no_texts`` the keys in ``texts`` that are no texts, ``seen`` the flat keys that an
    ``ignore`` may name.
    """

    def __init__(
        self, root: str, ignored: Collection[str], texts: Mapping[str, spaces.Text]
    ) -> None:
        self.root = root
        self.ignored = ignored
        self.texts = texts
        self.problems: list[str] = []
        self.no_texts: dict[str, str] = {}
        self.seen: set[str] = set()

    def is_variable(self, key: str, space: Space) -> bool:
        return self.root != "action" and (key in self.texts or isinstance(space, VARIABLE))

    def leaf(self, kind: Kind, key: str, path: Path, space: Space) -> Leaf:
        leaf = kind.leaf(key, path, space)
        return leaf if self.root == "action" else watched(leaf)

    def variable(self, key: str, path: Path, space: Space) -> VariableSpace | None:
        """The space at ``key`` with its reader; None where nothing of it can be read."""
        reader = self.reader(key, path, space)
        if reader is None:
            return None
        self.seen.update(k for k, port in reader.ports.items() if not is_mask(port))
        return VariableSpace(key, path, space, reader, self.ignored)

    def reader(self, key: str, path: Path, space: Space, within: str = "") -> Reader | None:
        """None if it is ignored or cannot be read; ``within`` is the key of the Sequence or Graph around it."""
        self.seen.add(key)
        if is_within(key, self.ignored):
            return None
        if key in self.texts:
            if not isinstance(space, spaces.Text) and _is_known(space):
                what = f"a {type(space).__name__} space and no text"
                self.no_texts[key] = f"texts names {key!r}, which is {what}"
                return None
            space = self.texts[key]
        kind = kind_of(space)
        if kind is not None:
            return FixedReader(self.leaf(kind, key, path, space))
        if within and isinstance(space, (spaces.Sequence, spaces.Graph, spaces.Text)):
            self.problems.append(_varies_twice(self.root, key, space, within))
            return None
        for of_type, make in _MAKERS.items():
            if isinstance(space, of_type):
                return make(self, key, path, space, within)
        self.problems.append(self.unsupported(key, space))
        return None

    def unsupported(self, key: str, space: Space) -> str:
        what = f"{self.root} {key!r} is a {_class_of(space)} space"
        fixed = ", ".join(kind.space.__name__ for kind in KINDS.values())
        if self.root == "action":
            return f"{what}, which is not supported ({fixed}, Dict and Tuple are)"
        if space.dtype is not None and space.dtype.kind == "U":
            return (
                f"{what}, a text of unknown characters and length; declare them with texts: "
                f"{{{key}: {{max_length: 64}}}} or leave it out with ignore: [{key}]"
            )
        variable = ", ".join(kind.__name__ for kind in VARIABLE)
        return (
            f"{what}, which is not supported ({fixed}, {variable}, Dict and Tuple are); "
            f"leave it out with ignore: [{key}]"
        )

    def parts(self, key: str, path: Path, space: spaces.Dict | spaces.Tuple, within: str) -> Reader:
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return CompoundReader(key, space, self._readers(key, path, named, within))

    def sequence(self, key: str, path: Path, space: spaces.Sequence, within: str) -> Reader | None:
        element = self.reader(key, path, space.feature_space, key)
        return SetReader(key, path, space, element) if element and element.ports else None

    def graph(self, key: str, path: Path, space: spaces.Graph, within: str) -> Reader:
        edges = [] if space.edge_space is None else [("edges", space.edge_space)]
        readers = self._readers(key, path, [("nodes", space.node_space), *edges], key)
        return GraphReader(key, path, space, readers.get("nodes"), readers.get("edges"))

    def one_of(self, key: str, path: Path, space: spaces.OneOf, within: str) -> Reader:
        readers = self._readers(key, path, enumerate(space.spaces), within)
        return OneOfReader(key, path, space, readers)

    def text(self, key: str, path: Path, space: spaces.Text, within: str) -> Reader:
        return TextReader(key, path, space)

    def _readers(
        self, key: str, path: Path, parts: Iterable[tuple[str | int, Space]], within: str
    ) -> dict[str | int, Reader]:
        readers: dict[str | int, Reader] = {}
        known: dict[str, Port] = {}
        for name, part in parts:
            reader = self.reader(f"{key}/{name}", (*path, name), part, within)
            if reader is None:
                continue
            readers[name] = reader
            for clash in known.keys() & reader.ports.keys():
                paths = known[clash].source, reader.ports[clash].source
                self.problems.append(collision(self.root, clash, *paths))
            known |= reader.ports
        return readers


_MAKERS: dict[type[Space], Callable[..., Reader | None]] = {
    spaces.Dict: ReaderMaker.parts,
    spaces.Tuple: ReaderMaker.parts,
    spaces.Sequence: ReaderMaker.sequence,
    spaces.Graph: ReaderMaker.graph,
    spaces.Text: ReaderMaker.text,
    spaces.OneOf: ReaderMaker.one_of,
}


def declared_text(name: str, declared: Mapping[str, object]) -> spaces.Text:
    """The Text space of ``{max_length: 64, charset: "abc"}``; without a charset it is all printable ASCII.

    Raises ValueError, with ``name`` in the message, for other settings and wrong values.
    """
    for setting in declared:
        if setting not in ("max_length", "charset"):
            near = did_you_mean(str(setting), ["max_length", "charset"])
            raise ValueError(
                f"texts of {name!r} takes max_length and charset, not {setting!r}" + near
            )
    length, charset = declared.get("max_length"), declared.get("charset", PRINTABLE)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(
            f"max_length in texts of {name!r} must be a number above 0, got {length!r}"
        )
    if not isinstance(charset, str) or not charset:
        raise ValueError(f"charset in texts of {name!r} must be characters, got {charset!r}")
    return spaces.Text(length, min_length=0, charset=charset)


def collision(root: str, key: str, first: Path, second: Path) -> str:
    places = " and ".join("".join(f"[{part!r}]" for part in path) for path in (first, second))
    return f"two parts of the {root} space get the flat key {key!r}: {places}; rename one of them"


def _class_of(space: Space) -> str:
    """The name of its class; of a space that was read from JSON, of the class that it had."""
    name = getattr(space, "class_name", type(space).__name__)
    return re.split(r"[:.]", name)[-1]


def _is_known(space: Space) -> bool:
    return kind_of(space) is not None or isinstance(space, tuple(_MAKERS))


def _varies_twice(root: str, key: str, space: Space, within: str) -> str:
    where = "" if key == within else f" within {within!r}"
    return (
        f"{root} {key!r} is a {type(space).__name__} space{where}, whose elements would vary in number and in size, "
        f"which is not supported; leave it out with ignore: [{key}]"
    )
