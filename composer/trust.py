"""The dotted paths of a spec that may be imported, and their import. Importing runs code, so the caller decides.

Registered names and the module classes of `torch.nn` are free. Everything else needs an entry in the caller's `allow`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from composer.errors import MissingExtraSpecError, Problem, SpecError
from composer.source.files import names_a_folder
from perception_blocks.registry import NameTakenError, extra_for, load_plugins
from perception_blocks.words import did_you_mean, suggest

if TYPE_CHECKING:
    from composer.source.load import Source

__all__ = ["PETTINGZOO", "NoModuleError", "PathError", "advice_on_missing", "allow_beside"]
__all__ += ["allow_list", "allow_options", "check_environment", "check_trusted", "file_of"]
__all__ += [
    "folders_beside",
    "import_allowed",
    "import_extensions",
    "import_object",
    "import_trusted",
]

# Before the colon of an environment's id: an environment that PettingZoo itself knows.
PETTINGZOO = "pettingzoo"
_TORCH_NN = re.compile(r"torch\.nn\.(modules\.(\w+\.)*)?[A-Z]\w*")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class PathError(SpecError):
    """A dotted path is not allowed, does not exist, or leads to something of another kind."""

    def __init__(self, message: str) -> None:
        super().__init__([Problem(message)])

    def __reduce__(self) -> tuple:
        return (type(self), (self.problems[0].message,))


class NoModuleError(PathError):
    """A module that is allowed lies in no folder that is searched."""


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
        return f"{path!r} is not a full path" + suggest(path, f"torch.{path}")
    return (
        f"{path!r} is outside the allowed modules ({_modules(allow)}); "
        f"pass allow=[{top!r}] or --allow {top} if you trust it"
    )


def check_environment(environment: str, allow: Iterable[str]) -> str | None:
    """Why the ``environment`` that a file names may not be made, or None if it may: ``module:Id`` runs a module.

    >>> check_environment("CartPole-v1", ()), check_environment("my_envs:Maze-v0", ["my_envs"])
    (None, None)
    """
    module = _module_of(environment)
    problem = None if module is None else check_trusted(module, allow)
    return problem and f"the environment {environment!r} would run code: {problem}"


def _module_of(environment: str) -> str | None:
    """The module that an id such as ``my_envs:Maze-v0`` imports; None where it imports none."""
    module, colon, _ = environment.partition(":")
    return module if colon and module != PETTINGZOO else None


def allow_options(allow: Iterable[str], environment: str | None = None) -> str:
    """The options that allow ``allow`` and ``environment`` to a command: ``" --allow my_envs"``."""
    module = _module_of(environment or "")
    names = dict.fromkeys([*allow, module] if module else allow)
    return "".join(f" --allow {name}" for name in names)


def allow_list(allow: Iterable[str]) -> tuple[str, ...]:
    """``allow`` as a tuple: modules that may be imported, and folders (with a slash) of files that a spec may name.

    Raises PathError for anything but a list of names.
    """
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
    """Import the allowed modules, which may register names. Raises PathError.

    Plug-ins are imported first: a name that both register is an error, even if the spec does not use it. Raises
    NameTakenError for a plug-in's name that is taken.
    """
    modules = [entry for entry in allow_list(allow) if not names_a_folder(entry)]
    for module in modules:
        if not _DOTTED.fullmatch(module):
            raise PathError(f"{module!r} is not the name of a module, such as 'my_nets'")
    if modules:
        load_plugins()
    for module in modules:
        _import(module)


def import_extensions(source: Source, allow: Iterable[str]) -> None:
    """Import the modules that a spec names under `extensions`, so that what they register is known.

    Those that are not allowed are left to whoever reads the spec, which names them. Raises SpecError.
    """
    names = source.data.get("extensions")
    for index, name in enumerate(names if isinstance(names, list) else ()):
        if not isinstance(name, str) or check_trusted(name, allow) or not _is_within(name, allow):
            continue
        try:
            _import(name)
        except SpecError as error:
            path = ("extensions", index)
            place = source.position(path)
            problems = [Problem(p.message, path, place, p.needs_extra) for p in error.problems]
            kind = MissingExtraSpecError if all(p.needs_extra for p in problems) else SpecError
            raise kind(problems) from error


def import_trusted(path: str, allow: Iterable[str], expected_base: type) -> type:
    """The class at the dotted ``path``.

    Raises PathError unless ``path`` is allowed, exists, is a subclass of ``expected_base``, and is defined in an
    allowed module: if an allowed module imports `os`, nothing of `os` is allowed.
    """
    allow = list(allow)
    problem = check_trusted(path, allow)
    if problem:
        raise PathError(problem)
    import_allowed(allow)
    homes = ["torch.nn.modules"] if _TORCH_NN.fullmatch(path) else []
    target = _find(path, [*allow, *homes, *(["torch.nn"] if homes else [])])
    if not isinstance(target, type):
        raise PathError(f"{path!r} is not a class but {_kind(target)}")
    if not issubclass(target, expected_base):
        home = expected_base.__module__.partition(".modules.")[0]  # torch.nn.Module
        raise PathError(f"{path!r} is no subclass of {home}.{expected_base.__qualname__}")
    _require_home(path, target, allow, homes)  # last, as it advises to use this class
    return target


def import_object(path: str, allow: Iterable[str]) -> Any:
    """The function or other object at the dotted ``path``.

    Raises PathError unless ``path`` is allowed and exists; functions and classes must be defined in an allowed module.
    """
    allow = list(allow)
    problem = check_trusted(path, allow)
    if problem or not _is_within(path, allow):  # torch.nn is free where a block is named, not here
        raise PathError(problem or f"{path!r} is outside the allowed modules")
    import_allowed(allow)
    target = _find(path, allow)
    if isinstance(target, type) or inspect.isroutine(target):
        _require_home(path, target, allow)
    return target


def allow_beside(folders: Iterable[str], allow: Iterable[str]) -> None:
    """Let the modules in ``allow``, and nothing else, be imported from ``folders``, from now on in this process.

    Installed modules come first, so nothing in a folder takes the place of one.
    """
    finder = next((known for known in sys.meta_path if isinstance(known, _Beside)), None)
    if finder is None:
        finder = _Beside()
        sys.meta_path.append(finder)
    finder.add(list(folders), {entry.partition(".")[0] for entry in allow})


def file_of(module: str) -> str | None:
    """The file of the outermost package of ``module``, or of itself; nothing is imported."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None and spec.has_location else None


