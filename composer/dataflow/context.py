"""What a call is given beside its model and sample: a generator, its place in the run, and where to note numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Context", "call_generator"]


@dataclass
class Context:
    """What a call is given beside its model and sample.

    ``generator`` follows from the seed of the run, the ``iteration`` (from 0) and the name of the ``call``, so that a
    call draws the same numbers in whichever process it runs. ``tokenizer`` is the model's, or that of the data set.
    ``folder`` is the absolute path of the run's, or None where nothing is saved.
    """

    generator: torch.Generator
    iteration: int = 0
    tokenizer: Any = None
    numbers: dict[str, float] = field(default_factory=dict)
    call: str = ""
    folder: str | None = None

    def log(self, name: str, number: float) -> None:
        """Note a number for the run's table of this iteration."""
        self.numbers[name] = float(number)

    def where(self) -> str:
        """The place in the run, for messages.

        >>> Context(torch.Generator(), iteration=3, call="actor_train").where()
        "call 'actor_train' in iteration 3"
        """
        call = f"call {self.call!r} in " if self.call else ""
        return f"{call}iteration {self.iteration}"


def call_generator(seed: int, iteration: int, call: str) -> torch.Generator:
    """A generator that depends on nothing else than the three: equal in every process."""
    digest = hashlib.sha256(f"{seed}/{iteration}/{call}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
