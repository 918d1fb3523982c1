"""Importing the packages: what it takes beyond importing torch."""

from collections.abc import Iterator
from statistics import median

from harness import Row, main, run_python

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


def rows() -> Iterator[Row]:
    times: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    for round_ in range(ROUNDS + 1):
        for name, work in WORKLOADS.items():
            seconds = float(run_python(SCRIPT.format(work=work)))
            if round_:  # the first one compiles the modules
                times[name].append(seconds)
    for name, own in times.items():
        yield Row(f"{name}, beyond torch", median(own), "limit", LIMIT, at_most=1)


if __name__ == "__main__":
    main("Import", rows)
