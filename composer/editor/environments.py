"""The spaces of environments by id, each made once, in a process of its own, and the spaces in checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import read_record
from composer.editor.child import command_of, end_group
from composer.errors import MissingExtraSpecError, Path, Position, Problem, SpecError
from composer.spaces.json_form import spaces_from_json
from composer.spaces.lookup import Spaces
from composer.trust import folders_beside

__all__ = ["MadeSpaces", "SpaceKeeper", "SpacesUnknownError"]

TIME_LIMIT = 20.0  # seconds
RETRY_AFTER = (
    30.0  # seconds until what failed is tried again: a library may have been installed since
)
MOST_KEPT = 64


class SpacesUnknownError(Exception):
    """The spaces are not known, for a reason that is no mistake in the spec; the text says which."""


class MadeSpaces(NamedTuple):
    """The spaces of an environment, and why nothing would show the last action and reward in it."""

    spaces: Spaces
    why_not_recalled: str = ""


@dataclass(frozen=True)
class _Failure:
    """What came instead of spaces, and when."""

    at: float
    problems: tuple[tuple[str, bool], ...] = ()  # messages, and whether a library is missing
    reason: str = ""


class SpaceKeeper:
    """Spaces by the id of their environment, or the path of a checkpoint; each is found out once, and kept."""

    def __init__(self, time_limit: float = TIME_LIMIT) -> None:
        self.time_limit = time_limit
        self._kept: dict[object, MadeSpaces | _Failure] = {}
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def close(self) -> None:
        """End the process that makes an environment, if there is one; none is started from here on."""
        self._closed = True
        if self._process is not None:
            end_group(self._process)

    def of_environment(
        self, environment: str, allow: Sequence[str], path: Path, position: Position | None
    ) -> MadeSpaces:
        """The spaces of ``environment``, which is made in a process of its own with the modules of ``allow``.

        Raises SpecError, at ``path``, where it cannot be made, and SpacesUnknownError where it takes too long.
        """
        key = (environment, tuple(allow))
        kept = self._kept.get(key)
        if kept is None or (
            isinstance(kept, _Failure) and time.monotonic() > kept.at + RETRY_AFTER
        ):
            kept = self._keep(key, self._made(environment, allow))
        if isinstance(kept, MadeSpaces):
            return kept
        if kept.reason:
            raise SpacesUnknownError(kept.reason)
        problems = [Problem(message, path, position, extra) for message, extra in kept.problems]
        is_missing = all(problem.needs_extra for problem in problems)
        raise (MissingExtraSpecError if is_missing else SpecError)(problems)

    def of_checkpoint(self, file: str) -> MadeSpaces:
        """The spaces that the checkpoint ``file`` holds. Raises CheckpointError where it holds none."""
        try:
            status = os.stat(file)
        except OSError as error:
            raise CheckpointError(f"{file!r} cannot be read: {error.strerror}") from error
        key = (os.path.abspath(file), status.st_mtime_ns, status.st_size)
        kept = self._kept.get(key)
        if not isinstance(kept, MadeSpaces):
            record = read_record(file)
            if not record.observation_space:
                raise CheckpointError(f"{file!r} holds no spaces")
            kept = self._keep(key, MadeSpaces(record.spaces()))
        assert isinstance(kept, MadeSpaces)
        return kept

    def _keep(self, key: object, made: MadeSpaces | _Failure) -> MadeSpaces | _Failure:
        while len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = made
        return made

    def _made(self, environment: str, allow: Sequence[str]) -> MadeSpaces | _Failure:
        asked = {"environment": [environment], "allow": list(allow), "folders": folders_beside()}
        process = subprocess.Popen(
            command_of("composer.editor.space_process"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # what it starts ends with it
        )
        self._process = process
        if self._closed:  # by another thread
            end_group(process)
        try:
            written, _ = process.communicate(json.dumps(asked), self.time_limit)
            answer = json.loads(written)
        except subprocess.TimeoutExpired:
            seconds = f"{self.time_limit:g} seconds"
            reason = f"the environment {environment!r} was not made within {seconds}"
            return _Failure(float("inf"), reason=reason)
        except ValueError:  # no answer
            status = process.wait()
            reason = f"the process that makes {environment!r} ended with status {status}"
            return _Failure(time.monotonic(), reason=reason)
        finally:
            self._process = None
            _end(process)
        if "problems" in answer:
            return _Failure(time.monotonic(), tuple((m, e) for m, e in answer["problems"]))
        observation, action = (spaces_from_json(data) for data in answer["spaces"])
        return MadeSpaces((observation, action), answer["why"])


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started."""
    end_group(process)
    with contextlib.suppress(BrokenPipeError, ValueError):
        process.communicate()
