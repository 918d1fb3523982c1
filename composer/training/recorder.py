"""What a run does at every report of its trainer: it records, shows, evaluates, saves, and stops at a signal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from composer.spaces.lookup import make_environment
from composer.training.environment import environment_maker
from composer.training.evaluation import Evaluation, acting, evaluate
from composer.training.events import Events
from composer.training.folder import RunFolder
from composer.training.interruption import Interruption
from composer.training.progress import ProgressBar
from composer.training.records import Records
from composer.training.trainer import Episode, Trainer, TrainingError

__all__ = ["Recorder"]

SAVE_EVERY = 30.0  # seconds
SAVING_SHARE = 20  # saving may take this part of the time


class Recorder:
    """The `Report` of a run: it records, moves the bar, evaluates and saves now and then, and stops at a signal."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: Trainer,
        records: Records,
        bar: ProgressBar,
        interruption: Interruption,
        events: Events | None = None,
        done: int = 0,
    ) -> None:
        self._folder, self._trainer, self._records = folder, trainer, records
        self._bar, self._interruption, self._events = bar, interruption, events
        self._began = time.monotonic()
        self._aside = 0.0  # seconds that were no training
        self._save_at = self._began + SAVE_EVERY
        self._before = records.seconds
        self._evaluated = self._checkpointed = self._probed = self.steps = done
        self._make = environment_maker(folder.task)
        records.progress.begin(done, 0.0)

    def __call__(
        self, steps: int, episodes: Sequence[Episode], metrics: Mapping[str, float] | None = None
    ) -> bool:
        task, self.steps = self._folder.task, steps
        self._records.curve.add(steps, episodes)
        self._show(self._records.progress.add(steps, *self._times(), metrics))
        self._bar.show(steps, self._records.curve.recent_mean if episodes else None)
        if self._interruption:
            return False
        # Before the state of this step is saved: a run that is resumed there has it.
        if _passed(task.checkpoint_every, self._checkpointed, steps):
            self._checkpointed = steps
            with self._set_aside("saving"):
                self._refuse_diverged()
                self._folder.write_checkpoint(self._trainer, steps)
        if _passed(task.eval_every, self._evaluated, steps) and steps < task.steps:
            self._evaluated = steps
            self._evaluate_now()
        if _passed(task.probe_every, self._probed, steps):
            self._probed = steps
            self._probe_now()
        if time.monotonic() >= self._save_at:
            self.save()
        return not self._interruption

    def close_rows(self) -> None:
        """Complete the last rows, at the end of a run."""
        self._records.curve.close_row(self.steps)
        self._show(self._records.progress.close_row(self.steps, *self._times()))

    def save(self) -> None:
        with self._set_aside("saving") as begun:
            self._refuse_diverged()
            self._records.seconds, _ = self._times()
            self._folder.save(self._trainer, self._records, self.steps)
            if self._events:
                self._events.flush()
            now = time.monotonic()
            self._save_at = now + max(SAVE_EVERY, SAVING_SHARE * (now - begun))

    def evaluate_at_the_end(self) -> Evaluation | None:
        """The evaluation of the trained policy; None where a signal came."""
        evaluation = self._evaluate()
        if evaluation is not None and self._folder.task.eval_every:
            self._note(evaluation)
            self.save()
        return evaluation

    def _evaluate_now(self) -> None:
        """Evaluate while training goes on. The best model is kept with the state that it belongs to."""
        evaluation = self._evaluate()
        if evaluation is not None and self._note(evaluation):
            self.save()

    def _probe_now(self) -> None:
        """Measure what the nodes of the model do now; the numbers are a row of their own."""
        from composer.probing.play import ProbeError
        from composer.probing.run import probe

        task = self._folder.task
        with self._set_aside("probing"):
            try:
                with closing(make_environment(task.environment, arguments=task.env_set)) as env:
                    result = probe(self._trainer.model, env, seed=task.seed, baseline=False)
            except ProbeError as error:
                raise TrainingError(f"--probe-every: {error}") from error
        self._records.progress.note(result.metrics())
        self._show(self._records.progress.close_row(self.steps, *self._times()))

    def _evaluate(self) -> Evaluation | None:
        task = self._folder.task
        with self._set_aside("evaluating"), acting(self._trainer.model):
            return evaluate(
                self._trainer.act, self._make, task.eval_episodes, task.seed,
                stop=lambda: bool(self._interruption),
            )  # fmt: skip

    def _note(self, evaluation: Evaluation) -> bool:
        """Record an ``evaluation``; returns whether it is the best one."""
        row = self._records.evaluations.add(self.steps, evaluation)
        if self._events:
            numbers = {"mean": row.return_mean, "std": row.return_std, "length": row.length_mean}
            self._events.add(self.steps, {f"evaluation/{name}": n for name, n in numbers.items()})
        return self._records.evaluations.best is row

    def _show(self, row: Mapping[str, float] | None) -> None:
        """Write a ``row`` of progress, with the mean return, for TensorBoard."""
        if row is None or self._events is None:
            return
        numbers = {name: value for name, value in row.items() if name != "step"}
        mean = self._records.curve.recent_mean
        if mean is not None:
            numbers["return_mean_100"] = mean
        self._events.add(int(row["step"]), numbers)

    def _times(self) -> tuple[float, float]:
        """Seconds of the run, and of training in this part of it."""
        here = time.monotonic() - self._began
        return self._before + here, here - self._aside

    @contextmanager
    def _set_aside(self, phase: str) -> Iterator[float]:
        """What is done in this context is shown as ``phase``, and is no time of training."""
        begun, before = time.monotonic(), self._bar.now
        self._bar.phase(phase)
        try:
            yield begun
        finally:
            self._aside += time.monotonic() - begun
            self._bar.phase(before)

    def _refuse_diverged(self) -> None:
        if wrong := self.diverged():  # it would overwrite good weights
            raise TrainingError(f"after {self.steps:,} steps nothing is saved: {wrong}")

    def diverged(self, most: float = math.inf) -> str | None:
        """The first weight that is NaN or reaches ``most``, in words with a way out."""
        for name, weight in self._trainer.model.named_parameters():
            largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
            if not largest < most:
                is_number = math.isfinite(largest)
                what = f"is as large as {largest:.0e}" if is_number else "is NaN or infinite"
                return (
                    f"{name!r} {what}; look for NaN in the observations, or choose smaller settings of the algorithm, "
                    "such as learning_rate"
                )
        return None


def _passed(every: int, last: int, steps: int) -> bool:
    """Whether a multiple of ``every`` lies after ``last`` and not after ``steps``."""
    return every > 0 and steps // every > last // every
