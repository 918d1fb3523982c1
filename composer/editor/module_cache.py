"""Modules that stay from check to check: a node whose block, settings and inputs are as before keeps its module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from composer.build.construction import SeededConstruction
from composer.spec.places import NodePath
from perception_blocks.base_block import is_built_in
from perception_blocks.graph.built import ModuleKey

__all__ = ["KeepingConstruction", "ModuleCache"]

MOST_CHECKS = 12  # that a module outlives the last one that it was used in


@dataclass
class _Kept:
    key: str
    module: nn.Module
    tensors: tuple[int, int]  # their number, and their bytes
    used_in: int


@dataclass
class ModuleCache:
    """The modules of one spec as it was last, one for each node; ``files_read`` counts the files that blocks read."""

    files_read: int = 0
    checks: int = 0
    kept: dict[NodePath, _Kept] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a check: forget what the last ones did not use."""
        self.checks += 1
        oldest = self.checks - MOST_CHECKS
        self.kept = {path: kept for path, kept in self.kept.items() if kept.used_in >= oldest}


class KeepingConstruction(SeededConstruction):
    """Takes modules of built-in blocks from a ``cache``, unless they read files; all of them are without weights."""

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
        if not (resettable and is_built_in(key.block)):
            return super().build(path, factory, resettable=resettable, key=key)
        cache, place = self.cache, (self.name, *path)
        text = repr(key)
        kept = cache.kept.get(place)
        if kept is not None and kept.key == text:
            kept.used_in = cache.checks
            self.budget.add_node()
            self.budget.add_tensors(*kept.tensors)
            return kept.module
        before, files = (self.budget.tensors, self.budget.bytes), cache.files_read
        module = super().build(path, factory, resettable=resettable, key=key)
        if cache.files_read == files:
            made = (self.budget.tensors - before[0], self.budget.bytes - before[1])
            cache.kept[place] = _Kept(text, module, made, cache.checks)
        return module
