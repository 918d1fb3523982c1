"""Runs side by side: a table of what they are and what came of them, and what differs between them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from composer.source.load import stored_source
from composer.spec.diff import diff_specs
from composer.training.exclusive import answer, near_folder
from composer.training.stored import read_evaluation, read_record, read_table, task_of
from composer.training.trainer import MOST_COUNTED, Task, TrainingError
from perception_blocks.words import cut

__all__ = ["Comparison", "compare"]

MOST_LINES = 20  # of what differs in one spec
# Columns: the head, the value of a run, how it is shown.
NUMBER, COUNT = "{:,.2f}", "{:,}"


@dataclass(frozen=True)
class ComparedRun:
    """A run in numbers; None where it has none yet. ``last`` is the mean return of its last 100 training episodes."""

    run: str
    spec: str
    environment: str
    trainer: str
    algorithm: str
    seed: int
    steps: int
    last: float | None
    evaluation: float | None
    best: float | None
    best_step: int | None
    seconds: float | None
    steps_per_second: float | None

    @property
    def worth(self) -> float:
        """The best evaluation, or else what there is, to sort by."""
        known = (self.best, self.evaluation, self.last)
        return next((value for value in known if value is not None), -float("inf"))


@dataclass(frozen=True)
class Comparison:
    """The ``runs``, the best first, and what differs between their tasks, by the name of the option."""

    runs: Sequence[ComparedRun]
    differs: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {"runs": [asdict(run) for run in self.runs], "differs": self.differs}

    def __str__(self) -> str:
        lines = _table([HEAD, *(_cells(run) for run in self.runs)])
        if self.differs:
            lines += ["", "what differs:"]
        for name, values in self.differs.items():
            if len({str(value) for value in values.values()}) == len(values) or name == "spec":
                lines += [f"  {name}:", *_of_each(values)]
            else:
                lines += [f"  {name}:", *_of_groups(values)]
        return "\n".join(lines)


HEAD = (
    "run", "spec", "trainer", "algorithm", "steps", "last mean", "evaluation", "best", "at step", "time",
    "steps/s",
)  # fmt: skip


def compare(paths: Iterable[str | Path]) -> Comparison:
    """The runs in ``paths``: folders of runs, or folders that hold such folders. Raises TrainingError where is none."""
    folders = [run for path in paths for run in _runs(Path(path))]
    read = {str(folder): _read(folder) for folder in dict.fromkeys(folders)}
    runs = [_compared(Path(name), task, about) for name, (task, about) in read.items()]
    runs.sort(key=lambda run: (-run.worth, run.run))
    tasks = {run.run: read[run.run][0] for run in runs}
    return Comparison(runs, {**_other_options(tasks), **_other_specs(tasks)})


def _runs(path: Path) -> list[Path]:
    if answer(path / "run.json", Path.exists):
        return [path]
    if not answer(path, Path.is_dir):
        raise TrainingError(f"there is no folder {cut(str(path), 200)!r}{near_folder(path)}")
    inner = sorted(
        p for p in path.iterdir() if answer(p, Path.is_dir) and not p.name.startswith(".")
    )
    runs = [run for folder in inner for run in (_runs(folder) if _holds_runs(folder) else [])]
    if not runs:
        raise TrainingError(f"there is no run of composer train in {str(path)!r}")
    return runs


def _holds_runs(path: Path) -> bool:
    """Whether ``path`` is a run, or several with different seeds."""
    return any(answer(path / name, Path.exists) for name in ("run.json", "seeds.json"))


def _read(folder: Path) -> tuple[Task, Mapping[str, Any]]:
    record = read_record(folder / "run.json")
    about = record.get("about")
    return task_of(record, folder / "run.json"), about if isinstance(about, dict) else {}


def _compared(folder: Path, task: Task, about: Mapping[str, Any]) -> ComparedRun:
    curve, progress, evaluations = (
        _rows(folder / f"{name}.csv") for name in ("curve", "progress", "evaluations")
    )
    best = max(evaluations, key=lambda row: row.get("return_mean", -float("inf")), default={})
    steps = [int(row.get("step", 0)) for rows in (curve[-1:], progress[-1:]) for row in rows]
    is_whole = answer(folder / "evaluation.json", Path.exists)
    evaluation = read_evaluation(folder) if is_whole else {}
    speeds = [row["steps_per_second"] for row in progress if "steps_per_second" in row]
    return ComparedRun(
        str(folder), str(about.get("file") or "-"), task.environment, task.trainer, task.algorithm, task.seed,
        int(evaluation.get("steps", max(steps, default=0))),
        curve[-1].get("return_mean_100") if curve else None, evaluation.get("mean"),
        best.get("return_mean"), int(best["step"]) if "step" in best else None,
        _number(about.get("seconds")), sum(speeds) / len(speeds) if speeds else None,
    )  # fmt: skip


def _rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of a run; none where it is missing."""
    return read_table(path) if answer(path, os.path.lexists) else []


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and 0 <= value < MOST_COUNTED:  # False for NaN
        return float(value)
    return None


# --- what differs ---


def _other_options(tasks: Mapping[str, Task]) -> dict[str, dict[str, Any]]:
    """Values by run, of each option that has more than one."""
    flat = {run: _flat(task) for run, task in tasks.items()}
    names = dict.fromkeys(name for values in flat.values() for name in values)
    differing = {name: {run: values.get(name) for run, values in flat.items()} for name in names}
    return {
        name: values
        for name, values in differing.items()
        if len({repr(value) for value in values.values()}) > 1
    }


def _flat(task: Task) -> dict[str, Any]:
    values = {name: value for name, value in asdict(task).items() if name != "spec"}
    for name in ("settings", "env_set"):
        values |= {f"{name}.{key}": value for key, value in values.pop(name).items()}
    return values


def _other_specs(tasks: Mapping[str, Task]) -> dict[str, dict[str, list[str]]]:
    """What differs in the specs, from the spec of the first run."""
    runs = list(tasks)
    if len({task.spec for task in tasks.values()}) < 2:
        return {}
    data = {run: stored_source(tasks[run].spec, f"{run}/run.json").data for run in runs}
    lines = {run: diff_specs(data[runs[0]], data[run]) for run in runs[1:]}
    shown = {
        run: [*each[:MOST_LINES], *["..."][: len(each) > MOST_LINES]] for run, each in lines.items()
    }
    return {"spec": {run: each for run, each in shown.items() if each}}


# --- as text ---


def _cells(run: ComparedRun) -> list[str]:
    def text(value: float | None, form: str = NUMBER) -> str:
        return "-" if value is None else form.format(value)

    return [
        run.run, cut(run.spec, 40), run.trainer, run.algorithm, text(run.steps, COUNT), text(run.last),
        text(run.evaluation), text(run.best), text(run.best_step, COUNT), _time(run.seconds),
        text(run.steps_per_second, "{:,.0f}"),
    ]  # fmt: skip


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 4 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _of_each(values: Mapping[str, Any]) -> list[str]:
    lines = []
    for run, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            lines.append(f"    {run}: {text}")
    return lines


def _of_groups(values: Mapping[str, Any]) -> list[str]:
    """Runs of one value on one line."""
    groups: dict[str, list[str]] = {}
    for run, value in values.items():
        groups.setdefault(str(value), []).append(run)
    return [f"    {value}: {', '.join(runs)}" for value, runs in groups.items()]
