"""What a user may have given wrongly for a run: all of it is told at once, before anything is created."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from composer.training.environment import environment_maker, why_not_sent
from composer.training.events import require_tensorboard
from composer.training.exclusive import refuse_taken
from composer.training.trainer import TRAINERS, Task, Trainer, TrainingError
from composer.training.video import require_imageio, why_not_filmed
from perception_blocks.registry import UnknownNameError
from perception_blocks.words import cut, hint

__all__ = ["option", "refuse_counts", "refuse_wrong", "shown", "trainer_class_of"]

MOST = 2**31 - 1  # of everything that is counted
MOST_ENVS = 10_000
MOST_THREADS = 1024
RANGES = {
    "steps": (1, MOST), "envs": (1, MOST_ENVS), "eval_episodes": (1, MOST), "seed": (0, MOST),
    "threads": (1, MOST_THREADS), "eval_every": (0, MOST), "checkpoint_every": (0, MOST), "keep": (0, MOST),
    "probe_every": (0, MOST),
}  # fmt: skip


def refuse_wrong(task: Task, out: Path | None = None, others: Iterable[str] = ()) -> type[Trainer]:
    """The class of the task's trainer.

    Raises TrainingError with all that is wrong with the task, the new folder ``out`` and the ``others``.
    """
    problems = list(others)
    try:
        if out is not None:
            refuse_taken(out)
    except TrainingError as error:
        problems.append(str(error))
    trainer_class = trainer_class_of(task, problems)
    require_libraries(task)
    if task.subprocess and (wrong := why_not_sent(environment_maker(task))):
        problems.append(wrong)
    if task.video and (wrong := why_not_filmed(environment_maker(task))):
        problems.append(wrong)
    if problems:
        raise TrainingError("\n  ".join(problems))
    return trainer_class


def refuse_counts(**counts: object) -> None:
    """Raise TrainingError with all ``counts`` that are out of range, by the names of `RANGES`."""
    problems = [_count_problem(name, value, *RANGES[name]) for name, value in counts.items()]
    if any(problems):
        raise TrainingError(
            "\n  ".join(filter(None, problems)).replace("--eval-episodes", "--episodes")
        )


def require_libraries(task: Task) -> None:
    """Raise MissingExtraError where a library that an option needs is not installed."""
    if task.tensorboard:
        require_tensorboard()
    if task.video:
        require_imageio()


def trainer_class_of(task: Task, others: Iterable[str] = ()) -> type[Trainer]:
    """The class of the task's trainer. Raises TrainingError with the ``others`` and all that is wrong with the task."""
    counts = [_count_problem(name, getattr(task, name), *ends) for name, ends in RANGES.items()]
    problems = [*others, *(problem for problem in counts if problem)]
    try:
        trainer_class = TRAINERS.get(task.trainer)
    except UnknownNameError as error:
        raise TrainingError("\n  ".join([*problems, str(error)])) from None
    problems += [*_device_problems(task.device), *_algorithm_problems(trainer_class, task)]
    if problems:
        raise TrainingError("\n  ".join(problems))
    return trainer_class


def _device_problems(device: str) -> list[str]:
    """What is wrong with ``device``: it is none of PyTorch's, or not of this machine."""
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        return [
            f"--device must be a device of PyTorch such as 'cpu' or 'cuda', got {shown(device)}"
        ]
    if wanted.type == "cpu":
        return []
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = counts.get(wanted.type, 0)
    if count > (wanted.index or 0):
        return []
    here = f"PyTorch has {count or 'no'} {wanted.type} device{'' if count == 1 else 's'} here"
    return [f"--device is {device!r}, but {here}; leave it out to train on the CPU"]


def _algorithm_problems(trainer_class: type[Trainer], task: Task) -> list[str]:
    known = trainer_class.algorithms
    if task.algorithm in known:
        wrong = trainer_class.wrong_settings(task)
        named = {problem.partition(" ")[0] for problem in wrong}
        for name in [name for name in task.settings if repr(name) not in named]:
            value = task.settings[name]
            if isinstance(value, int) and value > MOST:
                wrong.append(f"{name!r} must be at most {MOST:,}, got {shown(value)}")
            elif isinstance(value, float) and not math.isfinite(value):
                wrong.append(f"{name!r} must be a finite number, got {value}")
        return wrong
    near = hint(task.algorithm, known, "it has", kind="algorithm")
    return [f"trainer {task.trainer!r} has no algorithm {task.algorithm!r}{near}"]


def _count_problem(name: str, value: object, least: int, most: int) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        kind = "an integer of 0 or more" if least == 0 else "a positive integer"
        return f"{option(name)} must be {kind}, got {shown(value)}"
    if value > most:
        return f"{option(name)} must be at most {most:,}, got {shown(value)}"
    return None


def shown(value: object) -> str:
    return cut(repr(value), 60)


def option(field: str) -> str:
    named = {"settings": "set-algorithm", "environment": "env"}
    return "--" + named.get(field, field).replace("_", "-")
