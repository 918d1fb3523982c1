"""The critic of the actions of several actors: Q values of each of them, and target copies of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from composer.critic.base import CriticSetup, SpaceCritic
from composer.critic.structured import StructuredCriticBase
from composer.critic.targets import Targeted
from composer.network.groups import ActorCall, GroupNetworks
from composer.network.network import State, Tensors
from composer.network.structured import ByActor, blamed
from composer.spaces.action_inputs import ActionInputs
from composer.spaces.actors import Actors

__all__ = ["StructuredStateActionCritic"]


class StructuredStateActionCritic(StructuredCriticBase, Targeted):
    """What the action of each actor is worth: ``critic({actor: observation}, {actor: action})`` is {actor: {...}}.

    Each actor has the values that a `StateActionCritic` gives. ``actions`` read the action of each actor by its flat
    name. Actors whose actions are choices need none.
    """

    takes_action = True
    call_arguments = "observations, action, state, resets"

    def __init__(
        self, actors: Actors, groups: Sequence[GroupNetworks], setups: Mapping[str, CriticSetup]
    ) -> None:
        super().__init__(actors, groups, setups)
        self.actions = {name: ActionInputs(setup.actions) for name, setup in setups.items()}

    def forward(
        self,
        observations: ByActor[object],
        action: ByActor[object] | None = None,
        state: State | None = None,
        resets: object = None,
        *,
        shared: ByActor[Tensors] | None = None,
        unroll: bool = False,
    ) -> Any:
        """{actor: {"q_value": (..., 1)}} of all present actors, or Q values by choice; with memory (these, state)."""
        calls = self._prepared(observations, state, resets, shared)
        actions = self.actors.by_name(action, "actions")
        for call in calls:
            call.action = actions.get(call.entry.name)
        self._compute(calls, unroll)
        for call in calls:
            critic: Any = call.member  # a StateActionCritic
            with blamed(call.entry.name):
                call.outputs |= critic.chosen(call.outputs, call.beside["vectors"])
        return self._answer(state, calls, unroll)

    def _read_inputs(self, call: ActorCall[SpaceCritic]) -> Tensors:
        critic: Any = call.member  # a StateActionCritic
        inputs = super()._read_inputs(call)
        vectors = critic.vectors_of(call.action, self.actions[call.entry.actor.name])
        call.beside["vectors"] = vectors
        return inputs if critic.actions.are_choices else inputs | vectors

    def _common(self) -> Sequence[Any]:
        normalizers = [critic.value_normalizer for critic in self.members]
        return [self.actors, *self.observers.values(), *self.actions.values(), *normalizers]
