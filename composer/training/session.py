"""A run of training, from its beginning or from where it was interrupted, to the evaluation at its end."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer.checkpoint.file import fill_whole, read_record
from composer.checkpoint.plain_spec import plain_spec, saved_spec
from composer.distributions.base import NoNumberError
from composer.distributions.discrete import NoLegalChoiceError
from composer.errors import Problem, RefusedError, SpecError
from composer.limits import GivenLimits
from composer.model import Model, compose
from composer.source.load import GivenSpec, Override, Source, dump_yaml, load_source, stored_source
from composer.spaces.json_form import spaces_differ
from composer.spaces.lookup import is_by_actor, make_environment, own_environment
from composer.spaces.pettingzoo import PREFIX
from composer.spec.diff import diff_specs
from composer.training.curve import LearningCurve
from composer.training.environment import environment_maker
from composer.training.evaluation import Evaluation, evaluate
from composer.training.folder import RunFolder, Saved, in_use, refuse_taken
from composer.training.interruption import Interruption, interruption_noted
from composer.training.progress import ProgressBar
from composer.training.trainer import TRAINERS, Episode, Task, Trainer, TrainingError
from composer.trust import allow_list, check_environment, import_extensions
from perception_blocks.blocks.decoder import FullCacheError
from perception_blocks.registry import UnknownNameError
from perception_blocks.words import cut, hint

__all__ = ["Outcome", "resume", "train"]

ROWS = 100  # of a learning curve
SAVE_EVERY = 30.0  # seconds
SAVING_SHARE = 20  # saving may take this part of the time
MOST = 2**31 - 1  # of everything that is counted
MOST_ENVS = 10_000
MOST_THREADS = 1024
DIVERGED = 1e15  # weights above overflow in what is computed of them
RANGES = {
    "steps": (1, MOST), "envs": (1, MOST_ENVS), "eval_episodes": (1, MOST), "seed": (0, MOST),
    "threads": (1, MOST_THREADS),
}  # fmt: skip
# The state of an optimiser and a replay buffer, which are empty at first.
GROWING = {"state", "buffer"}


@dataclass(frozen=True)
class Outcome:
    """The result of a run: ``evaluation`` is None if a ``signal`` interrupted it."""

    folder: Path
    task: Task
    steps: int
    evaluation: Evaluation | None
    signal: int | None


def train(
    spec: GivenSpec,
    out: str | Path,
    *,
    env: str | None = None,
    weights: str | Path | None = None,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    limits: GivenLimits = None,
    **options: Any,
) -> Outcome:
    """Train a model of ``spec``, and write the results to the new folder ``out``.

    ``weights`` is a checkpoint to begin with; ``options`` are the other fields of `Task`.

    Raises SpecError for a wrong spec, MissingExtraError where a library is missing, TrainingError for all else that a
    user gave wrongly. In each of these cases there is no folder afterwards.
    """
    out, allow = Path(out), allow_list(allow)
    spec = load_source(spec, overrides, allow)
    if spec.data.get("model") is not None:
        raise TrainingError(
            "no trainer trains an action model: write its loop, as configs/action_ppo.py does"
        )
    environment = env or own_environment(spec, allow)
    if not isinstance(environment, str):
        raise TrainingError("the spec names no environment; give one with --env ID")
    task = Task(spec="", environment=environment, **options)
    trainer_class = _trainer_class(task)
    refuse_taken(out)
    model = _composed(spec, task, allow, limits)
    task = replace(task, spec=dump_yaml(saved_spec(model.source.data, model)))
    if weights is not None:
        _refuse_other_spaces(weights, model, limits)
        fill_whole(model, weights)
    trainer = _trainer(trainer_class, task, model)
    try:
        curve = LearningCurve(every=max(1, task.steps // ROWS))
        # Once the folder can be seen, a signal may come: from then on it is noted.
        with (
            threads(task.threads),
            _watched(task, 0) as watched,
            RunFolder.create(out, task, trainer, curve) as folder,
        ):
            return _run(folder, trainer, curve, 0, *watched)
    finally:
        trainer.close()


def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    spec: GivenSpec | None = None,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    limits: GivenLimits = None,
    **given: object,
) -> Outcome:
    """Continue the run in the folder ``path``, to more ``steps`` if given.

    ``spec`` and the ``given`` fields of a `Task` must equal the run's. Raises as `train`; the folder is then as it was.
    """
    allow = allow_list(allow)
    if spec is not None:
        spec = load_source(spec, overrides, allow)
    with in_use(Path(path)):
        folder = RunFolder.open(Path(path))
        _refuse_another(folder, given, spec, allow, limits)
        if steps is not None:
            folder = RunFolder(folder.path, replace(folder.task, steps=steps))
        return _resume(folder, allow, limits, goes_on=steps is not None)


def _resume(folder: RunFolder, allow: Sequence[str], limits: GivenLimits, goes_on: bool) -> Outcome:
    """Continue a run that no other process uses; ``goes_on`` if the caller asked for more steps."""
    task = folder.task
    problem = check_environment(task.environment, allow)
    if problem:  # a file names it, and only the caller can allow what it imports
        raise SpecError([Problem(problem)])
    trainer_class = _trainer_class(task)
    saved = folder.load()
    is_whole = (folder.path / "evaluation.json").exists()  # an evaluation may have been interrupted
    if saved["steps"] >= task.steps and (is_whole or goes_on):
        raise TrainingError(
            f"the run in {str(folder.path)!r} has made its {saved['steps']:,} steps; "
            "to continue, give a larger total: --steps"
        )
    model = _composed(stored_source(task.spec, folder.path / "run.json"), task, allow, limits)
    if (folder.path / "model.safetensors").exists():
        _refuse_other_spaces(folder.path / "model.safetensors", model, limits)
    trainer = _trainer(trainer_class, task, model)
    try:
        _restore(trainer, saved, folder)
        folder.begin_again()
        every = max(1, task.steps // ROWS)
        curve = LearningCurve(every, saved["curve"], saved["recent"])
        with threads(task.threads), _watched(task, saved["steps"]) as watched:
            return _run(folder, trainer, curve, saved["steps"], *watched)
    finally:
        trainer.close()


def _composed(spec: Source, task: Task, allow: Sequence[str], limits: GivenLimits) -> Model:
    """The model of ``spec`` for the environment of ``task``, whose spaces its arguments may change."""
    if not task.env_set:
        return compose(spec, env=task.environment, allow=allow, seed=task.seed, limits=limits)
    import_extensions(spec, allow)
    with closing(make_environment(task.environment, arguments=task.env_set)) as env:
        return compose(spec, env=env, allow=allow, seed=task.seed, limits=limits)


def _restore(trainer: Trainer, saved: Saved, folder: RunFolder) -> None:
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
    if type(saved) is not type(expected):
        raise ValueError(f"{path} is a {type(saved).__name__}, not a {type(expected).__name__}")
    if isinstance(expected, Mapping):
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
    elif isinstance(expected, Tensor):
        _refuse_other_tensor(saved, expected, path)
    elif "/param_groups/" in path and saved != expected:  # what the settings of the run say
        raise ValueError(f"{path} is {_shown(saved)}, not {expected}")


def _refuse_other_tensor(saved: Tensor, expected: Tensor, path: str) -> None:
    if (saved.shape, saved.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"{path} is {tuple(saved.shape)} of {saved.dtype}, not {tuple(expected.shape)} of {expected.dtype}"
        )
    if bool((expected.isfinite() & ~saved.isfinite()).any()):
        raise ValueError(f"{path} is NaN or infinite")


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


class _Recorder:
    """The `Report` of a run: it fills the curve, moves the bar, saves now and then, and stops at a signal."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: Trainer,
        curve: LearningCurve,
        bar: ProgressBar,
        interruption: Interruption,
    ) -> None:
        self._folder, self._trainer, self._curve = folder, trainer, curve
        self._bar, self._interruption = bar, interruption
        self._save_at = time.monotonic() + SAVE_EVERY

    def __call__(
        self, steps: int, episodes: Sequence[Episode], metrics: Mapping[str, float] | None = None
    ) -> bool:
        self.steps = steps
        self._curve.add(steps, episodes)
        self._bar.show(steps, self._curve.recent_mean if episodes else None)
        if time.monotonic() >= self._save_at:
            self.save()
        return not self._interruption

    def save(self) -> None:
        begun, phase = time.monotonic(), self._bar.now
        self._bar.phase("saving")
        if wrong := self.diverged():  # it would overwrite good weights
            raise TrainingError(f"after {self.steps:,} steps nothing is saved: {wrong}")
        self._folder.save(self._trainer, self._curve, self.steps)
        now = time.monotonic()
        self._save_at = now + max(SAVE_EVERY, SAVING_SHARE * (now - begun))
        self._bar.phase(phase)

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
    curve: LearningCurve,
    done: int,
    bar: ProgressBar,
    interruption: Interruption,
) -> Outcome:
    task = folder.task
    recorder = _Recorder(folder, trainer, curve, bar, interruption)
    recorder.steps = done
    with _as_training_errors(recorder):
        if done < task.steps:
            trainer.learn(task.steps, recorder, bar.phase)
        if not interruption:
            curve.close_row(recorder.steps)
        recorder.save()
        evaluation = None
        if not interruption:
            bar.phase("evaluating")
            evaluation = evaluate(
                trainer.act, environment_maker(task), task.eval_episodes, task.seed,
                stop=lambda: bool(interruption),
            )  # fmt: skip
        if evaluation is not None:
            folder.write_evaluation(evaluation, recorder.steps)
        return Outcome(folder.path, task, recorder.steps, evaluation, interruption.signal)


