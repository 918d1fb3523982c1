"""Gymnasium spaces as flat Ports, and their values as tensors and back.

Inside a model a Discrete value is a zero-based int64 and every other number has the model's dtype, unscaled. A value
that varies in size (`variable`) is padded and has a mask. The environment gets exact values of its space: with its
start, dtype, bounds and structure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.errors import Path
from composer.spaces.kinds import (
    Leaf,
    as_drawn,
    as_numbers,
    format_space,
    from_numbers,
    from_space_value,
    kind_of,
    to_numpy,
    to_space_value,
    unpacking,
)
from composer.spaces.variable import (
    ReaderMaker,
    VariableSpace,
    collision,
    declared_text,
)
from composer.spec.keys import PREVIOUS, RECALLED, is_within
from perception_blocks.port import format_shape
from perception_blocks.words import did_you_mean, is_writable

__all__ = ["Leaf", "SpaceError", "SpaceTree", "flatten_space", "format_space", "walk_space"]
__all__ += [
    "drawn_actions",
    "first_tensor",
    "how_to_recall",
    "from_space_value",
    "holds_tensors",
    "to_environment",
    "to_environments",
]
__all__ += ["stacked", "to_space_value"]

X = TypeVar("X")


class SpaceError(ValueError):
    """A space cannot be read; ``problems`` are (index in ``ignore``, name in ``texts`` or None; message)."""

    def __init__(self, problems: Iterable[tuple[int | str | None, str]]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(message for _, message in self.problems))

    def __reduce__(self) -> tuple:
        return (type(self), (self.problems,))


class SpaceTree:
    """The leaves of a space under flat keys; `flatten_space` makes it."""

    def __init__(
        self,
        space: Space,
        root: str,
        leaves: Mapping[str, Leaf],
        ignored: Iterable[str] = (),
        variables: Iterable[VariableSpace] = (),
    ) -> None:
        self.space = space
        self.root = root
        self.leaves = dict(leaves)
        self.ports = {key: leaf.port for key, leaf in self.leaves.items()}
        self._variables = {key: variable for variable in variables for key in variable.leaves}
        self._ignored = set(ignored)
        self._flat = {*self.leaves, *self._ignored, *(v.key for v in self._variables.values())}
        self._dicts = [
            (path, {str(part) for part in inner.spaces})
            for path, inner in _inner_dicts(space, ())
            if not is_within(_flat_key(path, root), self._ignored)
        ]
        if not isinstance(space, spaces.Dict):
            self._dicts.insert(0, ((), set()))  # a flat dict may come in place of the value

    def __repr__(self) -> str:
        parts = ", ".join(f"{key!r}: {leaf.port.shape}" for key, leaf in self.leaves.items())
        return f"SpaceTree({{{parts}}})"

    @property
    def is_single(self) -> bool:
        """Whether the space has no parts: its value is not in a dict or tuple."""
        return _parts(self.space) is None

    @property
    def masks(self) -> frozenset[str]:
        """The keys of masks, each named by the ``mask`` of the ports that it masks."""
        return frozenset(key for key, leaf in self.leaves.items() if leaf.kind == "mask")

    def to_tensors(
        self,
        value: object,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        keys: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """A value of the space as tensors under flat keys, batched (any leading axes) or not.

        ``value`` has the structure of the space or is a dict by flat keys; it is made of arrays, numbers or tensors. A
        batch of what varies in size is a tuple of samples, as gymnasium's vector environments make it, or is padded
        already: a dict by flat keys, masks included. With ``keys`` only those are read, and the others may be missing.
        Tensors stay on their graph and, without ``device``, on their device. Raises ValueError for a missing or unknown
        key and for a shape that does not end in the space's.
        """
        self._refuse_unknown(value)
        tensors: dict[str, Tensor] = {}
        varying: dict[str, Tensor] = {}
        for key in self.leaves if keys is None else keys:
            leaf = self.leaves[key]
            if leaf.key in self._variables:
                if key not in varying:
                    varying |= self._read_variable(value, leaf, dtype, device)
                tensors[key] = varying[key]
                self._refuse_other_shape(key, tensors[key].shape)
            else:
                numbers = as_numbers(key, self._pick(value, key, leaf.path), leaf.space)
                self._refuse_other_shape(key, numbers.shape)
                tensors[key] = from_numbers(leaf, numbers, dtype, device)
        return tensors

    def leading(self, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The axes before the axes of the space, which all values share; ValueError where they do not."""
        shared = None
        for key, tensor in tensors.items():
            axes = self._leading_axes(key, tensor)
            if shared is None:
                shared = axes
            elif axes != shared:
                axes = (
                    f"{k!r} {format_shape(self._leading_axes(k, t))}" for k, t in tensors.items()
                )
                raise ValueError(
                    f"the {self.root}s differ in their leading (batch) axes: {', '.join(axes)}"
                )
        return tuple(shared or ())

    def _leading_axes(self, key: str, tensor: Tensor) -> torch.Size:
        return tensor.shape[: tensor.dim() - len(self.leaves[key].port.shape)]

    def side_by_side(self, values: Sequence[object], keys: Iterable[str]) -> dict[str, Any]:
        """The entries of ``values`` of the space under flat ``keys``, each `stacked` on a new first axis.

        Raises ValueError for a key whose values vary in size.
        """
        for value in values:
            self._refuse_unknown(value)
        varying = [key for key in keys if key in self._variables]
        if varying:
            raise ValueError(
                f"{', '.join(map(repr, varying))} cannot be stacked: they vary in size"
            )
        paths = {key: self.leaves[key].path for key in keys}
        return {
            key: stacked([self._pick(v, key, path) for v in values]) for key, path in paths.items()
        }

    def unflatten(self, flat: Mapping[str, X]) -> Any:
        """The structure of the space (dicts and tuples) around values by flat keys.

        An ignored part is left out of a dict and is None in a tuple.
        """
        fixed: dict[Path, X] = {}
        varying: dict[Path, dict[str, X]] = {}
        for key, leaf in self.leaves.items():
            if key in self._variables:  # several values have this path: they remain a flat dict
                varying.setdefault(leaf.path, {})[key] = flat[key]
            else:
                fixed[leaf.path] = flat[key]
        return _nested(self.space, (), {**fixed, **varying})

    def _read_variable(
        self, value: object, leaf: Leaf, dtype: torch.dtype, device: torch.device | str | None
    ) -> dict[str, Tensor]:
        """All tensors of the variable space to which ``leaf`` belongs."""
        variable = self._variables[leaf.key]
        if not variable.is_padded(value):
            single = not leaf.path and variable.fits(value)
            value = value if single else self._pick(value, variable.key, leaf.path)
        if not variable.is_padded(value):
            return variable.read(value, dtype, device)
        if leaf.key not in value:
            raise ValueError(self._missing(value, leaf.key))
        return variable.read_padded(value, dtype, device)

    def _refuse_other_shape(self, key: str, given: Sequence[int]) -> None:
        shape = self.leaves[key].port.shape
        ending = given[max(len(given) - len(shape), 0) :]
        if len(ending) == len(shape) and all(
            size is None or size == other for size, other in zip(shape, ending, strict=True)
        ):
            return
        raise ValueError(
            f"{self.root} {key!r} has shape {format_shape(given)}, expected {_batched(shape)}"
        )

    def _pick(self, value: Any, key: str, path: Path) -> Any:
        if isinstance(value, Mapping) and key in value:
            return value[key]
        for part in path:
            if isinstance(value, (Tensor, np.ndarray)):  # its first axis is a batch, no tuple
                raise ValueError(self._missing(value, key))
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                raise ValueError(self._missing(value, key)) from None
        if not path and isinstance(value, Mapping):
            raise ValueError(self._missing(value, key))
        return value

    def _missing(self, value: object, key: str) -> str:
        got = f"a value of type {type(value).__name__}"
        if isinstance(value, Mapping):
            got = f"the keys {', '.join(map(repr, value))}" if value else "an empty dict"
        elif isinstance(value, (tuple, list)):
            got = f"a {type(value).__name__} of {len(value)}"
        hint = unpacking(value) if self.root == "observation" else ""
        hint = hint or self._how_to_recall(value)
        return f"{self.root} {key!r} is missing; got {got}{hint}"

    def _how_to_recall(self, value: object) -> str:
        """What gives the last action and reward, if they are what ``value``, an observation, lacks."""
        paths = [leaf.path for leaf in self.leaves.values() if leaf.path[:1] == (PREVIOUS,)]
        if self.root != "observation" or not paths:
            return ""
        if isinstance(value, Mapping) and any(str(key).split("/")[0] == PREVIOUS for key in value):
            return ""
        return how_to_recall(path[1] for path in paths)

    def _refuse_unknown(self, value: object) -> None:
        """Raise ValueError for a key that the space does not have; a flat dict has flat keys."""
        if any(not v.path and v.fits(value) for v in self._variables.values()):
            return  # the whole space is a Sequence of Dicts, and this its stacked elements
        for path, known in self._dicts:
            for key in _keys_at(value, path):
                name = str(key)
                if name not in known and (path or name not in self._flat):
                    flat = _flat_key((*path, key), self.root)
                    known = f"; it has {', '.join(map(repr, self.leaves))}"
                    near = did_you_mean(flat, self.leaves) or known
                    raise ValueError(f"{flat!r} is not in the {self.root} space" + near)


