"""The command `composer train`: its options and its output. It imports heavy libraries only when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from perception_blocks.registry import EXTRAS, MissingExtraError, needs_extra
from perception_blocks.words import readable

if TYPE_CHECKING:
    from composer.source.load import Source
    from composer.training.session import Outcome

__all__ = ["add_train_options", "run_train"]

OF_OPTIONS = ("imageio", "imageio_ffmpeg", "tensorboard")  # libraries of [train] for options alone
OF_THE_TASK = (
    "trainer", "algorithm", "steps", "seed", "envs", "eval_episodes", "settings", "device", "threads",
    "subprocess", "env_set", "eval_every", "checkpoint_every", "keep", "tensorboard", "video",
)  # fmt: skip


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options that other commands of specs do not have. An option that is not given is None."""
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", help="the folder to create, for the results")
    add("--resume", metavar="DIR", help="continue the run in this folder; --steps may be larger")
    add(
        "--trainer",
        metavar="NAME",
        help="sb3 (default), torchrl, rsl_rl, skrl; composer: several actors",
    )
    add("--algorithm", metavar="NAME", help="one of the trainer's: ppo (default), dqn, sac, ...")
    add("--steps", metavar="N", type=int, help="number of steps, summed over all environments")
    text = "seed of weights, trainer and environments (default: 0)"
    add("--seed", metavar="N", type=int, help=text)
    add("--envs", metavar="N", type=int, help="number of parallel environments (default: 1)")
    add(
        "--set-algorithm", metavar="KEY=VALUE", action="append", default=[], dest="settings",
        help="a setting of the algorithm, such as learning_rate=1e-3 (repeatable)",
    )  # fmt: skip
    text = "number of evaluation episodes (default: 20)"
    add("--eval-episodes", metavar="N", type=int, help=text)
    text = "steps between two evaluations, of which the best model is kept (default: 0, none before the end)"
    add("--eval-every", metavar="N", type=int, help=text)
    text = "steps between two numbered checkpoints (default: 0, none)"
    add("--checkpoint-every", metavar="N", type=int, help=text)
    text = "how many numbered checkpoints stay, 0 for all (default: 5)"
    add("--keep", metavar="N", type=int, help=text)
    text = "also write event files for TensorBoard"
    add("--tensorboard", action="store_true", default=None, help=text)
    text = "at the end, write a video of the best policy"
    add("--video", action="store_true", default=None, help=text)
    text = "where the model is trained, such as cuda (default: cpu)"
    add("--device", metavar="NAME", help=text)
    text = "threads of PyTorch (default: 1, the fastest for small networks)"
    add("--threads", metavar="N", type=int, help=text)
    text = "each environment in a process of its own"
    add("--subprocess", action="store_true", default=None, help=text)
    add(
        "--env-set", metavar="KEY=VALUE", action="append", default=[], dest="env_set",
        help="an argument of the environment, such as max_episode_steps=200 (repeatable)",
    )  # fmt: skip
    parser.set_defaults(usage_error=parser.error)


def run_train(arguments: argparse.Namespace, spec: Source | None, weights: str | None) -> int:
    """Train or resume; returns the exit status. ``spec`` is None if only --resume is given."""
    _require_libraries(arguments.trainer or ("sb3" if arguments.resume is None else None))
    from composer.training.session import resume, train

    given = {name: getattr(arguments, name) for name in OF_THE_TASK}
    given["settings"] = _settings(arguments.settings, "--set-algorithm") or None
    given["env_set"] = _settings(arguments.env_set, "--env-set") or None
    given = {name: value for name, value in given.items() if value is not None}
    allow, limits = arguments.allow, dict(arguments.limits)
    with _progress_in_lines():
        if arguments.resume is None:
            assert spec is not None
            outcome = train(
                spec, arguments.output, env=arguments.env, weights=weights, allow=allow,
                overrides=arguments.overrides, limits=limits, **given,
            )  # fmt: skip
        else:
            if arguments.env is not None:
                given["environment"] = arguments.env
            outcome = resume(arguments.resume, spec=spec, allow=allow, limits=limits, **given)
    return _say(outcome, arguments.allow)


@contextmanager
def _progress_in_lines() -> Iterator[None]:
    """Where no terminal shows a bar, a line on standard error says now and then how far a run is."""
    from composer.training.progress import LOGGER

    handler, level = logging.StreamHandler(sys.stderr), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def _require_libraries(trainer: str | None) -> None:
    """Raise MissingExtraError with all missing libraries, of every run and of the ``trainer``."""
    from composer.training.trainer import TRAINERS

    extras = {"train"}
    if trainer is not None and trainer in TRAINERS:
        extras.add(TRAINERS.extra_of(trainer) or "train")
    missing = {
        extra: [n for n in EXTRAS[extra] if n not in OF_OPTIONS and find_spec(n) is None]
        for extra in sorted(extras)
    }
    needed = [extra for extra, names in missing.items() if names]
    if needed:
        names = [name for names in missing.values() for name in names]
        raise MissingExtraError(needs_extra("a training", names, ",".join(needed)))


def _settings(given: list[str], option: str) -> dict[str, object]:
    """Raises TrainingError for a text that is no ``key=value``."""
    from composer.errors import SpecError
    from composer.source.load import load_source
    from composer.training.trainer import TrainingError

    settings = {}
    for setting in given:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise TrainingError(f"{option} takes key=value, got {setting!r}")
        try:
            settings[key.strip()] = load_source(f"value: {text}\n").data["value"]
        except SpecError as error:
            messages = "; ".join(problem.message for problem in error.problems)
            raise TrainingError(f"{option} {setting}: {messages}") from error
    return settings


def _say(outcome: Outcome, allow: list[str]) -> int:
    from composer.trust import allow_options

    folder = readable(str(outcome.folder))
    if outcome.evaluation is None:
        assert outcome.signal is not None
        print(
            f"interrupted after {outcome.steps:,} steps; it is saved in {folder}\n"
            f"continue with: composer train --resume {folder}{allow_options(allow)}"
        )
        return 128 + outcome.signal
    print(f"trained for {outcome.steps:,} steps; without exploration: {outcome.evaluation}")
    if outcome.best is not None:
        print(f"the best model is of step {outcome.best:,}: best.safetensors")
    print(f"wrote {folder}: {', '.join(outcome.files)}")
    return 0
