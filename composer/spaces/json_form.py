"""Spaces as JSON for checkpoints, and the differences between two spaces in words."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from operator import index
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from composer.limits import GivenLimits, limits_from
from composer.spaces.actors import flat_name
from composer.spaces.sizes import SpaceSizes, refuse_actors
from composer.spaces.tree import walk_space
from perception_blocks.words import cut

__all__ = ["OpaqueSpace", "space_from_json", "space_to_json", "spaces_differ", "spaces_from_json"]
__all__ += ["spaces_to_json"]

Json = dict[str, object]
Data = Mapping[str, Any]  # JSON from a file
ACTORS = "Actors"  # the type of a mapping from actors to spaces


class OpaqueSpace(Space):
    """Replaces an ignored part of a loaded space whose class is unknown here."""

    def __init__(self, class_name: str, text: str, holds_texts: bool = False) -> None:
        super().__init__(dtype=str if holds_texts else None)
        self.class_name = class_name
        self.text = text

    def contains(self, x: object) -> bool:
        """True: the values of the original space are unknown."""
        return True

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and space_to_json(self) == space_to_json(other)

    __hash__ = None  # type: ignore[assignment]  # spaces are compared, not hashed


def spaces_to_json(space: Space | Mapping[Any, Space]) -> Json:
    """One space, or the spaces of actors by key, as plain JSON; equal spaces are written once."""
    if isinstance(space, Space):
        return space_to_json(space)
    written = [space_to_json(part) for part in space.values()]
    distinct = [part for index, part in enumerate(written) if part not in written[:index]]
    keys = [list(key) if isinstance(key, tuple) else key for key in space]
    which = [distinct.index(part) for part in written]
    return {"type": ACTORS, "keys": keys, "spaces": distinct, "which": which}


def spaces_from_json(data: object, limits: GivenLimits = None) -> Any:
    """What `spaces_to_json` wrote. Raises ValueError as `space_from_json` does."""
    if not isinstance(data, Mapping) or data.get("type") != ACTORS:
        return space_from_json(data, limits)
    reader = _SpaceReader(limits)
    try:
        refuse_actors(len(data["keys"]), reader.sizes.limits)
        distinct = [reader.read(part) for part in data["spaces"]]
        keys = [tuple(key) if isinstance(key, list) else key for key in data["keys"]]
        return {key: distinct[index] for key, index in zip(keys, data["which"], strict=True)}
    except _UNREADABLE as error:
        raise _unreadable(ACTORS, data, error) from error


def space_to_json(space: Space) -> Json:
    """``space`` as plain JSON: numbers exact, infinities as text, equal bounds as one number, keys in their order."""
    for name, (kind, write, _) in _KINDS.items():
        if isinstance(space, kind):
            return {"type": name, **write(space)}
    cls = type(space)
    return {"type": "Opaque", **_opaque(f"{cls.__module__}:{cls.__qualname__}", space)}


def space_from_json(data: object, limits: GivenLimits = None) -> Space:
    """The space that `space_to_json` wrote.

    Raises ValueError for other data, and for one that is above ``limits`` or too deep, before it is made.
    """
    return _SpaceReader(limits).read(data)


def spaces_differ(
    expected: Space | Mapping[Any, Space], actual: Space | Mapping[Any, Space], root: str = "space"
) -> list[str]:
    """The differences between two spaces, a sentence for each key; empty if a model for one fits the other.

    The parts of a Sequence, Graph or OneOf have keys of their own: elements, nodes and edges, or 0, 1, ... Bounds count
    as equal when they are close, as they do in gymnasium; the order of keys does not count. Spaces of
    actors by key have the actor in front.

    >>> spaces_differ(spaces.Discrete(4), spaces.Discrete(5), "action")
    ["'action': n is 5, expected 4"]
    """
    return list(_parts_differ(_parts(expected, root), _parts(actual, root)))


def _parts(space: Space | Mapping[Any, Space], root: str) -> dict[str, Space]:
    if isinstance(space, Space):
        return {key: part for key, _, part in walk_space(space, root)}
    return {
        f"{flat_name(actor)}/{key}": part
        for actor, each in space.items()
        for key, part in _parts(each, root).items()
    }


def _parts_differ(wanted: Mapping[str, Space], actual_parts: Mapping[str, Space]) -> Iterator[str]:
    yield from (f"{key!r} is missing" for key in wanted if key not in actual_parts)
    yield from (f"{key!r} is not expected" for key in actual_parts if key not in wanted)
    for key in wanted:
        for text in _leaf_differs(wanted[key], actual_parts[key]) if key in actual_parts else ():
            yield f"{key!r}: {text}"


def _leaf_differs(expected: Space, actual: Space) -> Iterator[str]:
    wanted, got = space_to_json(expected), space_to_json(actual)
    if wanted["type"] != got["type"]:
        yield f"is {got['type']}, expected {wanted['type']}"
        return
    yield from _parts_differ(_inner_parts(expected), _inner_parts(actual))
    for field in dict.fromkeys([*wanted, *got]):
        if field in _INNER or _close(wanted.get(field), got.get(field)):
            continue
        yield f"{field} is {_short(got.get(field))}, expected {_short(wanted.get(field))}"
        if field == "shape":
            return  # the bounds differ because of it


_INNER = ("space", "spaces", "node", "edge")  # fields of JSON that hold spaces


def _inner_parts(space: Space) -> dict[str, Space]:
    """The parts of a space that is a leaf for `walk_space`."""
    named: dict[str, Space] = {}
    if isinstance(space, spaces.Sequence):
        named = {"elements": space.feature_space}
    elif isinstance(space, spaces.Graph):
        edges = {} if space.edge_space is None else {"edges": space.edge_space}
        named = {"nodes": space.node_space, **edges}
    elif isinstance(space, spaces.OneOf):
        named = {str(index): part for index, part in enumerate(space.spaces)}
    return {
        f"{name}/{key}" if path else name: part
        for name, inner in named.items()
        for key, path, part in walk_space(inner, name)
    }


def _close(a: object, b: object) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8)
    return a == b


def _short(value: object) -> str:
    return cut(str(tuple(value)) if isinstance(value, list) else str(value), 60)


def _number(value: float | np.number | np.bool_) -> float | str:
    """An exact JSON number; JSON has no infinity."""
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _array_to_json(array: np.ndarray) -> object:
    if array.size and (array == array.flat[0]).all():
        return _number(array.flat[0])
    return _nested(array.tolist())


def _nested(values: Any) -> object:
    return list(map(_nested, values)) if isinstance(values, list) else _number(values)


def _array_from_json(data: object, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.array(data, dtype=dtype)  # numpy reads "inf" as a float
    return np.full(shape, array) if array.shape == () else array.reshape(shape)


_DTYPES = {str(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}


def _dtype(data: Data) -> np.dtype:
    """The dtype of ``data``. Raises ValueError for what numpy would take, but is not the name of a number's dtype."""
    name = data["dtype"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(
            f"a space has the dtype {reprlib.repr(name)}, which is not a type of numbers"
        )
    return np.dtype(name)


class _SpaceReader:
    """Makes one space of JSON; counts its parts before each is made, so that none is too large."""

    def __init__(self, limits: GivenLimits = None) -> None:
        self.sizes = SpaceSizes(limits_from(limits))
        self.level = 0

    def read(self, data: Any) -> Space:
        name = data.get("type") if isinstance(data, Mapping) else None
        if not isinstance(name, str) or name not in _KINDS:
            raise ValueError(
                f"unknown type of space {reprlib.repr(name)}; known are {', '.join(_KINDS)}"
            )
        self.sizes.enter(self.level)
        self.level += 1
        try:
            return _KINDS[name][2](self, data)
        except _UNREADABLE as error:
            raise _unreadable(name, data, error) from error
        finally:
            self.level -= 1

    def box(self, data: Data) -> spaces.Box:
        shape, dtype = tuple(map(index, data["shape"])), _dtype(data)
        self.sizes.add("Box", shape)
        low, high = (_array_from_json(data[name], shape, dtype) for name in ("low", "high"))
        box = spaces.Box(low, high, shape, dtype.type)
        for name in ("bounded_below", "bounded_above"):
            if name in data:
                setattr(box, name, _array_from_json(data[name], shape, np.dtype(bool)))
        return box

    def discrete(self, data: Data) -> spaces.Discrete:
        n, start = index(data["n"]), index(data["start"])
        self.sizes.choices("Discrete", n, start)
        return spaces.Discrete(n, start=start, dtype=_dtype(data).type)

    def multi_discrete(self, data: Data) -> spaces.MultiDiscrete:
        dtype = _dtype(data)
        nvec = np.array(data["nvec"], dtype=dtype)
        self.sizes.add("MultiDiscrete", nvec.shape)
        self.sizes.choices("MultiDiscrete", int(nvec.max(initial=0)))
        start = _array_from_json(data["start"], nvec.shape, dtype)
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)

    def multi_binary(self, data: Data) -> spaces.MultiBinary:
        n = data["n"]
        shape = tuple(map(index, n)) if isinstance(n, list) else (index(n),)
        self.sizes.add("MultiBinary", shape)
        return spaces.MultiBinary(shape if isinstance(n, list) else shape[0])

    def text(self, data: Data) -> spaces.Text:
        longest, shortest = index(data["max_length"]), index(data["min_length"])
        self.sizes.add("Text", (longest,))
        return spaces.Text(longest, min_length=shortest, charset=str(data["charset"]))

    def sequence(self, data: Data) -> spaces.Sequence:
        return spaces.Sequence(self.read(data["space"]), stack=bool(data["stack"]))

    def graph(self, data: Data) -> spaces.Graph:
        edge = None if data["edge"] is None else self.read(data["edge"])
        return spaces.Graph(self.read(data["node"]), edge)  # type: ignore[arg-type]

    def one_of(self, data: Data) -> spaces.OneOf:
        return spaces.OneOf([self.read(part) for part in data["spaces"]])

    def tuple(self, data: Data) -> spaces.Tuple:
        return spaces.Tuple([self.read(part) for part in data["spaces"]])

    def dict(self, data: Data) -> spaces.Dict:
        return spaces.Dict([(key, self.read(part)) for key, part in data["spaces"]])

    def opaque(self, data: Data) -> OpaqueSpace:
        return OpaqueSpace(str(data["class"]), str(data["text"]), data.get("holds") == "texts")


