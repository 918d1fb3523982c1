"""Data sets by the names that experiments give after ``dataset:``."""

from __future__ import annotations

from perception_blocks.registry import Registry

__all__ = ["DATASETS"]

DATASETS = Registry("data set", hyphens=True)
"""Classes with ``gives``, the names of their values, whose settings follow the first argument of ``__init__``."""
