"""The central critic: one value of what all actors observe together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from composer.critic.base import SEPARATE, CriticModule, SpaceCritic, shared_values
from composer.critic.state import Critic
from composer.network.groups import refuse_other_axes
from composer.network.module import InputSource
from composer.network.network import Inputs, Network, State, Tensors
from composer.network.structured import ByActor, blamed
from composer.spaces.actors import Actors
from composer.spaces.kinds import as_tensor
from composer.spaces.observer import Observer
from composer.spaces.values import as_flags
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.port import format_shape
from perception_blocks.words import few_of

__all__ = ["PRESENT", "CentralInput", "SharedStateCritic"]

PRESENT = "present"  # the input that says which actors are present


class CentralInput(InputSource):
    """One input of a central network; ``stacked`` values of several actors are on a new first axis."""

    @property
    def is_shared(self) -> bool:
        """Whether a policy shares it; else it is an observation."""
        return self.kind == "shared"

    @property
    def rank(self) -> int:
        """How many axes the value of one actor has, beside leading ones."""
        return len(self.port.shape) - self.stacked

    def value(self, values: list[Tensor]) -> Tensor:
        """The input of the network from the ``values`` of its actors."""
        if not self.stacked:
            return values[0]
        return torch.stack(padded(values, self.rank), dim=values[0].dim() - self.rank)

    def nothing(self, leading: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros in place of the value of an absent actor; sets of varying size have one masked element."""
        shape = [1 if size is None else size for size in self.port.shape[self.stacked :]]
        if self.port.dtype == torch.bool:
            dtype = torch.bool
        elif self.port.is_integer:
            dtype = torch.int64
        return torch.zeros((*leading, *shape), dtype=dtype, device=device)


def padded(values: list[Tensor], rank: int) -> list[Tensor]:
    """``values`` with their last ``rank`` axes padded to the longest of them, with zeros or False."""
    ends = [value.shape[value.dim() - rank :] for value in values]
    if all(end == ends[0] for end in ends):  # no set: hashing would fix the size
        return values
    longest = [max(sizes) for sizes in zip(*ends)]
    missing = [[size - held for size, held in zip(longest, end)] for end in ends]
    return [
        functional.pad(value, [n for size in reversed(sizes) for n in (0, size)])
        for value, sizes in zip(values, missing)
    ]


