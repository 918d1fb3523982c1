"""`composer probe`: what the nodes of a model do in its environment, as a table, a picture and JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer.cli.loading import (
    UserError,
    as_user_errors,
    composed_model,
    fill,
    is_action_model,
    is_checkpoint,
    load_given,
    model_of,
    write_text,
)
from composer.cli.options import OF_RUNS, add_spec_options
from composer.source.files import as_argument

if TYPE_CHECKING:
    from composer.model import Model
    from composer.probing.result import Probe

__all__ = ["add_probe_options", "run_probe"]

COLORS = ("dormant", "rank", "gradient", "time")


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=OF_RUNS)
    add_spec_options(parser)
    add = parser.add_argument
    add("--steps", metavar="N", type=int, default=512, help="steps to make (default: 512)")
    add("--seed", metavar="N", type=int, default=0, help="seed of episodes and draws (default: 0)")
    add(
        "--tau", metavar="X", type=float, default=0.025,
        help="units are dormant up to this part of their layer's mean size (default: 0.025)",
    )  # fmt: skip
    add("--no-baseline", action="store_true", help="leave out the same spec freshly drawn")
    add("--json", metavar="OUT", help="also write all numbers to this file")
    add("--draw", metavar="OUT", help="also draw the model: html, png, svg, ... by its suffix")
    add(
        "--color", choices=COLORS, default="dormant",
        help="what colors the nodes of --draw (default: dormant)",
    )  # fmt: skip


def run_probe(arguments: argparse.Namespace) -> Iterator[str]:
    """What there is to say, piece by piece."""
    _refuse_wrong(arguments)
    environment, env_set = _environment_of(arguments)
    arguments.file = model_of(arguments.file)
    model, environment = _model(arguments, environment)
    is_trained = fill(model, arguments.file)
    from composer.probing.run import probe
    from composer.spaces.lookup import make_environment

    with closing(make_environment(environment, arguments=env_set)) as env:
        result = probe(
            model, env, arguments.steps, arguments.seed, not arguments.no_baseline,
            tau=arguments.tau, allow=arguments.allow,
        )  # fmt: skip
    yield result.text(color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    if not is_trained:
        yield f"{arguments.file} is no checkpoint: its weights are initial ones, not trained"
    yield from _written(arguments, result)


def _refuse_wrong(arguments: argparse.Namespace) -> None:
    """Raise UserError for what is wrong before anything is computed."""
    if arguments.steps <= 0:
        raise UserError(f"--steps must be a positive integer, got {arguments.steps}")
    if arguments.seed < 0:
        raise UserError(f"--seed must be an integer of 0 or more, got {arguments.seed}")
    if not 0 <= arguments.tau < math.inf:
        raise UserError(f"--tau must be a number of 0 or more, got {arguments.tau}")
    if arguments.draw is not None:
        from composer.diagram.drawing import format_of

        with as_user_errors(ValueError, before="--draw: "):
            format_of(Path(arguments.draw))
        if arguments.json is not None and os.path.realpath(arguments.json) == os.path.realpath(
            arguments.draw
        ):
            raise UserError(f"--json and --draw are the same file, {arguments.draw!r}")


def _environment_of(arguments: argparse.Namespace) -> tuple[str | None, dict[str, Any]]:
    """The environment that is named, or that of the run in whose folder the model is, with its arguments."""
    if arguments.env is not None or not os.path.isfile(os.path.join(arguments.file, "run.json")):
        return arguments.env, {}
    from composer.training.folder import RunFolder

    task = RunFolder.open(Path(arguments.file)).task
    return task.environment, dict(task.env_set)


def _model(arguments: argparse.Namespace, environment: str | None) -> tuple[Model, str]:
    """The model, with weights, and the environment to act in. A checkpoint is of the spaces that it holds."""
    from composer.errors import Problem, SpecError
    from composer.trust import check_environment

    given = arguments.env
    if is_checkpoint(arguments.file):
        arguments.env = None
    loaded = load_given(arguments)
    if is_action_model(loaded[0]):
        raise UserError(
            f"{arguments.file} is an action model, and composer probe takes one whose networks are graphs; "
            f"`composer show {as_argument(arguments.file)}` prints its parts"
        )
    name = environment or loaded[0].data.get("environment")
    if not isinstance(name, str):
        raise UserError(f"{arguments.file} names no environment; give one with --env ID")
    if given is None and (problem := check_environment(name, arguments.allow)):
        raise SpecError([Problem(problem)])
    model = composed_model(arguments, loaded)
    return model.materialize(), name


def _written(arguments: argparse.Namespace, result: Probe) -> Iterator[str]:
    """Write the files that are asked for."""
    if arguments.json is not None:
        text = json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n"
        write_text(arguments.json, text)
        yield f"wrote {arguments.json}"
    if arguments.draw is not None:
        with as_user_errors(ValueError):
            yield f"wrote {result.draw(arguments.draw, arguments.color)}"
