"""Batches of sequences without padding: all sequences of a value one after the other, with their lengths by item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from operator import index
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from composer.dataflow.data.balance import SampleError, balanced
from perception_blocks.registry import Registry
from perception_blocks.words import cut, describe, did_you_mean, few_of, hint, listing

__all__ = ["LENGTHS", "LengthRule", "Sample", "SampleError", "Split", "in_words"]
__all__ += ["per_item", "per_token", "per_token_but_the_first"]

LengthRule: TypeAlias = Callable[[int], int]
"""How many numbers a value has for a sequence of n tokens."""
T = TypeVar("T")
Lengths: TypeAlias = Mapping[str, Sequence[Sequence[int]]]


def per_token(tokens: int) -> int:
    return tokens


def per_token_but_the_first(tokens: int) -> int:
    return max(tokens - 1, 0)


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
        self._check_types()
        self.keys, self.ids = set(self.keys), list(self.ids)
        self.seqlens = {key: _plain_lengths(key, of) for key, of in self.seqlens.items()}
        self._check_names()
        for key in sorted(self.keys):
            if len(self.seqlens[key]) != self.bs:
                items = len(self.seqlens[key])
                raise SampleError(f"{key!r} has lengths of {items} items; there are {self.bs}")
            if self.data is not None:
                self._check_data(key, self.data[key])

    def _check_types(self) -> None:
        for name in ("keys", "ids"):
            if isinstance(value := getattr(self, name), str) or not isinstance(value, Iterable):
                raise SampleError(f"{name!r} is a list of names, got {describe(value)}")
        if wrong := [key for key in self.keys if not isinstance(key, str)]:
            raise SampleError(f"a key is a text, got {describe(wrong[0])}")
        for name in self.ids:
            if not isinstance(name, Hashable):
                raise SampleError(f"an id is a text or a number, got {describe(name)}")
        for name in ("seqlens", "trailing_shapes", "dtypes", "data", "metadata"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and not (name == "data" and value is None):
                raise SampleError(f"{name!r} is a mapping by key, got {describe(value)}")

    def _check_names(self) -> None:
        if twice := [name for name, count in Counter(self.ids).items() if count > 1]:
            raise SampleError(f"ids must differ; given more than once: {few_of(twice)}")
        parts: dict[str, Mapping[str, Any]] = {
            "seqlens": self.seqlens,
            "trailing_shapes": self.trailing_shapes,
            "dtypes": self.dtypes,
        }
        parts |= {} if self.data is None else {"data": self.data}
        for name, part in parts.items():
            if set(part) != self.keys:
                had, needed = listing(sorted(part)) or "nothing", listing(sorted(self.keys))
                raise SampleError(f"{name!r} has {had}; the keys are {needed or 'none'}")
        for name, values in self.metadata.items():
            if not isinstance(values, list | tuple):
                raise SampleError(
                    f"metadata {name!r} is a list with a value for each item, got {describe(values)}"
                )
            if len(values) != self.bs:
                raise SampleError(f"metadata {name!r} has {len(values)} values for {self.bs} items")

    def _check_data(self, key: str, values: Tensor) -> None:
        if not isinstance(values, Tensor):
            raise SampleError(f"{key!r} is a tensor, got {describe(values)}")
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
        """Items of ``seqlens`` tokens, one sequence or a list of them; the lengths of other values follow by `LENGTHS`.

        Raises SampleError for a value without such a rule.
        """
        tokens = _plain_lengths("seqlens", [n if _is_list(n) else [n] for n in seqlens])  # type: ignore[list-item]
        lengths: dict[str, list[list[int]]] = {}
        for key in data:
            if key not in LENGTHS:
                near = did_you_mean(key, LENGTHS)
                raise SampleError(
                    f"nothing says how long {key!r} is for a sequence of n tokens{near}; register its rule, such as "
                    f"LENGTHS.register({key!r}, per_token), or give lengths by key to Sample.of"
                )
            rule = LENGTHS.get(key)
            lengths[key] = [[rule(n) for n in item] for item in tokens]
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
        for key, values in data.items():
            if not isinstance(values, Tensor):
                raise SampleError(f"{key!r} is a tensor, got {describe(values)}")
        return cls(
            keys=set(data),
            trailing_shapes={key: tuple(values.shape[1:]) for key, values in data.items()},
            dtypes={key: values.dtype for key, values in data.items()},
            ids=list(ids),
            seqlens={key: _plain_lengths(key, lengths) for key, lengths in seqlens.items()},
            data=dict(data),
            metadata={key: list(values) for key, values in (metadata or {}).items()},
        )

    @property
    def bs(self) -> int:
        """The number of items."""
        return len(self.ids)

    def _require(self, key: str) -> None:
        if key not in self.keys:
            raise SampleError(f"the sample has no {key!r}{hint(key, sorted(self.keys), 'it has')}")

    def values(self, key: str) -> Tensor:
        """All sequences of ``key`` one after the other, (N, ...). Raises SampleError where there is none."""
        if self.data is None:
            raise SampleError(f"this sample only describes {key!r}; it has no values")
        self._require(key)
        return self.data[key]

    def lengths(self, key: str) -> Tensor:
        """The lengths of all sequences of ``key``, (S,) int64."""
        self._require(key)
        return torch.tensor([n for item in self.seqlens[key] for n in item], dtype=torch.int64)

    def sequences(self, key: str) -> list[Tensor]:
        """Each sequence of ``key`` alone; they share memory with the sample."""
        values = self.values(key)
        return list(values.split([n for item in self.seqlens[key] for n in item]))

    def __getitem__(self, key: str) -> Tensor:
        sequences = self.sequences(key)
        if not sequences:  # which no nested tensor can be
            raise SampleError(f"the sample has no sequences of {key!r}")
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
        """The items of ``samples`` as one sample, with ``keys`` only where given.

        Raises SampleError where they do not have the same values and metadata.
        """
        if not samples:
            raise SampleError("there is no sample to gather")
        first = samples[0]
        names = set(first.keys if keys is None else keys)
        for sample in samples:
            sample._check_like(first, names)
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

    def _check_like(self, first: Sample, names: set[str]) -> None:
        """Raise SampleError unless the sample can be put behind ``first``, by the values ``names``."""
        for key in sorted(names):
            self._require(key)
            for what, of in (("shape", "trailing_shapes"), ("dtype", "dtypes")):
                ours, theirs = getattr(self, of)[key], getattr(first, of)[key]
                if ours != theirs:
                    raise SampleError(
                        f"{key!r} has the {what} {theirs} in one sample, {ours} in another"
                    )
        if set(self.metadata) != set(first.metadata):
            both = [listing(sorted(each.metadata)) or "nothing" for each in (first, self)]
            raise SampleError(f"the metadata of one sample has {both[0]}, of another {both[1]}")
        if (self.data is None) != (first.data is None):
            raise SampleError("some samples have values, and others only describe them")

    def split(self, k: int, key: str | None = None, min_size: int = 1) -> list[Sample]:
        """``k`` samples of at least ``min_size`` items, in order, the largest of which has as few ``key`` as can be."""
        return self.split_with_spec(self.split_spec(k, key, min_size))

    def split_spec(self, k: int, key: str | None = None, min_size: int = 1) -> Split:
        """How `split` deals the items; ``key`` is by default the value with most numbers."""
        sizes = {name: [sum(item) for item in self.seqlens[name]] for name in sorted(self.keys)}
        if key is not None or not sizes:
            self._require(key or "ids")
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
        for key in names:
            self._require(key)
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


def _renamed(part: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    return {names[key]: value for key, value in part.items()}


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _plain_lengths(key: str, lengths: object) -> list[list[int]]:
    """Lengths by item and sequence. Raises SampleError for anything but lists of whole numbers of at least 0."""
    try:
        plain = [[index(length) for length in item] for item in lengths]  # type: ignore[union-attr]
    except TypeError:
        raise SampleError(
            f"the lengths of {key!r} are a list for each item, such as [[5], [3]], got {cut(repr(lengths), 60)}"
        ) from None
    if any(length < 0 for item in plain for length in item):
        raise SampleError(f"{key!r} has a length below 0")
    return plain
