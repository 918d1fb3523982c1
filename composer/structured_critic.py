"""Critics of several actors that have a value each: of its own observations, or built on the value before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composer.actors import ActorKey, Actors
from composer.critic import CRITICS, SpaceCritic, as_numbers, count_returns, read_returns
from composer.group_parts import GroupPart
from composer.network import State, Tensors
from composer.observer import Observer
from composer.turns import ActorModule, Turn, blamed
from perception_blocks.port import format_shape
from perception_blocks.scale import NormalizeBlock

__all__ = ["PREV_VALUE", "CriticByActor", "DeltaStateCritic", "StructuredCritic"]

PREV_VALUE = "prev_value"


class CriticByActor(ActorModule):
    """What critics with a value for each actor have in common.

    ``observers`` read the observations of each actor by its flat name, as its policy does. Values that the policy
    shares are taken as ``critic(observations, shared=policy_outputs)``.
    """

    role = "critic"
    takes_action = False

    def __init__(
        self, actors: Actors, groups: Sequence[GroupPart], observers: Mapping[str, Observer]
    ) -> None:
        super().__init__(actors, groups)
        self.observers = dict(observers)

    @property
    def shared(self) -> tuple[str, ...]:
        """The values of the policy that any of the networks reads."""
        names = [name for seat in self._seats.values() for name in seat.network.shared]
        return tuple(dict.fromkeys(names))

    @property
    def critics(self) -> dict[str, Any]:
        """The critic of each actor by flat name; actors of one group share one unless they are separate."""
        return {actor.name: self._seats[actor.name].network for actor in self.actors}

    def __getitem__(self, key: ActorKey) -> SpaceCritic:
        """The critic of one actor alone, over its part of the weights.

        Raises KeyError for an unknown name, and for a group or step whose actors have networks of their own.
        """
        actor = self.actor_of(key)
        whole = self._whole(actor)
        critic = whole.with_network(whole.network)
        object.__setattr__(critic, "observer", self.observers[actor.name])
        if critic.value_normalizer is not None:
            # Its child, to move and be saved with it; among all actors it is the group's.
            critic._modules["value_normalizer"] = critic.value_normalizer
        return critic

    @property
    def networks(self) -> list[Any]:
        """The critics that it is made of, each once."""
        return list({id(seat.network): seat.network for seat in self._seats.values()}.values())

    def value(self, *arguments: Any, **keywords: Any) -> Any:
        """The values alone, {actor: (...)}; with memory (these, state). It is called as the critic is."""
        result = self(*arguments, **keywords)
        values, after = result if self.has_memory else (result, None)
        numbers = {
            one.key: self._seats[one.actor.name].network.number_of(one.value)
            for one in self.actors.present(values, "values")
        }
        return (numbers, after) if self.has_memory else numbers

    def update_normalizer(self, returns: Any, group: Any = None) -> None:
        """Count returns {actor: (...)} into the statistics of each actor's network; none of them if one is wrong."""
        rows = self._rows_of(returns)
        # Everyone's, in one order: other processes, which may have others present, count along with this one.
        for network in self.networks:
            own = [row for actor, row in rows if self._seats[actor].network is network]
            count_returns(network.value_normalizer, own, group)

    def merge_normalizer(self, other: Any) -> None:
        """Count in the returns that ``other``, a critic of the same spec, has seen."""
        for own, their in zip(self.networks, other.networks, strict=True):
            own.merge_normalizer(their)

    def _rows_of(self, returns: Any) -> list[tuple[str, Tensor]]:
        """By flat names of actors (an actor may have several) their returns as rows (n, 1)."""
        found = []
        for one in self.actors.present(returns, "returns"):
            with blamed(one.name):
                found.append((one.actor.name, read_returns(one.value, self.device)))
        return found

    def _prepared(
        self, observations: Any, state: State | None, resets: Any, shared: Any
    ) -> list[Turn]:
        """Everyone present, with what the policy shares of them."""
        turns = self._turns(observations, state, resets)
        values = self._by_name(shared, "shared values")
        for turn in turns:
            turn.beside["shared"] = values.get(turn.present.name)
        return turns

    def _answer(self, state: State | None, turns: list[Turn]) -> Any:
        values = {turn.present.key: turn.outputs for turn in turns}
        return (values, self._after(state, turns)) if self.has_memory else values

    def _run(self, turns: list[Turn], unroll: bool = False) -> None:
        self._compute(turns, unroll)
        for turn in turns:
            turn.outputs = turn.network.values_of(turn.outputs)

    def _read_inputs(self, turn: Turn) -> Tensors:
        observer = self.observers[turn.present.actor.name]
        return turn.network.read(turn.present.value, turn.beside["shared"], observer)


class StructuredCritic(CriticByActor):
    """A value for each actor: ``critic({actor: observation})`` is {actor: {"value": (..., 1)}}."""

    def forward(
        self,
        observations: Mapping[Any, Any],
        state: State | None = None,
        resets: Any = None,
        *,
        shared: Mapping[Any, Mapping[str, Tensor]] | None = None,
    ) -> Any:
        """{actor: {"value": (..., 1)}} of everyone present; with memory (these, state)."""
        turns = self._prepared(observations, state, resets, shared)
        self._run(turns)
        return self._answer(state, turns)

    def unroll(
        self,
        observations: Mapping[Any, Any],
        state: State,
        resets: Any = None,
        *,
        shared: Mapping[Any, Mapping[str, Tensor]] | None = None,
    ) -> tuple[dict[Any, Tensors], State]:
        """All steps of (..., T) of everyone present, and the state after the last; resets (..., T)."""
        turns = self._prepared(observations, state, resets, shared)
        self._run(turns, unroll=True)
        return {turn.present.key: turn.outputs for turn in turns}, self._after(state, turns)


