"""Readers of spaces whose values vary in size: their samples become padded tensors and masks.

There is a reader for each kind of space; readers are nested as spaces are. ``read`` takes unbatched samples and stacks
them on a first axis. A *column* is what gymnasium makes of a number of samples: an array, or a dict or tuple of
columns, or, for spaces that it cannot batch, a tuple of samples.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import GraphInstance
from torch import Tensor

from composer.errors import Path
from composer.spaces.kinds import Leaf, as_tensor, from_space_value
from composer.spaces.values import IntegerRange, refuse_outside
from perception_blocks.port import Port, format_shape
from perception_blocks.words import cut

__all__ = ["CompoundReader", "FixedReader", "GraphReader", "OneOfReader", "Reader", "SetReader"]
__all__ += ["TextReader", "described", "is_mask", "shape_of", "typed"]

Tensors = dict[str, Tensor]
Samples = Sequence[Any]  # values of one space, or columns of them
_INT64 = np.iinfo(np.int64)
INTEGERS = IntegerRange(int(_INT64.min), int(_INT64.max), "expected the numbers of nodes")


class Reader(ABC):
    """Turns samples of one space into tensors by flat key, which ``ports`` describes."""

    ports: dict[str, Port]

    @abstractmethod
    def fits(self, value: object, column: bool = False) -> bool:
        """Whether ``value`` has the form of one sample, or of one column; a quick look, not a proof."""

    @abstractmethod
    def read(self, samples: Samples, dtype: torch.dtype) -> Tensors:
        """Samples as tensors (len(samples), ...). Raises ValueError for what is no sample."""

    def read_columns(self, columns: Samples, dtype: torch.dtype) -> Tensors:
        """The samples of all columns, one after the other."""
        return self.read(list(chain.from_iterable(columns)), dtype)

    def length(self, column: Any) -> int:
        """The number of samples in a column."""
        return len(column)


Readers: TypeAlias = Mapping[Any, Reader]  # by the names or numbers of the parts


class FixedReader(Reader):
    """A space of fixed size: numbers."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.ports = {leaf.key: leaf.port}

    def fits(self, value: object, column: bool = False) -> bool:
        shape = shape_of(value)
        if column:
            return bool(shape) and shape[1:] == self.leaf.port.shape
        return shape == self.leaf.port.shape

    def read(self, samples: Samples, dtype: torch.dtype) -> Tensors:
        if not samples:
            return self._tensors(np.zeros((0, *self.leaf.shape)), dtype)
        try:
            stacked = torch.stack(list(samples)) if isinstance(samples[0], Tensor) else samples
            tensors = self._tensors(stacked, dtype)
        except (ValueError, TypeError, RuntimeError):  # of several shapes, or no numbers
            self._refuse_misfit(samples)
            raise
        if tensors[self.leaf.key].shape[1:] != self.leaf.port.shape:
            self._refuse_misfit(samples)
        return tensors

    def read_columns(self, columns: Samples, dtype: torch.dtype) -> Tensors:
        self._refuse_misfit(columns, column=True)
        if not columns:
            return self.read([], dtype)
        if isinstance(columns[0], Tensor):
            return self._tensors(torch.cat(list(columns)), dtype)
        return self._tensors(np.concatenate(columns), dtype)

    def length(self, column: Any) -> int:
        self._refuse_misfit([column], column=True)
        return len(column)

    def _tensors(self, value: object, dtype: torch.dtype) -> Tensors:
        return {self.leaf.key: from_space_value(self.leaf, value, dtype=dtype)}

    def _refuse_misfit(self, values: Sequence[object], column: bool = False) -> None:
        for value in values:
            if not self.fits(value, column):
                shape = (None, *self.leaf.shape) if column else self.leaf.shape
                raise ValueError(
                    f"{self.leaf.key!r} has {described(value)} in it, expected the shape {format_shape(shape)}"
                )


