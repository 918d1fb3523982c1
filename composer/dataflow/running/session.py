"""A run of an experiment, from its beginning or from its last checkpoint, on this process or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.calls.experiment import Experiment
from composer.dataflow.calls.experiments import QUICKSTARTS, named_folder, translated
from composer.dataflow.data.datasets import (
    DatasetUtil,
    ItemDataset,
    batches,
    batches_per_epoch,
    make_dataset,
)
from composer.dataflow.data.samples import Sample
from composer.dataflow.running.local import LocalRunner, Tokenizers
from composer.dataflow.running.run_folder import RunFolder, RunRecord
from composer.dataflow.running.run_log import RunLog
from composer.dataflow.running.schedule import RunError, Runner, WorkerDiedError, run_iterations
from composer.dataflow.running.written import values_of
from composer.errors import Position, Problem, SpecError
from composer.source.files import allowed_folders, outside, real_path
from composer.source.load import GivenSpec, Override
from composer.training.events import EVENTS, Events, require_tensorboard
from composer.training.exclusive import in_use, refuse_taken
from composer.training.interruption import Interruption, interruption_noted
from composer.trust import allow_list, allow_options
from perception_blocks.reading import files_found
from perception_blocks.registry import missing_extra
from perception_blocks.settings import SettingsError
from perception_blocks.words import hint

__all__ = ["run"]

RunnerName = Literal["local", "ray"]
# Without run.save_every: the least time between two checkpoints, in seconds and in times that saving one takes.
SAVE_EVERY_S, SAVING_SHARE = 30.0, 20
# What of `run` a resumed run may change.
LATER = ("iterations", "runner", "workers", "save_every", "restarts")
_LOGGER = logging.getLogger(__name__)


def run(
    experiment: GivenSpec | Experiment | None = None,
    overrides: Iterable[Override] = (),
    allow: Iterable[str] = (),
    runner: RunnerName | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    *,
    address: str | None = None,
    tensorboard: bool = False,
) -> RunLog:
    """Run an experiment: a registered name such as ``ppo``, a file, YAML text or a mapping.

    ``overrides`` and ``allow`` are as for `composer.compose`; ``runner`` replaces the experiment's ``run.runner``.
    ``out`` is the new folder of the run; without one nothing is saved, unless an experiment of ours is given an
    ``experiment_name`` or a ``trial_name``, for ``runs/NAME/TRIAL``. ``resume`` is the folder of a run to go on with:
    then no ``experiment`` is given, and ``overrides`` may change ``run`` but for its seed. With ``address`` the runner
    "ray" uses that cluster. With ``tensorboard`` the log is also written as event files, into the run's folder.

    Raises SpecError for a wrong experiment, RunError where a run cannot start or go on, MissingExtraError where a
    library is missing; and what an interface raises, with its call and its place as a note.

    >>> log = run("sft", ["run.iterations=2"])
    >>> len(log.rows)
    2
    """
    allow, overrides = allow_list(allow), list(overrides)
    if (experiment is None) == (resume is None):
        raise RunError("give an experiment, or the folder of a run to resume")
    if tensorboard:
        require_tensorboard()
    if resume is None:
        assert experiment is not None
        given = experiment.source if isinstance(experiment, Experiment) else experiment
        read = read_experiment(given, translated(given, overrides), allow)
        where = nullcontext(None)
        out = named_folder(experiment, overrides) if out is None else out
        if tensorboard and out is None:
            raise RunError("event files are written into the folder of the run; give one: -o DIR")
        if out is not None:
            _require_curve()
            refuse_taken(Path(out))
            where = RunFolder.create(Path(out), _record(read), read.source.to_yaml())
        return _Run(read, allow, runner, address, out, tensorboard).with_folder(where)
    if out is not None:
        raise RunError("give 'out' for a new run, or 'resume', not both")
    _require_curve()
    with in_use(Path(resume)):
        folder = RunFolder.open(Path(resume))
        read = _stored(folder, overrides, allow)
        started = _Run(read, allow, runner, address, resume, tensorboard)
        return started.with_folder(nullcontext(folder))


# --- what a folder says -----------------------------------------------------------------------------------------------


def _record(experiment: Experiment) -> RunRecord:
    return RunRecord(experiment.name, list(experiment.source.folders))


def _stored(folder: RunFolder, overrides: Iterable[Override], allow: tuple[str, ...]) -> Experiment:
    """The experiment of a run. Its files must lie where the caller lets it read, not where the folder says so."""
    problems = [p for p in map(_why_not_later, overrides) if p is not None]
    if problems:
        raise SpecError(problems)
    here = [
        real_path(""),
        real_path(str(folder.path)),
        real_path(str(QUICKSTARTS)),
        *allowed_folders(allow),
    ]
    for file in folder.record.folders:
        if outside(file, here):
            name = shlex.quote(os.path.join(file, ""))
            raise RunError(
                f"the run in {str(folder.path)!r} reads files in {file!r}, which is neither the current folder nor "
                f"below it; pass allow=[{os.path.join(file, '')!r}] or --allow {name} if it may"
            )
    files = [os.path.join(file, "") for file in folder.record.folders]
    text = folder.text if "\n" in folder.text else folder.text + "\n"
    read = read_experiment(text, overrides, [*allow, *files])
    return replace(read, name=folder.record.name)


def _why_not_later(override: Override) -> Problem | None:
    key = override.partition("=")[0] if isinstance(override, str) else override[0]
    path = key.strip().split(".") if isinstance(key, str) else list(map(str, key))
    if path[0] == "run" and path[1:] and path[1] in LATER:
        return None
    near = hint(path[-1], LATER, "of 'run' it may change")
    shown = override if isinstance(override, str) else ".".join(path)
    message = f"a run goes on with its own experiment, so {'.'.join(path)!r} stays as it is{near}"
    return Problem(message, tuple(path), Position(f"--set {shown}"))


def _require_curve() -> None:
    """What a folder has needs matplotlib; it is missed before anything is built."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("the folder of a run", error, "train") from error