def folders_beside() -> list[str]:
    """The folders of all calls of `allow_beside`, for a process that is to find the same modules."""
    finder = next((known for known in sys.meta_path if isinstance(known, _Beside)), None)
    return [] if finder is None else finder.folders


class _Beside:
    """Finds the allowed modules in folders of modules that are not installed."""

    def __init__(self) -> None:
        self._folders: dict[str, list[str]] = {}  # of each module that is allowed
        self._all: list[str] = []

    @property
    def folders(self) -> list[str]:
        return list(self._all)

    def add(self, folders: list[str], modules: Iterable[str]) -> None:
        self._all = list(dict.fromkeys([*folders, *self._all]))
        for module in modules:
            known = self._folders.get(module, [])
            self._folders[module] = list(dict.fromkeys([*folders, *known]))

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # With a path it is a submodule, which Python itself finds in the folder of its package.
        folders = self._folders.get(name, []) if path is None else []
        # One by one: a folder without __init__.py would give way to a file in a later one.
        specs = (PathFinder.find_spec(name, [folder]) for folder in folders)
        return next(filter(None, specs), None)

    def keeps_out(self, name: str) -> bool:
        """Whether a module of that name is in a folder, and not allowed."""
        return name not in self._folders and PathFinder.find_spec(name, self._all) is not None


def advice_on_missing(error: ImportError) -> str:
    """The end of a message about a missing module that `allow_beside` would find if it were allowed; or nothing."""
    top = (error.name or "").partition(".")[0]
    finders = [known for known in sys.meta_path if isinstance(known, _Beside)]
    if not _DOTTED.fullmatch(top) or not any(finder.keeps_out(top) for finder in finders):
        return ""
    return f"; a file of that name is here, but is not allowed: --allow {top} if you trust it"


def _require_home(path: str, target: object, allow: list[str], homes: Sequence[str] = ()) -> None:
    """Raise PathError unless ``target`` is defined in an allowed module or one of ``homes``."""
    home = getattr(target, "__module__", None) or "builtins"
    if not _is_within(home, [*allow, *homes]):
        raise PathError(
            f"{path!r} lives in {home!r}, outside the allowed modules "
            f"({_modules(allow)}); name it by the module that defines it, and allow that one"
        )


def _modules(allow: Iterable[str]) -> str:
    """The modules among what is allowed, for messages."""
    return ", ".join(entry for entry in allow if not names_a_folder(entry)) or "none"


def _is_within(path: str, allow: Iterable[str]) -> bool:
    return any(path == entry or path.startswith(entry + ".") for entry in allow)


def _find(path: str, allow: list[str]) -> object:
    """Follow ``path`` from the module it starts in, never through a module that is not allowed."""
    start = max((entry for entry in allow if _is_within(path, [entry])), key=len)
    target: object = _import(start)
    at = start
    for name in path[len(start) + 1 :].split(".") if path != start else ():
        if isinstance(target, ModuleType) and not _is_within(target.__name__, allow):
            home = target.__name__
            raise PathError(f"{path!r} leads through {home!r}, outside the allowed modules")
        if not isinstance(target, ModuleType | type):
            raise PathError(f"{path!r} leads through {at!r}, which is {_kind(target)}")
        target = _member(target, name, at)
        at = f"{at}.{name}"
    return target


def _member(owner: ModuleType | type, name: str, at: str) -> object:
    try:
        return getattr(owner, name)
    except AttributeError:
        pass
    if isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        full_name = f"{owner.__name__}.{name}"
        if importlib.util.find_spec(full_name) is not None:
            return _import(full_name)
    public = [known for known in vars(owner) if not known.startswith("_")]
    raise PathError(f"{at!r} has no {name!r}" + did_you_mean(name, public))


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if needs := extra_for(error, f"the import of {module!r}"):
            raise MissingExtraSpecError([Problem(needs, needs_extra=True)]) from error
        if error.name is not None and _is_within(module, [error.name]):
            parent, _, name = error.name.rpartition(".")
            member = getattr(_import(parent), name, None) if parent else None
            if member is not None:
                kind = "a class" if isinstance(member, type) else _kind(member)
                raise PathError(
                    f"allow names modules, and {error.name!r} is {kind}; "
                    f"use allow=[{parent!r}] or --allow {parent}"
                ) from error
            raise NoModuleError(
                f"there is no module {module!r}; start in its folder, or add it to PYTHONPATH "
                "(for an editor: to composer.path)"
            ) from error
        advice = advice_on_missing(error)
        raise PathError(f"the module {module!r} cannot be imported: {error}{advice}") from error
    except NameTakenError as error:
        raise PathError(f"the module {module!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise PathError(
            f"the module {module!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _kind(value: object) -> str:
    if isinstance(value, ModuleType):
        return "a module"
    if inspect.isroutine(value):
        return "a function"
    return f"an object of type {type(value).__name__!r}"
