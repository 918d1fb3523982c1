"""The networks of several actors in one call: who is present is read, run together with its group, and answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from composer.network.groups import GroupNetworks, SeparateNetworks, refuse_other_axes, rows_of
from composer.network.module import StatefulModule, is_empty, state_axes, under
from composer.network.network import Inputs, State, Tensors, own_share
from composer.spaces.actors import Actor, ActorKey, Actors, Entry, shortened
from perception_blocks.graph.wiring import module_name
from perception_blocks.port import Shape
from perception_blocks.words import did_you_mean

__all__ = ["ActorCall", "ActorNetwork", "Batch", "StructuredModule", "blamed", "unstack"]


@dataclass(frozen=True)
class ActorNetwork:
    """Where an actor's network is: it is that of a group's ``row``, a Policy or a critic."""

    group: GroupNetworks
    row: int
    network: Any


@dataclass(frozen=True)
class Batch:
    """What several actors who share a network read, and what it returns: each on its first axis, in their order."""

    inputs: Inputs
    outputs: Tensors


@dataclass
class ActorCall:
    """What one actor does in one call."""

    present: Entry
    seat: ActorNetwork
    state: State | None
    resets: Any
    beside: dict[str, Any] = field(default_factory=dict)  # what is read beside the observation
    inputs: Tensors = field(default_factory=dict)
    leading: tuple[int, ...] = ()
    outputs: Tensors = field(default_factory=dict)
    after: State = field(default_factory=dict)
    action: Any = None
    batch: Batch | None = (
        None  # where it is computed with others: then ``outputs`` are left to `unstack`
    )

    @property
    def network(self) -> Any:
        return self.seat.network


class StructuredModule(StatefulModule):
    """The networks of groups of actors: one child for each group, or the only group itself, under its own names.

    It keeps no state: with memory, calls take and return one flat state, ``{"<actor>/<node>/h": ...}``; what belongs to
    actors that are absent passes through.
    """

    def __init__(self, actors: Actors, groups: Sequence[GroupNetworks]) -> None:
        super().__init__()
        self.actors = actors
        self.groups = tuple(groups)
        self._alone = groups[0].name is None
        if self._alone:
            self.view(groups[0].module)
        else:
            for group in groups:
                self._modules[module_name(str(group.name))] = group.module
        self._seats = {
            actor.name: ActorNetwork(group, row, network)
            for group in groups
            for row, (actor, network) in enumerate(zip(group.actors, group.parts, strict=True))
        }
        self._state_shapes = {
            f"{name}/{node}": shape
            for name, seat in self._seats.items()
            if not actors[name].is_open
            for node, shape in seat.network.state_shapes.items()
        }
        self._has_memory = any(seat.network.has_memory for seat in self._seats.values())

    @property
    def has_memory(self) -> bool:
        return self._has_memory

    @property
    def state_shapes(self) -> dict[str, Shape]:
        """Shapes of the carried state of all actors that are counted, without leading axes."""
        return dict(self._state_shapes)

    @property
    def device(self) -> torch.device:
        return self._seats[self.actors.names[0]].network.device

    @property
    def dtype(self) -> torch.dtype:
        return self._seats[self.actors.names[0]].network.dtype

    def initial_state(
        self,
        batch_size: int | Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        actors: Iterable[ActorKey] | None = None,
    ) -> State:
        """A zero state for ``batch_size`` environments, of ``actors`` or else of all whose number is known."""
        if actors is None:
            actors = [actor.key for actor in self.actors if not actor.is_open]
        present = self.actors.present(dict.fromkeys(actors), "states")
        return {
            f"{one.name}/{node}": value
            for one in present
            for node, value in self._seats[one.actor.name]
            .network.initial_state(batch_size, device, dtype)
            .items()
        }

    def actor_of(self, key: ActorKey) -> Actor:
        """The actor that ``key`` means, or the first of a group or step that has one network.

        Raises KeyError for an unknown name, and for a group or step whose actors have networks of their own.
        """
        found = self.actors.find(key)
        if found is not None:
            return found[1]
        name = str(key)
        members = [a for group in self.groups if group.name == name for a in group.actors]
        members = members or [actor for actor in self.actors if actor.step == name]
        if not members:
            known = [*self.actors.names, *(str(g.name) for g in self.groups if g.name is not None)]
            near = did_you_mean(name, known) or f"; there is {shortened(self.actors.names)}"
            raise KeyError(f"there is no actor or group {key!r}{near}")
        if len({id(self._seats[actor.name].network) for actor in members}) > 1:
            names = shortened(actor.name for actor in members)
            raise KeyError(f"the actors of {key!r} have separate networks; name one of {names}")
        return members[0]

    # --- one call ---

    def _whole(self, actor: Actor) -> Any:
        """The network of ``actor`` as a module of its own: that of a separate agent over its part of the weights."""
        seat = self._seats[actor.name]
        module = seat.group.module
        return module.part_of(seat.row) if isinstance(module, SeparateNetworks) else module

    def _read_inputs(self, turn: ActorCall) -> Tensors:
        """What the network of ``turn`` reads. A subclass may hand over more than the observation."""
        return turn.network.read(turn.present.value)

    def _turns(self, observations: Any, state: State | None, resets: Any) -> list[ActorCall]:
        """Everyone present, each with its share of the state; nothing is computed yet."""
        present = self.actors.present(observations, "observations")
        state, _ = self._own_share(state)
        self._check_memory(state)
        by_actor = isinstance(resets, Mapping)
        own_resets = self._by_name(resets, "resets") if by_actor else {}
        turns = []
        for one in present:
            seat = self._seats[one.actor.name]
            network, own = seat.network, None
            if network.has_memory:
                names = {node: f"{one.name}/{node}" for node in network.state_shapes}
                own = {node: state[name] for node, name in names.items() if name in state}  # type: ignore[index,operator]
                if not own and one.actor.is_open:
                    raise ValueError(
                        f"the state has nothing of {one.name!r}; a new actor begins with "
                        f"initial_state(batch_size, actors=[{one.name!r}])"
                    )
                if by_actor and one.name not in own_resets:
                    raise ValueError(f"resets lack {one.name!r}; it is present and has memory")
            reset = own_resets.get(one.name) if by_actor else resets
            turns.append(ActorCall(one, seat, own, reset if network.has_memory else None))
        return turns

    def _compute(self, turns: list[ActorCall], unroll: bool = False) -> None:
        """Outputs and states, by one call for those who share a network or have stacked ones."""
        batches: dict[tuple[int, str], list[ActorCall]] = {}
        for turn in turns:
            # The agents of an open step that come as one array have an axis more than the others.
            alone = turn.present.name if turn.present.is_whole_step else ""
            batches.setdefault((id(turn.seat.group), alone), []).append(turn)
        rest = [batch for batch in batches.values() if not self._read_together(batch, unroll)]
        for batch in rest:
            for turn in batch:
                with blamed(turn.present.name):
                    self._read_turn(turn, unroll)
        for batch in rest:
            refuse_other_axes({turn.present.name: turn.leading for turn in batch})
            batch = sorted(batch, key=lambda turn: turn.seat.row)
            results = batch[0].seat.group.evaluate(
                [turn.seat.row for turn in batch],
                [turn.inputs for turn in batch],
                [turn.state for turn in batch],
                [turn.resets for turn in batch],
                unroll,
            )
            for turn, (outputs, after) in zip(batch, results, strict=True):
                turn.outputs, turn.after = outputs, after

    def _read_together(self, batch: Sequence[ActorCall], unroll: bool) -> bool:
        """Compute a batch whose observations are read as one; False where they cannot be."""
        return False

    def _read_turn(self, turn: ActorCall, unroll: bool) -> None:
        """The inputs of its network, its leading axes, and resets for these."""
        turn.inputs = self._read_inputs(turn)
        turn.leading = turn.network.leading(turn.inputs)
        if turn.network.has_memory:
            call = turn.network.call("unroll" if unroll else self.part)
            turn.network.check_state(turn.state, state_axes(turn.leading, unroll), call)
            turn.resets = turn.network.read_resets(turn.resets, turn.leading)

    def _after(self, state: State | None, turns: list[ActorCall]) -> State:
        own, whole = self._own_share(state)
        after = dict(own or {})
        for turn in turns:
            after |= {f"{turn.present.name}/{node}": value for node, value in turn.after.items()}
        return after if whole is None else {**whole, **under(self.part, after)}

    def _own_share(self, state: State | None) -> tuple[State | None, State | None]:
        """The state of these actors, and the whole model's where that was given, else None."""
        if not isinstance(state, Mapping):
            return state, None
        return own_share(self.part, state, self._is_own)

    def _is_own(self, name: str) -> bool:
        open_steps = tuple(f"{actor.name}/" for actor in self.actors if actor.is_open)
        return name in self._state_shapes or name.startswith(open_steps)

    def _check_memory(self, state: State | None) -> None:
        if not self.has_memory:
            if not is_empty(state):
                raise ValueError(f"this {self.part} has no memory; call it without a state")
            return
        if state is None:
            raise ValueError(
                f"this {self.part} has memory; call {self.part}({self.call_arguments}), "
                "beginning with initial_state(batch_size)"
            )
        if not isinstance(state, Mapping):
            got = type(state).__name__
            raise ValueError(f"a state is a dict of tensors by name, got a {got}")
        known = self.state_shapes
        for name in state:
            if not self._is_own(name):
                near = did_you_mean(name, known) or f"; it has {shortened(known)}"
                raise ValueError(f"{name!r} is not in the state of this {self.part}{near}")

    def _by_name(self, values: Any, what: str) -> dict[str, Any]:
        if values is None:
            return {}
        return {one.name: one.value for one in self.actors.present(values, what)}

    # --- as a module ---

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        module = self.groups[0].module if self._alone else super()
        module._save_to_state_dict(*arguments, **keywords)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        module = self.groups[0].module if self._alone else super()
        module._load_from_state_dict(*arguments, **keywords)


def unstack(calls: Sequence[ActorCall]) -> None:
    """Fill in the outputs of each of those who were computed in one batch."""
    batches: dict[int, list[ActorCall]] = {}
    for call in calls:
        if call.batch is not None:
            batches.setdefault(id(call.batch), []).append(call)
    for batched in batches.values():
        rows = rows_of(batched[0].batch.outputs, len(batched))  # type: ignore[union-attr]
        for call, call.outputs in zip(batched, rows, strict=True):
            call.batch = None


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """What goes wrong inside is the matter of the actor ``name``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"for {name!r}: {error}") from error
