"""Every broken spec gets exactly the answer that stands beside it, and nothing of it is executed.

``bad_specs/NAME.yaml`` begins with comments that say how to read it (``# check: structure``, ``# allow: my_nets``,
``# set: key=value``); ``NAME.txt`` is the whole message, as seen from inside the folder.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composer.errors import SpecError
from composer.source import load_source
from composer.spec import read_spec

FOLDER = Path(__file__).parent / "bad_specs"
SPECS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def directives(path: Path) -> dict[str, list[str]]:
    """What the comments at the top of a spec say: ``{"check": ["structure"], "allow": [...], "set": [...]}``."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"# (check|allow|set|env): (.*)", line)
        if match is None:
            break
        found.setdefault(match[1], []).append(match[2])
    return found


def outcome(path: Path) -> str:
    """The message a user gets for the spec at ``path``; empty for a spec without problems."""
    says = directives(path)
    try:
        source = load_source(path, says.get("set", ()))
        read_spec(source, says.get("allow", ()))
    except SpecError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", SPECS)
def test_a_bad_spec_gets_its_answer(name, monkeypatch):
    monkeypatch.chdir(FOLDER)
    started = time.process_time()
    message = outcome(Path(f"{name}.yaml"))
    assert message + "\n" == Path(f"{name}.txt").read_text()
    assert time.process_time() - started < 0.3


def test_every_answer_has_its_spec():
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == SPECS


def test_a_structural_mistake_is_answered_fast_and_without_torch():
    code = (
        "import sys, time\n"
        "from composer.source import load_source\n"
        "from composer.spec import read_spec\n"
        "try: read_spec(load_source(sys.argv[1]))\n"
        "except ValueError as error: print(len(error.problems))\n"
        "assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules\n"
        "assert time.process_time() < 0.3, time.process_time()\n"
    )
    command = [sys.executable, "-c", code, str(FOLDER / "many_problems.yaml")]
    done = subprocess.run(
        command, check=False, cwd=FOLDER.parent.parent, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("7\n", "")