def flatten_space(
    space: Space,
    root: str,
    ignore: Sequence[str] = (),
    texts: Mapping[str, Mapping[str, object]] | None = None,
) -> SpaceTree:
    """The leaves of ``space`` under flat keys: the path joined by ``/``, ``root`` for a space without parts.

    ``ignore`` names parts to leave out, by flat key, whole branches included. ``texts`` declares, by flat key, the
    length and characters of texts whose space has none: ``{"mission": {"max_length": 64, "charset": "abc "}}``. Raises
    SpaceError with every unsupported part, every collision of flat keys, and every entry of ``ignore`` and ``texts``
    that names nothing.
    """
    texts = texts or {}
    problems: list[tuple[int | str | None, str]] = []
    declared: dict[str, spaces.Text] = {}
    for name, settings in texts.items():
        try:
            declared[name] = declared_text(name, settings)
        except ValueError as error:
            problems.append((name, str(error)))
    maker = ReaderMaker(root, set(ignore), declared)
    leaves, variables = _leaves(space, root, maker)
    nodes = walk_space(space, root, inner=True)
    keys = maker.seen | {key for key, path, part in nodes if path or _parts(part) is None}
    ignored = keys.intersection(ignore)
    for word, names in (("ignore", dict(enumerate(ignore))), ("texts", {t: t for t in texts})):
        for place, name in names.items():
            left_out = is_within(name, ignored)
            if name not in keys and not left_out:
                text = f"{word} names {name!r}, which is not in the {root} space"
                problems.append((place, text + did_you_mean(name, keys)))
            elif left_out and word == "texts":
                way_out = "which 'ignore' leaves out; take it out of one of them"
                problems.append((place, f"texts names {name!r}, {way_out}"))
    for key in (key for key in leaves if not is_writable(key)):
        half = "holds half of a surrogate pair, which no file can hold; rename it"
        problems.append((None, f"{key!r} in the {root} space {half}"))
    problems += maker.no_texts.items()
    problems += [(None, message) for message in maker.problems]
    if root == "action" and not problems:
        problems += [(None, message) for message in _empty_actions(leaves)]
    if problems:
        raise SpaceError(problems)
    return SpaceTree(space, root, leaves, ignore, variables)


