"""How a template sees the observations: which of them form a group, and of what kind they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from perception_blocks.blocks.scale import find_channels
from perception_blocks.port import InputShapeError, Port, format_shape

__all__ = ["ObservationGroup", "channel_order", "groups_of", "kind_of_observation"]
__all__ += ["kind_problem", "sides"]

Kind = Literal["image", "vector", "discrete"]

SMALLEST_IMAGE = 5  # pixels of the shorter side: (5, 5, 3) is a picture, (2, 3, 3) a table
SMALLEST_GREY_IMAGE = 16  # without channels, (4, 8) is a table
LINKS = "/edge_links"  # ends the key of a graph's edge list: pairs of node numbers


@dataclass(frozen=True)
class ObservationGroup:
    """Observations that become one vector together: one alone, a text, the parts of a set, or the nodes of a graph.

    ``keys`` are the flat keys of its parts; ``links`` is the key of a graph's edge list.
    """

    name: str
    kind: Literal["single", "text", "set", "graph"]
    keys: tuple[str, ...]
    links: str = ""


def groups_of(ports: Mapping[str, Port]) -> list[ObservationGroup]:
    """The groups of all observations but masks, in their order.

    >>> mask = Port((None,), torch.bool)
    >>> units = {"units/kind": Port((None,), mask="units:mask"), "units/at": Port((None, 2), mask="units:mask")}
    >>> groups_of({**units, "units:mask": mask})
    [ObservationGroup(name='units', kind='set', keys=('units/kind', 'units/at'), links='')]
    """
    masks = {port.mask for port in ports.values()}
    groups: dict[str, ObservationGroup] = {}
    for key, port in ports.items():
        is_links = key.endswith(LINKS) and port.is_integer and port.cardinality is None
        if key not in masks and not is_links:
            group = _group(key, port, ports)
            before = groups.get(group.name)
            keys = (*before.keys, key) if before else (key,)
            groups[group.name] = ObservationGroup(group.name, group.kind, keys, group.links)
    return list(groups.values())


def kind_of_observation(port: Port) -> Kind:
    """What a template takes a single observation for.

    >>> kind_of_observation(Port((64, 64, 3), torch.uint8)), kind_of_observation(Port((17,)))
    ('image', 'vector')
    """
    if port.is_integer:
        return "discrete"
    if None in port.shape:
        return "vector"
    if len(port.shape) == 2:
        grey = port.dtype == torch.uint8 and min(sides(port)) >= SMALLEST_GREY_IMAGE
        return "image" if grey else "vector"
    pictured = len(port.shape) == 3 or (len(port.shape) > 3 and port.dtype == torch.uint8)
    return "image" if pictured and min(sides(port)) >= SMALLEST_IMAGE else "vector"


def kind_problem(key: str, port: Port, kind: str) -> str | None:
    """Why a single observation cannot be taken for ``kind``, in words; None where it can."""
    if port.is_integer != (kind == "discrete"):
        what = "integers that name or count" if port.is_integer else "numbers, no integers"
        return f"{key!r} cannot be taken for {kind!r}: it holds {what}"
    if kind == "image" and (len(port.shape) < 2 or None in port.shape):
        shape = format_shape(port.shape)
        return f"{key!r} cannot be taken for an 'image': it has the shape {shape}, not two or more axes of known size"
    return None


def channel_order(port: Port) -> tuple[Literal["first", "last"], bool]:
    """Where the channels are, and whether that has to be said. Where both ends could be them, the shorter one is."""
    shape = port.shape[-3:]
    if len(shape) == 2:
        return "last", False  # scale_image gives it its channel
    if port.channels is not None:
        return port.channels, False
    try:
        return find_channels(shape), False
    except InputShapeError:
        first, last = shape[0] or math.inf, shape[-1] or math.inf
        return ("first" if first < last else "last"), True


def sides(port: Port) -> tuple[int, int]:
    """Height and width."""
    shape: tuple = port.shape[-3:]
    if len(shape) < 3:
        return shape  # type: ignore[return-value]
    return shape[1:] if channel_order(port)[0] == "first" else shape[:2]


def _group(key: str, port: Port, ports: Mapping[str, Port]) -> ObservationGroup:
    """The group that ``key`` belongs to, with this key alone."""
    mask = ports.get(port.mask or "")
    if port.mask is None or mask is None or not mask.shape:
        return ObservationGroup(key, "single", (key,))
    name = port.mask.removesuffix(":mask")
    if None not in mask.shape:
        return ObservationGroup(name, "text", (key,))
    graph = name.removesuffix("/nodes")
    if graph != name and graph + LINKS in ports:
        return ObservationGroup(graph, "graph", (key,), graph + LINKS)
    return ObservationGroup(name, "set", (key,))
