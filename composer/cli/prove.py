"""The command `composer prove`: its options, and what it says."""

from __future__ import annotations

import argparse
import os

from composer.source.files import real_path

__all__ = ["add_prove_options", "run_prove"]


def add_prove_options(parser: argparse.ArgumentParser) -> None:
    """The options that a spec's other commands do not have."""
    parser.add_argument(
        "--processes", metavar="N", type=_count, default=2, help="how many processes (default: 2)"
    )
    parser.add_argument(
        "--steps", metavar="N", type=_count, default=3, help="steps of AdamW (default: 3)"
    )


def run_prove(arguments: argparse.Namespace) -> tuple[str, int]:
    """What there is to say, and the exit status."""
    from composer.parallel.prove import Task, prove

    task = Task(
        file=arguments.file,
        environment=arguments.env,
        steps=arguments.steps,
        allow=tuple(arguments.allow),
        overrides=tuple(arguments.overrides),
        limits=dict(arguments.limits),
        folders=tuple(real_path(f) for f in ("", os.path.dirname(arguments.file))),
    )
    proof = prove(task, arguments.processes)
    return f"{arguments.file}: {proof}", int(not proof.holds)


def _count(text: str) -> int:
    """Raises ArgumentTypeError."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"write a whole number of at least 1, got {text!r}")
    return int(text)
