"""What a pickle says, without unpickling it: its classes are names; nothing is looked up, called or imported."""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

__all__ = ["Array", "InertObject", "array_of", "read_inert"]

MOST_STEPS = 300_000  # of the program that a pickle is
MOST_NUMBERS = 2_000_000  # of an array
_MOST_AXES, _MOST_SIZE = 32, 2**31  # of an array: their product is a small number
_PUSHED = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
_PUSHED += ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_PUSHED += ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # elements need no hash then
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK: Final = object()
_RECONSTRUCTED = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer")
_SCALAR = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
_CODES = {"f8": "d", "f4": "f", "i8": "q", "i4": "i"}  # of numpy -> of struct


@dataclass
class InertObject:
    """What unpickling would make by calling ``name`` with ``arguments``, and its ``state``; nothing was called."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Array:
    """The numbers of an array in its order, the last axis first."""

    numbers: tuple[float, ...]
    shape: tuple[int, ...]


def read_inert(data: bytes) -> Any:
    """What the pickle ``data`` holds: numbers, texts, bytes, lists, tuples, dicts, and objects as `InertObject`.

    Raises ValueError for what is damaged, too long, or says more than that.
    """
    machine = _Machine()
    try:
        for count, (name, argument) in enumerate(_steps(data)):
            if count > MOST_STEPS:
                raise ValueError(f"it has more than {MOST_STEPS:,} steps")
            if name == "STOP":
                return machine.pop()
            machine.run(name, argument)
    except (IndexError, KeyError) as error:  # of its stack, and of what it has memorised
        raise ValueError("it is damaged") from error
    raise ValueError("it is damaged")


def _steps(data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(data):
            yield opcode.name, argument
    except (ValueError, struct.error, OverflowError) as error:
        raise ValueError("it is damaged") from error


class _Machine:
    """The stack of a pickle's program, of which no step runs code."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("it is damaged")
        return value

    def run(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _PUSHED:
            push(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name]())
        elif name == "MARK":
            push(_MARK)
        elif name in _TUPLES:
            push(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise ValueError(f"its step {name} is not read")
            step(argument)

    def _marked(self) -> list[Any]:
        """The values down to the last mark, which are taken off."""
        values: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._marked()))

    def _list(self, _: Any) -> None:
        self._stack.append(self._marked())

    _frozenset = _list

    def _append(self, _: Any) -> None:
        value = self.pop()
        _as_list(self._stack[-1]).append(value)

    def _appends(self, _: Any) -> None:
        values = self._marked()
        _as_list(self._stack[-1]).extend(values)

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _put(self._stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        values = self._marked()
        _put(self._stack[-1], values)

    def _global(self, argument: str) -> None:
        self._stack.append(InertObject(argument.replace(" ", ".")))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("it is damaged")
        self._stack.append(InertObject(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments, called = self.pop(), self.pop()
        if not (isinstance(called, InertObject) and isinstance(arguments, tuple)):
            raise ValueError("it is damaged")
        self._stack.append(InertObject(called.name, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.pop()
        self._reduce(None)

    def _build(self, _: Any) -> None:
        state = self.pop()
        target = self._stack[-1]
        if not isinstance(target, InertObject):
            raise ValueError("it is damaged")
        target.state = state


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("it is damaged")
    return value


def _put(target: Any, values: list[Any]) -> None:
    """Put ``values``, keys and values by turns, into a dict; an object such as an OrderedDict is left empty."""
    if len(values) % 2 or not isinstance(target, dict | InertObject):
        raise ValueError("it is damaged")
    if isinstance(target, dict):
        pairs = zip(values[::2], values[1::2], strict=True)
        target.update({key: value for key, value in pairs if isinstance(key, str | int)})


def array_of(value: Any) -> Array | None:
    """The array or number of numpy that unpickling ``value`` would make; None for anything else, and for other numbers.

    Raises ValueError for one of more than `MOST_NUMBERS`.
    """
    if not isinstance(value, InertObject):
        return None
    if value.name in _RECONSTRUCTED and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, is_fortran, data = value.state
        return None if is_fortran else _array(shape, dtype, data)
    if value.name in _FROM_BUFFER and len(value.arguments) == 4:
        data, dtype, shape, order = value.arguments
        return _array(shape, dtype, data) if order == "C" else None
    if value.name in _SCALAR and len(value.arguments) == 2:
        return _array((), *value.arguments)
    return None


def _array(shape: Any, dtype: Any, data: Any) -> Array | None:
    code = _code(dtype)
    if code is None or not _is_shape(shape) or not isinstance(data, bytes):
        return None
    count = math.prod(shape)
    if count > len(data) or struct.calcsize(f"={count}{code}") != len(data):
        return None
    if count > MOST_NUMBERS:
        raise ValueError(f"it has an array of more than {MOST_NUMBERS:,} numbers")
    order = ">" if _order(dtype) == ">" else "<"
    return Array(struct.unpack(f"{order}{count}{code}", data), shape)


def _is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    if not isinstance(value, tuple) or len(value) > _MOST_AXES:
        return False
    return all(type(size) is int and 0 <= size < _MOST_SIZE for size in value)


def _code(dtype: Any) -> str | None:
    is_dtype = isinstance(dtype, InertObject) and dtype.name == "numpy.dtype" and dtype.arguments
    name = dtype.arguments[0] if is_dtype else None
    return _CODES.get(name) if isinstance(name, str) else None


def _order(dtype: InertObject) -> Any:
    """The order of bytes, which is the second value of the state of a dtype."""
    return dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