@contextmanager
def _as_training_errors(recorder: _Recorder) -> Iterator[None]:
    """Tell in words what the model cannot act on, such as a mask that is all false, or weights that have diverged."""
    try:
        yield
    except (NoLegalChoiceError, FullCacheError) as error:
        raise TrainingError(str(error)) from error
    except (MemoryError, RuntimeError, ValueError) as error:
        _refuse_no_memory(error)
        if not isinstance(error, RefusedError) and (wrong := recorder.diverged(DIVERGED)):
            raise TrainingError(f"training has diverged: {wrong}") from error
        if "without overflow" in str(error):  # in a step of an optimiser
            raise TrainingError(
                f"the optimiser takes no step of this size ({error}); choose a lower learning_rate"
            ) from error
        if isinstance(error, NoNumberError):
            raise TrainingError(str(error)) from error
        raise


def _refuse_no_memory(error: BaseException) -> None:
    """Raise TrainingError where memory was the reason: numpy's own error, or one of torch's."""
    text = str(error).strip()
    if isinstance(error, MemoryError) or re.search("can't allocate|out of memory", text):
        reason = text.partition("\n")[0] or "no memory is left"
        raise TrainingError(
            f"there is not enough memory ({reason}); choose fewer --envs, or smaller settings of the algorithm"
        ) from error


