"""The values that a Python file gives its classes, functions and names, from its syntax tree. Nothing is executed."""

from __future__ import annotations

import ast
import operator
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, MutableMapping
from typing import Any, TypeVar

from composer.errors import Position, Problem, SpecError
from composer.importing.taken import CLASS, Code
from composer.source.values import MAX_DEPTH, MAX_SIZE, Located, check_size

__all__ = ["python_arguments", "python_mappings"]

_Result = TypeVar("_Result")

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FIRST_OF_FIELD = ("default_factory", "default")  # dataclasses.field


def python_mappings(text: str, file: str) -> dict[str, Located]:
    """By name, what the classes of the file hold, what its functions return, and its dicts, as mappings.

    A class has the attributes of its bases in the file, and what `__post_init__` assigns to ``self``. A class or a call
    says its name under ``__class__``. What needs to be run is `Code`. Raises SpecError for what is no Python.
    """
    return _reading(text, file, lambda tree, module: module.read(tree.body))


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


def _reading(text: str, file: str, read: Callable[[ast.Module, _Module], _Result]) -> _Result:
    """What ``read`` makes of the file. Raises SpecError for what is no Python."""
    try:
        return read(ast.parse(text), _Module(file))
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
    """Reads statements; ``names`` are what they have defined: classes, and values of plain assignments.

    All mappings together have at most `MAX_SIZE` values, which copies of bases count against.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._size = 0
        self.names: MutableMapping[str, Located] = {}

    def read(self, body: Iterable[ast.stmt]) -> dict[str, Located]:
        for item in body:
            if isinstance(item, ast.ClassDef):
                self.names[item.name] = self._class(item)
            elif isinstance(item, ast.FunctionDef):
                self._function(item)
            else:
                self._assign(item)
        return {n: v for n, v in self.names.items() if isinstance(v.value, dict)}

    def _assign(self, item: ast.stmt) -> None:
        target, value = _assignment(item)
        if isinstance(target, ast.Name) and value is not None:
            self.names[target.id] = self.value(value)

    def _function(self, function: ast.FunctionDef) -> None:
        """What it returns, with the plain assignments before it."""
        outer = self.names
        self.names = ChainMap({}, outer)  # what is assigned in a function stays there
        for item in function.body:
            self._assign(item)
            if isinstance(item, ast.Return) and item.value is not None:
                outer[function.name] = self.value(item.value)
                break
        self.names = outer

    def _class(self, item: ast.ClassDef) -> Located:
        values: dict[str, Located] = {}
        for base in reversed(item.bases):
            known = self._lookup(ast.unparse(base))
            if known is not None and isinstance(known.value, dict):
                values |= known.value
        names = [ast.unparse(base).rpartition(".")[2] for base in item.bases]
        named = values.get(CLASS)
        if named is None:  # the class of the library that it is at last
            named = Located(names[0] if names else item.name, self._at(item))
        for line in item.body:
            target, value = _assignment(line)
            if isinstance(line, ast.ClassDef):
                values[line.name] = self._class(line)
            elif isinstance(target, ast.Name) and value is not None:
                values[target.id] = self.value(value)
            elif isinstance(line, ast.FunctionDef) and line.name == "__post_init__":
                self._after(line, values)
        return self._sized({**values, CLASS: named}, item)

    def _after(self, function: ast.FunctionDef, values: dict[str, Located]) -> None:
        """Apply assignments to attributes of ``self``: ``self.policy.activation = "relu"``."""
        for line in function.body:
            target, value = _assignment(line)
            path = ast.unparse(target).split(".") if isinstance(target, ast.Attribute) else []
            if value is not None and path[:1] == ["self"] and len(path) <= MAX_DEPTH:
                _put(values, path[1:], self.value(value))

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
        if isinstance(node, ast.Name | ast.Attribute):
            known = self._lookup(ast.unparse(node))
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
            return Located(Code(ast.unparse(node)), self._at(node)) if first is None else first
        known = self._lookup(name)
        if known is not None and isinstance(known.value, dict):
            return self._sized({**known.value, **given}, node)
        last = name.rpartition(".")[2]
        is_class = last[:1].isupper() and name.replace(".", "").isidentifier()
        named = not node.args and len(given) == len(
            node.keywords
        )  # what others mean is not known here
        if not named or not (is_class or name == "dict"):
            return Located(Code(ast.unparse(node)), self._at(node))
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

    def _lookup(self, dotted: str) -> Located | None:
        """A name, or an attribute of a class in the file."""
        first, *rest = dotted.split(".")
        node = self.names.get(first)
        for part in rest:
            node = node.value.get(part) if node and isinstance(node.value, dict) else None
        return node

    def _at(self, node: ast.expr | ast.stmt) -> Position:
        return Position(self._file, node.lineno, node.col_offset + 1)

    def _sized(
        self, value: dict[str, Located] | list[Located], node: ast.expr | ast.stmt
    ) -> Located:
        located = Located(value, self._at(node))
        check_size(located, located.position, "the file")
        self._size += located.size
        if self._size > MAX_SIZE:
            message = f"the file grows to more than {MAX_SIZE} values"
            raise SpecError([Problem(message, (), located.position)])
        return located


def _assignment(item: ast.stmt) -> tuple[ast.expr | None, ast.expr | None]:
    if isinstance(item, ast.Assign) and len(item.targets) == 1:
        return item.targets[0], item.value
    if isinstance(item, ast.AnnAssign):
        return item.target, item.value
    return None, None


def _put(values: dict[str, Located], path: list[str], value: Located) -> None:
    """Set ``path`` without changing mappings that other classes hold, too."""
    if len(path) == 1:
        values[path[0]] = value
        return
    old = values.get(path[0])
    inner = dict(old.value) if old is not None and isinstance(old.value, dict) else {}
    _put(inner, path[1:], value)
    values[path[0]] = Located(inner, value.position if old is None else old.position)