class SharedStateCritic(CriticModule):
    """A central critic, one value for all actors: ``critic({actor: observation})["value"]`` has the shape (..., 1).

    ``sources`` says where each input of the network comes from, ``observers`` read the observations of each actor. All
    actors that the network reads must be present, unless it reads ``present`` (..., n), which is 1 where an actor is
    present: then its inputs of absent actors are zeros. In a batch ``critic(observations, present={actor: (...)})``
    says for each sample whether the actor was present. Of one Space it is a `Critic`.
    """

    refused = {"separate": SEPARATE}
    only_for_all = "the critic reads the observations of all actors"

    @classmethod
    def member(cls) -> type[SpaceCritic]:
        return Critic

    @classmethod
    def structured(cls) -> type[SharedStateCritic]:
        return cls

    def __init__(
        self,
        network: Network,
        actors: Actors,
        observers: Mapping[str, Observer],
        sources: Mapping[str, CentralInput],
        *,
        dtype: torch.dtype,
        value_normalizer: NormalizeBlock | None = None,
    ) -> None:
        self.sources = {name: sources[name] for name in network.in_ports if name in sources}
        self.reads_presence = len(self.sources) < len(network.in_ports)
        shared = [source.key for source in self.sources.values() if source.is_shared]
        super().__init__(
            network, None, shared=tuple(dict.fromkeys(shared)),
            dtype=dtype, value_normalizer=value_normalizer,
        )  # fmt: skip
        seen = {actor for source in self.sources.values() for actor in source.actors}
        self.sees_together = tuple(name for name in actors.names if name in seen)
        self.actors = actors
        self.observers = dict(observers)
        self._wanted: dict[str, tuple[list[str], list[str]]] = {}  # of each actor: seen, shared
        for source in self.sources.values():
            for actor in source.actors:
                self._wanted.setdefault(actor, ([], []))[source.is_shared].append(source.key)

    def input_sources(self) -> dict[str, InputSource]:
        names = self.actors.names
        return {
            name: self.sources.get(name) or InputSource("presence", name, port, names)
            for name, port in self.network.in_ports.items()
        }

    def forward(
        self,
        observations: ByActor[object],
        state: State | None = None,
        resets: object = None,
        *,
        shared: ByActor[Tensors] | None = None,
        present: ByActor[object] | None = None,
        unroll: bool = False,
    ) -> Any:
        """``{"value": (..., 1)}``; with memory (values, state)."""
        inputs = self.read(observations, shared, present)
        values, after = self.computed(inputs, state, resets, unroll)
        return self._returned(values, after, unroll)

    def read(
        self,
        observations: Any,
        shared: ByActor[Tensors] | None = None,
        present: ByActor[object] | None = None,
    ) -> Inputs:
        """The inputs of the network. Raises ValueError for a missing actor, or one with other leading axes."""
        if isinstance(observations, Inputs):
            return observations
        seen = self.actors.by_name(observations, "observations")
        handed = self.actors.by_name(shared, "shared values")
        if shared is None:
            shared_values(self.shared, None, self.call())  # raises where any are needed
        missing = [
            name
            for name, (keys, _) in self._wanted.items()
            if name not in (seen if keys else handed)
        ]
        self._refuse_missing(missing, present)
        values = {
            name: self._values_of(name, seen.get(name), handed.get(name))
            for name in self._wanted
            if name not in missing
        }
        leading = self._leading(values)
        given = (seen.keys() | handed.keys()).difference(missing)
        are_present = [name in given for name in self.actors.names]
        presence = self._presence(are_present, present, leading)
        hidden = None if present is None else ~presence
        inputs = {n: self._input(s, values, hidden, leading) for n, s in self.sources.items()}
        if self.reads_presence:
            inputs[PRESENT] = presence.to(self.dtype)
        return Inputs(inputs)

    # --- inside ---

    def _values_of(
        self, name: str, observation: object, shared: Mapping[str, Tensor] | None
    ) -> Tensors:
        """What the network reads of one actor."""
        keys, handed = self._wanted[name]
        with blamed(name):
            seen = {}
            if keys:
                seen = self.observers[name].read(observation, keys, self.dtype, self.device)
            return seen | shared_values(handed, shared, self.call())

    def _refuse_missing(self, missing: list[str], present: object) -> None:
        """Raise ValueError for absent actors where the network does not read presence, and where all are absent."""
        if present is not None and not self.reads_presence:
            raise ValueError(f"this critic does not read {PRESENT!r}; leave it out of the call")
        if missing and not self.reads_presence:
            raise ValueError(
                f"this critic reads the observations of all actors; missing: {few_of(missing)}. If actors may be "
                f"absent, let its network read {PRESENT!r}, which is 0 for them; their observations are then zeros"
            )
        if not self._wanted.keys() - missing:
            raise ValueError("no actor is present whose observations this critic reads")

    def _leading(self, values: Mapping[str, Tensors]) -> tuple[int, ...]:
        """The leading axes that the values of all present actors share."""
        axes: dict[str, tuple[int, ...]] = {}
        for source in self.sources.values():
            present = [actor for actor in source.actors if actor in values]
            tensors = {actor: values[actor][source.key] for actor in present}
            axes |= {a: tuple(t.shape[: t.dim() - source.rank]) for a, t in tensors.items()}
            refuse_other_axes(axes)
        return next(iter(axes.values()))

    def _presence(
        self,
        are_present: list[bool],
        present: ByActor[object] | None,
        leading: tuple[int, ...],
    ) -> Tensor:
        """(..., n): which actors are present, in their order; of those in ``present`` as that says."""
        said = self.actors.by_name(present, "present")
        rows = []
        for name, is_present in zip(self.actors.names, are_present):
            given = as_tensor(PRESENT, said.get(name, is_present))
            row = as_flags(f"{PRESENT!r} of {name!r}", given).to(self.device)
            if row.dim() and tuple(row.shape) != leading:
                got, needed = format_shape(row.shape), format_shape(leading)
                raise ValueError(f"{PRESENT!r} of {name!r} must have the shape {needed}, got {got}")
            rows.append((row & is_present).expand(leading))
        return torch.stack(rows, dim=-1)

    def _input(
        self,
        source: CentralInput,
        values: Mapping[str, Tensors],
        hidden: Tensor | None,
        leading: tuple[int, ...],
    ) -> Tensor:
        """One input of the network: zeros for actors that are absent, or ``hidden`` (..., n) in some of the samples."""
        tensors = []
        for actor in source.actors:
            if actor not in values:
                tensors.append(source.nothing(leading, self.dtype, self.device))
                continue
            tensor = values[actor][source.key]
            if hidden is not None:
                absent = hidden[..., self.actors.names.index(actor)][(..., *[None] * source.rank)]
                # ONNX Runtime does not choose between truth values.
                is_flags = tensor.dtype == torch.bool
                tensor = tensor & ~absent if is_flags else tensor.masked_fill(absent, 0)
            tensors.append(tensor)
        return source.value(tensors)
