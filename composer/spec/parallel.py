"""The key ``parallel:`` of a spec: how its model is spread over processes. Only `composer.parallel` acts on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from composer.spec.fields import Fields, is_count
from composer.spec.keys import PLACES
from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["PARALLEL_KEYS", "PRECISIONS", "PRECISION_KEYS", "ParallelSpec", "read_parallel"]

PARALLEL_KEYS = ("data", "tensor", "precision", "units", "gradient_checkpointing", "offload")
PRECISION_KEYS = ("param", "reduce")
PRECISIONS = ("bf16", "fp16", "fp32")
AUTO = "auto"


@dataclass(frozen=True)
class ParallelSpec:
    """``data`` processes share the batch (None: as many as were started), ``tensor`` processes each matrix.

    ``param`` and ``reduce`` are the dtypes in which units calculate and sum gradients (None: the model's), ``units``
    the names of further classes that are sharded by themselves.
    """

    data: int | None = None
    tensor: int = 1
    param: str | None = None
    reduce: str | None = None
    units: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    offload: bool = False


def read_parallel(top: Fields) -> ParallelSpec | None:
    """The key of the spec ``top``; None where it has none. Notes what is wrong with it."""
    value = top.values.get("parallel")
    if value is None:
        return None
    if not isinstance(value, dict):
        top.wrong("parallel", "a mapping such as {data: auto}")
        return None
    fields = Fields(value, top.at("parallel"), top.problems)
    fields.unknown(PARALLEL_KEYS, "'parallel'", places=PLACES)
    param, reduce = _precision(fields)
    return ParallelSpec(
        data=_data(fields),
        tensor=fields.count("tensor", 1),
        param=param,
        reduce=reduce,
        units=fields.texts("units"),
        gradient_checkpointing=fields.boolean("gradient_checkpointing"),
        offload=fields.boolean("offload"),
    )


def _data(fields: Fields) -> int | None:
    value = fields.values.get("data", AUTO)
    if value == AUTO:
        return None
    if is_count(value):
        return value
    near = did_you_mean(value, [AUTO]) if isinstance(value, str) else ""
    expected = "'auto' or a whole number of at least 1"
    fields.note("data", f"'data' must be {expected}, got {describe(value)}" + near)
    return None


def _precision(fields: Fields) -> tuple[str | None, str | None]:
    """The dtypes of parameters and of sums of gradients; one word is the former, and sums are then in fp32."""
    value = fields.values.get("precision")
    if value is None:
        return None, None
    if not isinstance(value, dict):
        word = _word(
            fields, "precision", value, ", or a mapping such as {param: bf16, reduce: fp32}"
        )
        return word, word and "fp32"
    inner = Fields(value, fields.at("precision"), fields.problems)
    inner.unknown(PRECISION_KEYS, "'precision'")
    words = [_word(inner, key, value[key]) if key in inner else None for key in PRECISION_KEYS]
    return words[0], words[1]


def _word(fields: Fields, key: str, value: Any, otherwise: str = "") -> str | None:
    if isinstance(value, str) and value in PRECISIONS:
        return value
    near = did_you_mean(value, PRECISIONS) if isinstance(value, str) else ""
    expected = f"one of {listing(PRECISIONS)}{otherwise}"
    fields.note(key, f"{key!r} must be {expected}, got {describe(value)}" + near)
    return None
