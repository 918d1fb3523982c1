"""Processes of this library: how one is started and ended, and what both sides say to one another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from typing import Any, BinaryIO, TypeAlias

__all__ = ["LENGTH", "FileState", "command_of", "end_group", "frame_of", "read_frame"]
__all__ += ["state_of", "taken_streams", "value_of"]

FileState: TypeAlias = "tuple[int, int] | None"

LENGTH = 8  # bytes in front of each frame, which say how long it is
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {module} import main
main()
"""


def command_of(module: str) -> list[str]:
    """The command that runs ``main`` of ``module``, which imports from the same folders as this process."""
    return [sys.executable, "-P", "-c", _CODE.format(module=module), json.dumps(sys.path)]


def end_group(process: subprocess.Popen[str] | asyncio.subprocess.Process) -> None:
    """End a process that began a session, with all that it has started, at once."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def taken_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output, which nothing else in this process, or in one that it starts, reads or writes.

    What is printed goes to standard error.
    """
    sys.stdout.flush()
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return stdin, stdout


def frame_of(value: object) -> bytes:
    """``value`` as it is sent: between a process and its own child, which runs nothing that it would not run itself."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(LENGTH, "big") + data


def read_frame(stream: BinaryIO) -> Any:
    """The next value that was sent. Raises EOFError where the other side has ended."""
    length = stream.read(LENGTH)
    if len(length) < LENGTH:
        raise EOFError
    return value_of(stream.read(int.from_bytes(length, "big")))


def value_of(data: bytes) -> Any:
    """What was sent, from a frame without its length."""
    return pickle.loads(data)


def state_of(file: str) -> FileState:
    """What differs once a file has changed; None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
