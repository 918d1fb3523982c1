"""Problems of a spec, each with its place, and the exception that carries all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from perception_blocks.registry import MissingExtraError
from perception_blocks.words import MOST_CHARACTERS, Suggestion, printable, readable, shortened

__all__ = ["MissingExtraSpecError", "Path", "Position", "Problem", "Problems", "RefusedError"]
__all__ += ["Span", "SpecError", "format_path"]

LONGEST_KEY, LONGEST_PLACE = 200, 500  # characters that are shown

Path: TypeAlias = tuple[str | int, ...]
"""The keys and list indices that lead to a value of a spec: ``("policy", "graph", "latent", "in", 0)``."""


class Position(NamedTuple):
    """A place in a file, counted from 1; ``line`` is None for what stands in no file (``--set a.b=3``).

    >>> str(Position("agent.yaml", 17, 22)), str(Position("--set a.b=3"))
    ('agent.yaml:17:22', '--set a.b=3')
    """

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        file = printable(self.file, LONGEST_PLACE)
        return file if self.line is None else f"{file}:{self.line}:{self.column}"

    @property
    def order(self) -> tuple[str, int, int]:
        return (self.file, self.line or 0, self.column or 0)


class Span(NamedTuple):
    """What is written from ``start`` up to, but not with, ``end``, both in one file.

    >>> span = Span(Position("agent.yaml", 17, 22), Position("agent.yaml", 17, 27))
    >>> span.holds(Position("agent.yaml", 17, 27)), span.holds(Position("agent.yaml", 17, 28))
    (True, False)
    """

    start: Position
    end: Position

    def holds(self, position: Position) -> bool:
        """Whether ``position`` is in it, or right behind it, where a cursor stands after the last character."""
        return (
            self.start.file == position.file
            and self.start.order <= position.order <= self.end.order
        )


@dataclass(frozen=True)
class Problem:
    """One problem, at ``path`` of the spec and, where the spec was read from text, at ``position``.

    The ``message`` may quote what the user wrote: it is printable, and has 2,000 characters at most. ``key``: the key
    is at fault, not its value. ``related`` are other places that explain it, each with a text: the inputs of a block
    that cannot take their shapes.

    >>> print(Problem("needs equal shapes.\\nAdd a flatten block.", ("policy", "graph"), None))
    policy.graph: needs equal shapes.
      Add a flatten block.
    """

    message: str
    path: Path = ()
    position: Position | None = None
    needs_extra: bool = field(default=False, compare=False)  # a library is not installed
    key: bool = field(default=False, compare=False)
    related: tuple[tuple[Path, str], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        text = readable(self.message, MOST_CHARACTERS)
        if isinstance(self.message, Suggestion):
            text = Suggestion(text, self.message.word, self.message.instead)
        object.__setattr__(self, "message", text)

    @property
    def word(self) -> str | None:
        """What `instead` stands for: the key or the value, or a word in it."""
        return self.message.word if isinstance(self.message, Suggestion) else None

    @property
    def instead(self) -> str | None:
        """The near name to write for `word`; None where there is none.

        >>> from perception_blocks.registry import BLOCKS
        >>> problem = Problem("unknown block 'dens'" + BLOCKS.hint("dens"), ("policy", "graph", "latent", "block"))
        >>> problem.message, problem.word, problem.instead
        ("unknown block 'dens'; did you mean 'dense'?", 'dens', 'dense')
        """
        return self.message.instead if isinstance(self.message, Suggestion) else None

    @property
    def where(self) -> str:
        """Its position, or where it has none its path."""
        return str(self.position) if self.position else format_path(self.path)

    def __str__(self) -> str:
        text = self.message.replace("\n", "\n  ")
        return f"{self.where}: {text}" if self.where else text


class RefusedError(ValueError):
    """Something cannot be done; the message may quote a file, so it is printable and has a limited length."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class SpecError(ValueError):
    """All errors in a spec: ``problems`` as data; the text has one problem per line, in the order of the file.

    The text has the first problems, at most 100 of them, and the number of the others.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=_order))
        super().__init__(shortened(self.problems))

    def __reduce__(self) -> tuple:
        return (type(self), (self.problems,))  # a worker process hands its error to its parent


class MissingExtraSpecError(SpecError, MissingExtraError):
    """The only problem is that libraries are not installed; the message names the extras that bring them."""


class Locator(Protocol):
    """Says where a path is written, as a `composer.source.load.Source` does."""

    def position(self, path: Path, key: bool = False) -> Position | None: ...


class Problems:
    """Collects problems, so that a user sees all of them at once.

    ``known`` are earlier problems: a second one at the same value is their consequence and is left out.
    """

    def __init__(self, locator: Locator | None = None, known: Iterable[Problem] = ()) -> None:
        self._locator = locator
        self._known = list(known)
        self._known_paths = {problem.path for problem in self._known if problem.path}
        self._new: dict[Problem, None] = {}

    def add(
        self,
        path: Path,
        message: str,
        key: bool = False,
        *,
        needs_extra: bool = False,
        related: Iterable[tuple[Path, str]] = (),
    ) -> None:
        """Note ``message`` at the value at ``path``, or with ``key`` at the key that names it."""
        if path in self._known_paths:
            return
        position = self._locator.position(path, key) if self._locator else None
        problem = Problem(message, path, position, needs_extra, key, related=tuple(related))
        self._new.setdefault(problem)

    def __len__(self) -> int:
        return len(self._known) + len(self._new)

    def __iter__(self) -> Iterator[Problem]:
        return iter((*self._known, *self._new))

    def raise_if_any(self) -> None:
        """Raise a SpecError with all problems noted up to now."""
        if len(self):
            is_missing = all(problem.needs_extra for problem in self)
            raise (MissingExtraSpecError if is_missing else SpecError)(self)


def format_path(path: Path) -> str:
    """A path as it is written after ``--set``.

    >>> format_path(("policy", "graph", "latent", "in", 0))
    'policy.graph.latent.in.0'
    """
    return ".".join(printable(str(part), LONGEST_KEY) for part in path)


def _order(problem: Problem) -> tuple:
    return (0, problem.position.order) if problem.position else (1, ())
