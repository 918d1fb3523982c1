"""The values that a Python file gives its classes, functions and names, from its syntax tree. Nothing is executed."""

from __future__ import annotations

import ast
import contextlib
import operator
import os
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from composer.errors import Position, Problem, SpecError
from composer.importing.python_syntax import (
    assignments,
    first_line,
    imports,
    is_program,
    is_super,
    path_of,
    walk,
)
from composer.importing.taken import BASE, CLASS, Code
from composer.source.files import display_name
from composer.source.foreign import foreign_text
from composer.source.values import MAX_DEPTH, MAX_SIZE, Located, check_size

__all__ = ["python_arguments", "python_mappings"]

_Result = TypeVar("_Result")
_Files: TypeAlias = "dict[str, _Module | None]"  # by their real paths; None while they are read
_Statements: TypeAlias = (
    "list[tuple[ast.stmt, MutableMapping[str, Located]]]"  # with the names that they see
)
MOST_FILES = 20  # that are read for one

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FIRST_OF_FIELD = ("default_factory", "default")  # dataclasses.field


def python_mappings(text: str, file: str, path: str | None = None) -> dict[str, Located]:
    """By name, what the classes of the file hold, what its functions return, and its dicts, as mappings.

    A class has the attributes of its bases in the file, or in files beside ``path`` that it imports, and what
    `__post_init__` assigns to ``self``. A class or a call says its name under ``__class__``, and a class under
    ``__base__`` which of its bases is elsewhere. What needs to be run is `Code`. Raises SpecError for what is no
    Python.
    """
    files: _Files = {} if path is None else {os.path.realpath(path): None}
    return _reading(text, file, lambda tree, module: module.read(tree.body), path, files)


