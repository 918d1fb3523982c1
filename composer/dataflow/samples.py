"""Batches of sequences without padding: all sequences of a value one after the other, with their lengths by item."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from perception_blocks.registry import Registry
from perception_blocks.words import did_you_mean, listing

__all__ = ["LENGTHS", "LengthRule", "Sample", "SampleError", "Split", "balanced", "in_words"]
__all__ += ["per_item", "per_token", "per_token_but_the_first"]

LengthRule: TypeAlias = Callable[[int], int]
"""How many numbers a value has for a sequence of n tokens."""
T = TypeVar("T")
Lengths: TypeAlias = Mapping[str, Sequence[Sequence[int]]]


class SampleError(ValueError):
    """The keys, lengths and values of a sample do not fit each other."""


def per_token(tokens: int) -> int:
    return tokens


def per_token_but_the_first(tokens: int) -> int:
    return tokens - 1


def per_item(tokens: int) -> int:
    return 1


def in_words(rule: LengthRule) -> str:
    """A rule of lengths in words.

    >>> in_words(per_token_but_the_first)
    'per token but the first'
    """
    return getattr(rule, "__name__", repr(rule)).replace("_", " ")


LENGTHS = Registry("value of a sample")
"""The `LengthRule` of each value by name. Register the rule of your own values.

