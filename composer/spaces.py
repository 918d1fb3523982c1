"""Gymnasium spaces as flat Ports, and their values as tensors and back.

Inside a model a Discrete value is a zero-based int64 and every other number is of the model's dtype, unscaled. Towards
the environment a value is exactly one of its space: its start, its dtype, its bounds, its structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.space_kinds import KINDS, Leaf, from_space_value, kind_of, to_numpy, to_space_value
from perception_blocks.port import format_shape
from perception_blocks.registry import did_you_mean

__all__ = ["Leaf", "SpaceError", "SpaceTree", "flatten_space", "format_space", "walk_space"]
__all__ += ["from_space_value", "holds_tensors", "to_environment", "to_space_value"]

Path = tuple[Any, ...]
X = TypeVar("X")


class SpaceError(ValueError):
    """What is wrong with a space: ``problems`` are (index of an ``ignore`` entry or None, message)."""

    def __init__(self, problems: Iterable[tuple[int | None, str]]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(message for _, message in self.problems))

    def __reduce__(self) -> tuple:
        return (type(self), (self.problems,))


class SpaceTree:
    """The leaves of a space under flat keys; `flatten_space` makes it."""

    def __init__(
        self, space: Space, root: str, leaves: Mapping[str, Leaf], ignored: Iterable[Path] = ()
    ) -> None:
        self.space = space
        self.root = root
        self.leaves = dict(leaves)
        self.ports = {key: leaf.port for key, leaf in self.leaves.items()}
        ignored = list(ignored)
        self._ignored = {_flat_key(path, root) for path in ignored}
        self._dicts = [
            (path, {str(part) for part in inner.spaces})
            for path, inner in _inner_dicts(space, ())
            if not any(path[: len(skip)] == skip for skip in ignored)
        ]
        if not isinstance(space, spaces.Dict):
            self._dicts.insert(0, ((), set()))  # a flat dict may come in place of the value

    def __repr__(self) -> str:
        parts = ", ".join(f"{key!r}: {leaf.port.shape}" for key, leaf in self.leaves.items())
        return f"SpaceTree({{{parts}}})"

    @property
    def is_single(self) -> bool:
        """Whether the space has no parts: its only value then stands alone, not in a dict or tuple."""
        return _parts(self.space) is None

    def to_tensors(
        self,
        value: Any,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        keys: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """A value of the space as tensors under flat keys, batched (any leading axes) or not.

        ``value`` has the structure of the space or is a dict by flat keys; it is made of arrays, numbers or tensors.
        With ``keys`` only those are read, and the others may be missing. Tensors stay on their graph and, without
        ``device``, on their device. Raises ValueError for a missing or unknown key and for a shape that does not end in
        the space's.
        """
        self._refuse_unknown(value)
        tensors = {}
        for key in self.leaves if keys is None else keys:
            leaf = self.leaves[key]
            tensor = from_space_value(leaf, self._pick(value, leaf), dtype=dtype, device=device)
            shape = leaf.port.shape
            if tensor.shape[max(tensor.dim() - len(shape), 0) :] != shape:
                raise ValueError(
                    f"{self.root} {key!r} has shape {format_shape(tensor.shape)}, "
                    f"expected {_batched(shape)}"
                )
            tensors[key] = tensor
        return tensors

    def leading(self, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The axes before those of the space, which all values share; ValueError where they do not."""
        found = None
        for key, tensor in tensors.items():
            axes = tensor.shape[: tensor.dim() - len(self.leaves[key].port.shape)]
            if found is None:
                found = axes
            elif axes != found:
                raise ValueError(self._differing(tensors))
        return tuple(found or ())

    def unflatten(self, flat: Mapping[str, X]) -> Any:
        """The structure of the space (dicts and tuples) around values by flat keys.

        What is ignored is left out of a dict and is None in a tuple.
        """
        by_path = {leaf.path: flat[key] for key, leaf in self.leaves.items()}
        return _nested(self.space, (), by_path)

    def _pick(self, value: Any, leaf: Leaf) -> Any:
        if isinstance(value, Mapping) and leaf.key in value:
            return value[leaf.key]
        for part in leaf.path:
            if isinstance(value, (Tensor, np.ndarray)):  # its first axis is a batch, no tuple
                raise ValueError(self._missing(value, leaf))
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                raise ValueError(self._missing(value, leaf)) from None
        if not leaf.path and isinstance(value, Mapping):
            raise ValueError(self._missing(value, leaf))
        return value

    def _missing(self, value: Any, leaf: Leaf) -> str:
        got = f"a value of type {type(value).__name__}"
        if isinstance(value, Mapping):
            got = f"the keys {', '.join(map(repr, value))}" if value else "an empty dict"
        elif isinstance(value, (tuple, list)):
            got = f"a {type(value).__name__} of {len(value)}"
        return f"{self.root} {leaf.key!r} is missing; got {got}"

    def _refuse_unknown(self, value: Any) -> None:
        """Every key must be one of the space's; on top also a flat one."""
        for path, known in self._dicts:
            for key in _keys_at(value, path):
                name = str(key)
                if name not in known and (path or not self._is_flat(name)):
                    flat = _flat_key((*path, key), self.root)
                    raise ValueError(f"{flat!r} is not in the {self.root} space{self._hint(flat)}")

    def _is_flat(self, key: str) -> bool:
        return key in self.leaves or key in self._ignored

    def _hint(self, key: str) -> str:
        return did_you_mean(key, self.leaves) or f"; it has {', '.join(map(repr, self.leaves))}"

    def _differing(self, tensors: Mapping[str, Tensor]) -> str:
        axes = [
            f"{key!r} {format_shape(t.shape[: t.dim() - len(self.leaves[key].port.shape)])}"
            for key, t in tensors.items()
        ]
        return f"the {self.root}s differ in their leading (batch) axes: {', '.join(axes)}"


