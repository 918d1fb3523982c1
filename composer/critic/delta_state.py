"""The critic of a sequence of steps, each of which adds to the value of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composer.critic.base import SEPARATE, CriticKind, CriticSetup, SpaceCritic
from composer.critic.state import Critic
from composer.critic.structured import StructuredCritic
from composer.critic.values import as_numbers, count_returns, read_returns
from composer.network.groups import ActorCall, GroupNetworks
from composer.network.network import State, Tensors
from composer.network.structured import ByActor
from composer.spaces.actors import ActorKey, Actors
from perception_blocks.port import format_shape

if TYPE_CHECKING:
    from perception_blocks.blocks.scale import Group

__all__ = ["PREV_VALUE", "DeltaStateCritic"]

PREV_VALUE = "prev_value"


class DeltaStateCritic(StructuredCritic):
    """The value of the first step, and for each later step the difference to the value of the step before.

    Groups are the steps in their order. A later network reads ``prev_value`` (..., 1), the value before it, through
    which no gradient flows; its value is the sum. The value of a step of several agents is their mean. Where the first
    step is absent, ``critic(observations, prev_value=...)`` says what its value was. Of one Space it is a `Critic`.
    """

    previous = PREV_VALUE
    only_for_all = "the values of steps depend on each other"
    refused = {
        **CriticKind.refused,
        "ensemble": "a value that builds on the one before is one number; leave 'ensemble' out",
        "separate": SEPARATE,
    }

    def __init__(
        self, actors: Actors, groups: Sequence[GroupNetworks], setups: Mapping[str, CriticSetup]
    ) -> None:
        super().__init__(actors, groups, setups)
        normalizer = next(iter(setups.values())).value_normalizer  # of all actors
        object.__setattr__(self, "value_normalizer", normalizer)
        if normalizer is not None:
            self._modules["value_normalizer"] = normalizer

    @classmethod
    def member(cls) -> type[SpaceCritic]:
        return Critic

    def __getitem__(self, key: ActorKey) -> SpaceCritic:
        raise KeyError("the values of steps depend on each other, so a single step has no critic")

    def forward(
        self,
        observations: ByActor[object],
        state: State | None = None,
        resets: object = None,
        *,
        shared: ByActor[Tensors] | None = None,
        prev_value: Tensor | None = None,
        unroll: bool = False,
    ) -> Any:
        """{actor: {"value": (..., 1)}}, and of later steps their "delta"; with memory (these, state)."""
        calls = self._prepared(observations, state, resets, shared)
        before = self._before(calls, prev_value)
        for group in self.groups:
            step = [call for call in calls if call.actor_network.group is group]
            for call in step:
                call.beside[PREV_VALUE] = before
            self._compute(step, unroll)
            if before is not None:
                for call in step:
                    delta = call.outputs["value"]
                    call.outputs = {**call.outputs, "value": before + delta, "delta": delta}
            if step:
                before = torch.stack([call.outputs["value"] for call in step]).mean(dim=0).detach()
        if self.value_normalizer is not None:
            for call in calls:
                value = call.outputs["value"]
                call.outputs["normalized_value"] = value
                call.outputs["value"] = self.value_normalizer.denormalize(value)
        return self._answer(state, calls, unroll)

    def update_normalizer(self, returns: object, group: Group = None) -> None:
        """Count returns, {actor: (...)} or of any shape, into the statistics that all steps share."""
        if not isinstance(returns, Mapping):
            rows = [read_returns(returns, self.device)]
        else:
            rows = [row for _, row in self._rows_of(returns)]
        count_returns(self.value_normalizer, rows, group)

    def export_problems(self) -> Iterator[str]:
        for name in (actor.name for actor in self.actors if actor.is_open):
            yield (
                f"the values of steps depend on each other, and the agents of {name!r}, whose number is not known, are "
                "a separate axis"
            )

    def _before(self, calls: list[ActorCall[SpaceCritic]], prev_value: object) -> Tensor | None:
        """The value before the first step that is present, on the networks' scale."""
        first = any(call.actor_network.group is self.groups[0] for call in calls)
        if first and prev_value is not None:
            raise ValueError("the first step has no value before it; leave prev_value out")
        if first or not calls:
            return None
        if prev_value is None:
            name = calls[0].entry.name
            raise ValueError(
                f"the first step is absent: {name!r} builds on the value before it; "
                "pass that as prev_value=value, (..., 1)"
            )
        before = as_numbers(prev_value, PREV_VALUE, self.device, self.dtype).detach()
        return before if self.value_normalizer is None else self.value_normalizer(before)

    def _read_inputs(self, call: ActorCall[SpaceCritic]) -> Tensors:
        inputs = super()._read_inputs(call)
        before = call.beside[PREV_VALUE]
        if before is None:
            return inputs
        axes = tuple(before.shape[:-1])
        for name, port in call.member.network.in_ports.items():
            if name in inputs:
                axes = tuple(inputs[name].shape[: inputs[name].dim() - len(port.shape)])
                break
        if tuple(before.shape) != (*axes, 1):
            got, needed = format_shape(before.shape), format_shape((*axes, 1))
            raise ValueError(f"prev_value must have the shape {needed}, got {got}")
        return inputs | {PREV_VALUE: before}
