"""The networks of one group of actors: one that all of them share, or one for each, run in as few calls as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from composer.network.module import EnsembleMember, NetworkModule
from composer.network.network import GraphNetwork, Inputs, Network, State, Tensors
from composer.network.registries import TENSORS, RegistryView
from composer.spaces.actors import Actor, Entry
from perception_blocks.base_block import is_traced
from perception_blocks.direct import is_plain
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.port import format_shape

__all__ = ["ActorCall", "ActorNetwork", "Batch", "GroupNetworks", "SeparateNetworks"]
__all__ += ["StackedNetwork", "refuse_other_axes", "rows_of"]

M = TypeVar("M", bound=NetworkModule)
Resets = Tensor | None


@dataclass(frozen=True)
class ActorNetwork(Generic[M]):
    """The Policy or critic of an actor, and its ``row`` among those of its ``group``."""

    group: GroupNetworks[M]
    row: int
    member: M


@dataclass(frozen=True)
class Batch:
    """Inputs and outputs of several actors that share a network: one row of the first axis for each, in their order."""

    inputs: Inputs
    outputs: Tensors


@dataclass
class ActorCall(Generic[M]):
    """One actor in one call: what its network reads, and what it gives."""

    entry: Entry
    actor_network: ActorNetwork[M]
    state: State | None
    resets: Any
    beside: dict[str, Any] = field(default_factory=dict)  # what is read beside the observation
    inputs: Tensors = field(default_factory=dict)
    leading: tuple[int, ...] = ()
    outputs: Tensors = field(default_factory=dict)
    after: State = field(default_factory=dict)
    action: object = None
    batch: Batch | None = None  # computed with others: then ``outputs`` are left to `unstack`

    @property
    def member(self) -> M:
        return self.actor_network.member


@dataclass(frozen=True)
class GroupNetworks(Generic[M]):
    """The actors of a group, and the Policy (or critic) that they share, or one for each of them."""

    name: str | None
    actors: tuple[Actor, ...]
    module: M | SeparateNetworks[M]

    @property
    def members(self) -> list[M]:
        """The Policy or critic of each actor."""
        if isinstance(self.module, SeparateNetworks):
            return self.module.members
        return [self.module] * len(self.actors)

    def evaluate(self, calls: Sequence[ActorCall[M]], unroll: bool) -> None:
        """Fill in outputs and next states of the ``calls`` of its actors, in one call of the network where possible."""
        module = self.module
        if isinstance(module, SeparateNetworks):
            module.evaluate(calls, unroll)
        elif len(calls) == 1:
            _run_alone(calls[0], module, unroll)
        else:
            _fill(calls, *module.run(*_stacked_calls(calls, module.network.in_ports), unroll))


class SeparateNetworks(RegistryView, Generic[M]):
    """One policy (or critic) for each agent of a group, with weights of its own: its children, in the agents' order.

    Networks of one form have their weights stacked in ``ensemble`` and run as one call; state_dict has them by agent
    (``0.latent...``). Where ``ensemble`` is None, ``why_looped`` says why they run one by one.
    """

    def __init__(
        self, members: Sequence[M], ensemble: EnsembleBlock | None, why_looped: str | None
    ) -> None:
        super().__init__()
        object.__setattr__(self, "ensemble", ensemble)  # no child: its tensors are ours
        self.why_looped = why_looped
        if ensemble is not None:
            self.view(ensemble, TENSORS)
        for index, member in enumerate(members):
            self._modules[str(index)] = member

    ensemble: EnsembleBlock | None

    @property
    def members(self) -> list[M]:
        return [member for name, member in self._modules.items() if name.isdigit()]  # type: ignore[misc]

    def member_of(self, index: int) -> M:
        """The policy (or critic) of one agent, over its slices of the stacked weights."""
        member = self.members[index]
        if self.ensemble is None:
            return member
        view = self.ensemble.view_of(index)
        network = view.network if isinstance(view, EnsembleMember) else GraphNetwork(view)
        network.has_weights = member.network.has_weights
        ensemble, start = self.ensemble, self.ensemble.addresses()
        network.is_outdated = lambda: not is_traced() and ensemble.addresses() != start
        return member.with_network(network)

    def evaluate(self, calls: Sequence[ActorCall[M]], unroll: bool) -> None:
        """Fill in outputs and next states of the ``calls`` of its agents."""
        members = self.members
        rows = [call.actor_network.row for call in calls]
        if self.ensemble is None or len(rows) == 1 or self._have_hooks(rows):
            for call in calls:
                _run_alone(call, members[call.actor_network.row], unroll)
            return
        members[0].require_weights()
        inputs, state, resets = _stacked_calls(calls, self.ensemble.in_keys)
        chosen = None if rows == list(range(len(members))) else rows
        if members[0].has_memory:
            outputs, after = self.ensemble(inputs, state, resets, unroll, rows=chosen)
        else:
            outputs, after = self.ensemble(inputs, rows=chosen), {}
        _fill(calls, outputs, after)
        for call in calls:
            call.outputs = members[call.actor_network.row].values_of(call.outputs)

    def _have_hooks(self, rows: Sequence[int]) -> bool:
        """Whether calling the member of one of the ``rows`` does more than run its network."""
        members = self.members
        return not is_traced() and not all(is_plain(members[i], type(members[i])) for i in rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        nn.Module._apply(self, fn, recurse)  # its children are not the ensemble's
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self.ensemble is not None:
            self.ensemble._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self.ensemble is None:
            return
        others = tuple(f"{prefix}{name}." for name, _ in self.named_modules() if "." in name)
        stacked = {k: value for k, value in state_dict.items() if not k.startswith(others)}
        self.ensemble._load_from_state_dict(
            stacked, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class StackedNetwork(Network):
    """One of the networks of an ensemble whose copies read inputs of their own."""

    owns_weights = False

    def __init__(self, ensemble: EnsembleBlock, row: int, has_weights: bool) -> None:
        self.module = nn.Module()
        self.has_weights = has_weights
        self.ensemble = ensemble
        self.row = row
        self.in_ports = ensemble.network.in_ports
        self.out_ports = ensemble.out_ports
        self.state_shapes = ensemble.state_shapes

    @property
    def form(self) -> nn.Module:
        return self.ensemble.network

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return _first(self.ensemble(_stacked([_only(inputs, self.in_ports)]), rows=[self.row]))

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Resets, unroll: bool
    ) -> tuple[Tensors, State]:
        batch = _stacked([_only(inputs, self.in_ports)])
        outputs, after = self.ensemble(
            batch, _stacked([state]), _reset([resets]), unroll, rows=[self.row]
        )
        return _first(outputs), _first(after)


def refuse_other_axes(axes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless all actors of one network have the same leading axes."""
    first = next(iter(axes.values()), None)
    if any(shape != first for shape in axes.values()):  # no set: hashing would fix the size
        shown = ", ".join(f"{name!r} {format_shape(shape)}" for name, shape in axes.items())
        raise ValueError(
            f"the observations of one network differ in their leading (batch) axes: {shown}"
        )


