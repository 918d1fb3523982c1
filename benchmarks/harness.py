"""What the benchmarks share: interleaved timing, ratios of medians, and one table.

A script defines ``rows()``, which yields a `Row` per measurement, and ends with ``main(title, rows)``. Run by itself it
prints its table; ``table.py`` runs all of them and joins their tables.

    def rows():
        ours, theirs = medians(lambda: net(inputs), lambda: by_hand(inputs))
        yield Row("MLP 4-64-64-2, batch 1", ours, "by hand", theirs, at_most=1.05)

    if __name__ == "__main__":
        main("Eager execution", rows, peers=["tensordict"])
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Row", "Table", "main", "medians", "run_python", "seconds", "versions"]

ROUNDS = 150
ROUND_SECONDS = 0.002  # of one call in a round: above the clock's grain, below the scheduler's
# One thread, and an allocator that keeps what was freed: otherwise chance decides which of two equal modules gives its
# memory back to the system, and asks for it anew, at every call.
STEADY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}
BYTECODE = Path(__file__).parent.parent / "build" / "bytecode"
Clock = Callable[[], float]
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Row:
    """One measurement: ``ours`` against ``theirs`` in ``unit``; seconds are printed in the scale that suits them.

    ``at_most`` is the ratio to reach, None where a peer is shown for orientation only. Where the target is a limit and
    no rival, ``theirs`` is the limit and ``at_most`` is 1.
    """

    workload: str
    ours: float
    baseline: str
    theirs: float
    at_most: float | None = None
    unit: str = "s"
    threads: int = 1

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def missed(self) -> bool:
        return self.at_most is not None and self.ratio > self.at_most

    def cells(self) -> list[str]:
        """As the table shows it."""
        target = (
            "" if self.at_most is None else f"{self.at_most:g}{' missed' if self.missed else ''}"
        )
        numbers = [amount(self.ours, self.unit), amount(self.theirs, self.unit)]
        return [self.workload, numbers[0], self.baseline, numbers[1], f"{self.ratio:.2f}", target]


@dataclass(frozen=True)
class Table:
    """The rows of one script, and the versions of what it ran."""

    title: str
    rows: list[Row]
    versions: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Table:
        data = json.loads(text)
        return cls(data["title"], [Row(**row) for row in data["rows"]], data["versions"])

    def text(self) -> str:
        """For a terminal."""
        heads = ["workload", "ours", "baseline", "its own", "ratio", "at most"]
        lines = [heads, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        shown = ["  ".join(cell.ljust(n) for cell, n in zip(line, widths)) for line in lines]
        said = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        threads = sorted({row.threads for row in self.rows})
        count = "/".join(map(str, threads)) or "1"
        return "\n".join([f"{self.title} ({said}; threads: {count})", *shown])


def medians(
    *calls: Callable[[], object],
    rounds: int = ROUNDS,
    repeat: int | None = None,
    clock: Clock = time.process_time,
) -> list[float]:
    """Median seconds of one call of each, measured in turns, so that a slower minute slows all of them.

    ``repeat`` calls make one measurement; by default as many as fill two milliseconds. The first ones warm up. The
    clock counts the time that this process computes; what waits for a device or a file needs ``time.perf_counter``.
    """
    repeats = [repeat or repeats_of(call) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on whoever happens to run
    try:
        for _ in range(rounds):
            for call, count, own in zip(calls, repeats, times, strict=True):
                call()  # what the others left in the caches is not its fault
                own.append(seconds(call, count, clock))
    finally:
        if collecting:
            gc.enable()
    return [statistics.median(own) for own in times]


def seconds(call: Callable[[], object], count: int = 1, clock: Clock = time.perf_counter) -> float:
    """Of one call, as the mean of ``count``."""
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def repeats_of(call: Callable[[], object]) -> int:
    """How many calls fill ``ROUND_SECONDS``, after some that warm up."""
    warm = min(seconds(call) for _ in range(3))
    if warm > ROUND_SECONDS:
        return 1
    return max(1, round(ROUND_SECONDS / seconds(call, 20)))


def run_python(code: str, *arguments: str) -> str:
    """What ``code`` prints in a new process, which finds compiled modules as an installed package has them."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(BYTECODE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return run.stdout


def amount(value: float, unit: str) -> str:
    """With three figures: seconds in the scale that suits them, other units as they are."""
    if unit != "s":
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    scale = "s" if value >= 1 else "ms" if value >= 1e-3 else "us"
    return f"{value * UNITS[scale]:.3g} {scale}"


def versions(peers: Sequence[str] = ()) -> dict[str, str]:
    """Of Python, torch and ``peers`` (distributions)."""
    found = {"Python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in ("torch", *peers)}


def main(title: str, rows: Callable[[], Iterable[Row]], peers: Sequence[str] = ()) -> None:
    """Measure and print the table; ``--json FILE`` also writes it for ``table.py``.

    The script starts once more where the environment is not ``STEADY``, which is read when a process begins.
    """
    if any(os.environ.get(name) != value for name, value in STEADY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **STEADY})
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    table = Table(title, list(rows()), versions(peers))
    print(table.text())
    if arguments.json is not None:
        arguments.json.write_text(table.to_json())
