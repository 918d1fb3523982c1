"""`composer import`: another system's configuration as a spec, or with its checkpoint as a model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from composer.cli.loading import UserError, write_text
from composer.cli.options import add_allow, add_limit
from composer.source.files import as_argument

if TYPE_CHECKING:
    from composer.importing.imported import Imported
    from composer.model import Model

__all__ = ["add_import_options", "run_import"]

CHECKPOINT = ".safetensors"


def add_import_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a configuration, or a model of Stable-Baselines3")
    add("--from", metavar="KIND", dest="kind", help="what it is of (default: what it looks like)")
    add(
        "--class", metavar="NAME", dest="name",
        help="the class or entry to take, where the file has several",
    )  # fmt: skip
    add("--env", metavar="ID", help="the environment; the spec is then checked with its spaces")
    add("-o", "--output", metavar="OUT", help="where to write it (default: print the spec)")
    add(
        "--weights", metavar="CKPT",
        help="a checkpoint of the same system; OUT is then a model, such as agent.safetensors",
    )  # fmt: skip
    add(
        "--statistics", metavar="PKL",
        help="what VecNormalize of Stable-Baselines3 saved: the spec normalises as it did",
    )  # fmt: skip
    add("-v", "--verbose", action="store_true", help="list the keys of training, too")
    add_allow(parser, "a module that makes the environment known")
    add_limit(parser)
    parser.set_defaults(usage_error=parser.error)


def run_import(arguments: argparse.Namespace) -> Iterator[str]:
    """What there is to say, piece by piece."""
    _check_usage(arguments)
    if arguments.output is not None and os.path.lexists(arguments.output):
        raise UserError(f"{arguments.output!r} is there already; remove it or choose another name")
    from composer.importing.config import import_config

    imported = import_config(
        arguments.file, arguments.kind, arguments.name, statistics=arguments.statistics
    )
    text = imported.to_yaml(arguments.env, verbose=arguments.verbose)
    if arguments.weights is not None:
        yield from _with_weights(arguments, imported, text)
        return
    if arguments.env is not None:
        _model(arguments, text, device="meta")
    if arguments.output is None:
        yield text.removesuffix("\n")
        return
    write_text(arguments.output, text)
    yield from imported.differences(arguments.verbose)
    yield f"wrote {arguments.output}; next: composer check {as_argument(arguments.output)}{_options(arguments)}"


def _check_usage(arguments: argparse.Namespace) -> None:
    out = arguments.output
    if arguments.weights is None and out is not None and out.endswith(CHECKPOINT):
        arguments.weights = _weights_in(arguments.file)
    if arguments.weights is None:
        if out is not None and out.endswith(CHECKPOINT):
            arguments.usage_error(f"a {CHECKPOINT} file holds weights: give --weights CKPT as well")
        return
    if arguments.env is None:
        arguments.usage_error(
            "--weights needs --env ID: a model is made for the spaces of an environment"
        )
    if out is None or not out.endswith(CHECKPOINT):
        arguments.usage_error(f"--weights needs -o FILE{CHECKPOINT}: spec and weights in one file")


def _weights_in(file: str) -> str | None:
    """``file`` where it holds weights itself, as an agent of Stable-Baselines3 does."""
    from composer.importing.document import Document

    return file if Document(file).is_archive else None


def _with_weights(arguments: argparse.Namespace, imported: Imported, text: str) -> Iterator[str]:
    from composer.importing.adopting import NOT_USED, adopt_weights
    from composer.importing.checkpoints import read_checkpoint

    tensors = read_checkpoint(arguments.weights).tensors
    if arguments.statistics is not None:
        tensors = {**tensors, **read_checkpoint(arguments.statistics).tensors}
    model = _model(arguments, text, device="cpu")
    report = adopt_weights(model, tensors, imported.weights)
    missing = [line for line in report.skipped if not line.startswith(NOT_USED)]
    if missing:
        lines = "\n  ".join(missing)
        raise UserError(
            f"{arguments.weights!r} does not fill the model of {arguments.file!r}; give the configuration that it was "
            f"trained with\n  {lines}"
        )
    model.save(arguments.output)
    yield from imported.differences(arguments.verbose)
    yield str(report)
    yield f"wrote {arguments.output}; next: composer show {as_argument(arguments.output)}"


def _model(arguments: argparse.Namespace, text: str, device: str) -> Model:
    """The model of a spec that was just written. Raises SpecError with places in its text."""
    from composer.model import compose
    from composer.trust import import_allowed

    import_allowed(arguments.allow)
    return compose(
        text,
        env=arguments.env,
        allow=arguments.allow,
        device=device,
        seed=0,
        limits=dict(arguments.limits),
    )


def _options(arguments: argparse.Namespace) -> str:
    from composer.trust import allow_options

    return allow_options(arguments.allow, arguments.env)
