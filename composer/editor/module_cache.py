"""Modules that stay from check to check: a node whose block, settings and inputs are as before keeps its module."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from torch import nn

from composer.build.construction import SeededConstruction
from composer.spec.places import NodePath
from perception_blocks.base_block import is_built_in
from perception_blocks.graph.built import ModuleKey

__all__ = ["KeepingConstruction", "ModuleCache"]

T = TypeVar("T")
MOST_CHECKS = 12  # that a module outlives the last one that it was used in
CLASS_LIVES = 30.0  # seconds that what a user's class gave is taken for what it would give again


@dataclass
class _Kept:
    key: str
    value: Any
    until: float
    used_in: int
    tensors: tuple[int, int] = (0, 0)  # their number, and their bytes


@dataclass
class ModuleCache:
    """The modules of one spec as it was last, one for each node; ``files_read`` counts the files that blocks read."""

    files_read: int = 0
    checks: int = 0
    _kept: dict[tuple[str, ...], _Kept] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a check: forget what the last ones did not use."""
        self.checks += 1
        oldest = self.checks - MOST_CHECKS
        self._kept = {path: kept for path, kept in self._kept.items() if kept.used_in >= oldest}

    def get(self, place: tuple[str, ...], key: str) -> _Kept | None:
        """What is kept at ``place``, if it was made for an equal ``key``, and not too long ago."""
        kept = self._kept.get(place)
        if kept is None or kept.key != key or time.monotonic() > kept.until:
            return None
        kept.used_in = self.checks
        return kept

    def keep(
        self,
        place: tuple[str, ...],
        key: str,
        value: object,
        lives: float,
        tensors: tuple[int, int],
    ) -> None:
        self._kept[place] = _Kept(key, value, time.monotonic() + lives, self.checks, tensors)

    def __len__(self) -> int:
        return len(self._kept)


class KeepingConstruction(SeededConstruction):
    """Takes modules from a ``cache``, but for those that read files; none of them has weights."""

    def __init__(self, *args: Any, cache: ModuleCache, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.cache = cache

    def copy(self, path: NodePath, index: int) -> SeededConstruction:
        inner = super().copy(path, index)
        assert isinstance(inner, KeepingConstruction)
        inner.cache = ModuleCache()  # copies have modules of their own, though they are alike
        return inner

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "cache": self.cache}

    def build(
        self,
        path: NodePath,
        factory: Callable[[], nn.Module],
        *,
        resettable: bool,
        key: ModuleKey,
    ) -> nn.Module:
        text, place, budget = repr(key), (self.name, *path), self.budget
        kept = self.cache.get(place, text)
        if kept is not None:
            budget.add_node()
            budget.add_tensors(*kept.tensors)
            return kept.value
        before, files = (budget.tensors, budget.bytes), self.cache.files_read
        module = super().build(path, factory, resettable=resettable, key=key)
        if self.cache.files_read == files:
            made = (budget.tensors - before[0], budget.bytes - before[1])
            lives = float("inf") if is_built_in(key.block) else CLASS_LIVES
            self.cache.keep(place, text, module, lives, made)
        return module

    def measured(self, path: NodePath, key: object, measure: Callable[[], T]) -> T:
        text, place = repr(key), (self.name, *path, "")  # no node is called so
        kept = self.cache.get(place, text)
        if kept is not None:
            return cast(T, kept.value)
        result = measure()
        self.cache.keep(place, text, result, CLASS_LIVES, (0, 0))
        return result