class CompoundReader(Reader):
    """A Dict or Tuple; parts that are ignored have no reader and are not read."""

    def __init__(self, key: str, space: spaces.Dict | spaces.Tuple, parts: Readers) -> None:
        self.key = key
        self.is_dict = isinstance(space, spaces.Dict)
        self.size = len(space.spaces)
        self.parts = parts
        self.ports = {key: port for part in parts.values() for key, port in part.ports.items()}

    def fits(self, value: object, column: bool = False) -> bool:
        if self.is_dict:
            return isinstance(value, Mapping)
        if not isinstance(value, (tuple, list)) or len(value) != self.size:
            return False
        return all(part.fits(value[name], column) for name, part in self.parts.items())

    def read(self, samples: Samples, dtype: torch.dtype) -> Tensors:
        tensors: Tensors = {}
        for name, part in self.parts.items():
            tensors |= part.read([self._part(sample, name) for sample in samples], dtype)
        return tensors

    def read_columns(self, columns: Samples, dtype: torch.dtype) -> Tensors:
        tensors: Tensors = {}
        for name, part in self.parts.items():
            tensors |= part.read_columns([self._part(column, name) for column in columns], dtype)
        return tensors

    def length(self, column: Any) -> int:
        lengths = {
            f"{self.key}/{name}": part.length(self._part(column, name))
            for name, part in self.parts.items()
        }
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key!r} has {length}" for key, length in lengths.items())
            raise ValueError(f"the parts of {self.key!r} must have equally many elements: {counts}")
        return next(iter(lengths.values()), 0)

    def _part(self, value: object, name: Any) -> Any:
        if isinstance(value, Mapping if self.is_dict else (tuple, list)):
            try:
                return value[name]
            except (KeyError, IndexError):
                pass
        raise ValueError(f"{f'{self.key}/{name}'!r} is missing; got {described(value)}")


class SetReader(Reader):
    """A Sequence: the tensors of its elements with a varying axis before them, and a mask."""

    def __init__(self, key: str, path: Path, space: spaces.Sequence, element: Reader) -> None:
        self.element = element
        self.stack = space.stack
        self.mask = f"{key}:mask"
        self.ports = _set_ports(element.ports, self.mask, path)

    def fits(self, value: object, column: bool = False) -> bool:
        if _is_empty(value):
            return True
        if self._is_column(value):
            return self.element.fits(value, column=True)
        return isinstance(value, (tuple, list)) and self.element.fits(value[0])

    def read(self, samples: Samples, dtype: torch.dtype) -> Tensors:
        filled = [sample for sample in samples if not _is_empty(sample)]
        if filled and self._is_column(filled[0]):
            lengths = [0 if _is_empty(s) else self.element.length(s) for s in samples]
            flat = self.element.read_columns(filled, dtype)
        else:
            lengths = [len(sample) for sample in samples]
            flat = self.element.read(list(chain.from_iterable(filled)), dtype)
        return _padded(flat, lengths, self.mask)

    def _is_column(self, sample: object) -> bool:
        return self.stack or isinstance(sample, (np.ndarray, Tensor, Mapping))


class TextReader(Reader):
    """A Text: for each character its place in the charset, counted from 1; 0 where the text has ended."""

    def __init__(self, key: str, path: Path, space: spaces.Text) -> None:
        self.key = key
        self.max_length = space.max_length
        self._ids = {char: index for index, char in enumerate(space.character_list, start=1)}
        shape, mask = (self.max_length,), f"{key}:mask"
        port = Port(shape, torch.int64, cardinality=len(self._ids) + 1, mask=mask, source=path)
        self.ports = {key: port, mask: Port(shape, torch.bool, source=path)}

    def fits(self, value: object, column: bool = False) -> bool:
        return isinstance(value, str)

    def read(self, samples: Samples, dtype: torch.dtype) -> Tensors:
        ids = np.zeros((len(samples), self.max_length), np.int64)
        for row, text in zip(ids, samples, strict=True):
            row[: len(text)] = self._encoded(text)
        tokens = torch.from_numpy(ids)
        return {self.key: tokens, f"{self.key}:mask": tokens != 0}

    def _encoded(self, text: object) -> list[int]:
        if not isinstance(text, str):
            raise ValueError(f"{self.key!r} must be a text, got {described(text)}")
        if len(text) > self.max_length:
            raise ValueError(
                f"{self.key!r} is a text of {len(text)} characters, its max_length is {self.max_length}: "
                f"{_short(text)}; declare more in texts"
            )
        try:
            return [self._ids[char] for char in text]
        except KeyError as error:
            raise ValueError(
                f"{self.key!r} has the character {error.args[0]!r}, which is not in its charset: "
                f"{_short(text)}; declare a charset with it in texts"
            ) from None


