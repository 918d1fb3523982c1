"""Copies of modules that can be run without any change to the module itself.

Measuring, counting and checking run a user's code. They run it on such a copy, so that no tensor, flag, hook or
attribute of the module changes, whatever the code does and in whichever thread.
"""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["trial_copy"]

_Module = TypeVar("_Module", bound=nn.Module)
_CONTAINERS = {dict, collections.OrderedDict, collections.defaultdict, list, collections.deque}


def trial_copy(module: _Module, to: Callable[[Tensor], Tensor]) -> _Module:
    """A copy of ``module`` with each tensor converted by ``to``, once: shared and tied tensors stay so.

    It holds copies of all modules and of the containers, methods, closures and objects that lead to modules, and shares
    everything else with ``module``.
    """
    copier = _Copier(to)
    trial = copier.copied(module)
    while copier.unfilled:  # not by recursion: modules may be nested deeply
        copier.fill(*copier.unfilled.pop())
    return trial


class _Copier:
    def __init__(self, to: Callable[[Tensor], Tensor]) -> None:
        # What is copied, and its copy that has no attributes yet.
        self.unfilled: list[tuple[object, object]] = []
        self._to = to
        self._copies: dict[int, Any] = {}  # by the id of what was copied
        self._copied: list[object] = []  # kept, so that no id is used again

    def fill(self, value: object, trial: object) -> None:
        """Give ``trial`` the attributes of ``value``."""
        vars(trial).update({name: self.copied(held) for name, held in vars(value).items()})
        if isinstance(value, nn.Module):
            vars(trial)["_compiled_call_impl"] = None  # it is compiled for ``value``

    def copied(self, value: object) -> Any:
        """The copy of ``value``, or ``value`` itself where it leads to no module or tensor."""
        if isinstance(value, str | int | float | None | type):
            return value
        if id(value) not in self._copies:
            make = self._maker(value)
            if make is None:
                return value
            self._copied.append(value)
            self._copies[id(value)] = make(value)
            self._complete(value, self._copies[id(value)])
        return self._copies[id(value)]

    def _maker(self, value: object) -> Callable[[Any], object] | None:
        """The function that begins a copy of ``value``; None where it needs no copy."""
        if isinstance(value, Tensor):
            return self._to
        if isinstance(value, torch.jit.ScriptModule):  # its attributes are not Python's
            return copy.deepcopy
        if isinstance(value, nn.Module) or _holds_modules(value):
            return self._empty
        if type(value) in _CONTAINERS or type(value) is set:
            return copy.copy
        if isinstance(value, FunctionType) and value.__closure__:
            return _with_new_cells
        makers = {tuple: self._tuple, MethodType: self._method, functools.partial: self._partial}
        return makers.get(type(value))

    def _complete(self, value: Any, trial: Any) -> None:
        """Copy the contents of a container or closure, which may contain itself."""
        if type(value) in _CONTAINERS:
            for key, held in value.items() if isinstance(value, dict) else enumerate(value):
                trial[key] = self.copied(held)
        elif isinstance(value, FunctionType):
            for cell, new_cell in zip(value.__closure__ or (), trial.__closure__ or ()):
                if _is_filled(cell):
                    new_cell.cell_contents = self.copied(cell.cell_contents)

    def _empty(self, value: object) -> object:
        trial = object.__new__(type(value))
        self.unfilled.append((value, trial))
        return trial

    def _tuple(self, value: tuple) -> tuple:
        return tuple(map(self.copied, value))

    def _method(self, value: MethodType) -> MethodType:
        return MethodType(value.__func__, self.copied(value.__self__))

    def _partial(self, value: functools.partial) -> functools.partial:
        settings = {name: self.copied(held) for name, held in value.keywords.items()}
        return functools.partial(self.copied(value.func), *map(self.copied, value.args), **settings)


def _holds_modules(value: object) -> bool:
    """Whether an object of a class that is neither a module nor a container has modules as attributes."""
    if isinstance(value, ModuleType | FunctionType):
        return False
    attributes = getattr(value, "__dict__", None)
    return isinstance(attributes, dict) and any(
        isinstance(held, nn.Module) for held in attributes.values()
    )


def _with_new_cells(function: FunctionType) -> FunctionType:
    cells = tuple(CellType() for _ in function.__closure__ or ())
    trial = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    trial.__kwdefaults__ = function.__kwdefaults__
    vars(trial).update(vars(function))
    return trial


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
