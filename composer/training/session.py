"""A run of training, from its beginning or from where it was interrupted, to the evaluation at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from composer.checkpoint.file import LoadReport, fill_whole
from composer.checkpoint.file import read_record as read_checkpoint
from composer.checkpoint.plain_spec import saved_spec
from composer.errors import Problem, SpecError
from composer.limits import GivenLimits
from composer.model import Model, compose
from composer.source.dump import dump_yaml
from composer.source.load import GivenSpec, Override, Source, load_source, stored_source
from composer.spaces.json_form import spaces_differ
from composer.spaces.lookup import is_by_actor, make_environment, own_environment
from composer.spaces.pettingzoo import PREFIX
from composer.training.about import about_run
from composer.training.curve import LearningCurve
from composer.training.environment import environment_maker
from composer.training.evaluation import Evaluation, acting
from composer.training.events import EVENTS, Events
from composer.training.exclusive import in_use
from composer.training.failures import as_training_errors, refuse_no_memory, told
from composer.training.folder import BEST, CHECKPOINTS, MODEL, VIDEO, RunFolder
from composer.training.interruption import Interruption, interruption_noted
from composer.training.options import refuse_wrong, trainer_class_of
from composer.training.progress import ProgressBar
from composer.training.recorder import Recorder
from composer.training.records import EvaluationLog, ProgressLog, Records
from composer.training.resumed import LATER, refuse_another, restore
from composer.training.stored import Saved
from composer.training.telling import processes_tell, told_by_a_process
from composer.training.trainer import Task, Trainer, TrainingError
from composer.training.video import film
from composer.trust import allow_list, check_environment, import_extensions
from perception_blocks.words import few_of

__all__ = ["Outcome", "resume", "train"]

# What a user looks at, in this order.
SHOWN = (
    MODEL, BEST, CHECKPOINTS, "curve.csv", "curve.png", "progress.csv", "evaluations.csv", EVENTS, VIDEO,
    "evaluation.json",
)  # fmt: skip
ROWS = 100  # of a learning curve
ROWS_OF_PROGRESS = 1000  # at most


@dataclass(frozen=True)
class Outcome:
    """The result of a run: ``evaluation`` is None if a ``signal`` interrupted it.

    ``best`` is the step of the best evaluation, None without ``eval_every``; ``report`` says what a ``partial`` run has
    begun with.
    """

    folder: Path
    task: Task
    steps: int
    evaluation: Evaluation | None
    signal: int | None
    best: int | None = None
    report: LoadReport | None = None

    @property
    def files(self) -> list[str]:
        """What the run has written for users, of `SHOWN`."""
        return [name for name in SHOWN if (self.folder / name).exists()]


def train(
    spec: GivenSpec | Model,
    out: str | Path,
    *,
    env: str | None = None,
    weights: str | Path | None = None,
    partial: bool = False,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    limits: GivenLimits = None,
    others: Iterable[str] = (),
    **options: Any,
) -> Outcome:
    """Train a model of ``spec``, and write the results to the new folder ``out``.

    A `Model` as ``spec`` is trained itself. ``weights`` is a checkpoint to begin with, if ``partial`` with those of its
    nodes that fit; ``options`` are the other fields of `Task`. ``others`` are errors that are known already, to be told
    with all that is wrong here.

    Raises SpecError for a wrong spec, MissingExtraError where a library is missing, TrainingError for all else that a
    user gave wrongly. In each of these cases there is no folder afterwards.
    """
    prepared = prepare(
        spec, Path(out), env=env, weights=weights, partial=partial, allow=allow, overrides=overrides, limits=limits,
        others=others, **options,
    )  # fmt: skip
    task = prepared.task
    about = about_run(task, prepared.file, list(overrides))
    with ExitStack() as stack:
        trainer = _made(stack, prepared)
        records = Records(LearningCurve(_every(task, ROWS)), EvaluationLog(), _progress_log(task))
        # Once the folder can be seen, a signal may come: from then on it is noted.
        watched = stack.enter_context(_watched(task, 0))
        folder = stack.enter_context(RunFolder.create(Path(out), task, trainer, records, about))
        outcome = _run(folder, trainer, records, 0, *watched)
        return replace(outcome, report=prepared.report)


class Prepared(NamedTuple):
    """What a run begins with, all of it checked; ``file`` is the name of its spec, ``report`` of a partial start."""

    task: Task
    trainer_class: type[Trainer]
    model: Model
    file: str | None = None
    report: LoadReport | None = None


def prepare(
    spec: GivenSpec | Model,
    out: Path,
    *,
    env: str | None = None,
    weights: str | Path | None = None,
    partial: bool = False,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    limits: GivenLimits = None,
    others: Iterable[str] = (),
    **options: Any,
) -> Prepared:
    """Check what `train` is given, and build the model; raises as it does, with the ``others`` that are wrong."""
    allow = allow_list(allow)
    given = spec if isinstance(spec, Model) else None
    source = given.source if given else load_source(spec, overrides, allow)  # type: ignore[arg-type]
    if source.data.get("model") is not None:
        raise TrainingError(
            "no trainer trains an action model: write its loop, as configs/action_ppo.py does"
        )
    environment = env or own_environment(source, allow)
    if not isinstance(environment, str):
        raise TrainingError("the spec names no environment; give one with --env ID")
    task = Task(spec="", environment=environment, **options)
    trainer_class = refuse_wrong(task, out, others)
    model = given or _composed(source, task, allow, limits)
    if given:
        _refuse_unlike(given, task, allow)
    task = replace(task, spec=dump_yaml(saved_spec(model.source.data, model)))
    report = None
    if weights is not None and partial:
        report = _begin_with_what_fits(model, weights)
    elif weights is not None:
        _refuse_other_spaces(weights, model, limits, "\n--partial loads the nodes that fit")
        fill_whole(model, weights)
    return Prepared(task, trainer_class, model, source.name, report)


def _begin_with_what_fits(model: Model, weights: str | Path) -> LoadReport:
    """Load what fits of the checkpoint ``weights``. Raises TrainingError where nothing does."""
    report = model.load_weights(weights, strict=False)
    if not report.loaded:
        raise TrainingError(f"nothing of {str(weights)!r} fits the model: {report}")
    return report


def tried(prepared: Prepared) -> None:
    """Raise as `train` does where the trainer cannot train the model."""
    with ExitStack() as stack:
        _made(stack, prepared)


def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    spec: GivenSpec | None = None,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    limits: GivenLimits = None,
    **given: Any,
) -> Outcome:
    """Continue the run in the folder ``path``, to more ``steps`` if given.

    ``spec`` and the ``given`` fields of a `Task` must equal the run's, but for ``threads``, ``device``, ``subprocess``,
    ``keep``, ``probe_every``, ``tensorboard`` and ``video``. Raises as `train`; the folder is then as it was.
    """
    allow = allow_list(allow)
    if spec is not None:
        spec = load_source(spec, overrides, allow)
    with in_use(Path(path)):
        folder = RunFolder.open(Path(path))
        refuse_another(folder, given, spec, allow, limits)
        changed = {name: value for name, value in given.items() if name in LATER}
        if steps is not None:
            changed["steps"] = steps
        folder = RunFolder(folder.path, replace(folder.task, **changed), folder.about)
        return _resume(folder, allow, limits, goes_on=steps is not None)


def _resume(folder: RunFolder, allow: Sequence[str], limits: GivenLimits, goes_on: bool) -> Outcome:
    """Continue a run that no other process uses; ``goes_on`` if the caller asked for more steps."""
    task = folder.task
    problem = check_environment(task.environment, allow)
    if problem:  # a file names it, and only the caller can allow what it imports
        raise SpecError([Problem(problem)])
    trainer_class = trainer_class_of(task)
    saved = folder.load()
    is_whole = (folder.path / "evaluation.json").exists()  # an evaluation may have been interrupted
    if saved["steps"] >= task.steps and (is_whole or goes_on):
        raise TrainingError(
            f"the run in {str(folder.path)!r} has made its {saved['steps']:,} steps; "
            "to continue, give a larger total: --steps"
        )
    model = _composed(stored_source(task.spec, folder.path / "run.json"), task, allow, limits)
    if (folder.path / MODEL).exists():
        _refuse_other_spaces(folder.path / MODEL, model, limits)
    folder.about |= about_run(task, **_kept(folder))
    with ExitStack() as stack:
        trainer = _made(stack, Prepared(task, trainer_class, model))
        restore(trainer, saved, folder)
        records = _records(task, saved)
        best = records.evaluations.best
        folder.begin_again(trainer, saved, best and best.step)
        watched = stack.enter_context(_watched(task, saved["steps"]))
        return _run(folder, trainer, records, saved["steps"], *watched)


def _kept(folder: RunFolder) -> dict[str, Any]:
    """What was known of the run when it began."""
    return {"file": folder.about.get("file"), "overrides": folder.about.get("overrides", [])}


def _composed(spec: Source, task: Task, allow: Sequence[str], limits: GivenLimits) -> Model:
    """The model of ``spec`` for the environment of ``task``, whose spaces its arguments may change."""
    if not task.env_set:
        return compose(spec, env=task.environment, allow=allow, seed=task.seed, limits=limits)
    import_extensions(spec, allow)
    with closing(make_environment(task.environment, arguments=task.env_set)) as env:
        return compose(spec, env=env, allow=allow, seed=task.seed, limits=limits)


def _every(task: Task, rows: int) -> int:
    return max(1, task.steps // rows)


def _progress_log(task: Task, saved: Saved | None = None) -> ProgressLog:
    return ProgressLog(_every(task, ROWS_OF_PROGRESS), saved["progress"] if saved else ())


def _records(task: Task, saved: Saved) -> Records:
    """What a resumed run has recorded before."""
    curve = LearningCurve(_every(task, ROWS), saved["curve"], saved["recent"])
    evaluations = EvaluationLog(saved["evaluations"])
    return Records(curve, evaluations, _progress_log(task, saved), saved["seconds"])


# --- the run itself ---


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes with ``count`` threads in this context: small networks are slower with many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _made(stack: ExitStack, prepared: Prepared) -> Trainer:
    """A trainer that is closed, with all that it needs, when the ``stack`` is."""
    task, trainer_class, model, *_ = prepared
    stack.enter_context(threads(task.threads))
    stack.enter_context(processes_tell(task))
    with told():
        trainer = _trainer(trainer_class, task, model)
    stack.callback(_close, trainer)
    return trainer


def _close(trainer: Trainer) -> None:
    try:
        trainer.close()
    except Exception:  # a process that has told why it ended does not answer
        if told_by_a_process() is None:
            raise


@contextmanager
def _watched(task: Task, done: int) -> Iterator[tuple[ProgressBar, Interruption]]:
    """The progress bar of a run, and the signals that are noted while it is shown."""
    with (
        ProgressBar(task.steps, done) as bar,
        interruption_noted(lambda: bar.now) as interruption,
    ):
        yield bar, interruption


def _run(
    folder: RunFolder,
    trainer: Trainer,
    records: Records,
    done: int,
    bar: ProgressBar,
    interruption: Interruption,
) -> Outcome:
    task = folder.task
    with ExitStack() as stack:
        events = None
        if task.tensorboard:
            events = Events(folder.path / EVENTS, done + 1)
            stack.callback(events.close)
        recorder = Recorder(folder, trainer, records, bar, interruption, events, done)
        stack.enter_context(as_training_errors(recorder))
        if done < task.steps:
            trainer.learn(task.steps, recorder, bar.phase)
        if not interruption:
            recorder.close_rows()
        recorder.save()
        evaluation = None if interruption else recorder.evaluate_at_the_end()
        if evaluation is not None and task.video:
            _write_video(folder, trainer, bar, interruption)
        if interruption:
            evaluation = None
        if evaluation is not None:
            folder.write_evaluation(evaluation, recorder.steps)
        best = records.evaluations.best if task.eval_every else None
        return Outcome(
            folder.path, task, recorder.steps, evaluation, interruption.signal, best and best.step
        )


def _write_video(
    folder: RunFolder, trainer: Trainer, bar: ProgressBar, interruption: Interruption
) -> None:
    """The first episode of the evaluation, with the weights of the best one. The trainer has them afterwards."""
    bar.phase("filming")
    task = folder.task
    if (folder.path / BEST).exists():
        fill_whole(trainer.model, folder.path / BEST)
    with acting(trainer.model):
        folder.write_video(
            lambda path: film(
                trainer.act, environment_maker(task), task.seed, path, lambda: bool(interruption)
            )
        )


# --- what a user may have given wrongly ---


def _refuse_unlike(model: Model, task: Task, allow: Sequence[str]) -> None:
    """Raise TrainingError for a given ``model`` that a resumed run would not make again from its spec."""
    again = _composed(model.source, task, allow, model.size_limits)
    spaces = [(each.observation_space, each.action_space) for each in (model, again)]
    pairs = zip(("observation", "action"), *spaces, strict=True)
    problems = [line for root, mine, new in pairs for line in spaces_differ(mine, new, root)]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise TrainingError(f"the model is for other spaces than the environment's:{lines}")
    trained = {name: p.requires_grad for name, p in again.named_parameters()}
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and trained.get(n)]
    if frozen:
        be, it = ("is", "it") if len(frozen) == 1 else ("are", "them")
        raise TrainingError(
            f"{few_of(frozen)} of the model {be} frozen, but not by its spec, so a resumed run would train {it}; "
            f"name {it} under 'freeze' in the spec"
        )


def _refuse_other_spaces(
    weights: str | Path, model: Model, limits: GivenLimits, advice: str = ""
) -> None:
    """Raise TrainingError, with ``advice``, where the checkpoint ``weights`` is of other spaces than ``model``."""
    needed = read_checkpoint(weights).spaces(limits)
    spaces = (model.observation_space, model.action_space)
    differences = [
        difference
        for root, mine, theirs in zip(("observation", "action"), needed, spaces, strict=True)
        for difference in spaces_differ(mine, theirs, root)
    ]
    if differences:
        lines = "".join(f"\n  {difference}" for difference in differences)
        raise TrainingError(
            f"{str(weights)!r} is a model for other spaces than the environment's:{lines}{advice}"
        )


def _trainer(trainer_class: type[Trainer], task: Task, model: Model) -> Trainer:
    takes_actors = getattr(trainer_class, "takes_actors", False)
    if is_by_actor(model.observation_space) and not takes_actors:
        actors = ", ".join(repr(actor) for actor in model.observation_space)
        out = "; use --trainer composer" if task.environment.startswith(PREFIX) else ""
        raise TrainingError(
            f"one policy of one agent is trained here, but the spec is of several steps or agents: {actors}{out}"
        )
    try:
        return trainer_class(task, model)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        refuse_no_memory(error)
        raise
