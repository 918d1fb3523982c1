"""DOT text to bytes of a picture: by the Graphviz inside pygraphviz, else by a ``dot`` on the PATH.

Graphviz runs in a process of its own: what it prints, where it hangs or crashes, is not ours then. `graphviz.pipe` is
not used: it has no time limit and hands on all of the environment.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TypeAlias

from composer.errors import RefusedError

__all__ = ["SECONDS", "DrawError", "GivenUp", "render"]

SECONDS = 300
LOOK_EVERY = 0.1  # seconds

GivenUp: TypeAlias = Callable[[], bool]
DOTS_PER_INCH = 144
LATE = 5.0  # seconds after which Graphviz ends by itself, where whoever waits for it was killed
# The default action of the signal ends a process also within C, where no thread and no handler of Python gets to run.
_PROGRAM = """
import signal
import sys
if hasattr(signal, "setitimer"):
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
import pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format=sys.argv[1], prog="dot"))
"""


class DrawError(RefusedError):
    """The picture cannot be drawn; the message says why."""


def render(dot: str, form: str, seconds: float = SECONDS, given_up: GivenUp | None = None) -> bytes:
    """``dot`` as ``"svg"``, ``"png"`` or ``"pdf"``.

    Graphviz is ended after ``seconds``, or soon after ``given_up()`` is true.

    Raises DrawError where that happens, where there is no Graphviz, and where a png or pdf would show empty boxes for
    lack of any font; the text of an svg is set by whoever shows it.
    """
    if form != "svg" and not _has_fonts():
        raise DrawError(
            f"this machine has no font, so every letter of a {form} would be an empty box; install one (such as the "
            "package fonts-dejavu-core), or draw .svg or .html, which use the fonts of the viewer"
        )
    return _run(dot, form, seconds, given_up)


@functools.cache
def _has_fonts() -> bool:
    """Without a font all letters look alike."""
    pictures = {
        _run(f'digraph {{ letter [shape=plaintext, fixedsize=true, label="{letter}"] }}', "png")
        for letter in "iW"
    }
    return len(pictures) > 1


def _run(dot: str, form: str, seconds: float = SECONDS, given_up: GivenUp | None = None) -> bytes:
    if form == "png":
        dot = dot.replace("{", f"{{ dpi={DOTS_PER_INCH};", 1)
    reason = None
    for command in _commands(form, seconds + LATE):
        try:
            done = _finished(command, dot.encode(), seconds, given_up)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout:
            return done.stdout
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
        if "ImportError" not in last and "ModuleNotFoundError" not in last:
            reason = last
    if reason is not None:
        raise DrawError(f"Graphviz failed: {reason}")
    raise DrawError(
        "drawing needs Graphviz: pip install 'pygraphviz>=2', or put the program dot on the PATH (the package graphviz "
        "of an operating system has it, the one of PyPI does not); .dot and .mermaid need neither"
    )


def _finished(
    command: list[str], dot: bytes, seconds: float, given_up: GivenUp | None
) -> subprocess.CompletedProcess[bytes]:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    end = time.monotonic() + seconds
    # A file, as a pipe of which a part was written at the first time limit would get no more at the next.
    with tempfile.TemporaryFile() as file:
        file.write(dot)
        file.seek(0)
        process = subprocess.Popen(
            command,
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
    with process:
        try:
            while True:
                wait = min(LOOK_EVERY, max(0.0, end - time.monotonic()))
                try:
                    output, errors = process.communicate(timeout=wait)
                    return subprocess.CompletedProcess(command, process.returncode, output, errors)
                except subprocess.TimeoutExpired:
                    if given_up is not None and given_up():
                        raise DrawError("the drawing was given up") from None
                    if time.monotonic() >= end:
                        raise DrawError(
                            f"Graphviz took more than {seconds:g} seconds; draw .dot and lay it out elsewhere"
                        ) from None
        finally:
            process.kill()


def _commands(form: str, longest: float) -> list[list[str]]:
    """The Graphviz inside pygraphviz, which ends itself after ``longest`` seconds, then the one on the PATH."""
    program = shutil.which("dot")
    on_path = [[program, f"-T{form}"]] if program else []
    # -P: it imports nothing from the current folder; PYTHONPATH, which may name that, is not handed on either.
    return [[sys.executable, "-P", "-c", _PROGRAM, form, str(longest)], *on_path]
