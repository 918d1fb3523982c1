"""The diagram of a model with the numbers of a probe: nodes that got worse are colored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from composer.diagram.picture import Box, Picture
from composer.diagram.sketch import sketch
from composer.model import Model
from composer.probing.node import NodeProbe

__all__ = ["COLORS", "Color", "picture_of"]

Color: TypeAlias = Literal["dormant", "rank", "gradient", "time"]
# What a deep color says; with a baseline, and without.
COLORS: Mapping[str, tuple[str, str]] = {
    "dormant": ("units that became dormant", "dormant units"),
    "rank": ("rank lost", "rank below the number of units"),
    "gradient": (
        "gradient lost, in powers of ten",
        "gradient below the largest of policy or critic, in powers of ten",
    ),
    "time": ("share of the time of a step", "share of the time of a step"),
}
POWERS = 4.0  # of ten, for the deepest color of a gradient


def picture_of(model: Model, probed: Sequence[NodeProbe], color: Color) -> Picture:
    """The diagram of ``model`` colored by the numbers of its nodes, which are among the details of its boxes.

    With a baseline a color says how much worse a node, or a layer in it, is than at the beginning. Raises ValueError
    for another color.
    """
    if color not in COLORS:
        raise ValueError(f"color is one of {', '.join(map(repr, COLORS))}, got {color!r}")
    picture = sketch(model)
    by_path: dict[str, list[NodeProbe]] = {}
    paths = {path for box in picture.boxes.values() for path in box.stands_for}
    for node in probed:
        by_path.setdefault(_drawn_as(node.path, paths), []).append(node)
    has_baseline = any(node.at_init for node in probed)
    largest = _largest(probed)
    values = {
        path: max(_heat(node, color, largest) for node in nodes)
        for path, nodes in by_path.items()
        if path in paths
    }
    legend = COLORS[color][0 if has_baseline else 1]
    colored = picture.colored(values, legend)
    boxes = {
        name: _told(
            box, [node for path in box.stands_for for node in by_path.get(path, ())], color, largest
        )
        for name, box in colored.boxes.items()
    }
    return replace(colored, boxes=boxes)


def _drawn_as(path: str, paths: set[str]) -> str:
    """The path of a diagram for ``path``: of the copies of a network, which are numbered, one is drawn."""
    if path in paths:
        return path
    parts = path.split("/")
    for index, part in enumerate(parts):
        if re.fullmatch(r"\d+", part):
            shorter = _drawn_as("/".join([*parts[:index], *parts[index + 1 :]]), paths)
            if shorter in paths:
                return shorter
    return path


def _largest(nodes: Sequence[NodeProbe]) -> dict[str, float]:
    """The largest gradient of policy and of critic: their losses are of unlike sizes."""
    largest: dict[str, float] = {}
    for node in nodes:
        if math.isfinite(node.gradient_norm):
            part = _part(node)
            largest[part] = max(largest.get(part, 0.0), node.gradient_norm)
    return largest


def _part(node: NodeProbe) -> str:
    return node.path.partition("/")[0]


def _heat(node: NodeProbe, color: Color, largest: Mapping[str, float]) -> float:
    """How deep the color of a node is, 0 to 1. Without a baseline its gradient is compared with the ``largest``."""
    first = node.at_init
    if color == "time":
        return node.time_share or 0.0
    if color == "dormant":
        before = first.dormant if first else 0.0
        value = 1.0 if math.isnan(node.dormant) else node.dormant - before
    elif color == "rank":
        value = 1.0 - node.srank / max(1, first.srank if first else node.units)
    else:
        before = first.gradient_norm if first else largest.get(_part(node), 0.0)
        value = _powers(before, node.gradient_norm) / POWERS
        value *= node.has_weights
    return min(1.0, max(0.0, value))


def _powers(before: float, now: float) -> float:
    """How many powers of ten ``now`` is below ``before``; as many as there are colors where it is 0 or not finite."""
    if not 0 < before < math.inf:
        return 0.0
    return math.log10(before / now) if 0 < now < math.inf else POWERS


def _told(box: Box, nodes: list[NodeProbe], color: Color, largest: Mapping[str, float]) -> Box:
    """``box`` with the numbers of the ``nodes`` that it stands for; on it, where it is colored, that of the color."""
    if not nodes:
        return box
    details = dict(box.details)
    for node in nodes:
        label = "" if node.is_output else f" {node.layer}"
        label = label if len({n.path for n in nodes}) == 1 else f" {node.path}{label}"
        details[f"probe{label}"] = _numbers(node)
    if not box.heat or box.heat < 0.005:
        return replace(box, details=details)
    worst = max(nodes, key=lambda node: _heat(node, color, largest))
    return replace(box, lines=(*box.lines, _line(worst, color)), details=details)


def _numbers(node: NodeProbe) -> str:
    shares = [f"dead {node.dead:.1%}", f"dormant {node.dormant:.1%}"]
    if node.saturated is not None:
        shares.append(f"saturated {node.saturated:.1%}")
    norms = f"rank {node.srank} of {node.units}, gradient {node.gradient_norm:.1e}"
    return f"{', '.join(shares)}, {norms}"


def _line(node: NodeProbe, color: Color) -> str:
    first = node.at_init
    now, then = {
        "dormant": (f"{node.dormant:.0%} dormant", first and f"{first.dormant:.0%}"),
        "rank": (f"rank {node.srank} of {node.units}", first and f"{first.srank}"),
        "gradient": (f"gradient {node.gradient_norm:.0e}", first and f"{first.gradient_norm:.0e}"),
        "time": (f"{node.time_share or 0.0:.0%} of the time", None),
    }[color]
    return now if then is None else f"{now} (was {then})"
