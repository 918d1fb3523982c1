"""What is resumed must fit: the state of a trainer its run, and what a user gives again what the run has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from composer.checkpoint.plain_spec import plain_spec, saved_spec
from composer.limits import GivenLimits
from composer.model import compose
from composer.source.load import Source, stored_source
from composer.spec.diff import diff_specs
from composer.training.folder import RunFolder
from composer.training.options import option, shown
from composer.training.stored import Saved
from composer.training.trainer import Task, Trainer, TrainingError
from composer.trust import check_environment

__all__ = ["LATER", "refuse_another", "refuse_another_task", "restore"]

# Fields of a task that may be others when a run is resumed.
LATER = {"steps", "threads", "device", "subprocess", "keep", "probe_every", "tensorboard", "video"}
# The state of an optimiser and a replay buffer, which are empty at first.
GROWING = {"state", "buffer"}


def restore(trainer: Trainer, saved: Saved, folder: RunFolder) -> None:
    """Raises TrainingError if the saved state is not of this trainer, whatever error that leads to."""
    try:
        _refuse_other_form(saved["trainer"], trainer.state(), "")
        trainer.restore(saved["trainer"], saved["steps"])
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TrainingError(
            f"what is in {str(folder.path)!r} does not fit the run: {reason}"
        ) from error


def _refuse_other_form(saved: Any, expected: Any, path: str) -> None:
    """Raise ValueError if two states differ in more than values. The trainer itself checks what grows with time."""
    if isinstance(expected, Tensor) and isinstance(saved, Tensor):
        _refuse_other_tensor(saved, expected, path)
    elif type(saved) is not type(expected):
        raise ValueError(f"{path} is a {type(saved).__name__}, not a {type(expected).__name__}")
    elif isinstance(expected, Mapping):
        if saved.keys() != expected.keys():
            differing = min(map(str, saved.keys() ^ expected.keys()))
            raise ValueError(f"{path or 'the trainer'} differs in {differing[:40]!r}")
        for key in expected.keys() - GROWING:
            _refuse_other_form(saved[key], expected[key], f"{path}/{key}" if path else str(key))
    elif isinstance(expected, list | tuple):
        if len(saved) != len(expected):
            raise ValueError(f"{path} has {len(saved)} entries, not {len(expected)}")
        for index, pair in enumerate(zip(saved, expected, strict=True)):
            _refuse_other_form(*pair, f"{path}/{index}")
    elif "/param_groups/" in path and saved != expected:  # what the settings of the run say
        raise ValueError(f"{path} is {shown(saved)}, not {expected}")


def _refuse_other_tensor(saved: Tensor, expected: Tensor, path: str) -> None:
    if (saved.shape, saved.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"{path} is {tuple(saved.shape)} of {saved.dtype}, not {tuple(expected.shape)} of {expected.dtype}"
        )
    if bool((expected.isfinite().to(saved.device) & ~saved.isfinite()).any()):
        raise ValueError(f"{path} is NaN or infinite")


def refuse_another(
    folder: RunFolder,
    given: Mapping[str, object],
    spec: Source | None,
    allow: Iterable[str],
    limits: GivenLimits,
) -> None:
    """Raise TrainingError where what is given is not what the run in ``folder`` has."""
    has = asdict(folder.task)
    problems = _other_values(has, given)
    if spec is not None:
        stored = stored_source(has["spec"], folder.path / "run.json").data
        differences = diff_specs(stored, plain_spec(spec.data))
        if differences and not check_environment(folder.task.environment, allow):
            # What blocks read once, when they were built, is not named in the run.
            model = compose(
                spec, env=folder.task.environment, allow=allow, device="meta", limits=limits
            )
            differences = diff_specs(stored, saved_spec(spec.data, model))
        problems += [f"the spec differs: {line}" for line in differences]
    _refuse(folder.path, problems)


def refuse_another_task(path: Path, task: Task, given: Mapping[str, object]) -> None:
    """Raise TrainingError where the ``given`` fields are not those of the ``task`` of the runs in ``path``."""
    has = asdict(task)
    _refuse(path, _other_values(has, given, ()))


def _other_values(
    has: Mapping[str, object], given: Mapping[str, object], later: Collection[str] = LATER
) -> list[str]:
    return [
        f"{option(name)} is {value!r} here, but {has[name]!r} in the run"
        for name, value in given.items()
        if value != has[name] and name not in later
    ]


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise TrainingError(
            f"the run in {str(path)!r} is another one; leave out what differs, or "
            f"begin a new run with -o:{lines}"
        )
