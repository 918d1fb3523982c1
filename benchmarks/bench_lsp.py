"""What an editor waits for over stdio: from a keystroke to its problems, and completion while a check runs.

The times hold the pause of 60 ms in which the server waits for another keystroke.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench_editor import CONFIGS, edits, texts

from harness import Row, main

sys.path.insert(0, str(Path(__file__).parent.parent))
from lsprotocol import types as lsp

from tests.helpers.language_client import Editor

ROUNDS = 25
KEYSTROKE, COMPLETION = 0.150, 0.010  # seconds, 95 of 100
PAUSE = 0.061  # until the check has begun


def slow(times: list[float]) -> float:
    """The time that 95 of 100 are below."""
    return sorted(times)[int(0.95 * len(times))]


def keystrokes(editor: Editor, uri: str, text: str, part: str) -> float:
    changed, times = edits(text, part), []
    editor.open(uri, text)
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        assert editor.open(uri, next(changed)) == []
        times.append(time.perf_counter() - begun)
    return slow(times)


def completions(editor: Editor, uri: str, text: str, part: str) -> float:
    """While a check runs; those that came after its end do not count."""
    changed, times = edits(text, part), []
    editor.open(uri, text)
    editor.known(uri)
    for _ in range(2 * ROUNDS):
        before = editor.published[uri]
        editor.send(uri, next(changed))
        editor.pause(PAUSE)
        place = editor.find(uri, "last: {block: dense, in: n1|98")
        begun = time.perf_counter()
        answer = editor.ask(lsp.TEXT_DOCUMENT_COMPLETION, uri, place)
        taken = time.perf_counter() - begun
        assert answer.items
        if editor.published[uri] == before:
            times.append(taken)
        editor.wait_until(lambda before=before: editor.published[uri] > before)
    assert len(times) >= ROUNDS // 2, f"only {len(times)} of {2 * ROUNDS} came during a check"
    return slow(times)


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(folder, {"allow": ["environments"], "path": [str(CONFIGS)]})
        try:
            uri = (Path(folder) / "agent.yaml").as_uri()
            for name, (text, part) in texts().items():
                taken = keystrokes(editor, uri, text, part)
                row = f"keystroke to problems: {name}, 95 of 100"
                yield Row(row, taken, "limit", KEYSTROKE, at_most=1)
            name = "200 mixed nodes"
            taken = completions(editor, uri, *texts()[name])
            row = f"completion during a check: {name}, 95 of 100"
            yield Row(row, taken, "limit", COMPLETION, at_most=1)
        finally:
            editor.stop()


if __name__ == "__main__":
    main("An editor over stdio", rows)
