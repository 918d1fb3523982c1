"""Checking a spec: the time and memory that a process needs beyond importing torch, or without torch at all.

A spec of 70 billion parameters is checked down to its parameters and FLOPs, which must be exactly those of the closed
form; one whose structure is wrong is refused by the command line.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import decoder
from harness import Row, main, run_python

ROUNDS = 7
SCRIPT = """
import json, resource, sys, time
import torch

def memory():  # the most that this process held so far, in MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def processor():
    return time.process_time()

before, start = memory(), processor()
import gymnasium
import composer
from composer.summary.table import summarize

sys.path.insert(0, {folder!r})
import decoder

observations = gymnasium.spaces.MultiDiscrete([decoder.WORDS] * decoder.LENGTH)
actions = gymnasium.spaces.Discrete(decoder.WORDS)
model = composer.compose(
    decoder.spec(), observation_space=observations, action_space=actions, device="meta"
)
parameters = sum(parameter.numel() for parameter in model.parameters())
checked = processor() - start
summary = summarize(model)
print(json.dumps([parameters, summary.flops, checked, processor() - start, memory() - before]))
"""
WRONG = """
version: 1
policy:
  graph:
    latent: {block: dens, in: observation, hidden_units: [64, 64]}
    wide: {block: dense, in: laten, hidden_unit: 3}
  heads: {in: wide}
"""
TORCH_FREE = """
import sys
from composer.cli.commands import main
status = main(["check", sys.argv[1]])
assert status == 1 and "torch" not in sys.modules
"""
# Runs Python with its arguments, and prints what that process computed from its start to its end.
CHILD = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True, capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


def decoder_rows() -> Iterator[Row]:
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    runs = [json.loads(run_python(script)) for _ in range(ROUNDS)]
    for parameters, flops, *_ in runs:
        assert parameters == decoder.parameters(), parameters
        assert flops == decoder.flops(), flops
    checked, counted, memory = (median(times) for times in list(zip(*runs))[2:])
    name = "check of 70 billion parameters"
    yield Row(name, checked, "limit", 2.0, at_most=1)
    yield Row(f"{name}, with FLOPs", counted, "limit", 2.0, at_most=1)
    yield Row(f"{name}, with FLOPs: memory", memory, "limit", 200, at_most=1, unit="MiB")


def wrong_row() -> Row:
    """Of the whole process, Python's own start included."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "wrong.yaml"
        file.write_text(WRONG)
        times = [float(run_python(CHILD, TORCH_FREE, str(file))) for _ in range(ROUNDS)]
    return Row("check of a wrong structure", median(times), "limit", 0.3, at_most=1)


def rows() -> Iterator[Row]:
    yield from decoder_rows()
    yield wrong_row()


if __name__ == "__main__":
    main("Checking without weights", rows)