# --- the run itself ---------------------------------------------------------------------------------------------------


class _Run:
    """One run, in as many attempts as `run.restarts` allows."""

    def __init__(
        self,
        experiment: Experiment,
        allow: tuple[str, ...],
        runner: RunnerName | None,
        address: str | None,
        path: str | Path | None,
        tensorboard: bool = False,
    ) -> None:
        self._tensorboard = tensorboard
        self.experiment, self.allow, self.address = experiment, allow, address
        self.path = None if path is None else os.path.abspath(path)  # of the folder, from now on
        self.kind = runner or ("ray" if address else experiment.run.runner)
        self.folder: RunFolder | None = None
        self.log = RunLog()
        self.saved = 0  # iterations in the last checkpoint
        self._doing = "starting"
        self._save_at = 0.0
        if address is not None and self.kind != "ray":
            raise RunError("an address is that of a Ray cluster; give the runner 'ray' too")

    def with_folder(self, folder: AbstractContextManager[RunFolder | None]) -> RunLog:
        """Run in ``folder``, which is there only once all is read and built."""
        dataset = self._dataset()
        runner = self._runner()
        with ExitStack() as stack:
            try:
                self.folder = stack.enter_context(folder)
            except BaseException:
                runner.close()
                raise
            self.log.folder = None if self.folder is None else self.folder.path
            self._attempts(dataset, runner)
        return self.log

    def _attempts(self, dataset: ItemDataset, runner: Runner) -> None:
        for left in range(self.experiment.run.restarts, -1, -1):
            try:
                return self._attempt(dataset, runner)
            except WorkerDiedError as error:
                if not left:
                    raise RunError(f"{error}{self._way_out()}") from error
                where = f"the checkpoint after {self.saved} iterations"
                _LOGGER.warning(
                    "%s; the run starts again from %s (run.restarts: %d left)",
                    error, where if self.saved else "the beginning", left - 1,
                )  # fmt: skip
            runner = self._runner()

    def _attempt(self, dataset: ItemDataset, runner: Runner) -> None:
        self._doing = "starting"
        try:
            self._restore(runner)
            with (
                _progress(self.experiment.run.iterations, len(self.log.rows)) as show,
                interruption_noted(lambda: self._doing) as interruption,
                self._events() as note,
            ):
                self._iterations(runner, dataset, show, note, interruption)
        finally:
            runner.close()

    def _runner(self) -> Runner:
        if self.kind == "ray":
            from composer.dataflow.running.on_ray import RayRunner

            return RayRunner(self.experiment, self.allow, self.address, folder=self.path)
        return LocalRunner(self.experiment, self.allow, folder=self.path)

    def _restore(self, runner: Runner) -> None:
        """Go back to the last checkpoint, or to the beginning."""
        checkpoint = self.folder.latest() if self.folder is not None else None
        self.log.rows = [] if checkpoint is None else list(checkpoint.rows)
        self.saved = len(self.log.rows)
        if self.saved >= self.experiment.run.iterations:
            raise RunError(
                f"the run in {str(self.log.folder)!r} has made its {self.saved} iterations; to go on, give a larger "
                f"number: run.iterations={2 * self.saved}"
            )
        if checkpoint is not None:
            runner.load(str(checkpoint.path))

    def _iterations(
        self,
        runner: Runner,
        dataset: ItemDataset,
        show: Callable[[int], None],
        note: Callable[[int, Mapping[str, float]], None],
        interruption: Interruption,
    ) -> None:
        spec = self.experiment
        self._save_at = time.monotonic() + SAVE_EVERY_S

        def batch(iteration: int) -> Mapping[str, Sample]:
            self._doing = f"iteration {iteration}"
            with _at_dataset(spec):
                sample = batches(dataset, spec.data.batch_size, spec.run.seed, iteration)
            return values_of(sample, sorted(sample.keys))

        for row in run_iterations(spec, runner, batch, len(self.log.rows)):
            self.log.rows.append(row)
            show(len(self.log.rows))
            note(len(self.log.rows), row)
            if interruption or self._is_due():
                self._save(runner)
            if interruption:
                self.log.signal = interruption.signal
                break
        self._finish(runner)

    @contextmanager
    def _events(self) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
        """Event files of the numbers of each iteration, if the caller wants them."""
        if not self._tensorboard or self.folder is None:
            yield lambda *_: None
            return
        events = Events(self.folder.path / EVENTS, len(self.log.rows) + 1)
        with closing(events):
            yield events.add

    def _is_due(self) -> bool:
        every = self.experiment.run.save_every
        if every is not None:
            return len(self.log.rows) % every == 0
        return time.monotonic() >= self._save_at

    def _save(self, runner: Runner) -> None:
        if self.folder is None or self.saved == len(self.log.rows):
            return
        begun, self._doing = time.monotonic(), "saving"
        self.folder.save(self.log, runner.save)
        self.folder.write_log(self.log)
        self.saved = len(self.log.rows)
        now = time.monotonic()
        self._save_at = now + max(SAVE_EVERY_S, SAVING_SHARE * (now - begun))

    def _finish(self, runner: Runner) -> None:
        self._save(runner)
        if self.folder is not None:
            self.folder.draw(self.log)
            self.folder.write_models()

    def _dataset(self) -> ItemDataset:
        spec = self.experiment
        util = DatasetUtil(seed=spec.run.seed, tokenizer=Tokenizers(spec).of_data())
        with files_found(spec.source.find_file, has_weights=False), _at_dataset(spec):
            dataset = make_dataset(spec.data.dataset, spec.data.settings, util)
        batches_per_epoch(dataset, spec.data.batch_size)  # raises before models are built
        return dataset

    def _way_out(self) -> str:
        if self.folder is None:
            return "; with a folder (-o DIR) a run can be resumed"
        options = allow_options(self.allow)
        return (
            f"; go on from the last checkpoint: composer run --resume {self.folder.path}{options}"
        )


@contextmanager
def _progress(iterations: int, done: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal; none without tqdm."""
    try:
        from composer.training.progress import ProgressBar
    except ImportError:
        yield lambda _: None
        return
    with ProgressBar(iterations, done, unit="iteration") as bar:
        bar.phase("running")
        yield bar.show


@contextmanager
def _at_dataset(experiment: Experiment) -> Iterator[None]:
    """What a data set raises is told at its place."""
    try:
        yield
    except SettingsError as error:
        place = experiment.source.position(experiment.data.path)
        raise SpecError([Problem(str(error), experiment.data.path, place)]) from error
    except Exception as error:
        place = experiment.where(experiment.data.path)
        error.add_note(f"in {place}data set {experiment.data.dataset!r}")
        raise
