"""A probe as a table: a line for each node, the layers in it below; beside a number that is worse, the first one."""

from __future__ import annotations

from composer.probing.result import NodeProbe, Probe

__all__ = ["table"]

RED, PLAIN = "\033[31m", "\033[0m"
_TITLES = ("units", "mean", "std", "min", "max", "dead", "dormant", "saturated", "srank")
TITLES = ("node", *_TITLES, "|W|", "|grad|", "time")
_COLUMNS = {name: TITLES.index(name) for name in ("dead", "dormant", "saturated", "srank")}
_COLUMNS["gradient_norm"] = TITLES.index("|grad|")


def table(probe: Probe, *, color: bool = False) -> str:
    """The table as aligned text; with ``color`` what is worse than at the beginning is red."""
    rows = [_row(node) for node in probe.nodes]
    widths = [max(map(len, column)) for column in zip(TITLES, *(cells for cells, _ in rows))]
    lines = [_line(TITLES, widths, (), False)]
    lines += [_line(cells, widths, worse, color) for cells, worse in rows]
    lines += ["", *_summary(probe)]
    return "\n".join(line.rstrip() for line in lines)


def _row(node: NodeProbe) -> tuple[tuple[str, ...], set[int]]:
    """The cells of a line, and the columns of those that are worse."""
    first, worse = node.at_init, node.worse
    cells = [
        node.path if node.layer == "output" else f"  {node.layer}",
        str(node.units),
        *(f"{value:.3g}" for value in (node.mean, node.std, node.low, node.high)),
        *(_share(getattr(node, name)) for name in ("dead", "dormant", "saturated")),
        str(node.srank),
        f"{node.weight_norm:.3g}",
        f"{node.gradient_norm:.1e}",
        _share(node.time_share, 0),
    ]
    for name in worse:
        assert first is not None
        then = getattr(first, name)
        shown = str(then) if name == "srank" else f"{then:.1e}" if name == "gradient_norm" else ""
        cells[_COLUMNS[name]] += f" (was {shown or _share(then)})"
    return tuple(cells), {_COLUMNS[name] for name in worse}


def _share(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _line(cells: tuple[str, ...], widths: list[int], worse: set[int] | tuple, color: bool) -> str:
    shown = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = cell.ljust(width) if index == 0 else cell.rjust(width)
        shown.append(f"{RED}{text}{PLAIN}" if color and index in worse else text)
    return "  ".join(shown)


def _summary(probe: Probe) -> list[str]:
    played = f"{probe.steps} steps, seed {probe.seed}"
    if probe.returns:
        mean = sum(probe.returns) / len(probe.returns)
        ended = len(probe.returns)
        played += f"; {ended} episode{'' if ended == 1 else 's'} ended, mean return {mean:.4g}"
    lines = [played, *probe.notes]
    if any(node.at_init for node in probe.nodes):
        count = len(probe.worse)
        what = f"{count} line{'' if count == 1 else 's'}" if count else "nothing"
        lines.append(f"worse than the same spec freshly drawn: {what}")
    return lines
