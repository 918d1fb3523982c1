"""What a model may still consist of while it is built: counted as nodes and tensors are made, refused beyond limits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from composer.errors import Path as SpecPath
from composer.errors import Problem, SpecError
from composer.limits import Limits, how_to_raise
from composer.source.load import Source

__all__ = ["Budget", "CountingMode", "LimitReached", "not_allocated", "too_large"]

_SIZED = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
_COPIES = {Tensor.clone, torch.clone, Tensor.__deepcopy__}


class LimitReached(BaseException):
    """The model is above a limit. No Exception, so that no handler on the way takes it for a problem of one node."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.node = ""
        self.path: SpecPath = ()

    def at(self, node: str, path: SpecPath) -> LimitReached:
        """The same, of this ``node`` unless it is known already of which."""
        if not self.node:
            self.node, self.path = node, path
        return self

    def as_error(self, source: Source) -> SpecError:
        message = f"{self.node!r} {self}"
        return SpecError([Problem(message, self.path, source.position(self.path))])


class Budget:
    """Counts what one model consists of, all its networks together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nodes = 0
        self.tensors = 0
        self.bytes = 0

    def memory_of(self, device: torch.device) -> int | None:
        """How many bytes all weights may take there; None where that is not known."""
        return self.limits.memory or _memory_of(device)

    def add_node(self) -> None:
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            raise self._too_many("nodes", self.limits.nodes)

    def add_tensor(self, tensor: Tensor) -> None:
        self.add_bytes(tensor.numel() * tensor.itemsize)

    def add_bytes(self, size: int) -> None:
        self.add_tensors(1, size)

    def add_tensors(self, count: int, size: int) -> None:
        """Count tensors of ``size`` bytes in all."""
        self.bytes += size
        self.tensors += count
        if self.tensors > self.limits.tensors:
            raise self._too_many("tensors", self.limits.tensors)

    def _too_many(self, name: str, limit: int) -> LimitReached:
        way_out = how_to_raise(name, 2 * limit)
        return LimitReached(f"brings the model above the limit of {limit:,} {name}; {way_out}")


class CountingMode(TorchFunctionMode):
    """Counts the tensors that a constructor makes; with ``memory`` those that do not fit into it are not made."""

    def __init__(self, budget: Budget, memory: int | None = None) -> None:
        super().__init__()
        self._budget = budget
        self._memory = memory

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SIZED:
            size = _bytes_of(args, kwargs)
            # What is not torch.empty may be made for a moment only, so it is not added up.
            self._budget.add_bytes(size if func is torch.empty else 0)
            needed = max(size, self._budget.bytes)
            if self._memory is not None and needed > self._memory:
                raise too_large(needed, self._memory)
        elif func in _COPIES:
            self._budget.add_tensor(args[0])
        return func(*args, **kwargs)


def too_large(size: int, memory: int, in_all: int = 0) -> LimitReached:
    """For a node of ``size`` bytes in a model of ``in_all``."""
    more = f" (all nodes {_in_words(in_all)})" if in_all > size else ""
    return LimitReached(
        f"needs {_in_words(size)} of memory for its weights{more}, and there are {_in_words(memory)}; "
        "choose smaller sizes"
    )


def not_allocated(size: int) -> LimitReached:
    """For a node of ``size`` bytes for which the machine had no memory left."""
    return LimitReached(f"needs {_in_words(size)} of memory for its weights, which are not free")


def _in_words(size: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


def _memory_of(device: torch.device) -> int | None:
    """How many bytes ``device`` has in all; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:  # a container may have less
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _bytes_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many bytes the tensor has that a function of ``_SIZED`` makes; 0 where its arguments are wrong."""
    sizes = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    try:
        return math.prod(sizes) * dtype.itemsize
    except TypeError:
        return 0
