"""What a call reads as one Sample, and what it writes as checked Samples of one value each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from composer.dataflow.calls.experiment import CallSpec
from composer.dataflow.data.samples import (
    LENGTHS,
    LengthRule,
    Sample,
    SampleError,
    in_words,
    per_item,
    per_token,
    per_token_but_the_first,
)
from perception_blocks.words import describe, hint, listing

__all__ = ["joined", "packed", "values_of"]

Lengths = list[list[int]]
# From the length of a value back to that of the sequence.
_BACK: dict[LengthRule, LengthRule] = {
    per_token: lambda n: n,
    per_token_but_the_first: lambda n: n + 1,
}


def values_of(sample: Sample, names: Iterable[str]) -> dict[str, Sample]:
    """The values ``names`` of a sample, each alone, with all its metadata. Raises SampleError where one is missing."""
    return {name: _alone(sample, name, name) for name in names}


def _alone(sample: Sample, key: str, name: str) -> Sample:
    """The value ``key`` of a sample, as ``name``."""
    values = sample.values(key)
    return Sample(
        keys={name},
        trailing_shapes={name: sample.trailing_shapes[key]},
        dtypes={name: sample.dtypes[key]},
        ids=sample.ids,
        seqlens={name: sample.seqlens[key]},
        data={name: values},
        metadata=sample.metadata,
    )


def joined(call: CallSpec, values: Sequence[Sample]) -> Sample:
    """What a call reads, by its interface's names: ``values`` in the order of its ``reads``.

    Raises SampleError for values of different items.
    """
    keys = dict(zip(call.reads, zip(call.reads.values(), values, strict=True), strict=True))
    first = values[0] if values else Sample.of([], {}, {})
    for name, (value, sample) in keys.items():
        if sample.ids != first.ids:
            other = next(iter(call.reads.values()))
            raise SampleError(f"{value!r}, read as {name!r}, has other items than {other!r}")
    metadata: dict[str, list] = {}
    for sample in values:
        metadata |= sample.metadata
    return Sample(
        keys=set(keys),
        trailing_shapes={name: s.trailing_shapes[v] for name, (v, s) in keys.items()},
        dtypes={name: s.dtypes[v] for name, (v, s) in keys.items()},
        ids=first.ids,
        seqlens={name: s.seqlens[v] for name, (v, s) in keys.items()},
        data={name: s.values(v) for name, (v, s) in keys.items()},
        metadata=metadata,
    )


def packed(call: CallSpec, sample: Sample, result: object) -> list[Sample]:
    """What a call on ``sample`` returned, as a Sample for each of its ``writes``, in their order.

    How many numbers a value has follows from `LENGTHS` and the sequences: those that the call returns one by one, else
    those that it read. Raises SampleError where it has another number, or is not there.
    """
    if not call.writes:
        return []
    if not isinstance(result, Mapping):
        wanted = listing(call.writes)
        raise SampleError(
            f"{call.verb!r} must return a mapping with {wanted}, got {describe(result)}"
        )
    missing = [name for name in call.writes if name not in result]
    if missing:
        end = hint(missing[0], map(str, result), "it returned")
        raise SampleError(f"{call.verb!r} did not return {missing[0]!r}{end}")
    values = {name: _as_tensors(name, result[name]) for name in call.writes}
    tokens = _tokens(sample, values)
    return [_packed(name, call.writes[name], values[name], tokens, sample) for name in call.writes]


def _as_tensors(name: str, value: object) -> Tensor | list[Tensor]:
    """Detached: all sequences in one tensor, or a list of them."""
    if isinstance(value, Tensor) and value.is_nested:
        value = value.unbind()
    if isinstance(value, Tensor):
        if not value.dim():
            raise SampleError(
                f"{name!r} is one number without a dimension; return one for each item"
            )
        return value.detach()
    if isinstance(value, Sequence) and value and all(isinstance(v, Tensor) for v in value):
        return [part.detach() for part in value]
    if isinstance(value, Sequence) and all(isinstance(v, int | float) for v in value):
        return torch.tensor(value, dtype=torch.float32)
    raise SampleError(
        f"{name!r} must be a tensor, or a list of one for each sequence, got {describe(value)}"
    )


def _tokens(sample: Sample, values: Mapping[str, Tensor | list[Tensor]]) -> Lengths | None:
    """The number of tokens of each sequence of each item; None where nothing tells it.

    Sequences that are returned one by one tell it, else the longest that are read.
    """
    for name, value in values.items():
        back = _BACK.get(_rule(name)) if name in LENGTHS else None
        if isinstance(value, list) and back is not None:
            return _in_items(name, [back(len(part)) for part in value], sample)
    read = [
        [[back(n) for n in item] for item in sample.seqlens[name]]
        for name in sorted(sample.keys)
        if name in LENGTHS and (back := _BACK.get(_rule(name))) is not None
    ]
    if read:
        return max(read, key=lambda lengths: sum(map(sum, lengths)))
    return None


def _in_items(name: str, lengths: list[int], sample: Sample) -> Lengths:
    """The lengths of sequences by item: as many in each as those that are read, else one."""
    counts = [len(item) for key in sorted(sample.keys)[:1] for item in sample.seqlens[key]]
    if sum(counts) != len(lengths):
        counts = [1] * sample.bs
    if sum(counts) != len(lengths):
        raise SampleError(f"{name!r} has {len(lengths)} sequences for {sample.bs} items")
    parts = iter(lengths)
    return [[next(parts) for _ in range(count)] for count in counts]


def _packed(
    name: str, value_name: str, value: Tensor | list[Tensor], tokens: Lengths | None, sample: Sample
) -> Sample:
    if isinstance(value, list):
        got = _in_items(name, [len(part) for part in value], sample)
        needed = _needed(name, tokens, sample)
        if needed is not None and got != needed:
            raise SampleError(_mismatch(name, got, needed))
        return Sample.of(
            sample.ids, {value_name: got}, {value_name: torch.cat(value)}, sample.metadata
        )
    needed = _needed(name, tokens, sample)
    if needed is None:
        raise SampleError(
            f"nothing says how long {name!r} is for a sequence of n tokens; return a list of a tensor for each "
            f"sequence, or register its rule, such as LENGTHS.register({name!r}, per_token)"
        )
    total = sum(map(sum, needed))
    if len(value) != total:
        rule = f", {in_words(_rule(name))}" if name in LENGTHS else ""
        raise SampleError(f"{name!r} needs {_numbers(total)}{rule}, and has {len(value)}")
    return Sample.of(sample.ids, {value_name: needed}, {value_name: value}, sample.metadata)


def _needed(name: str, tokens: Lengths | None, sample: Sample) -> Lengths | None:
    """How many numbers ``name`` has for each sequence of each item; None where nothing tells it."""
    if name not in LENGTHS:
        return None
    rule = _rule(name)
    if tokens is None:
        counts = [len(item) for key in sorted(sample.keys)[:1] for item in sample.seqlens[key]]
        return [[1] * count for count in counts] if rule is per_item and counts else None
    return [[rule(n) for n in item] for item in tokens]


def _mismatch(name: str, got: Lengths, needed: Lengths) -> str:
    """The first sequence of which ``name`` has another number."""
    place = next(
        (i, j) for i, item in enumerate(needed) for j, n in enumerate(item) if got[i][j] != n
    )
    i, j = place
    rule = in_words(_rule(name))
    return f"{name!r} needs {_numbers(needed[i][j])}, {rule}, for sequence {j} of item {i}, and has {got[i][j]}"


def _rule(name: str) -> LengthRule:
    return LENGTHS.get(name)


def _numbers(count: int) -> str:
    return f"{count} number{'s' if count != 1 else ''}"
