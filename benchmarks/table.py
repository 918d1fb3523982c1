"""Runs every benchmark and joins their tables: ``python benchmarks/table.py`` prints one, and writes it to the docs.

In docs/performance.md the text above the mark is written by hand; what stands below comes from here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from harness import Row, Table

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "performance.md"
MARK = "<!-- from here on written by make bench -->\n"
HEADS = ["workload", "ours", "baseline", "its own", "ratio", "at most", "threads"]


def measured(script: Path, folder: Path) -> Table:
    """What ``script`` finds; it prints its own table meanwhile."""
    result = folder / f"{script.stem}.json"
    subprocess.run([sys.executable, str(script), "--json", str(result)], check=True)
    print(flush=True)
    return Table.from_json(result.read_text())


def markdown(tables: Iterable[Table]) -> str:
    """One table with a line per row, under the title of its script; then the versions of all that ran."""
    tables = [table for table in tables if table.rows]
    lines = [as_line(HEADS), as_line(["---"] * len(HEADS))]
    for table in tables:
        lines.append(as_line([f"**{table.title}**", *[""] * (len(HEADS) - 1)]))
        lines += [as_line([*row.cells(), str(row.threads)]) for row in table.rows]
    versions = {name: version for table in tables for name, version in table.versions.items()}
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    missed = [row for table in tables for row in table.rows if row.missed]
    return "\n".join([*lines, "", f"Measured with {said}.", "", *in_words(missed)]) + "\n"


def in_words(missed: list[Row]) -> list[str]:
    if not missed:
        return ["Every target was reached in this run."]
    lines = ["Missed in this run:", ""]
    for row in missed:
        assert row.at_most is not None
        over = f"{row.ratio / row.at_most - 1:.0%} above {row.at_most:g}"
        lines.append(f"- {row.workload}: {row.ratio:.2f}, {over}")
    return lines


def as_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    scripts = sorted(FOLDER.glob("bench_*.py"))
    with tempfile.TemporaryDirectory() as folder:
        tables = [measured(script, Path(folder)) for script in scripts]
    text = markdown(tables)
    print(text)
    by_hand = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{by_hand}{MARK}\n{text}")


if __name__ == "__main__":
    main()
