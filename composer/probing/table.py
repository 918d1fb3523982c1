"""A probe as a table: a line for each node, the layers in it below; beside a number that is worse, the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from composer.probing.node import OUTPUT, NodeProbe
from perception_blocks.words import readable

__all__ = ["table"]

RED, PLAIN = "\033[31m", "\033[0m"
_TITLES = ("units", "mean", "std", "min", "max", "dead", "dormant", "saturated", "srank")
TITLES = ("node", *_TITLES, "|W|", "|grad|", "time")
_COLUMNS = {name: TITLES.index(name) for name in ("dead", "dormant", "saturated", "srank")}
_COLUMNS["gradient_norm"] = TITLES.index("|grad|")


def table(nodes: Sequence[NodeProbe], *, color: bool = False) -> str:
    """``nodes`` as aligned text; with ``color`` what is worse than at the beginning is red."""
    rows = [_row(node) for node in nodes]
    widths = [max(map(len, column)) for column in zip(TITLES, *(cells for cells, _ in rows))]
    lines = [_line(TITLES, widths, frozenset(), False)]
    lines += [_line(cells, widths, worse, color) for cells, worse in rows]
    return "\n".join(line.rstrip() for line in lines)


def _row(node: NodeProbe) -> tuple[tuple[str, ...], frozenset[int]]:
    """The cells of a line, and the columns of those that are worse."""
    first, worse = node.at_init, node.worse
    cells = [
        readable(node.path if node.layer == OUTPUT else f"  {node.layer}"),
        str(node.units),
        *(f"{value:.3g}" for value in (node.mean, node.std, node.low, node.high)),
        *(_share(getattr(node, name)) for name in ("dead", "dormant", "saturated")),
        str(node.srank),
        f"{node.weight_norm:.3g}" if node.has_weights else "",
        f"{node.gradient_norm:.1e}" if node.has_weights else "",
        _share(node.time_share, 0),
    ]
    for name in worse:
        assert first is not None
        then = getattr(first, name)
        shown = str(then) if name == "srank" else f"{then:.1e}" if name == "gradient_norm" else ""
        cells[_COLUMNS[name]] += f" (was {shown or _share(then)})"
    return tuple(cells), frozenset(_COLUMNS[name] for name in worse)


def _share(value: float | None, digits: int = 1) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}%}" if math.isfinite(value) else "nan"


def _line(cells: tuple[str, ...], widths: list[int], worse: frozenset[int], color: bool) -> str:
    shown = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = cell.ljust(width) if index == 0 else cell.rjust(width)
        shown.append(f"{RED}{text}{PLAIN}" if color and index in worse else text)
    return "  ".join(shown)