def flatten_space(space: Space, root: str, ignore: Sequence[str] = ()) -> SpaceTree:
    """The leaves of ``space`` under flat keys: the path joined by ``/``, ``root`` for a space without parts.

    ``ignore`` names what is left out, by flat key, whole branches included. Raises SpaceError that tells of every
    unsupported part, every collision of flat keys and every ``ignore`` entry that names nothing.
    """
    problems: list[tuple[int | None, str]] = []
    nodes = [
        node for node in walk_space(space, root, inner=True) if node[1] or _parts(space) is None
    ]
    keys = {key for key, _, _ in nodes}
    for index, name in enumerate(ignore):
        if name not in keys:
            near = did_you_mean(name, keys)
            problems.append(
                (index, f"ignore names {name!r}, which is not in the {root} space{near}")
            )
    ignored = [path for key, path, _ in nodes if key in set(ignore)]
    leaves: dict[str, Leaf] = {}
    for key, path, part in walk_space(space, root):
        if any(path[: len(skip)] == skip for skip in ignored):
            continue
        if key in leaves:
            problems.append((None, _collision(root, key, leaves[key].path, path)))
            continue
        kind = kind_of(part)
        if kind is None:
            problems.append((None, _unsupported(root, key, part)))
        else:
            leaves[key] = kind.leaf(key, path, part)
    if problems:
        raise SpaceError(problems)
    return SpaceTree(space, root, leaves, ignored)


def walk_space(
    space: Space, root: str, path: Path = (), *, inner: bool = False
) -> Iterator[tuple[str, Path, Space]]:
    """(flat key, path, space) of every part that is no Dict or Tuple, in order; with ``inner`` of these as well."""
    parts = _parts(space)
    if parts is None or inner:
        yield _flat_key(path, root), path, space
    for part, child in parts or ():
        yield from walk_space(child, root, (*path, part), inner=inner)


def holds_tensors(value: Any) -> bool:
    """Whether the first part of a (nested) value is a tensor."""
    while isinstance(value, (Mapping, tuple, list)) and value:
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    return isinstance(value, Tensor)


def to_environment(tree: SpaceTree, flat_tensors: Mapping[str, Tensor], as_numpy: bool) -> Any:
    """What the environment takes: the space's structure around exact values.

    With ``as_numpy`` an unbatched value is contained in the space, a batched one is arrays with leading axes.
    """
    flat = {}
    for key, leaf in tree.leaves.items():
        value = to_space_value(leaf, flat_tensors[key])
        flat[key] = to_numpy(leaf, value) if as_numpy else value
    return tree.unflatten(flat)


def _flat_key(path: Path, root: str) -> str:
    return "/".join(str(part) for part in path) if path else root


def _parts(space: Space) -> Iterable[tuple[Any, Space]] | None:
    """The named or numbered parts of a Dict or Tuple; None for any other space."""
    if isinstance(space, spaces.Dict):
        return space.spaces.items()
    return enumerate(space.spaces) if isinstance(space, spaces.Tuple) else None


def _inner_dicts(space: Space, path: Path) -> Iterator[tuple[Path, spaces.Dict]]:
    if isinstance(space, spaces.Dict):
        yield path, space
    for part, child in _parts(space) or ():
        yield from _inner_dicts(child, (*path, part))


def _keys_at(value: Any, path: Path) -> Iterable[Any]:
    """The keys of the dict at ``path``; none where there is no such dict, as in a flat one."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return ()
    return value if isinstance(value, Mapping) else ()


def _nested(space: Space, path: Path, by_path: Mapping[Path, Any]) -> Any:
    if isinstance(space, spaces.Dict):
        nested = {k: _nested(s, (*path, k), by_path) for k, s in space.spaces.items()}
        return {key: value for key, value in nested.items() if value is not None}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(s, (*path, i), by_path) for i, s in enumerate(space.spaces))
    return by_path.get(path)


def _batched(shape: Sequence[int | None]) -> str:
    sizes = ", ".join(str(size) for size in shape)
    return f"(..., {sizes})" if sizes else "(...)"


def _collision(root: str, key: str, first: Path, second: Path) -> str:
    places = " and ".join("".join(f"[{part!r}]" for part in path) for path in (first, second))
    return f"two parts of the {root} space get the flat key {key!r}: {places}; rename one of them"


def _unsupported(root: str, key: str, space: Space) -> str:
    known = ", ".join(kind.space.__name__ for kind in KINDS.values())
    text = f"{root} {key!r} is a {type(space).__name__} space, which is not supported ({known}, Dict and Tuple are)"
    return f"{text}; leave it out with ignore: [{key}]" if root == "observation" else text


def format_space(space: Space) -> str:
    """A space in one short line: ``Box(0, 255, (84, 84, 4), uint8)``, cut where its bounds are long."""
    text = " ".join(repr(space).split())
    return text if len(text) <= 80 else text[:77] + "..."
