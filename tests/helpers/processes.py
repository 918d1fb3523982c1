"""Several processes as torchrun starts them, without what torchrun itself takes to import."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.helpers.paths import CONFIGS, ROOT, TESTS

SECONDS = 540


class NoUnpickler(pickle.Unpickler):
    """In place of pickle's own: whoever makes one fails."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        refuse_to_unpickle()


def refuse_to_unpickle(*arguments: object, **keywords: object) -> None:
    raise AssertionError("something was unpickled")


def unpickling() -> Iterator[tuple[object, str, object]]:
    """What unpickles, and what is to be there instead: (its home, its name, that)."""
    for home, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        yield home, name, refuse_to_unpickle
    yield pickle, "Unpickler", NoUnpickler


def run_in_processes(count: int, script: Path, *arguments: object) -> list[str]:
    """Run ``script`` as ``count`` processes; returns what each of them printed. Fails where one does."""
    folder = Path(str(arguments[0]))
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "COMPOSER_PROVE_STORE": str(folder / f"store-{count}-{script.stem}"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, CONFIGS, TESTS / "specs" / "proofs"))),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(said)
    return said
