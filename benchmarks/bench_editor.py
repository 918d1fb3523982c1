"""What an editor waits for: a check after each keystroke, in a process that has checked the file before.

Each check is of a text in which one setting of a node differs. The baseline keeps no modules from check to check; it is
measured in turns with ours.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import watched

from composer.diagram.html import to_svg
from composer.editor.analysis import Analyser, Analysis
from harness import Row, main, medians, run_python, seconds

CONFIGS = Path(__file__).parent.parent / "configs"
ALLOW = ("environments",)
sys.path.append(str(CONFIGS))  # where these are
NODES = 200
ROUNDS = 25
EDITS = 1000
GROWTH = """
import resource, sys

sys.path[:0] = [{folder!r}]
from bench_editor import Analyser, check, edits, texts

def peak():  # the most that this process held, in MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

analyser = Analyser()
changed = edits(*texts()["200 dense nodes"])
for _ in range({edits} // 10):
    check(analyser, next(changed))
before = peak()
for _ in range({edits}):
    check(analyser, next(changed))
print(peak() - before)
"""
REDRAWN, DRAWN = 0.4, 1.5
LIMIT, SLOWEST = 0.050, 0.150  # of 200 nodes: the median, and 95 of 100


def chain(node: Callable[[int], str]) -> str:
    """A spec of `NODES` nodes; the last one has a setting to edit."""
    nodes = "\n".join(f"    n{i}: {node(i)}" for i in range(NODES - 1))
    return (
        "version: 1\nenvironment: CartPole-v1\npolicy:\n  graph:\n"
        f"{nodes}\n    last: {{block: dense, in: n{NODES - 2}, hidden_units: [64]}}\n"
        "  heads: {in: last}\n"
    )


def dense(i: int) -> str:
    return f"{{block: dense, in: {before(i)}, hidden_units: [64]}}"


def mixed(i: int) -> str:
    """Layers, memory, sums and joins in turn."""
    kinds = [
        f"{{block: dense, in: {before(i)}, hidden_units: [64, 64], activation: tanh}}",
        f"{{block: residual_dense, in: {before(i)}, hidden_units: 64}}",
        f"{{block: gru, in: {before(i)}, hidden_units: 64}}",
        f"{{block: add, in: [{before(i)}, {before(i - 1)}]}}",
        f"{{block: concat, in: [{before(i)}, {before(i - 2)}]}}",
    ]
    return kinds[i % len(kinds)]


def before(i: int) -> str:
    return f"n{i - 1}" if i > 0 else "observation"


def texts() -> dict[str, tuple[str, str]]:
    """By workload, a text and what is edited in it: its last two digits."""
    cartpole, complex_, knights = (
        (CONFIGS / f"{name}.yaml").read_text()
        for name in ("cartpole", "complex", "knights_archers")
    )
    return {
        "cartpole.yaml": (cartpole, '"${params.width}", 64]'),
        "complex.yaml": (complex_, "hidden_channels: [8, 16, 32]"),
        "knights_archers.yaml": (knights, "hidden_units: [64]"),
        "200 dense nodes": (chain(dense), "hidden_units: [64]}\n  heads"),
        "200 mixed nodes": (chain(mixed), "hidden_units: [64]}\n  heads"),
    }


def edits(text: str, part: str) -> Iterator[str]:
    """``text`` with another number in ``part``, again and again."""
    start = text.rindex(part)
    end = start + len(part)
    digits = "".join(filter(str.isdigit, part))[-2:]
    for number in itertools.count(1):
        changed = part.replace(digits, str(64 + number % 32))
        yield text[:start] + changed + text[end:]


def check(analyser: Analyser, text: str) -> Analysis:
    analysis = analyser.analyse(text, str(CONFIGS / "edited.yaml"), allow=ALLOW)
    assert not analysis.problems, analysis.problems
    assert analysis.stage == "shapes"
    return analysis


def check_next(analyser: Analyser, changed: Iterator[str]) -> None:
    check(analyser, next(changed))


def rows() -> Iterator[Row]:
    for name, (text, part) in texts().items():
        keeping, without = Analyser(), Analyser(keeps_modules=False)
        kept, made = medians(
            partial(check_next, keeping, edits(text, part)),
            partial(check_next, without, edits(text, part)),
            rounds=ROUNDS,
        )
        is_long = "200" in name
        name = f"check of an edit: {name}"
        yield Row(name, kept, "no modules kept", made, at_most=1 if is_long else None)
        if is_long:
            yield Row(f"{name}, median", kept, "limit", LIMIT, at_most=1)
            more = edits(text, part)
            times = [
                seconds(partial(check_next, keeping, more), 1, time.process_time)
                for _ in range(2 * ROUNDS)
            ]
            slow = statistics.quantiles(times, n=20)[-1]
            yield Row(f"{name}, 95 of 100", slow, "limit", SLOWEST, at_most=1)
    yield memory_row()
    yield from picture_rows()


def memory_row() -> Row:
    """How much a new process grows in 1,000 edits, after some that fill what is kept."""
    grown = float(run_python(GROWTH.format(folder=str(Path(__file__).parent), edits=EDITS)))
    return Row(f"{EDITS:,} edits: memory", grown, "limit", 20, at_most=1, unit="MiB")


def picture_rows() -> Iterator[Row]:
    """The live picture, and pictures of many nodes that read one value."""
    name = "save to redrawn picture: complex.yaml"
    yield Row(name, statistics.median(watched.saves(ROUNDS)), "limit", REDRAWN, at_most=1)
    for form, picture in watched.pictures(NODES):
        drawn = min(seconds(partial(to_svg, picture), clock=time.perf_counter) for _ in range(3))
        name = f"drawing of {NODES} nodes that read one value, {form}"
        yield Row(name, drawn, "limit", DRAWN, at_most=1)


if __name__ == "__main__":
    main("Checking while a spec is written", rows)