def _run_alone(call: ActorCall[M], module: M, unroll: bool) -> None:
    call.outputs, call.after = module.run(call.inputs, call.state, call.resets, unroll)


def _stacked_calls(
    calls: Sequence[ActorCall], names: Iterable[str]
) -> tuple[Tensors, State | None, Resets]:
    """Inputs, state and resets of all ``calls``, each on a new first axis."""
    states = [call.state for call in calls if call.state is not None]
    inputs = _stacked([_only(call.inputs, names) for call in calls])
    return inputs, _stacked(states) if states else None, _reset([call.resets for call in calls])


def _fill(calls: Sequence[ActorCall], outputs: Tensors, after: State) -> None:
    """Fill in the rows of ``outputs`` and ``after``."""
    count = len(calls)
    for call, row, state in zip(calls, rows_of(outputs, count), rows_of(after, count), strict=True):
        call.outputs, call.after = row, state


def _only(values: Mapping[str, Tensor], names: Iterable[str]) -> Tensors:
    return {name: values[name] for name in names}


def _stacked(values: Sequence[Tensors]) -> Tensors:
    return {name: torch.stack([value[name] for value in values]) for name in values[0]}


def rows_of(values: Tensors, count: int) -> list[Tensors]:
    """Each of the ``count`` rows of ``values`` that are stacked on their first axis."""
    rows: list[Tensors] = [{} for _ in range(count)]
    for name, value in values.items():
        # unbind is faster, but what it returns cannot be changed in place where gradients flow.
        tensors = value if torch.is_grad_enabled() else value.unbind()
        for index, row in enumerate(rows):
            row[name] = tensors[index]
    return rows


def _first(values: Tensors) -> Tensors:
    return {name: value[0] for name, value in values.items()}


def _reset(resets: Sequence[Resets]) -> Resets:
    """One tensor for all; an actor without resets is not reset."""
    known = [reset for reset in resets if reset is not None]
    if not known:
        return None
    return torch.stack([torch.zeros_like(known[0]) if r is None else r for r in resets])
