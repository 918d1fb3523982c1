"""The command `composer run`: its options and its output. It imports heavy libraries only when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perception_blocks.words import readable

if TYPE_CHECKING:
    from composer.dataflow.running.run_log import RunLog

__all__ = ["add_run_options", "run_experiment", "with_overrides"]

MOST_SHOWN = 8  # numbers of the last line


def add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "sft, rw, dpo, ppo, generation, a file, or a registered name"
    add("file", metavar="EXPERIMENT", nargs="?", help=text)
    text = "replace a value of the experiment, such as run.iterations=20 (repeatable)"
    add("overrides", metavar="a.b=c", nargs="*", help=text)
    text = "the same, as for other commands"
    add("--set", metavar="KEY=VALUE", action="append", default=[], dest="more", help=text)
    add("-o", "--output", metavar="DIR", help="the folder to create; without one nothing is saved")
    text = "continue the run in this folder; run.iterations may be larger"
    add("--resume", metavar="DIR", help=text)
    text = "local: in this process; ray: on several (default: run.runner of the experiment)"
    add("--runner", choices=["local", "ray"], help=text)
    text = "HOST:PORT of a Ray cluster to use, or auto (default: one is started on this machine)"
    add("--address", metavar="A", help=text)
    text = "a module whose classes the experiment may use, or a folder/ of files that it names (repeatable)"
    add("--allow", metavar="MODULE", action="append", default=[], help=text)
    text = "also write event files for TensorBoard, into the folder"
    add("--tensorboard", action="store_true", help=text)
    parser.set_defaults(usage_error=parser.error)


def with_overrides(arguments: argparse.Namespace, rest: Sequence[str]) -> Sequence[str]:
    """Take the overrides that stand behind options, which argparse leaves over; returns what is none of them."""
    if arguments.command != "run":
        return rest
    arguments.overrides += [text for text in rest if _is_override(text)]
    return [text for text in rest if not _is_override(text)]


def _is_override(text: str) -> bool:
    return "=" in text and not text.startswith("-")


def run_experiment(arguments: argparse.Namespace) -> int:
    """Run or resume; returns the exit status."""
    # As in `composer run --resume DIR a.b=c`.
    if arguments.file is not None and _is_override(arguments.file):
        arguments.overrides.insert(0, arguments.file)
        arguments.file = None
    if (arguments.file is None) == (arguments.resume is None):
        arguments.usage_error("give an EXPERIMENT, or --resume DIR")
    if arguments.resume is not None and arguments.output is not None:
        arguments.usage_error("give -o DIR for a new run, or --resume DIR, not both")
    from composer.dataflow.running.session import run

    log = run(
        arguments.file, [*arguments.overrides, *arguments.more], arguments.allow,
        arguments.runner, arguments.output, arguments.resume, address=arguments.address,
        tensorboard=arguments.tensorboard,
    )  # fmt: skip
    return _say(log, arguments.allow)


def _say(log: RunLog, allow: Sequence[str]) -> int:
    from composer.trust import allow_options

    count = f"{len(log.rows):,} iteration{'' if len(log.rows) == 1 else 's'}"
    folder = None if log.folder is None else readable(str(log.folder))
    if log.signal is not None:
        print(
            f"interrupted after {count}" + ("" if folder is None else f"; it is saved in {folder}")
        )
        if folder is not None:
            print(f"continue with: composer run --resume {folder}{allow_options(allow)}")
        return 128 + log.signal
    print(f"ran {count}")
    for name in log.shown(MOST_SHOWN):
        numbers = log.numbers(name)
        print(f"  {name}: {numbers[0]:.4g} -> {numbers[-1]:.4g}, mean {log.mean(name):.4g}")
    if folder is not None:
        print(f"wrote {folder}: {', '.join(sorted(log.files))}")
    return 0
