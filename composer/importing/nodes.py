"""A graph that is built up node by node from another system's configuration, and the words that differ."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from composer.importing.imported import Imported
from composer.importing.taken import Taken
from perception_blocks.words import describe, hint

__all__ = ["ACTION", "LOG_STD_RANGE", "OBSERVATION", "Nodes", "activation_of", "gaussian"]

LOG_STD_RANGE = (-20.0, 2.0)  # of our normals, unless a spec says otherwise
OBSERVATION, ACTION = "observation", "action"  # the names of a space that is no dict
_HEADS, _VALUE = "heads", "value"  # nodes that a network has itself
_DROPPED = "_"  # which drops an output
_LONGEST = 60  # characters of a node's name: YAML reads no key of very many


class Nodes:
    """The graph of one ``part`` of a model, whose nodes each read the ``last`` one unless they say otherwise.

    ``observations`` are all that the model reads: nodes, whose names are chosen here, are called otherwise.
    """

    def __init__(
        self,
        imported: Imported,
        part: str,
        start: str = OBSERVATION,
        observations: Iterable[str] = (),
    ) -> None:
        self.imported, self.part, self.start, self.last = imported, part, start, start
        self.graph: dict[str, dict[str, Any]] = {}
        self._taken = {_HEADS, _DROPPED, start, *observations}

    def add(
        self, name: str, block: str, reads: str | list[str] | None = None, **settings: Any
    ) -> str:
        """Append a node called ``name``, or nearly so, and return its name; a setting that is None is left out."""
        name = self._free(name)
        given = {key: value for key, value in settings.items() if value is not None}
        self.graph[name] = {"block": block, "in": self.last if reads is None else reads, **given}
        self.last = name
        return name

    def begin_with(self, shared: str) -> None:
        """Let the first node read a value that the policy shares."""
        self._taken.add(shared)
        self.last = shared

    def _free(self, name: str) -> str:
        """``name`` as a node can be called, with a number where something has it already."""
        name = re.sub(r"\W", "_", name[:_LONGEST], flags=re.ASCII)
        name = f"_{name}" if name[:1].isdigit() else name
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        taken = self._taken | self.graph.keys() | {_VALUE}
        return next(each for each in names if each not in taken)

    def weigh(self, inside: str, theirs: str) -> None:
        """Pair the weights of ``latent.linears.0`` with those called ``theirs``."""
        self.imported.weights.append((f"{self.part}.{inside}", theirs))

    def dense(
        self,
        name: str,
        units: Sequence[int],
        activation: str,
        theirs: Sequence[str],
        **settings: Any,
    ) -> str:
        """Append linear layers, each followed by the activation; ``theirs`` are their names there."""
        name = self.add(name, "dense", hidden_units=list(units), activation=activation, **settings)
        for index, layer in enumerate(theirs):
            self.weigh(f"{name}.linears.{index}", layer)
        return name

    def concat(self, name: str, reads: list[str]) -> str:
        return self.add(name, "concat", reads)

    def critic(self, reads: str, theirs: str, init: Any = None) -> dict[str, Any]:
        """A critic with this graph and a value that is linear in ``reads``; ``theirs`` are its weights there."""
        rule = {} if init is None else {"init": init}
        if _VALUE in self._taken:  # of an observation
            self.weigh(f"{_HEADS}.{_VALUE}.linear", theirs)
            return {"graph": self.graph, "heads": {"in": reads, **rule}}
        self.weigh(f"{_VALUE}.linear", theirs)
        value = {"block": "linear_output", "in": reads, "output_units": 1, **rule}
        return {"graph": {**self.graph, _VALUE: value}}

    def end(self) -> str:
        """What heads read: the last value; where there is no node yet, the observation as a vector."""
        if not self.graph:
            self.add("features", "flatten")
        return self.last


def activation_of(
    owner: Taken, key: str, words: Mapping[str, str], default: str | None = None
) -> str:
    """Our word for the activation that ``key`` names in ``words`` of the other system; refuses others."""
    if not owner.has(key) and default is not None:
        return words[default]
    value = owner[key] if owner.has(key) else None
    word = words.get(value) if isinstance(value, str) else None
    if word is None and isinstance(value, str):
        word = words.get(value.lower())
    if word is None and not (owner.has(key) and owner.refuse_unread(key)):
        named = repr(value) if isinstance(value, str) else describe(value)
        owner.refuse(key, f"there is no activation {named}{hint(value, words)}")
    return word or "identity"


def gaussian(log_std: str, **settings: Any) -> dict[str, Any]:
    """The entry of ``distributions`` for the action; ``log_std`` is learned or follows from the state."""
    return {"action": ACTION, "distribution": "gaussian", "log_std": log_std, **settings}