# What Python, numpy and gymnasium raise for data of another form.
_UNREADABLE = (LookupError, TypeError, AttributeError, AssertionError)
_UNREADABLE += (OverflowError, RecursionError, MemoryError)


def _unreadable(name: str, data: Data, error: Exception) -> ValueError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ValueError(f"the {name} {reprlib.repr(dict(data))} cannot be read: {reason}")


def _write_box(space: spaces.Box) -> Json:
    data = {"shape": list(space.shape), "dtype": str(space.dtype)}
    data |= {"low": _array_to_json(space.low), "high": _array_to_json(space.high)}
    if space.dtype.kind == "i":  # an unbounded integer has the dtype's limits and says so beside
        flags = {"bounded_below": space.bounded_below, "bounded_above": space.bounded_above}
        data |= {name: _array_to_json(flag) for name, flag in flags.items() if not flag.all()}
    return data


def _write_discrete(space: spaces.Discrete) -> Json:
    return {"n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}


def _write_multi_discrete(space: spaces.MultiDiscrete) -> Json:
    start = _array_to_json(space.start)
    return {"nvec": space.nvec.tolist(), "start": start, "dtype": str(space.dtype)}


def _write_multi_binary(space: spaces.MultiBinary) -> Json:
    return {"n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}


def _write_text(space: spaces.Text) -> Json:
    charset = "".join(space.character_list)
    return {"min_length": space.min_length, "max_length": space.max_length, "charset": charset}


def _write_graph(space: spaces.Graph) -> Json:
    edge = None if space.edge_space is None else space_to_json(space.edge_space)
    return {"node": space_to_json(space.node_space), "edge": edge}


def _opaque(class_name: str, space: Space) -> Json:
    data: Json = {"class": class_name, "text": repr(space)}
    holds_texts = space.dtype is not None and space.dtype.kind == "U"
    return {**data, "holds": "texts"} if holds_texts else data


def _write_parts(space: spaces.Tuple | spaces.OneOf) -> Json:
    return {"spaces": [space_to_json(part) for part in space.spaces]}


_KINDS: dict[
    str, tuple[type[Space], Callable[[Any], Json], Callable[[_SpaceReader, Any], Space]]
] = {
    "Box": (spaces.Box, _write_box, _SpaceReader.box),
    "Discrete": (spaces.Discrete, _write_discrete, _SpaceReader.discrete),
    "MultiDiscrete": (spaces.MultiDiscrete, _write_multi_discrete, _SpaceReader.multi_discrete),
    "MultiBinary": (spaces.MultiBinary, _write_multi_binary, _SpaceReader.multi_binary),
    "Text": (spaces.Text, _write_text, _SpaceReader.text),
    "Sequence": (
        spaces.Sequence,
        lambda space: {"space": space_to_json(space.feature_space), "stack": space.stack},
        _SpaceReader.sequence,
    ),
    "Graph": (spaces.Graph, _write_graph, _SpaceReader.graph),
    "OneOf": (spaces.OneOf, _write_parts, _SpaceReader.one_of),
    "Tuple": (spaces.Tuple, _write_parts, _SpaceReader.tuple),
    "Dict": (
        spaces.Dict,
        lambda space: {"spaces": [[k, space_to_json(s)] for k, s in space.spaces.items()]},
        _SpaceReader.dict,
    ),
    "Opaque": (
        OpaqueSpace,
        lambda space: _opaque(space.class_name, space),
        _SpaceReader.opaque,
    ),
}