# --- what a user may have given wrongly ---


def _trainer_class(task: Task) -> type[Trainer]:
    """The class of the task's trainer. Raises TrainingError with all that is wrong with the task."""
    counts = [_count_problem(name, getattr(task, name), *ends) for name, ends in RANGES.items()]
    problems = [problem for problem in counts if problem]
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
            f"--device must be a device of PyTorch such as 'cpu' or 'cuda', got {_shown(device)}"
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
                wrong.append(f"{name!r} must be at most {MOST:,}, got {_shown(value)}")
            elif isinstance(value, float) and not math.isfinite(value):
                wrong.append(f"{name!r} must be a finite number, got {value}")
        return wrong
    near = hint(task.algorithm, known, "it has")
    return [f"trainer {task.trainer!r} has no algorithm {task.algorithm!r}{near}"]


def _count_problem(name: str, value: object, least: int, most: int) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        kind = "an integer of 0 or more" if least == 0 else "a positive integer"
        return f"{_option(name)} must be {kind}, got {_shown(value)}"
    if value > most:
        return f"{_option(name)} must be at most {most:,}, got {_shown(value)}"
    return None


def _shown(value: object) -> str:
    return cut(repr(value), 60)


def _option(field: str) -> str:
    named = {"settings": "set-algorithm", "environment": "env"}
    return "--" + named.get(field, field).replace("_", "-")


def _refuse_other_spaces(weights: str | Path, model: Model, limits: GivenLimits) -> None:
    """Raise TrainingError where the checkpoint ``weights`` is of other spaces than ``model``."""
    needed = read_record(weights).spaces(limits)
    spaces = (model.observation_space, model.action_space)
    differences = [
        difference
        for root, mine, theirs in zip(("observation", "action"), needed, spaces, strict=True)
        for difference in spaces_differ(mine, theirs, root)
    ]
    if differences:
        lines = "".join(f"\n  {difference}" for difference in differences)
        raise TrainingError(
            f"{str(weights)!r} is a model for other spaces than the environment's:{lines}"
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
        _refuse_no_memory(error)
        raise


def _refuse_another(
    folder: RunFolder,
    given: Mapping[str, object],
    spec: Source | None,
    allow: Iterable[str],
    limits: GivenLimits,
) -> None:
    """Raise TrainingError where what is given is not what the run in ``folder`` has."""
    has = asdict(folder.task)
    problems = [
        f"{_option(name)} is {value!r} here, but {has[name]!r} in the run"
        for name, value in given.items()
        if value != has[name]
    ]
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
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise TrainingError(
            f"the run in {str(folder.path)!r} is another one; leave out what differs, or "
            f"begin a new run with -o:{lines}"
        )
