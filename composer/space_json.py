"""Spaces as JSON for checkpoints, and in words how two spaces differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from composer.spaces import walk_space

__all__ = ["OpaqueSpace", "space_from_json", "space_to_json", "spaces_differ", "spaces_from_json"]
__all__ += ["spaces_to_json"]

Json = dict[str, Any]
ACTORS = "Actors"  # the type of a mapping from actors to spaces


class OpaqueSpace(Space):
    """Stands for a space of a class that only its own library knows; an ignored part of a loaded space may be one."""

    def __init__(self, class_name: str, text: str) -> None:
        super().__init__()
        self.class_name = class_name
        self.text = text

    def contains(self, x: Any) -> bool:
        """True: what the original holds is not known."""
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
    written = [space_to_json(own) for own in space.values()]
    distinct = [own for index, own in enumerate(written) if own not in written[:index]]
    keys = [list(key) if isinstance(key, tuple) else key for key in space]
    which = [distinct.index(own) for own in written]
    return {"type": ACTORS, "keys": keys, "spaces": distinct, "which": which}


def spaces_from_json(data: Mapping[str, Any]) -> Any:
    """What `spaces_to_json` wrote. Raises ValueError for a type it does not know."""
    if data.get("type") != ACTORS:
        return space_from_json(data)
    distinct = [space_from_json(own) for own in data["spaces"]]
    keys = [tuple(key) if isinstance(key, list) else key for key in data["keys"]]
    return {key: distinct[index] for key, index in zip(keys, data["which"], strict=True)}


def space_to_json(space: Space) -> Json:
    """``space`` as plain JSON: numbers exact, infinities as text, equal bounds as one number, keys in their order."""
    for name, (kind, write, _) in _KINDS.items():
        if isinstance(space, kind):
            return {"type": name, **write(space)}
    cls = type(space)
    return {"type": "Opaque", "class": f"{cls.__module__}:{cls.__qualname__}", "text": repr(space)}


def space_from_json(data: Mapping[str, Any]) -> Space:
    """The space that `space_to_json` wrote. Raises ValueError for a type it does not know."""
    name = data.get("type")
    if name not in _KINDS:
        raise ValueError(f"unknown type of space {name!r}; known are {', '.join(_KINDS)}")
    return _KINDS[name][2](data)


def spaces_differ(expected: Space, actual: Space, root: str = "space") -> list[str]:
    """What differs between two spaces, one sentence per key; empty when a model made for one fits the other.

    The parts of a Sequence, Graph or OneOf have keys of their own: elements, nodes and edges, or 0, 1, ... Bounds count
    as equal when they are close, as they do in gymnasium; the order of keys does not count.

    >>> spaces_differ(spaces.Discrete(4), spaces.Discrete(5), "action")
    ["'action': n is 5, expected 4"]
    """
    wanted = {key: part for key, _, part in walk_space(expected, root)}
    found = {key: part for key, _, part in walk_space(actual, root)}
    return list(_parts_differ(wanted, found))


def _parts_differ(wanted: Mapping[str, Space], found: Mapping[str, Space]) -> Iterator[str]:
    yield from (f"{key!r} is missing" for key in wanted if key not in found)
    yield from (f"{key!r} is not expected" for key in found if key not in wanted)
    for key in wanted:
        if key in found:
            yield from (f"{key!r}: {text}" for text in _leaf_differs(wanted[key], found[key]))


def _leaf_differs(expected: Space, actual: Space) -> Iterator[str]:
    wanted, found = space_to_json(expected), space_to_json(actual)
    if wanted["type"] != found["type"]:
        yield f"is {found['type']}, expected {wanted['type']}"
        return
    yield from _parts_differ(_inner_parts(expected), _inner_parts(actual))
    for field in dict.fromkeys([*wanted, *found]):
        if field in _INNER or _close(wanted.get(field), found.get(field)):
            continue
        yield f"{field} is {_short(found.get(field))}, expected {_short(wanted.get(field))}"
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


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8)
    return a == b


def _short(value: Any) -> str:
    text = str(tuple(value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: Any) -> Any:
    """An exact JSON number; JSON has no infinity."""
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _array_to_json(array: np.ndarray) -> Any:
    if array.size and (array == array.flat[0]).all():
        return _number(array.flat[0])
    return _nested(array.tolist())


def _nested(values: Any) -> Any:
    return list(map(_nested, values)) if isinstance(values, list) else _number(values)


def _array_from_json(data: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.array(data, dtype=dtype)  # numpy reads "inf" as a float
    return np.full(shape, array) if array.shape == () else array.reshape(shape)


def _write_box(space: spaces.Box) -> Json:
    data = {"shape": list(space.shape), "dtype": str(space.dtype)}
    data |= {"low": _array_to_json(space.low), "high": _array_to_json(space.high)}
    if space.dtype.kind == "i":  # an unbounded integer has the dtype's limits and says so beside
        flags = {"bounded_below": space.bounded_below, "bounded_above": space.bounded_above}
        data |= {name: _array_to_json(flag) for name, flag in flags.items() if not flag.all()}
    return data


def _read_box(data: Mapping[str, Any]) -> spaces.Box:
    shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
    low, high = (_array_from_json(data[name], shape, dtype) for name in ("low", "high"))
    box = spaces.Box(low, high, shape, dtype.type)
    for name in ("bounded_below", "bounded_above"):
        if name in data:
            setattr(box, name, _array_from_json(data[name], shape, np.dtype(bool)))
    return box


def _write_discrete(space: spaces.Discrete) -> Json:
    return {"n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}


def _read_discrete(data: Mapping[str, Any]) -> spaces.Discrete:
    return spaces.Discrete(data["n"], start=data["start"], dtype=np.dtype(data["dtype"]).type)


def _write_multi_discrete(space: spaces.MultiDiscrete) -> Json:
    start = _array_to_json(space.start)
    return {"nvec": space.nvec.tolist(), "start": start, "dtype": str(space.dtype)}


def _read_multi_discrete(data: Mapping[str, Any]) -> spaces.MultiDiscrete:
    dtype = np.dtype(data["dtype"])
    nvec = np.array(data["nvec"], dtype=dtype)
    start = _array_from_json(data["start"], nvec.shape, dtype)
    return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)


def _write_multi_binary(space: spaces.MultiBinary) -> Json:
    return {"n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}


def _write_text(space: spaces.Text) -> Json:
    charset = "".join(space.character_list)
    return {"min_length": space.min_length, "max_length": space.max_length, "charset": charset}


def _read_text(data: Mapping[str, Any]) -> spaces.Text:
    return spaces.Text(
        data["max_length"], min_length=data["min_length"], charset=str(data["charset"])
    )


def _write_graph(space: spaces.Graph) -> Json:
    edge = None if space.edge_space is None else space_to_json(space.edge_space)
    return {"node": space_to_json(space.node_space), "edge": edge}


def _read_graph(data: Mapping[str, Any]) -> spaces.Graph:
    edge = None if data["edge"] is None else space_from_json(data["edge"])
    return spaces.Graph(space_from_json(data["node"]), edge)


def _write_parts(space: spaces.Tuple | spaces.OneOf) -> Json:
    return {"spaces": [space_to_json(part) for part in space.spaces]}


def _read_parts(data: Mapping[str, Any]) -> list[Space]:
    return [space_from_json(part) for part in data["spaces"]]


_KINDS: dict[str, tuple[type[Space], Callable[[Any], Json], Callable[[Any], Space]]] = {
    "Box": (spaces.Box, _write_box, _read_box),
    "Discrete": (spaces.Discrete, _write_discrete, _read_discrete),
    "MultiDiscrete": (spaces.MultiDiscrete, _write_multi_discrete, _read_multi_discrete),
    "MultiBinary": (
        spaces.MultiBinary,
        _write_multi_binary,
        lambda data: spaces.MultiBinary(data["n"]),
    ),
    "Text": (spaces.Text, _write_text, _read_text),
    "Sequence": (
        spaces.Sequence,
        lambda space: {"space": space_to_json(space.feature_space), "stack": space.stack},
        lambda data: spaces.Sequence(space_from_json(data["space"]), stack=data["stack"]),
    ),
    "Graph": (spaces.Graph, _write_graph, _read_graph),
    "OneOf": (spaces.OneOf, _write_parts, lambda data: spaces.OneOf(_read_parts(data))),
    "Tuple": (spaces.Tuple, _write_parts, lambda data: spaces.Tuple(_read_parts(data))),
    "Dict": (
        spaces.Dict,
        lambda space: {"spaces": [[k, space_to_json(s)] for k, s in space.spaces.items()]},
        lambda data: spaces.Dict([(key, space_from_json(part)) for key, part in data["spaces"]]),
    ),
    "Opaque": (
        OpaqueSpace,
        lambda space: {"class": space.class_name, "text": space.text},
        lambda data: OpaqueSpace(data["class"], data["text"]),
    ),
}
