"""Random states for one thread, in place of the global states of torch (CPU), numpy and Python.

User code draws from the global states, which all threads share: setting and restoring them would change the draws of
other threads, and theirs ours. So within `random_states_kept` a thread has separate states: torch draws by a mode of
this thread alone, and the functions of ``numpy.random`` and ``random`` ask which thread calls.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["random_states_kept"]


@contextlib.contextmanager
def random_states_kept(seed: int | None = None) -> Iterator[None]:
    """The global random states of torch (CPU), numpy and Python do not move; within, this thread draws from ``seed``.

    Without a seed, it continues from the states that it already has, if any, else from 0. Where there is no other
    thread, the states of the process are set and restored, which is faster, and reaches functions that were imported by
    name (``from random import gauss``).
    """
    if seed is None and _OWN.states is not None:
        yield
        return
    alone = _OWN.states is None and threading.active_count() == 1
    with _put_back(seed) if alone else _own_states(seed or 0):
        yield


@contextlib.contextmanager
def _own_states(seed: int) -> Iterator[None]:
    before = _OWN.states
    _OWN.states = states = _States(seed)
    _ask_which_thread(True)
    try:
        with _Draws(states.torch):
            yield
    finally:
        _ask_which_thread(False)
        _OWN.states = before


class _States:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.torch = torch.Generator().manual_seed(seed % 2**64)

    @functools.cached_property
    def numpy(self) -> np.random.RandomState:
        return np.random.RandomState(self._seed % 2**32)

    @functools.cached_property
    def python(self) -> random.Random:
        return random.Random(self._seed)


class _Own(threading.local):
    states: _States | None = None


_OWN = _Own()


@contextlib.contextmanager
def _put_back(seed: int | None) -> Iterator[None]:
    """The states of the process, which no other thread sees, follow ``seed`` and are put back."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed % 2**64)  # torch.manual_seed moves all devices
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class _Draws(TorchDispatchMode):
    """Draws on the CPU come from ``generator`` where the caller gives no generator."""

    supports_higher_order_operators = True

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        kwargs = kwargs or {}
        drawing = _with_generator(func) if isinstance(func, OpOverload) else None
        if drawing is None or not _is_on_cpu(args, kwargs):
            return func(*args, **kwargs)
        draw, place = drawing
        given = args[place] if len(args) > place else kwargs.get("generator")
        if given is None or _is_global(given):
            args, kwargs = args[:place], {**kwargs, "generator": self.generator}
        return draw(*args, **kwargs)


@functools.cache
def _with_generator(func: OpOverload) -> tuple[OpOverload, int] | None:
    """The form of a drawing operation that takes a generator, and the generator's place; None if ``func`` draws not."""
    arguments = [argument.name for argument in func._schema.arguments]
    if "generator" in arguments:
        return func, arguments.index("generator")
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    for overload in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, overload)
        names = [argument.name for argument in other._schema.arguments]
        if "generator" in names and [name for name in names if name != "generator"] == arguments:
            return other, names.index("generator")
    return None  # it draws on other devices only


def _is_global(generator: Any) -> bool:
    known: Any = torch.default_generator
    return generator._cdata == known._cdata  # torch hands on another object of it


def _is_on_cpu(args: tuple, kwargs: dict) -> bool:
    devices = [value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if kwargs.get("device") is not None:
        devices.append(torch.device(kwargs["device"]))
    return all(device.type == "cpu" for device in devices)


# --- functions that ask which thread calls ---

_Replacement = tuple[
    ModuleType, str, object, object
]  # a module, a name in it, its value, what asks

_LOCK = threading.Lock()
_threads = 0  # how many have states of their own


def _ask_which_thread(begins: bool) -> None:
    """Count a thread with its own states in or out. The asking functions are installed as long as there is one."""
    global _threads
    with _LOCK:
        _threads += 1 if begins else -1
        if _threads != (1 if begins else 0):
            return
        for module, name, original, asking in _replacements():
            old, new = (original, asking) if begins else (asking, original)
            if getattr(module, name) is old:  # else somebody else has replaced it
                setattr(module, name, new)


@functools.cache
def _replacements() -> list[_Replacement]:
    generator = _AskingGenerator()
    replacements: list[_Replacement] = [
        (torch.random, "default_generator", torch.default_generator, generator)
    ]
    for module, shared, kind in (
        (np.random, np.random.mtrand._rand, "numpy"),
        (random, random._inst, "python"),  # type: ignore[attr-defined]
    ):
        names = {n: n for n, f in vars(module).items() if getattr(f, "__self__", None) is shared}
        if module is np.random:  # functions that are written out
            names |= {"seed": "seed", "sample": "random_sample", "ranf": "random_sample"}
        for name, method in names.items():
            original = getattr(module, name)
            replacements.append((module, name, original, _asking(original, kind, method)))
    return replacements


def _asking(original: Callable[..., object], kind: str, method: str) -> Callable[..., object]:
    @functools.wraps(original)
    def draw(*args: object, **kwargs: object) -> object:
        states = _OWN.states
        if states is None:
            return original(*args, **kwargs)
        return getattr(getattr(states, kind), method)(*args, **kwargs)

    return draw


class _AskingGenerator:
    """Stands for torch's default generator, which `torch.manual_seed` and `torch.get_rng_state` use."""

    def __getattr__(self, name: str) -> object:
        states = _OWN.states
        return getattr(torch.default_generator if states is None else states.torch, name)
