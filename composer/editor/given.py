"""Which spaces a spec's text is about: those of its environment, of one that a comment names, or of the editor's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from composer.editor.environments import MadeSpaces, SpaceKeeper, SpacesUnknownError
from composer.errors import Path, Position, Problem, SpecError
from composer.limits import Limits
from composer.source.files import display_name
from composer.source.load import Source
from composer.spec.model_spec import ModelSpec
from composer.trust import check_environment, check_trusted
from perception_blocks.words import hint

__all__ = ["Given", "Settings", "given_spaces"]

_COMMENT = re.compile(r"^#[ \t]*composer:([^\r\n]*)", re.M)
_WORDS = ("env", "spaces")
NOTHING_GIVEN = (
    "shapes are not known: the spec names no environment; write environment: ID, or a comment "
    "# composer: env=ID or # composer: spaces=agent.safetensors"
)
NOT_MADE = "shapes are not known: the editor is set not to make environments"
NOT_ALLOWED = "shapes are not known: the environment is not allowed"
FAILED = "shapes are not known: the environment cannot be made"
ALLOWS_NOTHING = (
    "a file does not say itself what may run; set composer.allow in the editor, or give --allow to "
    "the command"
)


class Settings(NamedTuple):
    """What holds for a check beside the text."""

    allow: tuple[str, ...] = ()
    environment: str | None = None
    makes_environments: bool = True
    limits: Limits = Limits()


class Given(NamedTuple):
    """Spaces, if they are known, and the name of what has them; else why they are not, and what is wrong."""

    name: str | None = None
    made: MadeSpaces | None = None
    unknown: str = ""
    problems: tuple[Problem, ...] = ()


class _Word(NamedTuple):
    """``key=value`` in a comment, and where it stands."""

    key: str
    value: str
    position: Position


def given_spaces(
    spec: ModelSpec, text: str, file: str, settings: Settings, keeper: SpaceKeeper
) -> Given:
    """The spaces that the ``text`` of ``file`` is about; ``spec`` is what was read of it."""
    words = _words_in(text, display_name(file))
    wrong = tuple(filter(None, map(_wrong_word, words)))
    values = {word.key: word for word in words if word.value}
    source = spec.source
    if spec.environment is not None:
        path = ("environment",)
        place = source.position(path)
        given = _of_environment(spec.environment, path, place, source, settings, keeper)
    elif "env" in values:
        _, name, place = values["env"]
        given = _of_environment(name, (), place, source, settings, keeper)
    elif "spaces" in values:
        given = _of_checkpoint(values["spaces"], source, keeper)
    elif settings.environment is not None:
        given = _of_environment(settings.environment, (), None, source, settings, keeper)
        if given.problems:  # which are none of the file's
            given = Given(unknown=f"shapes are not known: {given.problems[0].message}")
    else:
        given = Given(unknown=NOTHING_GIVEN)
    return given._replace(problems=(*wrong, *given.problems))


def _of_environment(
    name: str,
    path: Path,
    place: Position | None,
    source: Source,
    settings: Settings,
    keeper: SpaceKeeper,
) -> Given:
    refusal = check_environment(name, settings.allow)
    if refusal:
        return Given(unknown=NOT_ALLOWED, problems=(Problem(refusal, path, place),))
    if not settings.makes_environments:
        return Given(unknown=NOT_MADE)
    try:
        made = keeper.of_environment(name, _modules(source, settings.allow), path, place)
    except SpecError as error:
        return Given(unknown=FAILED, problems=error.problems)
    except SpacesUnknownError as error:
        return Given(unknown=f"shapes are not known: {error}")
    return Given(name, made)


def _modules(source: Source, allow: Sequence[str]) -> tuple[str, ...]:
    """What is imported before the environment is made: what is allowed, and the allowed ones of `extensions`."""
    extensions = source.data.get("extensions")
    names = extensions if isinstance(extensions, list) else []
    more = [n for n in names if isinstance(n, str) and check_trusted(n, allow) is None]
    return tuple(dict.fromkeys([*allow, *more]))


def _of_checkpoint(word: _Word, source: Source, keeper: SpaceKeeper) -> Given:
    try:
        return Given(word.value, keeper.of_checkpoint(source.find_file(word.value)))
    except ValueError as error:  # a CheckpointError, or of a file that the spec may not read
        return Given(unknown=FAILED, problems=(Problem(str(error), (), word.position),))


# --- the comment ------------------------------------------------------------------------------------------------------


def _words_in(text: str, file: str) -> list[_Word]:
    """The words of comments such as ``# composer: env=CartPole-v1``."""
    words = []
    for comment in _COMMENT.finditer(text):
        line = text.count("\n", 0, comment.start()) + 1
        for word in re.finditer(r"\S+", comment[1]):
            key, _, value = word[0].partition("=")
            column = comment.start(1) - comment.start() + word.start() + 1
            words.append(_Word(key, value, Position(file, line, column)))
    return words


def _wrong_word(word: _Word) -> Problem | None:
    if word.key == "allow":
        message = f"{word.key!r} has no effect in a comment: {ALLOWS_NOTHING}"
    elif word.key not in _WORDS:
        message = f"{word.key!r} is not known in '# composer:'{hint(word.key, _WORDS)}"
    elif not word.value:
        message = f"{word.key!r} lacks its value; write {word.key}=..."
    else:
        return None
    return Problem(message, (), word.position)
