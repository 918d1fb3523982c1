"""Checkpoints of rl_games, skrl, rsl_rl and Stable-Baselines3 as tensors by name. No code of a file runs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import read_safetensors
from composer.checkpoint.first_weights import PICKLE, is_plain, read_mapping, start_of
from composer.checkpoint.torch_file import ZIP
from composer.importing.sb3_archive import POLICY, Sb3Archive

__all__ = ["ForeignWeights", "read_checkpoint"]

MOST_LEVELS = 8  # of mappings in mappings
_OPTIMIZER = {"state", "param_groups"}  # the keys of its state


@dataclass
class ForeignWeights:
    """The ``tensors`` of a checkpoint by name, nested mappings joined by dots; ``others`` names all else in it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_checkpoint(path: str | os.PathLike[str]) -> ForeignWeights:
    """What the file at ``path`` holds: of torch.save, of an agent of Stable-Baselines3, or a safetensors file.

    Numbers and arrays of numpy in it are not read, nor are the states of optimizers. Raises CheckpointError for a file
    that is damaged or that could run code.
    """
    name = os.fspath(path)
    start = start_of(name)
    if start == ZIP and _is_agent(name):
        return ForeignWeights(Sb3Archive(name).tensors())
    if not start.startswith((ZIP, PICKLE)):
        return ForeignWeights(read_safetensors(name))
    weights = ForeignWeights()
    _collect(read_mapping(name, name, numpy=True), "", weights, MOST_LEVELS)
    if not weights.tensors:
        raise CheckpointError(f"{name!r} holds no tensors")
    return weights


def _is_agent(name: str) -> bool:
    try:
        with zipfile.ZipFile(name) as archive:
            return POLICY in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False  # what reads it says what is wrong


def _collect(value: object, name: str, weights: ForeignWeights, levels: int) -> None:
    """Put the tensors in ``value``, which is called ``name``, into ``weights``."""
    if is_plain(value):
        weights.tensors[name] = value
    elif isinstance(value, Mapping) and levels and not value.keys() >= _OPTIMIZER:
        for key, inner in value.items():
            _collect(inner, f"{name}.{key}" if name else str(key), weights, levels - 1)
    else:
        weights.others.append(name)
