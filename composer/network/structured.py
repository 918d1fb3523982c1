"""The networks of several actors in one call: each group of actors that are present runs together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeAlias, TypeVar

import torch

from composer.network.groups import (
    ActorCall,
    ActorNetwork,
    GroupNetworks,
    M,
    SeparateNetworks,
    refuse_other_axes,
    rows_of,
)
from composer.network.module import StatefulModule, under
from composer.network.network import State, Tensors, own_share, with_actor
from composer.spaces.actors import Actor, ActorKey, Actors
from perception_blocks.graph.wiring import module_name
from perception_blocks.port import Shape
from perception_blocks.words import few_of, hint

__all__ = ["ByActor", "StructuredModule", "blamed", "unstack"]

V = TypeVar("V")
ByActor: TypeAlias = Mapping[Any, V]  # by ActorKey, in which a Mapping is invariant


class StructuredModule(StatefulModule, Generic[M]):
    """The networks of groups of actors: one child for each group, or the only group itself, under its own names.

    It keeps no state: with memory, calls take and return one flat state, ``{"<actor>/<node>/h": ...}``; what belongs to
    actors that are absent passes through.
    """

    def __init__(self, actors: Actors, groups: Sequence[GroupNetworks[M]]) -> None:
        super().__init__()
        self.actors = actors
        self.groups = tuple(groups)
        self._alone = groups[0].name is None
        if self._alone:
            self.view(groups[0].module)
        else:
            for group in groups:
                self._modules[module_name(str(group.name))] = group.module
        self._actor_networks = {
            actor.name: ActorNetwork(group, row, member)
            for group in groups
            for row, (actor, member) in enumerate(zip(group.actors, group.members, strict=True))
        }
        self._state_shapes = {
            f"{actor.name}/{node}": shape
            for group in groups
            for actor in group.actors
            if not actor.is_open
            for node, shape in self._member_of(actor).state_shapes.items()
        }
        self._open_steps = tuple(f"{actor.name}/" for actor in actors if actor.is_open)
        self._has_memory = any(self._member_of(actor).has_memory for actor in actors)

    @property
    def has_memory(self) -> bool:
        return self._has_memory

    @property
    def state_shapes(self) -> dict[str, Shape]:
        """Shapes of the carried state of all actors that are counted, without leading axes."""
        return dict(self._state_shapes)

    @property
    def device(self) -> torch.device:
        return self._member_of(next(iter(self.actors))).device

    @property
    def dtype(self) -> torch.dtype:
        return self._member_of(next(iter(self.actors))).dtype

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
        entries = self.actors.entries(dict.fromkeys(actors), "states")
        state: State = {}
        for entry in entries:
            member = self._member_of(entry.actor)
            state |= under(entry.name, member.initial_state(batch_size, device, dtype))
        return state

    def actor_of(self, key: ActorKey) -> Actor:
        """The actor that ``key`` means, or the first of a group or step that has one network.

        Raises KeyError for an unknown name, and for a group or step whose actors have networks of their own, or
        one that is told which of them it acts for.
        """
        name_and_actor = self.actors.find(key)
        if name_and_actor is not None:
            return name_and_actor[1]
        name = str(key)
        members = [a for group in self.groups if group.name == name for a in group.actors]
        members = members or [actor for actor in self.actors if actor.step == name]
        if not members:
            known = [*self.actors.names, *(str(g.name) for g in self.groups if g.name is not None)]
            near = hint(name, known, listed=self.actors.names, shown=few_of)
            raise KeyError(f"there is no actor or group {key!r}{near}")
        if len({id(self._member_of(actor)) for actor in members}) > 1:
            names = few_of(actor.name for actor in members)
            raise KeyError(f"the actors of {key!r} have separate networks; name one of {names}")
        if len(members) > 1 and self._member_of(members[0]).reads_actor:
            names = few_of(actor.name for actor in members)
            raise KeyError(
                f"the network of {key!r} reads which of its actors it acts for; name one of {names}"
            )
        return members[0]

    # --- one call ---

    def _member_of(self, actor: Actor) -> M:
        """The policy or critic of ``actor``."""
        return self._actor_networks[actor.name].member

    def _whole(self, actor: Actor) -> M:
        """The policy or critic of ``actor``; of a separate agent over its part of the stacked weights."""
        actor_network = self._actor_networks[actor.name]
        module, row = actor_network.group.module, actor_network.row
        member = module.member_of(row) if isinstance(module, SeparateNetworks) else module
        return member.told(row) if member.reads_actor else member

    def _read_inputs(self, call: ActorCall[M]) -> Tensors:
        """The inputs of the network of ``call``. A subclass may add to what the observation gives."""
        return call.member.read(call.entry.value)

    def _calls(
        self, observations: object, state: State | None, resets: object
    ) -> list[ActorCall[M]]:
        """The calls of all present actors, each with its part of the state; nothing is computed yet."""
        entries = self.actors.entries(observations, "observations")
        state, _ = self._own_share(state)
        self._check_memory(state)
        by_actor = isinstance(resets, Mapping)
        actor_resets = self.actors.by_name(resets, "resets") if by_actor else {}
        calls = []
        for entry in entries:
            actor_network = self._actor_networks[entry.actor.name]
            member, share = actor_network.member, None
            if member.has_memory:
                names = {node: f"{entry.name}/{node}" for node in member.state_shapes}
                share = {node: state[name] for node, name in names.items() if name in state}  # type: ignore[index,operator]
                if not share and entry.actor.is_open:
                    raise ValueError(
                        f"the state has nothing of {entry.name!r}; a new actor begins with "
                        f"initial_state(batch_size, actors=[{entry.name!r}])"
                    )
                if by_actor and entry.name not in actor_resets:
                    raise ValueError(f"resets lack {entry.name!r}; it is present and has memory")
            reset = actor_resets.get(entry.name) if by_actor else resets
            reset = reset if member.has_memory else None
            calls.append(ActorCall(entry, actor_network, share, reset))
        return calls

    def _compute(self, calls: list[ActorCall[M]], unroll: bool = False) -> None:
        """Outputs and states, in one call for actors that share a network or whose networks are stacked."""
        batches: dict[tuple[int, str], list[ActorCall[M]]] = {}
        for call in calls:
            # The agents of an open step that come as one array have an axis more than the others.
            alone = call.entry.name if call.entry.is_whole_step else ""
            batches.setdefault((id(call.actor_network.group), alone), []).append(call)
        rest = [batch for batch in batches.values() if not self._read_together(batch, unroll)]
        for batch in rest:
            for call in batch:
                with blamed(call.entry.name):
                    self._read_call(call, unroll)
        for batch in rest:
            refuse_other_axes({call.entry.name: call.leading for call in batch})
            batch = sorted(batch, key=lambda call: call.actor_network.row)
            batch[0].actor_network.group.evaluate(batch, unroll)

    def _read_together(self, batch: Sequence[ActorCall[M]], unroll: bool) -> bool:
        """Compute a batch whose observations can be read together; False where they cannot."""
        return False

    def _read_call(self, call: ActorCall[M], unroll: bool) -> None:
        """The inputs of its network, its leading axes, and resets for these."""
        call.inputs = self._read_inputs(call)
        if call.member.reads_actor:
            ports = call.member.network.in_ports
            call.inputs = with_actor(call.inputs, ports, call.actor_network.row)
        call.leading = call.member.leading(call.inputs)
        if call.member.has_memory:
            call.resets = call.member.checked(call.state, call.resets, call.leading, unroll)

    def _after(self, state: State | None, calls: list[ActorCall[M]]) -> State:
        share, whole = self._own_share(state)
        after = dict(share or {})
        for call in calls:
            after |= under(call.entry.name, call.after)
        return after if whole is None else {**whole, **under(self.part, after)}

    def _own_share(self, state: State | None) -> tuple[State | None, State | None]:
        """The state of these actors, and the state of the whole model where that was given, else None."""
        if not isinstance(state, Mapping):
            return state, None
        return own_share(self.part, state, self.is_own_state)

    def is_own_state(self, name: str) -> bool:
        """Whether ``name`` is an entry of the state of one of its actors."""
        return name in self._state_shapes or name.startswith(self._open_steps)

    def _check_memory(self, state: State | None) -> None:
        if not self.has_memory:
            self._refuse_state(state)
            return
        if state is None:
            raise ValueError(
                f"this {self.part} has memory; call {self.part}({self.call_arguments}), "
                "beginning with initial_state(batch_size)"
            )
        if not isinstance(state, Mapping):
            got = type(state).__name__
            raise ValueError(f"a state is a dict of tensors by name, got a {got}")
        for name in state:
            if not self.is_own_state(name):
                near = hint(name, self._state_shapes, "it has", shown=few_of)
                raise ValueError(f"{name!r} is not in the state of this {self.part}{near}")

    # --- as a module ---

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        module = self.groups[0].module if self._alone else super()
        module._save_to_state_dict(*arguments, **keywords)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        module = self.groups[0].module if self._alone else super()
        module._load_from_state_dict(*arguments, **keywords)


def unstack(calls: Sequence[ActorCall]) -> None:
    """Fill in the outputs of the calls that were computed in one batch."""
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
    """Let a ValueError inside name the actor ``name``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"for {name!r}: {error}") from error
