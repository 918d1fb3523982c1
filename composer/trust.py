"""Which dotted paths of a spec may be imported, and their import. Importing runs code, so the caller decides.

Registered names and the module classes of `torch.nn` are free. Everything else needs an entry in the caller's `allow`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from composer.errors import Problem, SpecError
from perception_blocks.registry import did_you_mean

__all__ = [
    "PETTINGZOO",
    "PathError",
    "allow_list",
    "check_trusted",
    "import_allowed",
    "import_object",
    "import_trusted",
]

PETTINGZOO = (
    "pettingzoo"  # before the colon of an environment's id: one that PettingZoo itself knows
)
_TORCH_NN = re.compile(r"torch\.nn\.(modules\.(\w+\.)*)?[A-Z]\w*")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class PathError(SpecError):
    """A dotted path that is not allowed, not there, or not what is needed."""

    def __init__(self, message: str) -> None:
        super().__init__([Problem(message)])

    def __reduce__(self) -> tuple:
        return (PathError, (self.problems[0].message,))


def check_trusted(path: str, allow: Iterable[str]) -> str | None:
    """Why the dotted ``path`` may not be imported, or None if it may. Imports nothing.

    >>> check_trusted("torch.nn.LayerNorm", ()), check_trusted("my_nets.Critic", ["my_nets"])
    (None, None)
    >>> check_trusted("nets2.Critic", ["nets"])
    "'nets2.Critic' is outside the allowed modules (nets); pass allow=['nets2'] or --allow nets2 if you trust it"
    """
    if not _DOTTED.fullmatch(path):
        return f"{path!r} is not a dotted path such as 'my_nets.Critic'"
    allow = list(allow)
    if _TORCH_NN.fullmatch(path) or _is_within(path, allow):
        return None
    top = path.split(".")[0]
    if _TORCH_NN.fullmatch(f"torch.{path}"):
        return f"{path!r} is not a full path; did you mean 'torch.{path}'?"
    return (
        f"{path!r} is outside the allowed modules ({', '.join(allow) or 'none'}); "
        f"pass allow=[{top!r}] or --allow {top} if you trust it"
    )


def allow_list(allow: Iterable[str]) -> tuple[str, ...]:
    """``allow`` as a tuple. Raises PathError for what is no list of names."""
    if isinstance(allow, str):
        raise PathError(
            f"allow is a list of modules, got the text {allow!r}; write allow=[{allow!r}]"
        )
    entries = tuple(allow)
    for entry in entries:
        if not isinstance(entry, str):
            raise PathError(f"allow holds the names of modules, got {_kind(entry)}: {entry!r}")
        if entry.endswith(".py"):
            name = re.sub(r"[/\\]+", ".", entry.removesuffix(".py").removeprefix("./"))
            raise PathError(
                f"allow names modules, not files, got {entry!r}; did you mean {name!r}?"
            )
    return entries


def import_allowed(allow: Iterable[str]) -> None:
    """Import the allowed modules, so that what they register is known. Raises PathError."""
    for module in allow:
        _import(module)


def import_trusted(path: str, allow: Iterable[str], expected_base: type) -> type:
    """The class at the dotted ``path``.

    Raises PathError unless ``path`` is allowed, is there, is a subclass of ``expected_base``, and was written in an
    allowed module itself: that an allowed module imports `os` allows nothing of `os`.
    """
    allow = list(allow)
    problem = check_trusted(path, allow)
    if problem:
        raise PathError(problem)
    import_allowed(allow)
    homes = ["torch.nn.modules"] if _TORCH_NN.fullmatch(path) else []
    found = _find(path, [*allow, *homes, *(["torch.nn"] if homes else [])])
    if not isinstance(found, type):
        raise PathError(f"{path!r} is not a class but {_kind(found)}")
    _require_home(path, found, allow, homes)
    if not issubclass(found, expected_base):
        home = expected_base.__module__.partition(".modules.")[0]  # torch.nn.Module
        base = f"{home}.{expected_base.__qualname__}"
        raise PathError(f"{path!r} is no subclass of {base}")
    return found


def import_object(path: str, allow: Iterable[str]) -> Any:
    """The function or other object at the dotted ``path``.

    Raises PathError unless ``path`` is allowed and there; functions and classes must be written in an allowed module.
    """
    allow = list(allow)
    problem = check_trusted(path, allow)
    if problem or not _is_within(path, allow):  # torch.nn is free where a block is named, not here
        raise PathError(problem or f"{path!r} is outside the allowed modules")
    import_allowed(allow)
    found = _find(path, allow)
    if isinstance(found, type) or inspect.isroutine(found):
        _require_home(path, found, allow)
    return found


def _require_home(path: str, found: Any, allow: list[str], homes: Sequence[str] = ()) -> None:
    """Raise PathError unless ``found`` was written in an allowed module or one of ``homes``."""
    home = getattr(found, "__module__", None) or "builtins"
    if not _is_within(home, [*allow, *homes]):
        raise PathError(
            f"{path!r} lives in {home!r}, outside the allowed modules "
            f"({', '.join(allow) or 'none'}); name it by the module that defines it, and allow that one"
        )


def _is_within(path: str, allow: Iterable[str]) -> bool:
    return any(path == entry or path.startswith(entry + ".") for entry in allow)


def _find(path: str, allow: list[str]) -> Any:
    """Follow ``path`` from the module it starts in, never through a module that is not allowed."""
    start = max((entry for entry in allow if _is_within(path, [entry])), key=len)
    found: Any = _import(start)
    at = start
    for name in path[len(start) + 1 :].split(".") if path != start else ():
        if isinstance(found, ModuleType) and not _is_within(found.__name__, allow):
            raise PathError(
                f"{path!r} leads through {found.__name__!r}, outside the allowed modules"
            )
        if not isinstance(found, ModuleType | type):
            raise PathError(f"{path!r} leads through {at!r}, which is {_kind(found)}")
        found = _member(found, name, at)
        at = f"{at}.{name}"
    return found


def _member(owner: ModuleType | type, name: str, at: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        pass
    if isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        full_name = f"{owner.__name__}.{name}"
        if importlib.util.find_spec(full_name) is not None:
            return _import(full_name)
    public = [known for known in vars(owner) if not known.startswith("_")]
    raise PathError(f"{at!r} has no {name!r}{did_you_mean(name, public)}")


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and _is_within(module, [error.name]):
            raise PathError(
                f"there is no module {module!r}; is its folder on PYTHONPATH, or the current folder?"
            ) from error
        raise PathError(f"the module {module!r} cannot be imported: {error}") from error
    except Exception as error:
        raise PathError(
            f"the module {module!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _kind(value: Any) -> str:
    if isinstance(value, ModuleType):
        return "a module"
    if inspect.isroutine(value):
        return "a function"
    return f"an object of type {type(value).__name__!r}"
