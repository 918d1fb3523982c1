"""What central critics have in common: one value of all actors, from what the network reads of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from composer.critic.base import SEPARATE, CriticModule, shared_values
from composer.network.groups import refuse_other_axes
from composer.network.module import InputSource
from composer.network.network import Inputs, Network, Tensors
from composer.network.structured import ByActor, blamed
from composer.spaces.actors import Actors
from composer.spaces.kinds import as_tensor
from composer.spaces.observer import Observer
from composer.spaces.values import as_flags
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.port import format_shape
from perception_blocks.words import few_of

__all__ = ["PRESENT", "CentralCritic", "CentralInput", "Handed"]

PRESENT = "present"  # the input that says which actors are present

Handed: TypeAlias = dict[str, dict[str, Any]]
"""What a call hands over, by kind of input and by actor."""


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


class CentralCritic(CriticModule):
    """Base of critics with one value for all actors, such as a `SharedStateCritic`.

    ``sources`` says where each input of the network comes from, ``observers`` read the observations of each actor. All
    actors that the network reads must be present, unless it reads ``present`` (..., n), which is 1 where an actor is
    present: then its inputs of absent actors are zeros.
    """

    refused = {"separate": SEPARATE}
    sees: ClassVar[str] = "observations"  # what it reads of all actors, in messages
    only_for_all = "the critic reads the observations of all actors"

    @classmethod
    def structured(cls) -> type[CentralCritic]:
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
        self._actions_last = sorted(self.sources.values(), key=lambda s: s.kind == "action")
        self._wanted: dict[str, dict[str, list[str]]] = {}  # of each actor: keys by kind
        for source in self.sources.values():
            for actor in source.actors:
                kinds = self._wanted.setdefault(actor, {"observation": [], "shared": []})
                kinds.setdefault(source.kind, []).append(source.key)

    def input_sources(self) -> dict[str, InputSource]:
        names = self.actors.names
        return {
            name: self.sources.get(name) or InputSource("presence", name, port, names)
            for name, port in self.network.in_ports.items()
        }

    # --- inside ---

    def _handed(self, observations: ByActor[object], shared: ByActor[Tensors] | None) -> Handed:
        """What a call hands over of states; the first kind that an actor's inputs need says whether it is present."""
        if shared is None:
            shared_values(self.shared, None, self.call())  # raises where any are needed
        return {
            "observation": self.actors.by_name(observations, "observations"),
            "shared": self.actors.by_name(shared, "shared values"),
        }

    def _together(self, handed: Handed, present: ByActor[object] | None) -> Inputs:
        """The inputs of the network. Raises ValueError for a missing actor, or one with other leading axes."""
        missing = []
        for name, wanted in self._wanted.items():
            kind = next(kind for kind, keys in wanted.items() if keys)
            if name not in handed[kind]:
                missing.append(name)
        self._refuse_missing(missing, present)
        values = {n: self._values_of(n, handed) for n in self._wanted if n not in missing}
        leading = self._leading(values)
        given = set().union(*handed.values()).difference(missing)
        are_present = [name in given for name in self.actors.names]
        presence = self._presence(are_present, present, leading)
        hidden = None if present is None else ~presence
        inputs = {n: self._input(s, values, hidden, leading) for n, s in self.sources.items()}
        if self.reads_presence:
            inputs[PRESENT] = presence.to(self.dtype)
        return Inputs(inputs)

    def _values_of(self, name: str, handed: Handed) -> Tensors:
        """What the network reads of one actor."""
        wanted = self._wanted[name]
        with blamed(name):
            seen: Tensors = {}
            if wanted["observation"]:
                observation = handed["observation"].get(name)
                seen = self.observers[name].read(
                    observation, wanted["observation"], self.dtype, self.device
                )
            return seen | shared_values(wanted["shared"], handed["shared"].get(name), self.call())

    def _refuse_missing(self, missing: list[str], present: object) -> None:
        """Raise ValueError for absent actors where the network does not read presence, and where all are absent."""
        if present is not None and not self.reads_presence:
            raise ValueError(f"this critic does not read {PRESENT!r}; leave it out of the call")
        if missing and not self.reads_presence:
            raise ValueError(
                f"this critic reads the {self.sees} of all actors; missing: {few_of(missing)}. If actors may be "
                f"absent, let its network read {PRESENT!r}, which is 0 for them; their {self.sees} are then zeros"
            )
        if not self._wanted.keys() - missing:
            raise ValueError(f"no actor is present whose {self.sees} this critic reads")

    def _leading(self, values: Mapping[str, Tensors]) -> tuple[int, ...]:
        """The leading axes that the values of all present actors share."""
        axes: dict[str, tuple[int, ...]] = {}
        for source in self._actions_last:
            for actor in source.actors:
                if actor not in values:
                    continue
                shape = values[actor][source.key].shape
                leading = tuple(shape[: len(shape) - source.rank])
                before = axes.setdefault(actor, leading)
                if source.kind == "action" and leading != before:
                    got, expected = format_shape(leading), format_shape(before)
                    raise ValueError(
                        f"the action of {actor!r} has the leading (batch) axes {got}, its observations {expected}"
                    )
                axes[actor] = leading
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
