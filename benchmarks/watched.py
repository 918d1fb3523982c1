"""What `composer watch` takes from a save to the redrawn picture, and pictures of a value that many nodes read."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from composer.diagram.picture import Picture
from composer.diagram.sketch import sketch
from composer.editor.watch_look import Looker, Request
from composer.editor.watch_state import Watch
from perception_blocks import Graph, InferenceBlock

__all__ = ["pictures", "saves"]

CONFIGS = Path(__file__).parent.parent / "configs"
PATIENCE = 60.0


def saves(count: int) -> list[float]:
    """Seconds from a save of complex.yaml, which an editor renames into its place, to what the page gets."""
    sys.path.append(str(CONFIGS))
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(shutil.copy(CONFIGS / "complex.yaml", folder))
        looker = Looker(Request(str(spec), allow=("environments",)))
        return asyncio.run(_saves(Watch(str(spec), looker.look), spec, count))


async def _saves(watch: Watch, spec: Path, count: int) -> list[float]:
    following = asyncio.create_task(watch.follow())
    await watch.newer_than(0, PATIENCE)
    text, times = spec.read_text(), []
    for index in range(count):
        number, new = watch.number, spec.with_suffix(".new")
        start = time.perf_counter()
        new.write_text(text.replace("hidden: 128", f"hidden: {64 + index}"))
        os.replace(new, spec)
        assert await watch.newer_than(number, PATIENCE)
        watch.message(0)
        times.append(time.perf_counter() - start)
        assert watch.picture == watch.number
    watch.stop()
    await following
    return times


def pictures(count: int) -> Iterator[tuple[str, Picture]]:
    """``count`` nodes that read one value: side by side, and one after the other."""
    graph = Graph({"x": (8,)})
    names = [graph.add(f"n{i}", "dense", "x", hidden_units=[8 + i]) for i in range(count)]
    graph.add("all", "concat", names)
    yield "side by side", sketch(InferenceBlock(graph, ["all"]))
    graph = Graph({"x": (8,)})
    last = "x"
    for i in range(count):
        last = graph.add(f"n{i}", "add" if i % 2 else "multiply", [last, "x"])
    yield "in a row", sketch(InferenceBlock(graph, [last]))
