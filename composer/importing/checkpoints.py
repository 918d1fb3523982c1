"""Checkpoints of rl_games, skrl, rsl_rl and Stable-Baselines3 as tensors by name. No code of a file runs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import read_safetensors
from composer.checkpoint.first_weights import PICKLE, is_plain, read_mapping, start_of
from composer.checkpoint.torch_file import ZIP
from composer.importing.sb3_agent import tensors_of_agent
from composer.importing.sb3_archive import POLICY, Sb3Archive
from composer.importing.sb3_statistics import (
    EPSILON,
    VecNormalize,
    is_vec_normalize,
    read_vec_normalize,
)

__all__ = ["ForeignWeights", "read_checkpoint"]

MOST_LEVELS = 8  # of mappings in mappings
MOST_VALUES = 100_000  # in all of them together
_COMPILED = "_orig_mod."  # what torch.compile puts before the names of a module
_OPTIMIZER = {"state", "param_groups"}  # the keys of its state


@dataclass
class ForeignWeights:
    """The ``tensors`` of a checkpoint by name, nested mappings joined by dots; ``others`` names all else in it."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_checkpoint(path: str | os.PathLike[str]) -> ForeignWeights:
    """What the file at ``path`` holds: of torch.save or safetensors, or what Stable-Baselines3 saved.

    That is an agent, or a VecNormalize, whose statistics of observations are called ``obs_rms``. Numbers and arrays of
    numpy in other files are not read, nor are the states of optimizers. Raises CheckpointError for a file that is
    damaged or that could run code.
    """
    name = os.fspath(path)
    start = start_of(name)
    if start == ZIP and _is_agent(name):
        return ForeignWeights(tensors_of_agent(Sb3Archive(name)))
    if start.startswith(PICKLE) and is_vec_normalize(name):
        return ForeignWeights(_of_statistics(read_vec_normalize(name)))
    if not start.startswith((ZIP, PICKLE)):
        return ForeignWeights(read_safetensors(name))
    weights = ForeignWeights()
    _collect(read_mapping(name, name, numpy=True), weights)
    if not weights.tensors:
        raise CheckpointError(f"{name!r} holds no tensors")
    return weights


def _of_statistics(saved: VecNormalize) -> dict[str, Tensor]:
    """The tensors ``obs_rms.mean``, ``.var`` and ``.count``; of a Dict, ``obs_rms.KEY.mean`` and so on."""
    tensors: dict[str, Tensor] = {}
    for name, each in saved.observations.items():
        theirs = saved.name_of(name)
        mean, variance = (
            torch.tensor(array.numbers, dtype=torch.float64).reshape(array.shape)
            for array in (each.mean, each.variance)
        )
        tensors[f"{theirs}.mean"] = mean
        tensors[f"{theirs}.var"] = variance + (saved.epsilon - EPSILON)  # which adopting them adds
        tensors[f"{theirs}.count"] = torch.tensor(each.count, dtype=torch.float64)
    return tensors


def _is_agent(name: str) -> bool:
    try:
        with zipfile.ZipFile(name) as archive:
            return POLICY in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False  # what reads it says what is wrong


def _collect(value: object, weights: ForeignWeights) -> None:
    """Put the tensors in ``value`` into ``weights``, in its order."""
    waiting = [("", value, MOST_LEVELS)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        name, value, levels = waiting.pop()
        if isinstance(value, Mapping) and levels and not value.keys() >= _OPTIMIZER:
            keys = [str(key).replace(_COMPILED, "") for key in value]
            names = [f"{name}.{key}" if name else key for key in keys]
            inner = [(n, v, levels - 1) for n, v in zip(names, value.values(), strict=True)]
            waiting += reversed(inner)
        elif is_plain(value):
            weights.tensors[name] = value
        elif isinstance(value, Tensor):
            raise CheckpointError(f"the tensor {name!r} has fewer numbers than its shape says")
        else:
            weights.others.append(name)
    raise CheckpointError(f"it holds more than {MOST_VALUES:,} values, too many for a checkpoint")
