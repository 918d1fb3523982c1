"""The central critic: one value of what all actors observe together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from composer.actors import Actors, shortened
from composer.critic import CRITICS, CriticModule, shared_values
from composer.group_policy import refuse_other_axes
from composer.network import Network, State, Tensors
from composer.observer import Observer
from composer.turns import blamed
from composer.value_heads import ValueReader
from perception_blocks.port import Port
from perception_blocks.scale import NormalizeBlock

__all__ = ["CentralInput", "SharedStateCritic"]


@dataclass(frozen=True)
class CentralInput:
    """One input of a central network: the value ``key`` of one actor, or of several, ``stacked`` on a new first axis.

    ``is_shared`` tells a value that a policy shares from an observation.
    """

    actors: tuple[str, ...]
    key: str
    port: Port
    stacked: bool = False
    is_shared: bool = False

    def value(self, parts: list[Tensor]) -> Tensor:
        """The input, of the value of each of its actors."""
        if not self.stacked:
            return parts[0]
        rank = len(self.port.shape) - 1
        return torch.stack(padded(parts, rank), dim=parts[0].dim() - rank)


def padded(parts: list[Tensor], rank: int) -> list[Tensor]:
    """``parts`` with their last ``rank`` axes as long as the longest of them; what is added is zero, or false."""
    ends = [part.shape[part.dim() - rank :] for part in parts]
    if len(set(ends)) == 1:
        return parts
    longest = [max(sizes) for sizes in zip(*ends)]
    missing = [[size - own for size, own in zip(longest, end)] for end in ends]
    return [
        functional.pad(part, [n for size in reversed(sizes) for n in (0, size)])
        for part, sizes in zip(parts, missing)
    ]


@CRITICS.register("shared_state")
class SharedStateCritic(CriticModule):
    """One value of what all actors observe: ``critic({actor: observation})["value"]`` has the shape (..., 1).

    ``sources`` says of each input of the network where it comes from, ``observers`` read the observations of each actor.
    Everyone whom the network reads must be present.
    """

    def __init__(
        self,
        network: Network,
        reader: ValueReader,
        actors: Actors,
        observers: Mapping[str, Observer],
        sources: Mapping[str, CentralInput],
        *,
        dtype: torch.dtype,
        value_normalizer: NormalizeBlock | None = None,
    ) -> None:
        self.sources = {name: sources[name] for name in network.in_ports}
        shared = [source.key for source in self.sources.values() if source.is_shared]
        super().__init__(
            network, reader, shared=tuple(dict.fromkeys(shared)),
            dtype=dtype, value_normalizer=value_normalizer,
        )  # fmt: skip
        self.actors = actors
        self.observers = dict(observers)

    def forward(
        self,
        observations: Mapping[Any, Any],
        state: State | None = None,
        resets: Any = None,
        *,
        shared: Mapping[Any, Mapping[str, Tensor]] | None = None,
    ) -> Any:
        """``{"value": (..., 1)}``; with memory (values, state)."""
        values, after = self._judge(self.read(observations, shared), state, resets)
        return (values, after) if self.has_memory else values

    def unroll(
        self,
        observations: Mapping[Any, Any],
        state: State,
        resets: Any = None,
        *,
        shared: Mapping[Any, Mapping[str, Tensor]] | None = None,
    ) -> tuple[Tensors, State]:
        """All steps of (..., T): values of every step, and the state after the last; resets (..., T)."""
        return self._judge(self.read(observations, shared), state, resets, unroll=True)

    def value(self, observations: Mapping[Any, Any], *arguments: Any, **keywords: Any) -> Any:
        """The value alone, of shape (...); with memory (value, state)."""
        result = self(observations, *arguments, **keywords)
        if self.has_memory:
            return result[0]["value"].squeeze(-1), result[1]
        return result["value"].squeeze(-1)

    def read(self, observations: Any, shared: Any = None) -> Tensors:
        """The inputs of the network. Raises ValueError where somebody is missing, or of another batch."""
        wanted = self._wanted(is_shared=False)
        seen = {one.name: one.value for one in self.actors.present(observations, "observations")}
        missing = [name for name in wanted if name not in seen]
        if missing:
            raise ValueError(
                f"this critic values what all actors observe; missing: {shortened(missing)}"
            )
        values: dict[str, Tensors] = {}
        for name, keys in wanted.items():
            with blamed(name):
                values[name] = self.observers[name].read(seen[name], keys, self.dtype, self.device)
        handed = self._shared(shared)
        parts = {
            name: [(handed if source.is_shared else values)[a][source.key] for a in source.actors]
            for name, source in self.sources.items()
        }
        for name, source in self.sources.items():
            rank = len(source.port.shape) - source.stacked
            axes = zip(source.actors, parts[name])
            refuse_other_axes({a: tuple(part.shape[: part.dim() - rank]) for a, part in axes})
        return {name: source.value(parts[name]) for name, source in self.sources.items()}

    def _wanted(self, *, is_shared: bool) -> dict[str, list[str]]:
        """What the network reads of each actor."""
        wanted: dict[str, list[str]] = {}
        for source in self.sources.values():
            for actor in source.actors if source.is_shared == is_shared else ():
                wanted.setdefault(actor, []).append(source.key)
        return wanted

    def _shared(self, shared: Any) -> dict[str, Tensors]:
        """What the policies share of each actor, as far as the network reads it."""
        wanted = self._wanted(is_shared=True)
        given = {}
        if shared is not None:
            given = {one.name: one.value for one in self.actors.present(shared, "shared values")}
        return {name: shared_values(keys, given.get(name)) for name, keys in wanted.items()}
