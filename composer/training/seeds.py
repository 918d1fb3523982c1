"""A run with several seeds: a folder for each, one after the other, and their mean with a band in one picture.

``seeds.json`` says what the runs are, ``seed-0`` and so on are their folders; ``curve.csv``, ``curve.png`` and
``evaluation.json`` follow from these.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from composer.atomic import WriteError, replace_with
from composer.limits import GivenLimits
from composer.source.load import GivenSpec, Override, stored_source
from composer.training.about import about_run
from composer.training.curve import SeedCurves
from composer.training.exclusive import answer, in_use, new_folder, refuse_links_outside
from composer.training.folder import RunFolder
from composer.training.options import refuse_wrong
from composer.training.resumed import refuse_another_task
from composer.training.session import prepare, resume, train, tried
from composer.training.stored import VERSION, read_curve, read_evaluation, read_record, task_of
from composer.training.trainer import Task, TrainingError

__all__ = ["SeedsOutcome", "are_seeds", "resume_seeds", "train_seeds"]

FORMAT, RECORD, BEGINNING = "composer-seeds", "seeds.json", "begin.safetensors"
FILES = (RECORD, BEGINNING, "curve.csv", "curve.png", "evaluation.json")
MOST_SEEDS = 1000


@dataclass(frozen=True)
class SeedsOutcome:
    """The mean returns of the evaluations by seed, of those that are complete; ``signal`` interrupted the others."""

    folder: Path
    seeds: Sequence[int]
    means: dict[int, float]
    signal: int | None = None

    def __str__(self) -> str:
        means = list(self.means.values())
        return f"mean return {fmean(means):.2f}, std over seeds {pstdev(means):.2f}, {len(means)} seeds"


def are_seeds(path: str | Path) -> bool:
    """Whether the folder ``path`` is a run with several seeds."""
    return answer(Path(path) / RECORD, Path.exists)


def train_seeds(
    spec: GivenSpec,
    out: str | Path,
    seeds: Sequence[int],
    *,
    env: str | None = None,
    weights: str | Path | None = None,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    limits: GivenLimits = None,
    others: Iterable[str] = (),
    **options: Any,
) -> SeedsOutcome:
    """Train a model of ``spec`` with each of the ``seeds``; raises as `session.train`, before anything is created."""
    out, overrides, allow = Path(out), list(overrides), list(allow)
    wrong = _wrong_seeds(seeds, options)
    options["seed"] = seeds[0] if not wrong else 0
    prepared = prepare(
        spec, out, env=env, weights=weights, allow=allow, overrides=overrides, limits=limits,
        others=[*others, *wrong], **options,
    )  # fmt: skip
    if prepared.model.first_weights:
        raise TrainingError(
            "the runs of several seeds begin from the spec alone, without the files of its 'weights'; train them one "
            "by one, with --seed"
        )
    tried(prepared)
    about = about_run(prepared.task, prepared.file, overrides)

    def fill(hidden: Path) -> None:
        _write_record(hidden, prepared.task, seeds, about)
        if weights is not None:
            shutil.copyfile(weights, hidden / BEGINNING)

    with new_folder(out, fill):
        return _go_on(out, prepared.task, seeds, about, allow, limits)


def resume_seeds(
    path: str | Path,
    *,
    steps: int | None = None,
    allow: Iterable[str] = (),
    limits: GivenLimits = None,
    **given: Any,
) -> SeedsOutcome:
    """Continue the runs in the folder ``path``: those that are not complete, or all of them to more ``steps``."""
    path = Path(path)
    with in_use(path):
        refuse_links_outside(path, FILES)
        task, seeds, about = _read(path)
        refuse_links_outside(path, [f"seed-{seed}" for seed in seeds])
        refuse_another_task(path, task, given)
        if steps is not None and steps <= task.steps:
            raise TrainingError(
                f"the runs in {str(path)!r} have {task.steps:,} steps; to continue, give a larger total: --steps"
            )
        if steps is not None:
            task = replace(task, steps=steps)
            refuse_wrong(task)
            _write_record(path, task, seeds, about)
        return _go_on(path, task, seeds, about, list(allow), limits)


def _go_on(
    path: Path,
    task: Task,
    seeds: Sequence[int],
    about: dict[str, Any],
    allow: Sequence[str],
    limits: GivenLimits,
) -> SeedsOutcome:
    """Train every seed that is not complete. The picture is of those that have begun."""
    means: dict[int, float] = {}
    for seed in seeds:
        folder = path / f"seed-{seed}"
        if not _is_complete(folder, task):
            outcome = _train_one(path, folder, replace(task, seed=seed), about, allow, limits)
            if outcome.signal is not None:
                return SeedsOutcome(path, seeds, means, outcome.signal)
        means[seed] = read_evaluation(folder)["mean"]
        _write_results(path, task, seeds, means)
    return SeedsOutcome(path, seeds, means)


def _train_one(
    path: Path,
    folder: Path,
    task: Task,
    about: dict[str, Any],
    allow: Sequence[str],
    limits: GivenLimits,
) -> Any:
    if folder.exists():
        steps = task.steps if RunFolder.open(folder).task.steps < task.steps else None
        return resume(folder, steps=steps, allow=allow, limits=limits)
    source = stored_source(task.spec, path / RECORD)
    source.name = about.get("file") or source.name
    beginning = path / BEGINNING
    options = {
        name: value for name, value in asdict(task).items() if name not in ("spec", "environment")
    }
    return train(
        source, folder, env=task.environment, weights=beginning if beginning.exists() else None,
        allow=allow, limits=limits, **options,
    )  # fmt: skip


def _is_complete(folder: Path, task: Task) -> bool:
    if not (folder / "evaluation.json").exists():
        return False
    return RunFolder.open(folder).task.steps >= task.steps


# --- its files ---


def _wrong_seeds(seeds: Sequence[int], options: dict[str, Any]) -> list[str]:
    problems = []
    if "seed" in options:
        problems.append("give --seed N or --seeds N,N,..., not both")
    if not seeds or any(type(seed) is not int or not 0 <= seed < 2**31 for seed in seeds):
        problems.append("--seeds must be integers of 0 or more, such as 0,1,2")
    elif len(set(seeds)) < len(seeds) or len(seeds) > MOST_SEEDS:
        problems.append(f"--seeds must be different ones, {MOST_SEEDS:,} at most")
    return problems


def _write_record(path: Path, task: Task, seeds: Sequence[int], about: dict[str, Any]) -> None:
    head = {"format": FORMAT, "version": VERSION, "seeds": list(seeds)}
    _write_json(path / RECORD, {**head, **asdict(task), "about": about})


def _read(path: Path) -> tuple[Task, list[int], dict[str, Any]]:
    record = read_record(path / RECORD, FORMAT)
    seeds = record.get("seeds")
    if not isinstance(seeds, list) or _wrong_seeds(seeds, {}):
        raise TrainingError(f"{RECORD} in {str(path)!r} cannot be read: it has no 'seeds'")
    about = record.get("about")
    return (
        task_of(record, path / RECORD, ["seeds"]),
        seeds,
        about if isinstance(about, dict) else {},
    )


def _write_results(path: Path, task: Task, seeds: Sequence[int], means: dict[int, float]) -> None:
    """The curves of all seeds that have begun, and the evaluations of those that are complete."""
    begun = [folder for seed in seeds if (folder := path / f"seed-{seed}").exists()]
    curves = SeedCurves([read_curve(folder / "curve.csv") for folder in begun])
    values = list(means.values())
    record = {"seeds": means, "mean": fmean(values), "std": pstdev(values)}
    _write_json(path / "evaluation.json", record)
    title = f"{task.environment}: {task.algorithm} of {task.trainer}"
    _write(path / "curve.csv", curves.write_csv)
    if curves.steps:
        _write(path / "curve.png", lambda file: curves.draw(file, title))


def _write_json(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2) + "\n"
    _write(path, lambda file: Path(file).write_text(text, encoding="utf-8"))


def _write(path: Path, write: Any) -> None:
    try:
        replace_with(path, write)
    except WriteError as error:
        raise TrainingError(str(error)) from error
