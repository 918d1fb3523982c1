"""Prints the examples of a page as one bash script: what a person would do who follows the page from top to bottom.

Needs nothing but Python, as it runs where nothing is installed yet. tests/whole/test_docs.py says what the fences mean;
here every command runs, not composer's alone, and Python is another process.
"""

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^(?:<!-- file: (\S+) -->\s+)?```([\w-]+)\n(.*?)^```$", re.M | re.S)
# Compares what a command has printed (its standard input) with what the page shows; ... stands for anything. Lines of
# progress, which stand for the bar of a terminal, are there or not as the machine is slow or quick.
COMPARE = (
    "import doctest, re, sys; want, said = sys.argv[1], sys.stdin.read(); print(said, end=''); "
    "said = re.sub(r'(?m)^\\d+ %: .* per second\\n', '', said); "
    "flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE; "
    "sys.exit(not doctest.OutputChecker().check_output(want, said, flags) and f'expected:\\n{want}')"
)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def script(page: str) -> str:
    lines = ["set -euo pipefail"]
    for file, language, text in FENCE.findall(page):
        if file:
            lines.append(f"printf %s {quoted(text)} > {file}")
        elif language == "python":
            lines.append(f"python -c {quoted(text)}")
        elif language == "console":
            for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
                command, _, want = part.partition("\n")
                lines.append(f"echo {quoted('$ ' + command)}")
                if want:
                    command = (
                        f"({command} || true) 2>&1 | python -c {quoted(COMPARE)} {quoted(want)}"
                    )
                lines.append(command)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(script(Path(sys.argv[1]).read_text(encoding="utf-8")))