class GraphReader(Reader):
    """A Graph: nodes, edges, and for each edge the two nodes that it links. Ignored parts have no reader."""

    def __init__(
        self, key: str, path: Path, space: spaces.Graph, node: Reader | None, edge: Reader | None
    ) -> None:
        self.key = key
        self.node = node
        self.edge = edge
        self.has_edges = space.edge_space is not None
        self._links = f"{key}/edge_links"
        self.ports = {}
        if node is not None:
            self.ports |= _set_ports(node.ports, f"{key}/nodes:mask", (*path, "nodes"))
        if self.has_edges:
            links = Port((2,), torch.int64, source=(*path, "edge_links"))
            ports = {**(edge.ports if edge is not None else {}), self._links: links}
            self.ports |= _set_ports(ports, f"{key}/edges:mask", (*path, "edges"))

    def fits(self, value: object, column: bool = False) -> bool:
        return isinstance(value, GraphInstance)

    def read(self, samples: Samples, dtype: torch.dtype) -> Tensors:
        self._refuse_other_counts(samples)
        tensors: Tensors = {}
        if self.node is not None:
            nodes = [graph.nodes for graph in samples]
            flat = self.node.read_columns(nodes, dtype)
            tensors |= _padded(flat, list(map(self.node.length, nodes)), f"{self.key}/nodes:mask")
        if self.has_edges:
            links = [graph.edge_links for graph in samples if graph.edge_links is not None]
            edges = [graph.edges for graph in samples if graph.edges is not None]
            flat = {} if self.edge is None else self.edge.read_columns(edges, dtype)
            none = torch.zeros((0, 2), dtype=torch.int64)
            flat[self._links] = torch.cat([self._integers(link) for link in links] or [none])
            tensors |= _padded(flat, list(map(_edge_count, samples)), f"{self.key}/edges:mask")
        return tensors

    def _refuse_other_counts(self, graphs: Sequence[GraphInstance]) -> None:
        """Each edge must link two nodes that are there."""
        for graph in graphs:
            shape, count = shape_of(graph.edge_links), _edge_count(graph)
            if not self.has_edges and count:
                raise ValueError(
                    f"{self.key!r} has edge_links, but its space has no edge_space; declare one"
                )
            if self.edge is not None and graph.edges is not None:
                count = self.edge.length(graph.edges)
            if (count or shape) and shape != (count, 2):
                got = "none" if shape is None else format_shape(shape)
                raise ValueError(
                    f"{self._links!r} must have the shape ({count}, 2), two nodes for each edge; got {got}"
                )
            if count and self.node is not None:
                links, nodes = self._integers(graph.edge_links), self.node.length(graph.nodes)
                low, high = int(links.min()), int(links.max())
                if low < 0 or high >= nodes:
                    raise ValueError(
                        f"{self._links!r} names node {low if low < 0 else high}, but the graph has {nodes} nodes, "
                        "counted from 0"
                    )

    def _integers(self, links: object) -> Tensor:
        numbers = as_tensor(self._links, links)
        refuse_outside(repr(self._links), numbers, INTEGERS)
        return numbers.to(torch.int64)


