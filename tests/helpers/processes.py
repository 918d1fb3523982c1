"""Several processes as torchrun starts them, without what torchrun itself takes to import."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

SECONDS = 540


def run_in_processes(count: int, script: Path, *arguments: object) -> list[str]:
    """Run ``script`` as ``count`` processes; returns what each of them printed. Fails where one does."""
    folder = Path(str(arguments[0]))
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "COMPOSER_PROVE_STORE": str(folder / f"store-{count}-{script.stem}"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "specs" / "proofs")]),
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
