"""A graph that is built up node by node from another system's configuration, and the words that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from composer.importing.imported import Imported
from composer.importing.taken import Taken
from perception_blocks.words import describe, hint

__all__ = ["ACTION", "OBSERVATION", "Nodes", "activation_of", "gaussian", "linear_value"]

OBSERVATION, ACTION = "observation", "action"  # the names of a space that is no dict


class Nodes:
    """The graph of one ``part`` of a model, whose nodes each read the ``last`` one unless they say otherwise."""

    def __init__(self, imported: Imported, part: str, start: str = OBSERVATION) -> None:
        self.imported, self.part, self.start, self.last = imported, part, start, start
        self.graph: dict[str, dict[str, Any]] = {}

    def add(
        self, name: str, block: str, reads: str | list[str] | None = None, **settings: Any
    ) -> None:
        """Append a node; a setting that is None is left out."""
        given = {key: value for key, value in settings.items() if value is not None}
        self.graph[name] = {"block": block, "in": self.last if reads is None else reads, **given}
        self.last = name

    def weigh(self, inside: str, there: str) -> None:
        """Pair the weights of ``latent.linears.0`` with those called ``there``."""
        self.imported.weights.append((f"{self.part}.{inside}", there))

    def dense(
        self,
        name: str,
        units: Sequence[int],
        activation: str,
        theirs: Sequence[str],
        **settings: Any,
    ) -> None:
        """Append linear layers, each followed by the activation; ``theirs`` are their names there."""
        self.add(name, "dense", hidden_units=list(units), activation=activation, **settings)
        for index, there in enumerate(theirs):
            self.weigh(f"{name}.linears.{index}", there)

    def concat(self, name: str, reads: list[str]) -> None:
        self.add(name, "concat", reads)

    def end(self) -> str:
        """What heads read: the last value; where there is no node yet, the observation as a vector."""
        if not self.graph:
            self.add("features", "flatten")
        return self.last


def activation_of(
    owner: Taken, key: str, words: Mapping[str, str], default: str | None = None
) -> str:
    """Our word for the activation that ``key`` names in ``words`` of the other system. Raises SpecError."""
    if not owner.has(key) and default is not None:
        return words[default]
    value = owner[key] if owner.has(key) else None
    word = words.get(value) if isinstance(value, str) else None
    if word is None and isinstance(value, str):
        word = words.get(value.lower())
    if word is None:
        named = repr(value) if isinstance(value, str) else describe(value)
        raise owner.refusal(key, f"there is no activation {named}{hint(value, words)}")
    return word


def gaussian(log_std: str, **settings: Any) -> dict[str, Any]:
    """The entry of ``distributions`` for the action; ``log_std`` is learned or follows from the state."""
    return {"action": ACTION, "distribution": "gaussian", "log_std": log_std, **settings}


def linear_value(reads: str, init: Any = None) -> dict[str, Any]:
    """The node of a critic's value."""
    rule = {} if init is None else {"init": init}
    return {"block": "linear_output", "in": reads, "output_units": 1, **rule}
