"""Data sets by name, and the batches of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch

from composer.dataflow.context import call_generator
from composer.dataflow.data.rows import DataError
from composer.dataflow.data.samples import Sample, SampleError
from composer.errors import Problem
from perception_blocks.registry import Registry
from perception_blocks.settings import SettingsError, check_settings
from perception_blocks.words import describe, listing

__all__ = ["DATASETS", "DatasetUtil", "ItemDataset", "batches", "batches_per_epoch"]
__all__ += ["make_dataset"]

DATASETS = Registry("data set", hyphens=True)
"""Data sets by the names that experiments give after ``dataset:``; each is a class as `ItemDataset` describes it."""
DATASETS.register_all(
    "composer.dataflow.data.text_datasets",
    {"prompt": "Prompts", "prompt_answer": "PromptsAndAnswers", "rw_pair": "RewardPairs"},
)


@dataclass(frozen=True)
class DatasetUtil:
    """What a data set is given beside its settings.

    Of ``world_size`` processes each has the share ``rank`` of the items. ``tokenizer`` is one of transformers, or None.
    """

    seed: int = 0
    rank: int = 0
    world_size: int = 1
    tokenizer: Any = None


class ItemDataset(Protocol):
    """What a class under `DATASETS` is: such as a ``torch.utils.data.Dataset`` of samples with one item each.

    ``gives`` are the names of the values in them. Its ``__init__(util, **settings)`` takes a `DatasetUtil` and the
    settings of the experiment.
    """

    gives: ClassVar[Sequence[str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def make_dataset(name: str, settings: Mapping[str, object], util: DatasetUtil) -> ItemDataset:
    """The data set that is registered as ``name``.

    Raises UnknownNameError for the name, SettingsError with all that is wrong in ``settings``, TypeError for a class
    that is no data set, and what the data set raises.
    """
    cls = DATASETS.get(name)
    gives = getattr(cls, "gives", None)
    if isinstance(gives, str) or not isinstance(gives, Sequence):
        raise TypeError(
            f"the data set {name!r} has no 'gives', such as gives = ('prompts',): the values of its items"
        )
    if missing := [method for method in ("__len__", "__getitem__") if not hasattr(cls, method)]:
        raise TypeError(f"the data set {name!r} has no {listing(missing)}")
    if problems := check_settings(cls, settings, f"data set {name!r}"):
        raise SettingsError(problems)
    return cls(util, **settings)


def batches_per_epoch(dataset: ItemDataset, batch_size: int) -> int:
    """How many batches each item is in one of. Raises DataError where the data set is too small for one."""
    items = len(dataset)
    if not 1 <= batch_size <= items:
        few = f"{items} items, too few for a batch of {batch_size}; choose a 'batch_size' from 1 to {items}"
        raise DataError([Problem(f"the data set has {few if items else 'no items'}")])
    return items // batch_size


def batches(dataset: ItemDataset, batch_size: int, seed: int, iteration: int) -> Sample:
    """The batch of an iteration, counted from 0: it depends on nothing else, so that a resumed run goes on alike.

    Each epoch has the items in another order, which follows from ``seed``, in batches of ``batch_size``; the last ones,
    too few for a batch, wait for the next epoch. Raises DataError where the data set is too small, or an item is not
    what it ``gives``.
    """
    epoch, batch = divmod(iteration, batches_per_epoch(dataset, batch_size))
    order = _order(len(dataset), seed, epoch)[batch * batch_size : (batch + 1) * batch_size]
    items = [_item(dataset, index) for index in order.tolist()]
    try:
        return Sample.gather(items)
    except SampleError as error:
        raise DataError([Problem(f"the items of the data set are no batch: {error}")]) from error


def _item(dataset: ItemDataset, index: int) -> Sample:
    item = dataset[index]
    where = f"item {index} of the data set"
    if not isinstance(item, Sample):
        raise DataError([Problem(f"{where} is {describe(item)}, not a Sample")])
    if item.keys != set(dataset.gives):
        had, gives = listing(sorted(item.keys)) or "nothing", listing(sorted(dataset.gives))
        raise DataError([Problem(f"{where} has {had}; its 'gives' says {gives}")])
    return item


@lru_cache(maxsize=4)
def _order(items: int, seed: int, epoch: int) -> torch.Tensor:
    """The places of the items in an epoch."""
    return torch.randperm(items, generator=call_generator(seed, epoch, "the order of the items"))