def _leaves(
    space: Space, root: str, maker: ReaderMaker
) -> tuple[dict[str, Leaf], list[VariableSpace]]:
    leaves: dict[str, Leaf] = {}
    variables = []
    for key, path, part in walk_space(space, root):
        part_leaves: dict[str, Leaf] = {}
        if is_within(key, maker.ignored):
            continue
        if maker.is_variable(key, part):
            variable = maker.variable(key, path, part)
            if variable is not None:
                variables.append(variable)
                part_leaves = variable.leaves
        elif kind := kind_of(part):
            part_leaves = {key: maker.leaf(kind, key, path, part)}
        else:
            maker.problems.append(maker.unsupported(key, part))
        for name, leaf in part_leaves.items():
            if name in leaves:
                maker.problems.append(collision(root, name, leaves[name].path, path))
            else:
                leaves[name] = leaf
    return leaves, variables


def _empty_actions(leaves: Mapping[str, Leaf]) -> Iterator[str]:
    """What a policy cannot choose: an action space without actions, and actions without elements."""
    if not leaves:
        yield "the action space holds no action; a policy needs at least one"
    for key, leaf in leaves.items():
        if 0 in leaf.port.shape:
            what = f"a {type(leaf.space).__name__} space of shape {leaf.port.shape}"
            yield f"action {key!r} is {what}, which has no elements; take it out of the action space"


def walk_space(
    space: Space, root: str, path: Path = (), *, inner: bool = False
) -> Iterator[tuple[str, Path, Space]]:
    """(flat key, path, space) of every part that is no Dict or Tuple, in order; with ``inner`` also of those."""
    parts = _parts(space)
    if parts is None or inner:
        yield _flat_key(path, root), path, space
    for part, child in parts or ():
        yield from walk_space(child, root, (*path, part), inner=inner)


def holds_tensors(value: object) -> bool:
    """Whether the numbers of a (nested) value are tensors, judged by the first that are no Python integer."""
    return first_tensor(value) is not None


def first_tensor(value: object) -> Tensor | None:
    """The tensor that `holds_tensors` judges by; None where there is none."""
    numbers = _first_numbers(value)
    return numbers if isinstance(numbers, Tensor) else None