class OneOfReader(Reader):
    """A OneOf: the index of the chosen alternative, and tensors of each one, zero and masked where it is not chosen."""

    def __init__(self, key: str, path: Path, space: spaces.OneOf, alternatives: Readers) -> None:
        self.key = key
        self.size = len(space.spaces)
        self.alternatives = {int(index): reader for index, reader in alternatives.items()}
        self.choice = f"{key}/choice"
        self.ports = {
            self.choice: Port((), torch.int64, cardinality=self.size, source=(*path, "choice"))
        }
        for index, reader in self.alternatives.items():
            mask = f"{key}/{index}:mask"
            ports = {name: _masked(port, mask) for name, port in reader.ports.items()}
            self.ports |= ports
            if any(port.mask == mask for port in ports.values()) and mask not in ports:
                self.ports[mask] = Port((), torch.bool, source=(*path, index))

    def fits(self, value: object, column: bool = False) -> bool:
        if column:
            return isinstance(value, (tuple, list)) and (not value or self.fits(value[0]))
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            return False
        index, chosen = value
        try:
            if not 0 <= operator.index(index) < self.size:
                return False
        except TypeError:  # not an integer
            return False
        reader = self.alternatives.get(int(index))
        return reader is None or reader.fits(chosen)

    def read(self, samples: Samples, dtype: torch.dtype) -> Tensors:
        for sample in samples:
            if not self.fits(sample):
                raise ValueError(
                    f"{self.key!r} must be (index, value) with an index below {self.size} and a value of "
                    f"that alternative, got {described(sample)}"
                )
        choice = torch.tensor([int(index) for index, _ in samples], dtype=torch.int64)
        tensors = {self.choice: choice}
        for index, reader in self.alternatives.items():
            rows = (choice == index).nonzero()[:, 0]
            chosen = reader.read([samples[row][1] for row in rows.tolist()], dtype)
            for name, tensor in chosen.items():
                rows = rows.to(tensor.device)
                zeros = tensor.new_zeros((len(samples), *tensor.shape[1:]))
                tensors[name] = zeros.index_copy(0, rows, tensor)
            mask = f"{self.key}/{index}:mask"
            if mask in self.ports and mask not in tensors:
                tensors[mask] = (choice == index).to(rows.device)
        return tensors


def is_mask(port: Port) -> bool:
    return port.dtype == torch.bool


def typed(tensor: Tensor, port: Port, dtype: torch.dtype) -> Tensor:
    """A padded tensor in the dtype that a model has it in: bool, int64, or ``dtype``."""
    if is_mask(port):
        return tensor != 0
    return tensor.to(torch.int64 if port.is_integer else dtype)


def shape_of(value: object) -> tuple[int, ...] | None:
    """The shape of nested numbers, judged by their first parts; None for anything else."""
    if isinstance(value, (np.ndarray, Tensor)):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        inner = shape_of(value[0]) if value else ()
        return None if inner is None else (len(value), *inner)
    return () if isinstance(value, (int, float, np.number, np.bool_)) else None


def described(value: object) -> str:
    """A value in words, for the end of a message: "got ..."."""
    if isinstance(value, (np.ndarray, Tensor)):
        return f"an array of shape {format_shape(value.shape)}"
    if isinstance(value, Mapping):
        return f"the keys {', '.join(map(repr, value))}" if value else "an empty dict"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return _short(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _set_ports(elements: Mapping[str, Port], mask: str, path: Path) -> dict[str, Port]:
    """Ports of any number of elements, and of their mask."""
    ports = {
        key: _masked(replace(port, shape=(None, *port.shape)), mask)
        for key, port in elements.items()
    }
    return {**ports, mask: Port((None,), torch.bool, source=path)}


def _masked(port: Port, mask: str) -> Port:
    """``port`` masked by ``mask``, unless it is a mask or has a mask of its own."""
    return port if is_mask(port) or port.mask is not None else replace(port, mask=mask)


def _padded(flat: Mapping[str, Tensor], lengths: Sequence[int], mask_key: str) -> Tensors:
    """``flat`` (sum of lengths, ...) as (len(lengths), longest, ...), zero-filled, with the mask."""
    longest = max([1, *lengths])
    mask = torch.arange(longest) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    tensors = {}
    for key, tensor in flat.items():
        mask = mask.to(tensor.device)
        zeros = tensor.new_zeros((*mask.shape, *tensor.shape[1:]))
        tensors[key] = zeros.index_put((mask,), tensor)
    return {**tensors, mask_key: mask}


def _is_empty(sample: object) -> bool:
    """Whether it is an empty tuple or list; an empty array, or a dict of them, is a column."""
    return isinstance(sample, (tuple, list)) and not sample


def _edge_count(graph: GraphInstance) -> int:
    return 0 if graph.edge_links is None else len(graph.edge_links)


def _short(value: object) -> str:
    return cut(repr(value), 60)
