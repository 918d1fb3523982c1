"""A mapping that notes which of its keys were asked for, so that none is forgotten silently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from composer.errors import Path, Problem, SpecError, format_path
from composer.source.values import Located, plain
from perception_blocks.words import cut, describe

__all__ = ["BASE", "CLASS", "MOST", "MOST_LAYERS", "Code", "Refusals", "Taken"]

CLASS = "__class__"  # the key under which a class or a call of a Python file says its name

BASE = "__base__"  # and the name of a base class that is in another file
MOST = 2**31 - 1  # of a number
MOST_LAYERS = 1_000

T = TypeVar("T")
D = TypeVar("D")


class Code(str):
    """An expression of a Python file that would have to be run to have a value."""


class Refusals:
    """All that cannot be imported of one file, so that a user sees it at once.

    What is said of a value leaves out its consequences: whatever else would be said of it, or of what is in it.
    """

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}
        self._paths: set[Path] = set()

    def note(self, problem: Problem, path: Path | None = None, *, once: bool = False) -> None:
        """Note a ``problem``, after which nothing is said of the value at ``path``.

        With ``once`` it is left out where one at the same place is known: a line of code gives many values.
        """
        at = problem.path if path is None else path
        if any(at[:length] in self._paths for length in range(1, len(at) + 1)):
            return
        if path is not None:
            self._paths.add(path)
        if not (once and any(known.position == problem.position for known in self._problems)):
            self._problems.setdefault(problem)

    def raise_if_any(self) -> None:
        """Raise a SpecError with all problems noted up to now."""
        if self._problems:
            raise SpecError(self._problems)


class Taken(Mapping[str, Any]):
    """A mapping of a file that notes which of its keys were asked for, at any depth.

    Mappings in it, also those in lists, are `Taken` themselves. `text`, `flag`, `number`, `whole`, `layers`, `wholes`,
    `below` and `entries` also check what they return; a key that is absent or null has its ``default``, and is needed
    where there is none. They raise SpecError with the place and the path of the key, or, with ``refusals``, note it
    there and go on with a value of the right kind. ``in`` and ``len`` ask for nothing.

    >>> from composer.source.values import from_python
    >>> net = Taken(from_python({"mlp": {"units": [64], "d2rl": False}, "cnn": None}))
    >>> net.below("mlp").wholes("units"), net.left()
    ([64], [('mlp', 'd2rl'), ('cnn',)])
    """

    def __init__(self, node: Located, path: Path = (), refusals: Refusals | None = None) -> None:
        self.node, self.path, self.refusals = node, path, refusals
        self._asked: set[str] = set()
        self._views: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        node = self.node.value[key]
        self._asked.add(key)
        if key not in self._views:
            self._views[key] = _view(node, (*self.path, key), self.refusals)
        return self._views[key]

    def __contains__(self, key: object) -> bool:
        return key in self.node.value

    def __iter__(self) -> Iterator[str]:
        return iter(self.node.value)

    def __len__(self) -> int:
        return len(self.node.value)

    def __repr__(self) -> str:
        return f"Taken({format_path(self.path) or 'the file'})"

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and not null; a null counts as asked for."""
        if key in self and self.node.value[key].value is None:
            self._asked.add(key)
            return False
        return key in self

    def ask(self, *keys: str) -> None:
        """Count ``keys``, with all that is below them, as asked for: they change nothing of the network."""
        for key in keys:
            if key in self:
                _ask_all(self[key])

    def plain(self, key: str) -> Any:
        """The value of ``key`` as fresh dicts, lists and scalars; all of it counts as asked for."""
        self.ask(key)
        return plain(self.node.value[key])

    def left(self) -> list[Path]:
        """The paths that nobody asked for, in the order of the file; of what is below them nothing."""
        paths: list[Path] = []
        for key in self:
            if key in (CLASS, BASE):
                continue
            paths += _left(self._views.get(key)) if key in self._asked else [(*self.path, key)]
        return paths

    def name(self, key: str | None = None) -> str:
        """The path of ``key``, or of this mapping, as messages have it: ``params.network.cnn``."""
        return format_path(self.path if key is None else (*self.path, key))

    def refusal(self, key: str | None, reason: str) -> SpecError:
        """The error that ``key``, or this mapping, cannot be imported, with its place and the ``reason``."""
        node = self.node if key is None else self.node.value.get(key, self.node)
        place = node.key_position or node.position
        path = self.path if key is None else (*self.path, key)
        name = format_path(path)
        return SpecError([Problem(f"{name}: {reason}" if name else reason, path, place)])

    def refuse(self, key: str | None, reason: str, index: int | None = None) -> None:
        """Note a `refusal`, of the whole ``key`` or of the value at ``index`` of its list; raise it without `refusals`.

        Reading goes on, so that the file's other problems are noted as well.
        """
        path = None if key is None else (*self.path, key, *(() if index is None else (index,)))
        self._refuse(self.refusal(key, reason), path)

    def refuse_unread(self, key: str) -> bool:
        """Refuse a text at ``key`` that is none yet: code, or what is filled in from elsewhere. False for others."""
        value = self[key]
        if isinstance(value, Code):
            reason = f"{cut(value, 60)!r} is code, which is not run; write the value itself"
        elif isinstance(value, str) and "${" in value:
            reason = f"{value!r} is filled in from elsewhere; write the value itself"
        else:
            return False
        self._refuse(self.refusal(key, reason), (*self.path, key), isinstance(value, Code))
        return True

    def _refuse(self, error: SpecError, path: Path | None, once: bool = False) -> None:
        if self.refusals is None:
            raise error
        for problem in error.problems:
            self.refusals.note(problem, path, once=once)

    # --- checked values -----------------------------------------------------------------------------------------

    def text(self, key: str, default: str | None = None) -> str:
        return self._checked(key, default, "a text", _is_text, str, "")

    def flag(self, key: str, default: bool | None = None) -> bool:
        return self._checked(
            key, default, "true or false", lambda v: isinstance(v, bool), bool, False
        )

    def number(
        self,
        key: str,
        default: float | None = None,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> float:
        what = "a number" + _bounds(least, most)
        return self._checked(
            key,
            default,
            what,
            lambda v: _is_number(v) and least <= v <= most,
            float,
            min(max(1.0, least), most),
        )

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        what = f"a whole number of at least {least}" + (
            f" and at most {most}" if most < MOST else ""
        )
        return self._checked(
            key, default, what, lambda v: _is_whole(v, least) and v <= most, int, least
        )

    def layers(self, key: str, default: int | None = None) -> int:
        """How many layers or networks there are, each of which has names of its own."""
        return self.whole(key, default, most=MOST_LAYERS)

    def wholes(self, key: str, default: list[int] | None = None, least: int = 1) -> list[int]:
        what = f"a list of whole numbers of at least {least}"

        def valid(value: Any) -> bool:
            is_short = isinstance(value, list) and len(value) <= MOST_LAYERS
            return is_short and all(_is_whole(each, least) for each in value)

        return self._checked(
            key, default, what, valid, lambda v: [int(each) for each in v], [least]
        )

    def one_or_many(self, key: str, default: int | None = None, least: int = 1) -> int | list[int]:
        """One whole number, or a list with one for each axis."""
        what = f"a whole number of at least {least}, or a list of them"

        def valid(value: Any) -> bool:
            return all(
                _is_whole(each, least) for each in (value if isinstance(value, list) else [value])
            )

        return self._checked(
            key,
            default,
            what,
            valid,
            lambda v: [int(n) for n in v] if isinstance(v, list) else int(v),
            least,
        )

    def below(self, key: str) -> Taken:
        nothing = Taken(Located({}, self.node.position), (*self.path, key), self.refusals)
        return self._checked(
            key, None, "a mapping", lambda v: isinstance(v, Taken), lambda v: v, nothing
        )

    def entries(self, key: str) -> list[Taken]:
        def valid(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(each, Taken) for each in value)

        return self._checked(key, None, "a list of mappings", valid, lambda v: v, [])

    def _checked(
        self,
        key: str,
        default: D | None,
        what: str,
        valid: Callable[[Any], bool],
        convert: Callable[[Any], T],
        instead: T,
    ) -> T | D:
        """The value; the default, or ``instead``, of one that was refused where reading goes on."""
        if not self.has(key):
            if default is None:
                error = self.refusal(key if key in self else None, f"{key!r} is missing: {what}")
                self._refuse(error, (*self.path, key))
                return instead
            return default
        value = self[key]
        if not valid(value):
            if not self.refuse_unread(key):
                is_list = isinstance(value, list) and value
                got = cut(str(plain(self.node.value[key])), 60) if is_list else describe(value)
                self.refuse(key, f"must be {what}, got {got}")
            return instead if default is None else default
        return convert(value)


def _view(node: Located, path: Path, refusals: Refusals | None) -> Any:
    if isinstance(node.value, dict):
        return Taken(node, path, refusals)
    if isinstance(node.value, list):
        return [_view(child, (*path, index), refusals) for index, child in enumerate(node.value)]
    return node.value


def _ask_all(view: Any) -> None:
    if isinstance(view, Taken):
        view.ask(*view)
    elif isinstance(view, list):
        for each in view:
            _ask_all(each)


def _left(view: Any) -> list[Path]:
    if isinstance(view, Taken):
        return view.left()
    return [path for each in view for path in _left(each)] if isinstance(view, list) else []


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not isinstance(value, Code) and "${" not in value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _bounds(least: float, most: float) -> str:
    bounds = [("at least", least), ("at most", most)]
    said = [f"{words} {bound:g}" for words, bound in bounds if math.isfinite(bound)]
    return f" of {' and '.join(said)}" if said else ""


def _is_whole(value: Any, least: int) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and least <= value <= MOST
