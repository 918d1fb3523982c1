"""Python processes of their own that start in a tenth of the time: forks of a server that has imported torch.

The server imports what takes long and nothing of ours, so that a fork imports the packages, and reads its plugins,
anew. What depends on how Python itself starts (its flags, ``site``) needs a real process.
"""

import atexit
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path


def run(
    code: str | Sequence[str], folder: Path | str = ".", paths: Sequence[Path | str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run Python ``code``, or ``composer`` with arguments, in ``folder``; ``paths`` are those of PYTHONPATH."""
    with tempfile.TemporaryDirectory() as outputs:
        files = [str(Path(outputs) / name) for name in ("out", "err")]
        job = {"folder": str(Path(folder).resolve()), "paths": [*map(str, paths)], "files": files}
        job |= {"code": code} if isinstance(code, str) else {"arguments": [*code]}
        server = _server()
        assert server.stdin
        assert server.stdout
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        said = [Path(file).read_text() for file in files]
    return subprocess.CompletedProcess([], status, *said)


@functools.cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", __file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)  # closes its input, at which it ends
    return server


def _serve() -> None:
    import gymnasium  # noqa: F401
    import torch  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(job: dict) -> None:
    """The job, in this process, which ends with it."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(job["files"], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(job["folder"])
    os.environ["PYTHONPATH"] = os.pathsep.join(job["paths"])
    sys.path[:0] = ["" if "code" in job else job["folder"], *job["paths"]]
    sys.argv = ["-c", *job.get("arguments", ())]
    status = 0
    try:
        if "code" in job:
            exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module("composer", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
