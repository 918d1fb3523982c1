"""The key ``parallel:`` for a number of processes: how many share what, and in which dtypes they calculate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from composer.errors import Path, Problems
from composer.source.load import Source
from composer.spec.fields import Fields
from composer.spec.parallel import ParallelSpec, read_parallel

__all__ = ["Given", "Plan", "plan_of"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Plan:
    """What the processes do: ``data * tensor`` is their number.

    ``data`` processes share the batch and the parameters (FSDP2), ``tensor`` processes each matrix of bodies that bring
    a plan for it. Units calculate in ``param_dtype`` and sum gradients in ``reduce_dtype`` (None: the model's own).
    """

    data: int = 1
    tensor: int = 1
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    units: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    offload: bool = False


Given = Plan | ParallelSpec | Mapping[str, Any] | None


def plan_of(given: Given, size: int, source: Source | None = None) -> Plan:
    """What ``given``, which may be the key of a spec or a mapping of the same form, means for ``size`` processes.

    Raises SpecError where their number is another one; ``source`` knows where the key is written.
    """
    if isinstance(given, Plan):
        _refuse_other_size(given.data, given.tensor, size, None)
        return given
    if isinstance(given, Mapping):
        problems = Problems()
        given = read_parallel(Fields({"parallel": given}, (), problems))
        problems.raise_if_any()
        source = None
    spec = given or ParallelSpec()
    data = spec.data
    if data is None:
        data = max(1, size // spec.tensor)
    _refuse_other_size(data, spec.tensor, size, source, is_auto=spec.data is None)
    return Plan(
        data=data,
        tensor=spec.tensor,
        param_dtype=_DTYPES.get(spec.param or ""),
        reduce_dtype=_DTYPES.get(spec.reduce or ""),
        units=spec.units,
        gradient_checkpointing=spec.gradient_checkpointing,
        offload=spec.offload,
    )


def _refuse_other_size(
    data: int, tensor: int, size: int, source: Source | None, *, is_auto: bool = False
) -> None:
    if data * tensor == size:
        return
    are = "there is 1 process" if size == 1 else f"there are {size} processes"
    if is_auto:
        key, way_out = "tensor", f"start a multiple of {tensor}"
        message = f"'tensor' is {tensor}, which does not divide the number of processes: {are}"
    else:
        key, way_out = "data", f"write data: auto, or start {data * tensor}"
        message = f"'data' times 'tensor' is {data} * {tensor} = {data * tensor}, but {are}"
    problems = Problems(source)
    problems.add(place(key), f"{message}; {way_out}: torchrun --nproc-per-node {data * tensor}")
    problems.raise_if_any()


def place(key: str, *more: str | int) -> Path:
    """Where a key of ``parallel:`` stands in a spec."""
    return ("parallel", key, *more)
