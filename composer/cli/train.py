"""The command `composer train`: its options and its output. It imports heavy libraries only when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from composer.cli.loading import is_checkpoint, model_of, read_source
from perception_blocks.registry import APART, EXTRAS, MissingExtraError, needs_extra
from perception_blocks.words import readable

if TYPE_CHECKING:
    from composer.source.load import Source
    from composer.training.seeds import SeedsOutcome
    from composer.training.session import Outcome

__all__ = ["add_train_options", "parsed", "run_train"]

OF_OPTIONS = ("imageio", "imageio_ffmpeg", "tensorboard")  # libraries of [train] for options alone
OF_THE_TASK = (
    "trainer", "algorithm", "steps", "seed", "envs", "eval_episodes", "settings", "device", "threads",
    "subprocess", "env_set", "eval_every", "checkpoint_every", "probe_every", "keep", "tensorboard", "video",
)  # fmt: skip
# Option, what stands for its value, its type (a flag without), and its help.
OPTIONS: tuple[tuple[str, str, type | None, str], ...] = (
    (
        "--trainer",
        "NAME",
        str,
        "sb3 (default), torchrl, rsl_rl, skrl, ...; composer: several actors",
    ),
    ("--algorithm", "NAME", str, "one of the trainer's: ppo (default), dqn, sac, ..."),
    ("--steps", "N", int, "number of steps, summed over all environments"),
    ("--seed", "N", int, "seed of weights, trainer and environments (default: 0)"),
    ("--envs", "N", int, "number of parallel environments (default: 1)"),
    ("--subprocess", "", None, "each environment in a process of its own"),
    ("--device", "NAME", str, "where the model is trained, such as cuda (default: cpu)"),
    ("--threads", "N", int, "threads of PyTorch (default: 1, the fastest for small networks)"),
    ("--eval-episodes", "N", int, "number of evaluation episodes (default: 20)"),
    (
        "--eval-every",
        "N",
        int,
        "steps between evaluations, of which the best model is kept (default: none)",
    ),
    ("--checkpoint-every", "N", int, "steps between numbered checkpoints (default: none)"),
    (
        "--probe-every",
        "N",
        int,
        "steps between probes, whose numbers are in progress.csv (default: none)",
    ),
    ("--keep", "N", int, "how many numbered checkpoints stay, 0 for all (default: 5)"),
    ("--tensorboard", "", None, "also write event files for TensorBoard"),
    ("--video", "", None, "at the end, write a video of the best policy"),
)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options that other commands of specs do not have. An option that is not given is None."""
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", help="the folder to create, for the results")
    add("--resume", metavar="DIR", help="continue the run in this folder; --steps may be larger")
    text = (
        "options from this YAML file, or from the run.json of a run; those of the command line win"
    )
    add("--config", metavar="FILE", help=text)
    for name, metavar, kind, text in OPTIONS:
        if kind is None:
            add(name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            add(name, metavar=metavar, type=kind, help=text)
    text = "the checkpoint whose weights training begins with"
    add("--weights", metavar="FILE", help=text)
    text = "take the nodes of the checkpoint that fit; what does not is printed"
    add("--partial", action="store_true", help=text)
    text = "train with each of these seeds, such as 0,1,2"
    add("--seeds", metavar="N,N,...", type=_seeds, help=text)
    add_repeatable(
        add, "--set-algorithm", "settings", "a setting of the algorithm, such as learning_rate=1e-3"
    )
    add_repeatable(
        add, "--env-set", "env_set", "an argument of the environment, such as max_episode_steps=200"
    )
    parser.set_defaults(usage_error=parser.error)


def add_repeatable(add: Any, name: str, dest: str, text: str) -> None:
    """An option KEY=VALUE."""
    add(
        name,
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest=dest,
        help=f"{text} (repeatable)",
    )


def _seeds(text: str) -> list[int]:
    """Raises ArgumentTypeError."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        reason = f"write whole numbers with commas, such as 0,1,2, got {text!r}"
        raise argparse.ArgumentTypeError(reason) from None


def run_train(arguments: argparse.Namespace) -> int:
    """Train or resume; returns the exit status."""
    inline = None
    if arguments.config is not None:
        if arguments.resume is not None:
            arguments.usage_error("give --config FILE for a new run, or --resume DIR, not both")
        inline = _take_config(arguments)
    spec = arguments.file if inline is None else inline
    if arguments.resume is None and None in (spec, arguments.output, arguments.steps):
        arguments.usage_error(
            "give SPEC, --steps N and -o DIR, here or in a --config FILE, or --resume DIR"
        )
    if arguments.resume is not None and arguments.output is not None:
        arguments.usage_error("give -o DIR for a new run, or --resume DIR, not both")
    source, weights = None, None
    if inline is not None:
        arguments.file = arguments.config
        source, _ = read_source(arguments, (inline, {}), makes_environment=arguments.env is None)
    elif arguments.file is not None:
        arguments.file = model_of(arguments.file)
        makes_environment = arguments.env is None and arguments.resume is None
        source, _ = read_source(arguments, makes_environment=makes_environment)
        weights = arguments.file if is_checkpoint(arguments.file) else None
    if arguments.weights is not None:
        weights = model_of(arguments.weights)
    _refuse_partial(arguments, weights)
    return _trained(arguments, source, weights)


def _refuse_partial(arguments: argparse.Namespace, weights: str | None) -> None:
    """Usage errors of --weights and --partial."""
    if arguments.resume is not None and (arguments.weights is not None or arguments.partial):
        arguments.usage_error("a resumed run has its weights; leave out --weights and --partial")
    if arguments.partial and weights is None:
        arguments.usage_error("--partial needs a checkpoint: as SPEC, or with --weights FILE")
    if arguments.partial and arguments.seeds is not None:
        arguments.usage_error("--partial is for a run with one seed; give --seed N, not --seeds")


def _take_config(arguments: argparse.Namespace) -> Source | None:
    """Take what the command line does not say from ``--config``; returns the spec, if that is in it itself."""
    from composer.training.config import read_config

    given = [name for name in ("env", "output") if getattr(arguments, name) is not None]
    config = read_config(arguments.config, arguments.allow, given)
    options = dict(config.options)
    overrides = options.pop("set", [])
    arguments.overrides = [
        *(overrides.items() if isinstance(overrides, dict) else overrides),
        *arguments.overrides,
    ]
    arguments.of_config = {name: options.pop(name, {}) for name in ("settings", "env_set")}
    if arguments.seed is not None or arguments.seeds is not None:
        options = {name: value for name, value in options.items() if name not in ("seed", "seeds")}
    for name, value in options.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.file is not None:
        return None
    arguments.file = config.file
    return None if config.source is None else config.source.overridden(arguments.overrides)


def _trained(arguments: argparse.Namespace, spec: Source | None, weights: str | None) -> int:
    """Train or resume; returns the exit status. ``spec`` is None if only --resume is given."""
    _require_libraries(arguments.trainer or ("sb3" if arguments.resume is None else None))
    from composer.training.seeds import SeedsOutcome, are_seeds, resume_seeds, train_seeds
    from composer.training.session import resume, train

    given, problems = _given(arguments)
    allow, limits = arguments.allow, dict(arguments.limits)
    with _progress_in_lines():
        if arguments.resume is not None:
            _refuse(problems)
            several = are_seeds(arguments.resume)
            if arguments.env is not None:
                given["environment"] = arguments.env
            more = {} if several else {"spec": spec}
            go_on = resume_seeds if several else resume
            outcome = go_on(arguments.resume, allow=allow, limits=limits, **more, **given)
        else:
            assert spec is not None
            options = {
                "env": arguments.env, "weights": weights, "allow": allow, "limits": limits,
                "overrides": arguments.overrides, "others": problems,
            }  # fmt: skip
            if arguments.seeds is None:
                outcome = train(
                    spec, arguments.output, partial=arguments.partial, **options, **given
                )
            else:
                outcome = train_seeds(spec, arguments.output, arguments.seeds, **options, **given)
    if isinstance(outcome, SeedsOutcome):
        return _say_seeds(outcome, allow)
    return _say(outcome, allow)


def _given(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The fields of a task that are given, and what is wrong with their texts."""
    given: dict[str, Any] = {name: getattr(arguments, name) for name in OF_THE_TASK}
    of_config = getattr(arguments, "of_config", {})
    problems = []
    for name, option in (("settings", "--set-algorithm"), ("env_set", "--env-set")):
        values, wrong = parsed(given[name], option)
        given[name] = {**of_config.get(name, {}), **values} or None
        problems += wrong
    return {name: value for name, value in given.items() if value is not None}, problems


def _refuse(problems: Sequence[str]) -> None:
    from composer.training.trainer import TrainingError

    if problems:
        raise TrainingError("\n  ".join(problems))


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
        apart = [extra for extra in needed if extra in APART]  # where nothing is installed yet
        what = f"--trainer {trainer}" if apart else "a training"
        raise MissingExtraError(needs_extra(what, names, ",".join(missing if apart else needed)))


def parsed(given: Sequence[str], option: str) -> tuple[dict[str, object], list[str]]:
    """Texts ``key=value`` as values of YAML, and what is wrong with those that are none."""
    from composer.errors import SpecError
    from composer.source.load import load_source

    values, problems = {}, []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"{option} takes key=value, got {text!r}")
            continue
        try:
            values[key.strip()] = load_source(f"value: {value}\n").data["value"]
        except SpecError as error:
            messages = "; ".join(problem.message for problem in error.problems)
            problems.append(f"{option} {text}: {messages}")
    return values, problems


def _say(outcome: Outcome, allow: list[str]) -> int:
    from composer.trust import allow_options

    folder = readable(str(outcome.folder))
    if outcome.report is not None:
        print(f"began with the checkpoint: {outcome.report}")
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


def _say_seeds(outcome: SeedsOutcome, allow: list[str]) -> int:
    from composer.trust import allow_options

    folder = readable(str(outcome.folder))
    for seed, mean in outcome.means.items():
        print(f"seed {seed}: mean return {mean:.2f}")
    if outcome.signal is not None:
        done = f"{len(outcome.means)} of {len(outcome.seeds)} seeds"
        print(
            f"interrupted after {done}; it is saved in {folder}\n"
            f"continue with: composer train --resume {folder}{allow_options(allow)}"
        )
        return 128 + outcome.signal
    print(f"without exploration: {outcome}")
    print(f"wrote {folder}: seed-{outcome.seeds[0]}, ..., curve.csv, curve.png, evaluation.json")
    return 0
