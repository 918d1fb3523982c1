"""The command `composer watch`: its options, and what it starts. It imports heavy libraries only when it runs."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING

from composer.cli.loading import UserError, is_checkpoint
from composer.cli.options import add_spec_options
from composer.source.files import no_file
from perception_blocks.registry import MissingExtraError, needs_extra

if TYPE_CHECKING:
    from composer.editor.watch_state import Watch

__all__ = ["add_watch_options", "run_watch"]

NEEDED = ("starlette", "uvicorn", "watchfiles")
ENDING = 1.0  # seconds for a look that is given up


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="SPEC", help="a spec, or an experiment: a file")
    add_spec_options(parser)
    text = "the port on this machine at which the page is (default: any that is free)"
    add("--port", metavar="N", type=_port, default=0, help=text)
    add(
        "--open", metavar="COMMAND", dest="command_to_open",
        help="opens a place that is clicked, such as 'code -g {file}:{line}' (default: the place is copied)",
    )  # fmt: skip


def _port(text: str) -> int:
    """A number of a port. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"write a number from 0 to 65535, got {text!r}")
    return int(text)


def run_watch(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Serve the picture until Ctrl-C; ``say`` gets the address."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(needs_extra("a live picture", missing, "editor"))
    file = arguments.file
    if is_checkpoint(file):
        raise UserError(
            f"{file} is a checkpoint, which does not change; composer watch takes a spec"
        )
    if problem := no_file(file):
        raise UserError(problem)
    import asyncio

    from composer.editor.watch_look import Looker, Request
    from composer.editor.watch_opener import Opener
    from composer.editor.watch_server import listening, serve
    from composer.editor.watch_state import Watch

    command = arguments.command_to_open
    opener = None if command is None else Opener(command)
    request = Request(
        file,
        arguments.env,
        tuple(arguments.allow),
        tuple(arguments.overrides),
        dict(arguments.limits),
    )

    looker = Looker(request)
    watch = Watch(file, looker.look)
    with listening(arguments.port) as server, closing(looker):
        asyncio.run(serve(watch, server, opener, say))
    _end(watch)


def _end(watch: Watch) -> None:
    """End the process, at once where a look does not come to its end: Python would abort, not leave its thread."""
    end = time.monotonic() + ENDING
    while watch.is_looking and time.monotonic() < end:
        time.sleep(0.02)
    if watch.is_looking:
        os._exit(0)
