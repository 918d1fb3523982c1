"""What a call does with a model: the base class of interfaces, their registry, and what each call is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from composer.dataflow.samples import Sample
from perception_blocks.registry import Registry

if TYPE_CHECKING:
    from composer.dataflow.models import ExperimentModel

__all__ = ["INTERFACES", "VERBS", "Context", "Interface", "Written", "call_generator", "verbs_of"]

VERBS = ("generate", "inference", "train_step", "evaluate")
"""What a call can do; an interface has a method for each of those that it can."""

Written: TypeAlias = Mapping[str, Tensor | Sequence[Tensor]]
"""What a call writes, by the interface's names: all sequences one after the other in a tensor, or a list of them."""

INTERFACES = Registry("interface")
"""Interfaces by the names that calls give after ``with:``."""


@dataclass
class Context:
    """What a call is given beside its model and sample.

    ``generator`` follows from the seed of the run, the ``iteration`` (from 0) and the name of the call, so that a call
    draws the same numbers in whichever process it runs. ``tokenizer`` is the model's, or that of the data set.
    """

    generator: torch.Generator
    iteration: int = 0
    tokenizer: Any = None
    numbers: dict[str, float] = field(default_factory=dict)

    def log(self, name: str, number: float) -> None:
        """Note a number for the run's table of this iteration."""
        self.numbers[name] = float(number)


class Interface:
    """What calls do with a model. A subclass overrides the methods of the verbs that it has.

    ``reads`` and ``writes`` are, for each verb, the names of values; those in ``optional`` may be left out of a call's
    ``reads``; with ``reads_others`` a call may also read values of any other name. With ``needs_model`` False the model
    of its calls is None, whether they name one or not. The settings of a call are arguments of ``__init__``.

    >>> class LongestRun(Interface):
    ...     needs_model = False
    ...     reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}
    ...
    ...     def __init__(self, token=3):
    ...         self.token = token
    ...
    ...     def inference(self, model, sample, context):
    ...         return {"rewards": (sample["ids"] == self.token).float().mean(-1)}
    """

    reads: ClassVar[Mapping[str, Sequence[str]]] = {}
    optional: ClassVar[Mapping[str, Sequence[str]]] = {}
    writes: ClassVar[Mapping[str, Sequence[str]]] = {}
    needs_model: ClassVar[bool] = True
    reads_others: ClassVar[bool] = False

    if TYPE_CHECKING:  # at run time a verb that a class lacks is no attribute of it
        generate: Callable[[ExperimentModel | None, Sample, Context], Written]
        inference: Callable[[ExperimentModel | None, Sample, Context], Written]
        train_step: Callable[[ExperimentModel | None, Sample, Context], None]
        evaluate: Callable[[ExperimentModel | None, Sample, Context], None]


def verbs_of(interface: type[Interface]) -> list[str]:
    """The verbs that an interface has methods for."""
    return [verb for verb in VERBS if callable(getattr(interface, verb, None))]


def call_generator(seed: int, iteration: int, call: str) -> torch.Generator:
    """A generator that depends on nothing else than the three: equal in every process."""
    digest = hashlib.sha256(f"{seed}/{iteration}/{call}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
