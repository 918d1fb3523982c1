"""Importing the packages: what it takes beyond importing torch."""

import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from harness import Row, main

ROUNDS = 9
LIMIT = 0.3
WORKLOADS = {
    "import composer": "import composer",
    "import perception_blocks": "import perception_blocks",
    "composer.compose": "import composer; composer.compose",
    "perception_blocks.InferenceBlock": "import perception_blocks; perception_blocks.InferenceBlock",
}
SCRIPT = (
    "import time, torch; start = time.process_time(); {work}; print(time.process_time() - start)"
)


def seconds(work: str) -> float:
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows() -> Iterator[Row]:
    times: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    for _ in range(ROUNDS):
        for name, work in WORKLOADS.items():
            times[name].append(seconds(work))
    for name, own in times.items():
        yield Row(f"{name}, beyond torch", median(own), "limit", LIMIT, at_most=1)


if __name__ == "__main__":
    main("Import", rows)