def python_arguments(text: str, file: str, names: Collection[str]) -> list[tuple[str, Located]]:
    """What calls anywhere in the file are given for arguments of these ``names``, and dicts hold under them.

    Only mappings are returned, each with its name, in the order of the file. Raises SpecError for what is no Python.
    """

    def arguments(tree: ast.Module, module: _Module) -> list[tuple[str, Located]]:
        module.read(tree.body)
        given: list[tuple[str, ast.expr]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                given += [(k.arg, k.value) for k in node.keywords if k.arg in names]  # type: ignore[misc]
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                given += [
                    (k.value, v)
                    for k, v in pairs
                    if isinstance(k, ast.Constant) and k.value in names
                ]  # type: ignore[misc]
        given.sort(key=lambda pair: (pair[1].lineno, pair[1].col_offset))
        values = [(name, module.value(node)) for name, node in given]
        return [(name, value) for name, value in values if isinstance(value.value, dict)]

    return _reading(text, file, arguments)


def _reading(
    text: str,
    file: str,
    read: Callable[[ast.Module, _Module], _Result],
    path: str | None = None,
    files: _Files | None = None,
) -> _Result:
    """What ``read`` makes of the file. Raises SpecError for what is no Python."""
    try:
        return read(ast.parse(text), _Module(file, path, files))
    except SyntaxError as error:
        place = Position(file, error.lineno or 1, error.offset or 1)
        message = f"this is not valid Python: {error.msg}"
    except (RecursionError, MemoryError):
        place, message = Position(file, 1, 1), "this Python is nested too deep"
    except ValueError as error:  # a NUL, or a number of too many digits
        if isinstance(error, SpecError):
            raise
        place, message = Position(file, 1, 1), f"this is not valid Python: {error}"
    raise SpecError([Problem(message, (), place)])


class _Module:
    """Reads statements; ``names`` are what they have defined: classes, and values of assignments.

    All mappings together have at most `MAX_SIZE` values, which copies of bases count against.
    """

    def __init__(self, file: str, path: str | None = None, files: _Files | None = None) -> None:
        self._file, self._path = file, path
        self._files: _Files = {} if files is None else files
        self._imported: set[str] = set()
        self._size = 0
        self.names: MutableMapping[str, Located] = {}
        self._aliases: dict[str, list[str]] = {}  # a second name -> the path of what it is for
        self._classes: set[str] = set()
        self._functions: set[str] = set()
        self._bodies: dict[str, _Body] = {}  # of classes with a __post_init__

    def read(self, body: Iterable[ast.stmt]) -> dict[str, Located]:
        self._run(body)
        names = self.names.items()
        return {n: v for n, v in names if isinstance(v.value, dict) and n not in self._imported}

    # --- statements -----------------------------------------------------------------------------------------------

    def _run(self, body: Iterable[ast.stmt]) -> None:
        for item in body:
            self._count(1, item)
            if isinstance(item, ast.ClassDef):
                self._store([item.name], self._class(item), item)
            elif isinstance(item, ast.FunctionDef):
                self._function(item)
            elif isinstance(item, ast.Import | ast.ImportFrom):
                self._import(item)
            elif not is_program(item):
                self._statement(item)

    def _import(self, item: ast.stmt) -> None:
        """Take over what files beside this one define; what others define is not known."""
        for module, name, called in imports(item):
            other = self._beside(module)
            if other is None:
                continue
            names = other.names if name is None else {name: other.names.get(name)}
            held = {n: v for n, v in names.items() if v is not None}
            value = held.get(name) if name is not None else self._sized(held, item)
            if value is None:
                continue
            self._store([called], value, item)
            self._imported.add(called)
            for known, body in other._bodies.items():
                if name in (None, known):
                    self._bodies[called if name else f"{called}.{known}"] = body
            self._classes |= {called} if name in other._classes else set()
            self._functions |= {called} if name in other._functions else set()

    def _beside(self, module: str) -> _Module | None:
        """The file ``module.py`` beside this one; None where there is none that can be read."""
        if self._path is None or not module.isidentifier():
            return None
        path = os.path.join(os.path.dirname(self._path), f"{module}.py")
        place = os.path.realpath(path)
        if place not in self._files and len(self._files) < MOST_FILES and os.path.isfile(path):
            self._files[place] = None  # while it is read: two files may import each other

            def read(tree: ast.Module, other: _Module) -> _Module:
                other.read(tree.body)
                return other

            with contextlib.suppress(SpecError):
                text, name = foreign_text(path), display_name(path)
                self._files[place] = _reading(text, name, read, path, self._files)
        return self._files.get(place)

    def _statement(self, item: ast.stmt) -> None:
        """Follow an assignment; what any other statement may change is `Code` from then on."""
        pairs = assignments(item)
        if pairs is None:
            return self._spoil_all(item)
        for target, value in [(target, self.value(value)) for target, value in pairs]:
            path = path_of(target)
            if path is None:
                self._spoil(target, self._code(item))
            else:
                self._store(path, value, target)
        for target, source in pairs:
            path = path_of(source)
            if isinstance(target, ast.Name) and path and target.id != path[0]:
                self._aliases[target.id] = self._origin(path)

    def _store(self, path: list[str], value: Located, node: ast.expr | ast.stmt) -> None:
        """Set a name, or what is inside its mapping."""
        first, *rest = path if len(path) == 1 else self._origin(path)
        if not rest:
            self._imported.discard(first)
            self._count(len(self._aliases), node)
            for name in [n for n, origin in self._aliases.items() if first in (n, origin[0])]:
                held = self._held([name])
                if held is not None:
                    self.names[name] = held  # which no longer changes with the other name
                del self._aliases[name]
            self.names[first] = value
            return
        held = self.names.get(first)
        if held is not None and isinstance(held.value, dict) and len(rest) <= MAX_DEPTH:
            self._count(len(held.value), node)
            inner = _with(held, rest, value)
            check_size(inner, self._at(node), "the file")
            self.names[first] = inner

    def _function(self, function: ast.FunctionDef) -> None:
        """What it returns, with the assignments before it."""
        outer, aliases = self.names, self._aliases
        arguments = [each for each in ast.walk(function.args) if isinstance(each, ast.arg)]
        unknown = {each.arg: Located(Code(each.arg), self._at(each)) for each in arguments}
        self.names = ChainMap(unknown, outer)  # what is assigned in a function stays there
        self._aliases = {name: path for name, path in aliases.items() if name not in unknown}
        self._count(len(aliases), function)
        self._functions.add(function.name)
        unsure: Located | None = None  # what may return something else
        for item in function.body:
            values = [r.value for r in walk(item) if isinstance(r, ast.Return) and r.value]
            if values:
                value = self.value(values[0])
                if unsure is None and not isinstance(item, ast.Return):
                    unsure = self._code(item)
                outer[function.name] = (
                    value if unsure is None else self._spoiled(value, unsure, item)
                )
            if isinstance(item, ast.Return):
                break
            self._run([item])
        self.names, self._aliases = outer, aliases

    def _class(self, item: ast.ClassDef) -> Located:
        """Its attributes and those of its bases, as its `__post_init__` leaves them."""
        values, after = self._inherited(item)
        outer, aliases = self.names, self._aliases
        attributes: dict[str, Located] = {}
        self.names, self._aliases = ChainMap(attributes, outer), {}
        for line in item.body:
            if not isinstance(line, ast.FunctionDef):
                self._run([line])
            elif line.name == "__post_init__":
                after = [
                    s for each in line.body for s in (after if is_super(each) else [(each, outer)])
                ]
                self._count(len(after), line)
        values |= attributes
        inner, self._aliases = {"self": self._sized(values, item)}, {}
        for statement, names in after:
            self.names = ChainMap(inner, names)  # those of the file that the statement is in
            self._run([statement])
        result = inner["self"]
        self.names, self._aliases = outer, aliases
        self._classes.add(item.name)
        self._bodies.pop(item.name, None)
        if after:
            self._bodies[item.name] = _Body(values, after)
        return result

    def _inherited(self, item: ast.ClassDef) -> tuple[dict[str, Located], _Statements]:
        """What a class has of its bases: attributes, with `CLASS` and `BASE`, and the statements of `__post_init__`."""
        values: dict[str, Located] = {}
        after: _Statements = []
        elsewhere = None
        for base in reversed([ast.unparse(base) for base in item.bases]):
            known, body = self._held(base.split(".")), self._bodies.get(base)
            self._count(1 if known is None else known.size, item)
            if body is not None:
                values, after = {**values, **body.values}, body.after
            elif known is not None and isinstance(known.value, dict):
                values |= known.value
            elif known is None:
                elsewhere = Located(base, self._at(item))
        if elsewhere is not None:
            values[BASE] = elsewhere
        if CLASS not in values:  # the class of the library that it is at last
            last = ast.unparse(item.bases[0]).rpartition(".")[2] if item.bases else item.name
            values[CLASS] = Located(last, self._at(item))
        return values, after

    # --- what is not followed -------------------------------------------------------------------------------------

    def _spoil_all(self, item: ast.stmt) -> None:
        """Make `Code` of what a statement may change: what it assigns, and what calls reach."""
        code = self._code(item)
        for node in walk(item):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                self._store([node.name], code, node)
            elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
                if not isinstance(node.ctx, ast.Load):
                    self._spoil(node, code)
            elif isinstance(node, ast.Call):
                for each in self._reached(node):
                    path = path_of(each)
                    held = None if path is None or path[-1] in self._classes else self._held(path)
                    if held is not None and isinstance(held.value, dict | list):
                        self._spoil(each, code)

    def _reached(self, call: ast.Call) -> list[ast.expr]:
        """What a call may change: its object, and its arguments, which calls of a module's top level only use."""
        reached = [call.func.value] if isinstance(call.func, ast.Attribute) else []
        if isinstance(self.names, ChainMap) or ast.unparse(call.func) == "setattr":
            reached += [*call.args, *(keyword.value for keyword in call.keywords)]
        return reached

    def _spoil(self, target: ast.expr, code: Located) -> None:
        """Make ``code`` of a name, of an attribute, or of what an element belongs to."""
        path = path_of(target)
        if path is not None:
            held = self._held(path)
            value = code if held is None else self._spoiled(held, code, target)
            self._store(self._origin(path), value, target)
        elif isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
            self._spoil(target.value, code)
        elif isinstance(target, ast.Tuple | ast.List):
            for each in target.elts:
                self._spoil(each, code)

    def _spoiled(self, value: Located, code: Located, node: ast.stmt | ast.expr) -> Located:
        """``value`` with ``code`` in the place of its scalars and lists."""
        if not isinstance(value.value, dict):
            return code
        inner = value.value.items()
        spoiled = {k: v if k in (BASE, CLASS) else self._spoiled(v, code, node) for k, v in inner}
        return self._sized(spoiled, node)

    def _code(self, node: ast.stmt | ast.expr) -> Located:
        return Located(Code(first_line(node)), self._at(node))

    # --- expressions ----------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Located:
        """What an expression says; as `Code` where it would have to be run."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
            return Located(node.value, self._at(node))
        if isinstance(node, ast.List | ast.Tuple):
            return self._sized([self.value(each) for each in node.elts], node)
        if isinstance(node, ast.Dict):
            keys = [k.value if isinstance(k, ast.Constant) else None for k in node.keys]
            if all(isinstance(key, str) for key in keys):
                pairs = zip(keys, node.values, strict=True)
                return self._sized({str(key): self.value(value) for key, value in pairs}, node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Lambda):
            return self.value(node.body)
        path = path_of(node)
        known = None if path is None else self._held(path)
        if known is not None:
            return known
        number = self._number(node)
        return Located(Code(ast.unparse(node)) if number is None else number, self._at(node))

    def _call(self, node: ast.Call) -> Located:
        """``Class(key=value)`` as a mapping, on the attributes of the class where it is in the file."""
        name = ast.unparse(node.func)
        given = {k.arg: self.value(k.value) for k in node.keywords if k.arg is not None}
        if name in ("field", "dataclasses.field"):
            first = next((given[key] for key in _FIRST_OF_FIELD if key in given), None)
            return self._code(node) if first is None else first
        known = self._held(name.split("."))
        is_plain = not node.args and len(given) == len(
            node.keywords
        )  # what others mean is not known here
        if known is not None and isinstance(known.value, dict):
            result = self._sized({**known.value, **given}, node)
            is_given = bool(node.args or node.keywords) and name in self._functions
            return (
                result
                if is_plain and not is_given
                else self._spoiled(result, self._code(node), node)
            )
        last = name.rpartition(".")[2]
        is_class = last[:1].isupper() and name.replace(".", "").isidentifier()
        if not is_plain or not (is_class or name == "dict"):
            return self._code(node)
        if name != "dict":
            given[CLASS] = Located(last, self._at(node))
        return self._sized(given, node)

    def _number(self, node: ast.expr) -> float | int | None:
        """The number that plain arithmetic gives."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._operand(node.operand)
            return None if value is None else -value
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            left, right = self._operand(node.left), self._operand(node.right)
            numbers = [value for value in (left, right) if value is not None and abs(value) < 2**53]
            if len(numbers) == 2 and not (isinstance(node.op, ast.Div) and right == 0):
                return _ARITHMETIC[type(node.op)](*numbers)
        return None

    def _operand(self, node: ast.expr) -> float | int | None:
        value = self.value(node).value
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def _origin(self, path: list[str]) -> list[str]:
        """``path`` with what its first name is for."""
        return [*self._aliases.get(path[0], path[:1]), *path[1:]]

    def _held(self, path: list[str]) -> Located | None:
        """What a name holds, or an attribute or a key below it."""
        first, *rest = self._origin(path)
        node = self.names.get(first)
        for part in rest:
            node = node.value.get(part) if node and isinstance(node.value, dict) else None
        return node

    def _at(self, node: ast.expr | ast.stmt | ast.arg) -> Position:
        return Position(self._file, node.lineno, node.col_offset + 1)

    def _sized(
        self, value: dict[str, Located] | list[Located], node: ast.expr | ast.stmt
    ) -> Located:
        located = Located(value, self._at(node))
        check_size(located, located.position, "the file")
        self._count(located.size, node)
        return located

    def _count(self, values: int, node: ast.expr | ast.stmt) -> None:
        self._size += values
        if self._size > MAX_SIZE:
            message = f"the file grows to more than {MAX_SIZE} values"
            raise SpecError([Problem(message, (), self._at(node))])


@dataclass(frozen=True)
class _Body:
    """A class before its `__post_init__`, and the statements of that, with those of ``super()`` in their place."""

    values: dict[str, Located]
    after: _Statements


def _with(node: Located, path: list[str], value: Located) -> Located:
    """``node`` with ``value`` at ``path`` in it; mappings that others hold, too, stay as they are."""
    if not path:
        return value
    inner = node.value if isinstance(node.value, dict) else {}
    below = _with(inner.get(path[0], Located({}, value.position)), path[1:], value)
    return Located({**inner, path[0]: below}, node.position, node.key_position)
