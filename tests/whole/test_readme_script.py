"""The script that .ci/run makes of README: it compares what commands print, and fails where they print something else."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "readme.py"))["script"]
PAGE = """```console
$ printf '%b' '{said}'
trained; mean return ...
wrote run
```
"""
PROGRESS = "88 %: 26,600 of 30,000 steps, return 223.2, 5320 steps per second\\n"
RESULT = "trained; mean return 500\\nwrote run\\n"


@pytest.mark.parametrize(
    ("said", "status"),
    [(RESULT, 0), (PROGRESS + RESULT, 0), ("warning: slow\\n" + RESULT, 1), ("wrote run\\n", 1)],
    ids=["equal", "progress", "more", "less"],
)
def test_what_a_command_prints_is_what_the_page_shows(tmp_path, said, status):
    page = PAGE.format(said=said)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", SCRIPT(page)],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert ("expected:" in done.stderr) == bool(status)