@CRITICS.register("delta_state")
class DeltaStateCritic(StructuredCritic):
    """Values of steps, one after the other: that of the first, and of each later one what it adds to the one before.

    Groups are the steps in their order. A later network reads ``prev_value`` (..., 1), the value before it, through
    which no gradient flows; its value is the sum. The value of a step of several agents is their mean. Where the first
    step is absent, ``critic(observations, prev_value=...)`` says what its value was.
    """

    def __init__(
        self,
        actors: Actors,
        groups: Sequence[GroupPart],
        observers: Mapping[str, Observer],
        value_normalizer: NormalizeBlock | None = None,
    ) -> None:
        super().__init__(actors, groups, observers)
        object.__setattr__(self, "value_normalizer", value_normalizer)
        if value_normalizer is not None:
            self._modules["value_normalizer"] = value_normalizer

    value_normalizer: NormalizeBlock | None

    def __getitem__(self, key: ActorKey) -> SpaceCritic:
        raise KeyError("values of steps build on one another, and there is no critic of one alone")

    def forward(
        self,
        observations: Mapping[Any, Any],
        state: State | None = None,
        resets: Any = None,
        *,
        shared: Mapping[Any, Mapping[str, Tensor]] | None = None,
        prev_value: Tensor | None = None,
    ) -> Any:
        """{actor: {"value": (..., 1)}}, and of later steps their "delta"; with memory (these, state)."""
        turns = self._prepared(observations, state, resets, shared)
        self._chain(turns, prev_value)
        return self._answer(state, turns)

    def unroll(
        self,
        observations: Mapping[Any, Any],
        state: State,
        resets: Any = None,
        *,
        shared: Mapping[Any, Mapping[str, Tensor]] | None = None,
        prev_value: Tensor | None = None,
    ) -> tuple[dict[Any, Tensors], State]:
        """All steps of time (..., T) of everyone present, and the state after the last; resets (..., T)."""
        turns = self._prepared(observations, state, resets, shared)
        self._chain(turns, prev_value, unroll=True)
        return {turn.present.key: turn.outputs for turn in turns}, self._after(state, turns)

    def update_normalizer(self, returns: Any, group: Any = None) -> None:
        """Count returns, {actor: (...)} or of any shape, into the statistics that all steps share."""
        if not isinstance(returns, Mapping):
            rows = [read_returns(returns, self.device)]
        else:
            rows = [row for _, row in self._rows_of(returns)]
        count_returns(self.value_normalizer, rows, group)

    def merge_normalizer(self, other: Any) -> None:
        """Count in the returns that ``other``, a critic of the same spec, has seen."""
        if self.value_normalizer is not None:
            self.value_normalizer.merge(other.value_normalizer)

    def _chain(self, turns: list[Turn], prev_value: Any, unroll: bool = False) -> None:
        """Values step by step, each on top of the one before."""
        before = self._before(turns, prev_value)
        for group in self.groups:
            step = [turn for turn in turns if turn.seat.group is group]
            for turn in step:
                turn.beside[PREV_VALUE] = before
            self._run(step, unroll)
            for turn in step:
                if before is not None:
                    turn.outputs = _sum(turn, before)
            if step:
                values = torch.stack([turn.outputs["value"] for turn in step])
                before = values.mean(dim=0).detach()
        if self.value_normalizer is not None:
            for turn in turns:
                value = turn.outputs["value"]
                turn.outputs["normalized_value"] = value
                turn.outputs["value"] = self.value_normalizer.denormalize(value)

    def _before(self, turns: list[Turn], prev_value: Any) -> Tensor | None:
        """The value before the first step that is present, on the networks' scale."""
        first = any(turn.seat.group is self.groups[0] for turn in turns)
        if first and prev_value is not None:
            raise ValueError("the first step has no value before it; leave prev_value out")
        if first or not turns:
            return None
        if prev_value is None:
            name = turns[0].present.name
            raise ValueError(
                f"the first step is absent: {name!r} builds on the value before it; "
                "pass that as prev_value=value, (..., 1)"
            )
        before = as_numbers(prev_value, PREV_VALUE, self.device, self.dtype).detach()
        return before if self.value_normalizer is None else self.value_normalizer(before)

    def _read_inputs(self, turn: Turn) -> Tensors:
        inputs = super()._read_inputs(turn)
        before = turn.beside[PREV_VALUE]
        if before is None:
            return inputs
        axes = tuple(before.shape[:-1])
        for name, port in turn.network.network.in_ports.items():
            if name != PREV_VALUE:
                axes = tuple(inputs[name].shape[: inputs[name].dim() - len(port.shape)])
                break
        if tuple(before.shape) != (*axes, 1):
            got, needed = format_shape(before.shape), format_shape((*axes, 1))
            raise ValueError(f"prev_value must have the shape {needed}, got {got}")
        return inputs | {PREV_VALUE: before}


def _sum(turn: Turn, before: Tensor) -> Tensors:
    """The values of a later step: what its network gives is only the difference."""
    delta = turn.outputs["value"]
    return {**turn.outputs, "value": before + delta, "delta": delta}