>>> LENGTHS.get("logp")(5)
4
"""
_NAMES = {
    per_token: "ids prompts prompt_mask values input_ids packed_input_ids packed_prompts logits_mask "
    "packed_logits_mask",
    per_token_but_the_first: "logp ref_logp logprobs ref_logprobs old_logprobs packed_logprobs "
    "packed_ref_logprobs advantages returns kl_rewards",
    per_item: "rewards scores lengths prompt_lens no_eos seq_no_eos_mask loss_mask group_factor",
}
for _rule, _names in _NAMES.items():
    for _name in _names.split():
        LENGTHS.register(_name, _rule)


@dataclass(frozen=True)
class Split:
    """How the items of a sample are dealt over parts: ``sizes`` are the numbers of items, in order."""

    sizes: Sequence[int]

    @property
    def bounds(self) -> list[tuple[int, int]]:
        return list(pairwise((0, *accumulate(self.sizes))))


@dataclass
class Sample:
    """A batch of items, each with one or more sequences of every value.

    ``data[key]`` has the shape (N, *trailing_shapes[key]) and the dtype ``dtypes[key]``: all sequences of all items one
    after the other, where ``seqlens[key]`` has for each of the ``ids`` the lengths of its sequences, so that N is their
    sum. ``data`` None is a description without values. ``metadata[key]`` has something for each item.

    ``sample[key]`` is a nested tensor of its sequences, so that ``(sample["ids"] == 3).float().mean(-1)`` is one number
    for each.

    >>> sample = Sample.from_default(["a", "b"], [2, 3], {"ids": torch.tensor([1, 2, 3, 3, 3])})
    >>> (sample["ids"] == 3).float().mean(-1)
    tensor([0., 1.])

    Raises SampleError where they do not fit each other.
    """

    keys: set[str]
    trailing_shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    ids: list[Hashable]
    seqlens: dict[str, list[list[int]]]
    data: dict[str, Tensor] | None = None
    metadata: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys, self.ids = set(self.keys), list(self.ids)
        self.seqlens = {key: _plain_lengths(lengths) for key, lengths in self.seqlens.items()}
        self._check_names()
        for key in sorted(self.keys):
            self._check_lengths(key)
            if self.data is not None:
                self._check_data(key, self.data[key])

    def _check_names(self) -> None:
        twice = (
            {repr(name) for name in self.ids if self.ids.count(name) > 1} if self._repeats else ()
        )
        if twice:
            raise SampleError(f"ids must differ; given more than once: {', '.join(sorted(twice))}")
        parts: dict[str, Mapping[str, Any]] = {
            "seqlens": self.seqlens,
            "trailing_shapes": self.trailing_shapes,
            "dtypes": self.dtypes,
        }
        parts |= {} if self.data is None else {"data": self.data}
        for name, part in parts.items():
            if set(part) != self.keys:
                had, needed = listing(sorted(part)) or "nothing", listing(sorted(self.keys))
                raise SampleError(f"{name!r} has {had}; the keys are {needed}")
        for name, values in self.metadata.items():
            if len(values) != self.bs:
                raise SampleError(f"metadata {name!r} has {len(values)} values for {self.bs} items")

    @property
    def _repeats(self) -> bool:
        return len(set(self.ids)) != len(self.ids)

    def _check_lengths(self, key: str) -> None:
        lengths = self.seqlens[key]
        if len(lengths) != self.bs:
            raise SampleError(f"{key!r} has lengths of {len(lengths)} items; there are {self.bs}")
        if any(length < 0 for item in lengths for length in item):
            raise SampleError(f"{key!r} has a length below 0")

    def _check_data(self, key: str, values: Tensor) -> None:
        needed = (sum(map(sum, self.seqlens[key])), *self.trailing_shapes[key])
        if tuple(values.shape) != needed:
            got = tuple(values.shape)
            raise SampleError(f"{key!r} has the shape {got}; its lengths say {needed}")
        if values.dtype != self.dtypes[key]:
            raise SampleError(f"{key!r} is {values.dtype}, but declared as {self.dtypes[key]}")

    @classmethod
    def from_default(
        cls,
        ids: Sequence[Hashable],
        seqlens: Sequence[int | Sequence[int]],
        data: Mapping[str, Tensor],
        metadata: Mapping[str, Sequence[Any]] | None = None,
    ) -> Sample:
        """Items of one sequence of ``seqlens`` tokens each; the lengths of other values follow by `LENGTHS`.

        Raises SampleError for a value without such a rule.
        """
        tokens = [int(n[0]) if isinstance(n, Sequence) else int(n) for n in seqlens]
        lengths: dict[str, list[list[int]]] = {}
        for key in data:
            if key not in LENGTHS:
                near = did_you_mean(key, LENGTHS)
                raise SampleError(
                    f"nothing says how long {key!r} is for a sequence of n tokens{near}; register its rule, such as "
                    f"LENGTHS.register({key!r}, per_token), or give lengths by key to Sample(...)"
                )
            lengths[key] = [[LENGTHS.get(key)(n)] for n in tokens]
        return cls.of(ids, lengths, data, metadata)

    @classmethod
    def of(
        cls,
        ids: Sequence[Hashable],
        seqlens: Lengths,
        data: Mapping[str, Tensor],
        metadata: Mapping[str, Sequence[Any]] | None = None,
    ) -> Sample:
        """Items with the given lengths by key; shapes and dtypes are those of ``data``."""
        return cls(
            keys=set(data),
            trailing_shapes={key: tuple(values.shape[1:]) for key, values in data.items()},
            dtypes={key: values.dtype for key, values in data.items()},
            ids=list(ids),
            seqlens={key: [list(item) for item in lengths] for key, lengths in seqlens.items()},
            data=dict(data),
            metadata={key: list(values) for key, values in (metadata or {}).items()},
        )

    @property
    def bs(self) -> int:
        """The number of items."""
        return len(self.ids)

    def values(self, key: str) -> Tensor:
        """All sequences of ``key`` one after the other, (N, ...). Raises SampleError where there is none."""
        if self.data is None:
            raise SampleError(f"this sample only describes {key!r}; it has no values")
        if key not in self.data:
            near = did_you_mean(key, self.data) or f"; it has {listing(sorted(self.data))}"
            raise SampleError(f"the sample has no {key!r}{near}")
        return self.data[key]

    def lengths(self, key: str) -> Tensor:
        """The lengths of all sequences of ``key``, (S,) int64."""
        return torch.tensor([n for item in self.seqlens[key] for n in item], dtype=torch.int64)

    def sequences(self, key: str) -> list[Tensor]:
        """Each sequence of ``key`` alone; they share memory with the sample."""
        values = self.values(key)
        return list(values.split([n for item in self.seqlens[key] for n in item]))

    def __getitem__(self, key: str) -> Tensor:
        sequences = self.sequences(key)
        return torch.nested.nested_tensor(sequences, layout=torch.jagged)

    def padded(self, key: str, value: float = 0) -> tuple[Tensor, Tensor]:
        """Sequences (S, L, ...) of equal length, with ``value`` behind each, and the mask (S, L) of what is real."""
        sequences = self.sequences(key)
        if not sequences:
            empty = self.values(key).new_zeros(0, 0, *self.trailing_shapes[key])
            return empty, torch.zeros(0, 0, dtype=torch.bool)
        padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)
        lengths = self.lengths(key)
        mask = torch.arange(padded.shape[1]) < lengths.unsqueeze(-1)
        return padded, mask.to(padded.device)

    @classmethod
    def gather(cls, samples: Sequence[Sample], keys: Iterable[str] | None = None) -> Sample:
        """The items of ``samples`` as one sample, with ``keys`` only where given."""
        if not samples:
            raise SampleError("there is no sample to gather")
        names = set(samples[0].keys if keys is None else keys)
        for sample in samples:
            if missing := names - sample.keys:
                raise SampleError(f"a sample has no {listing(sorted(missing))}")
        first = samples[0]
        data = None
        if first.data is not None:
            data = {key: torch.cat([sample.values(key) for sample in samples]) for key in names}
        return cls(
            keys=names,
            trailing_shapes={key: first.trailing_shapes[key] for key in names},
            dtypes={key: first.dtypes[key] for key in names},
            ids=[name for sample in samples for name in sample.ids],
            seqlens={key: [n for sample in samples for n in sample.seqlens[key]] for key in names},
            data=data,
            metadata={
                key: [value for sample in samples for value in sample.metadata[key]]
                for key in first.metadata
            },
        )

    def split(self, k: int, key: str | None = None, min_size: int = 1) -> list[Sample]:
        """``k`` samples of at least ``min_size`` items, in order, the largest of which has as few ``key`` as can be."""
        return self.split_with_spec(self.split_spec(k, key, min_size))

    def split_spec(self, k: int, key: str | None = None, min_size: int = 1) -> Split:
        """How `split` deals the items; ``key`` is by default the value with most numbers."""
        sizes = {name: [sum(item) for item in self.seqlens[name]] for name in sorted(self.keys)}
        chosen = max(sizes, key=lambda name: sum(sizes[name])) if key is None else key
        return Split([stop - start for start, stop in balanced(sizes[chosen], k, min_size)])

    def split_with_spec(self, spec: Split) -> list[Sample]:
        """The sample in parts; they share memory with it. Raises SampleError unless ``spec`` has all items."""
        if sum(spec.sizes) != self.bs:
            raise SampleError(f"the split has {sum(spec.sizes)} items; the sample has {self.bs}")
        at = dict.fromkeys(self.keys, 0)
        return [self._part(start, stop, at) for start, stop in spec.bounds]

    def _part(self, start: int, stop: int, at: dict[str, int]) -> Sample:
        """Items ``start`` to ``stop``; their values begin ``at``, which is moved to their end."""
        data: dict[str, Tensor] | None = None if self.data is None else {}
        seqlens = {key: self.seqlens[key][start:stop] for key in self.keys}
        for key, lengths in seqlens.items():
            size = sum(map(sum, lengths))
            if data is not None:
                data[key] = self.values(key).narrow(0, at[key], size)
            at[key] += size
        metadata = {key: values[start:stop] for key, values in self.metadata.items()}
        return replace(
            self, ids=self.ids[start:stop], seqlens=seqlens, data=data, metadata=metadata
        )

    def unpack(self) -> list[Sample]:
        """Each item as a sample."""
        return self.split_with_spec(Split([1] * self.bs))

    def meta(self) -> Sample:
        """The description alone, without values."""
        return replace(self, data=None)

    def update_(self, other: Sample) -> None:
        """Take the values of ``other``, of the same items in the same order; values of the same name are replaced."""
        if self.ids != other.ids:
            raise SampleError("the samples have different items, or the same in another order")
        if (self.data is None) != (other.data is None):
            raise SampleError("one of the two samples has no values")
        self.keys |= other.keys
        self.trailing_shapes |= other.trailing_shapes
        self.dtypes |= other.dtypes
        self.seqlens |= other.seqlens
        self.metadata |= other.metadata
        if self.data is not None and other.data is not None:
            self.data |= other.data

    def remap_keys_(self, names: Mapping[str, str]) -> None:
        """Rename values: ``names`` says what each of its keys is called from now on."""
        renamed = {key: names.get(key, key) for key in self.keys}
        if len(set(renamed.values())) != len(renamed):
            raise SampleError(
                f"two values would have one name: {listing(sorted(renamed.values()))}"
            )
        self.trailing_shapes = _renamed(self.trailing_shapes, renamed)
        self.dtypes = _renamed(self.dtypes, renamed)
        self.seqlens = _renamed(self.seqlens, renamed)
        self.data = None if self.data is None else _renamed(self.data, renamed)
        self.keys = set(renamed.values())


def balanced(sizes: Sequence[int], k: int, min_size: int = 1) -> list[tuple[int, int]]:
    """Bounds of ``k`` stretches of at least ``min_size`` neighbours, the largest sum of which is as small as can be.

    By bisection over that sum: O(n log(sum)) for n sizes.

    >>> balanced([5, 1, 1, 1, 4], 2)
    [(0, 2), (2, 5)]
    """
    if k < 1 or min_size < 1 or k * min_size > len(sizes):
        raise SampleError(
            f"{len(sizes)} items cannot be split into {k} parts of at least {min_size}"
        )
    total = [0, *accumulate(map(int, sizes))]
    low, high = max(map(int, sizes)), total[-1]
    while low < high:
        middle = (low + high) // 2
        if _bounds_within(total, middle, k, min_size) is None:
            low = middle + 1
        else:
            high = middle
    bounds = _bounds_within(total, low, k, min_size)
    assert bounds is not None
    return bounds


def _bounds_within(
    total: Sequence[int], most: int, k: int, min_size: int
) -> list[tuple[int, int]] | None:
    """Bounds of ``k`` stretches of at least ``min_size`` items and a sum of at most ``most``; None if there are none.

    ``total`` are the sums of all sizes before each place.
    """
    reach, start = [], 0
    for left in range(k - 1, -1, -1):
        stop = min(bisect_right(total, total[start] + most) - 1, len(total) - 1 - left * min_size)
        if stop - start < min_size:
            return None
        reach.append((start, stop))
        start = stop
    return reach if start == len(total) - 1 else None


def _renamed(part: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    return {names[key]: value for key, value in part.items()}


def _plain_lengths(lengths: Iterable[Iterable[int]]) -> list[list[int]]:
    return [[int(length) for length in item] for item in lengths]
