"""What the networks of a model are built for, and what is gathered on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from composer.errors import Problems
from composer.source import Source
from perception_blocks.port import Port, Shape, format_shape

__all__ = ["ADDED", "Context", "Demand", "share", "width_message"]

# Names that policy and critic give to children of their own: beside a user's, and beside the nodes of a graph.
ADDED = ("distributions", "normalizers")


@dataclass
class Context:
    """What building needs beside a network's own spec."""

    source: Source
    problems: Problems
    allow: tuple[str, ...]
    seed: int
    meta: bool
    read: set[str] = field(default_factory=set)  # observations that some network reads
    hidden: dict[str, str] = field(default_factory=dict)  # values out of reach, and in words why
    shared: dict[str, Port] = field(default_factory=dict)  # what the policy hands to the critic


@dataclass(frozen=True)
class Demand:
    """What a network must give: for each head its width, and in words what asks for it; and other values by name."""

    heads: Mapping[str, tuple[int, ...]]
    reasons: Mapping[str, str]
    values: tuple[str, ...] = ()
    kind: str = "action"  # what a head is for, in messages
    injected: Mapping[str, Any] = field(
        default_factory=dict
    )  # constructor arguments of a custom class


def share(ports: Mapping[str, Port], demand: Demand, context: Context) -> None:
    """Remember the values that the critic is to read, also where the policy itself failed."""
    context.shared |= {name: ports[name] for name in demand.values if name in ports}


def width_message(head: str, got: Shape, width: tuple[int, ...], demand: Demand) -> str:
    reason = demand.reasons.get(head, f"a {demand.kind}")
    return f"the head {head!r} has the shape {format_shape(got)}, but {reason} needs {format_shape(width)}"