def _first_numbers(value: object) -> object:
    """The first array, tensor or float; None for what holds only texts, empty tuples and integers."""
    if not isinstance(value, (Mapping, tuple, list)):
        return None if isinstance(value, (str, int, np.integer)) else value
    for part in value.values() if isinstance(value, Mapping) else value:
        numbers = _first_numbers(part)
        if numbers is not None:
            return numbers
    return None


def how_to_recall(keys: Iterable[Any]) -> str:
    """The end of a message about missing observations: those below `previous` with these ``keys``."""
    given = {key if key == "reward" else "action" for key in keys}
    names = [name for name in RECALLED if name in given]
    return f"; wrap the environment: env = composer.with_previous(env, {names})"


def drawn_actions(tree: SpaceTree) -> SpaceTree:
    """``tree``, of actions, for values as distributions draw them: `as_drawn` of each leaf."""
    leaves = {key: as_drawn(leaf) for key, leaf in tree.leaves.items()}
    return SpaceTree(tree.space, tree.root, leaves)


def to_environment(tree: SpaceTree, flat_tensors: Mapping[str, Tensor], as_numpy: bool) -> Any:
    """The value for the environment: the space's structure around exact values.

    With ``as_numpy`` an unbatched value is contained in the space, a batched one is arrays with leading axes.
    """
    flat = {}
    for key, leaf in tree.leaves.items():
        value = to_space_value(leaf, flat_tensors[key])
        flat[key] = to_numpy(leaf, value) if as_numpy else value
    return tree.unflatten(flat)


def to_environments(
    tree: SpaceTree, flat_tensors: Mapping[str, Tensor], as_numpy: bool
) -> list[Any]:
    """`to_environment` of each row of the first axis."""
    columns = {}
    for key, leaf in tree.leaves.items():
        value = to_space_value(leaf, flat_tensors[key])
        columns[key] = _rows(leaf, value) if as_numpy else value.unbind()
    rows = zip(*columns.values(), strict=True)
    return [tree.unflatten(dict(zip(columns, row, strict=True))) for row in rows]


def _rows(leaf: Leaf, value: Tensor) -> list[np.ndarray]:
    """The rows of a batch, each as `to_numpy` would make it alone."""
    array = to_numpy(leaf, value)
    if leaf.kind == "discrete":
        return list(array)
    return [array[row, ...] for row in range(len(array))]


def stacked(values: Sequence[Any]) -> Any:
    """Arrays, numbers or tensors on a new first axis. Raises ValueError unless they have one type, shape and dtype."""
    first = values[0]
    numbers = isinstance(first, int | float)
    arrays = isinstance(first, Tensor | np.ndarray | np.generic)
    if any(type(value) is not type(first) for value in values) or not (numbers or arrays):
        raise ValueError("values of several kinds cannot be stacked")
    if numbers:
        return np.array(values)
    if any(value.shape != first.shape or value.dtype != first.dtype for value in values):
        raise ValueError("values of several shapes or dtypes cannot be stacked")
    if not isinstance(first, Tensor):
        return np.stack(values)
    if any(value.device != first.device for value in values):
        raise ValueError("values on several devices cannot be stacked")
    return torch.stack(list(values))


def _flat_key(path: Path, root: str) -> str:
    return "/".join(str(part) for part in path) if path else root


def _parts(space: Space) -> Iterable[tuple[str | int, Space]] | None:
    """The named or numbered parts of a Dict or Tuple; None for any other space."""
    if isinstance(space, spaces.Dict):
        return space.spaces.items()
    return enumerate(space.spaces) if isinstance(space, spaces.Tuple) else None


def _inner_dicts(space: Space, path: Path) -> Iterator[tuple[Path, spaces.Dict]]:
    if isinstance(space, spaces.Dict):
        yield path, space
    for part, child in _parts(space) or ():
        yield from _inner_dicts(child, (*path, part))


def _keys_at(value: Any, path: Path) -> Iterable[str | int]:
    """The keys of the dict at ``path``; none if it has no such dict, as a flat dict has not."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return ()
    return value if isinstance(value, Mapping) else ()


def _nested(space: Space, path: Path, by_path: Mapping[Path, object]) -> object:
    if isinstance(space, spaces.Dict):
        nested = {k: _nested(s, (*path, k), by_path) for k, s in space.spaces.items()}
        return {key: value for key, value in nested.items() if value is not None}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(s, (*path, i), by_path) for i, s in enumerate(space.spaces))
    return by_path.get(path)


def _batched(shape: Sequence[int | None]) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in shape)
    return f"(..., {sizes})" if sizes else "(...)"
