"""Tables as lines of text: aligned columns, in as many characters as there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perception_blocks.words import wrapped

__all__ = ["aligned", "fitted", "styled"]

_RIGHT = {"parameters", "share", "FLOPs", "trained"}
_STYLES = {"bold": "\x1b[1m", "dim": "\x1b[2m"}
# What a table of nodes leaves out, step by step, until it fits; "results" stands for the shapes of outputs alone, and
# notes without a column stand below their node.
_COLUMNS = [
    "node block shape parameters share FLOPs notes line",
    "node block shape parameters share FLOPs line",
    "node block shape parameters FLOPs line",
    "node block results parameters FLOPs line",
    "node block results parameters line",
    "node results parameters",
]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns two spaces apart; a column without any value is left out."""
    used = [index for index in range(len(header)) if any(row[index] for row in rows)]
    table = [[row[index] for index in used] for row in (header, *rows)]
    sides = [">" if header[index] in _RIGHT else "<" for index in used]
    formats = [f"{side}{max(map(len, column))}" for side, column in zip(sides, zip(*table))]
    return ["  ".join(map(format, row, formats)).rstrip() for row in table]


def fitted(rows: Sequence[Mapping[str, str]], width: int | None) -> list[tuple[str, str]]:
    """A table of nodes in lines of at most ``width`` characters: (line, style), a style of `styled`.

    Each row has a value for every column.
    """
    table: list[str] = []
    columns: list[str] = []
    for columns in map(str.split, _COLUMNS):
        table = aligned(
            ["shape" if name == "results" else name for name in columns],
            [[row[name] for name in columns] for row in rows],
        )
        if width is None or max(map(len, table)) <= width:
            break
    lines = [(_cut(table[0], width), "bold")]
    for row, line in zip(rows, table[1:]):
        lines.append((_cut(line, width), "" if line.startswith(" ") else "bold"))
        if "notes" not in columns and row["notes"]:
            indent = " " * (len(row["node"]) - len(row["node"].lstrip()) + 4)
            lines += [(part, "dim") for part in wrapped(indent + row["notes"], width, indent)]
    return lines


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else f"{line[: max(width - 1, 0)]}…"


def styled(line: str, style: str) -> str:
    """``line`` as a terminal shows it: "bold", "dim", or "" for neither."""
    return f"{_STYLES[style]}{line}\x1b[0m" if style and line else line
