"""A process that makes an environment, says what its spaces are, and ends: environments run code of their own."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from composer.errors import SpecError
from composer.spaces.json_form import spaces_to_json
from composer.spaces.lookup import made_spaces
from composer.trust import allow_beside, import_allowed

__all__ = ["main"]


def main() -> None:
    """Answer one request on stdin, as JSON on stdout; whatever is printed on the way goes to stderr."""
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with answer:
        json.dump(_answer(json.load(sys.stdin)), answer)


def _end_with(parent: int) -> None:
    """End this process, and those that it has started, when its parent does: nobody waits for the answer."""
    while os.getppid() == parent:
        time.sleep(1)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _answer(asked: dict[str, list[str]]) -> dict[str, object]:
    allow = asked["allow"]
    allow_beside(asked["folders"], allow)
    try:
        import_allowed(allow)
        (observation, action), why = made_spaces(asked["environment"][0])
    except SpecError as error:
        return {"problems": [[problem.message, problem.needs_extra] for problem in error.problems]}
    return {"spaces": [spaces_to_json(observation), spaces_to_json(action)], "why": why}
