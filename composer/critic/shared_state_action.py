"""The central critic of actions: one Q value of what all actors observe and do together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from composer.critic.base import MissingArgumentError, SpaceCritic
from composer.critic.central import CentralCritic, CentralInput, Handed
from composer.critic.state_action import StateActionCritic
from composer.critic.targets import Targeted
from composer.critic.values import ValueRequirements
from composer.network.network import Inputs, Network, State, Tensors
from composer.network.structured import ByActor, blamed
from composer.spaces.action_inputs import ActionInputs
from composer.spaces.actors import Actors
from composer.spaces.observer import Observer
from composer.spaces.tree import SpaceTree

__all__ = ["SharedStateActionCritic"]


class SharedStateActionCritic(Targeted, CentralCritic):
    """Q(s, a) of all actors together, as in MADDPG (Lowe et al. 2017): the network reads all observations and actions.

    ``critic({actor: observation}, {actor: action})["q_value"]`` has the shape (..., 1); of an ensemble (..., n, 1). An
    action is as the distribution of its actor has it (``policy.from_environment`` makes it of an environment's); the
    network reads choices one-hot and Box actions as their numbers, and gradients flow to them. ``actions`` read them by
    actor. Absent actors are as for a `SharedStateCritic`: zeros take the place of their actions too. Of one Space it is
    a `StateActionCritic`.
    """

    takes_action = True
    call_arguments = "observations, action, state, resets"
    sees = "observations and actions"
    only_for_all = "the critic reads the observations and actions of all actors"

    def __init__(
        self,
        network: Network,
        actors: Actors,
        observers: Mapping[str, Observer],
        sources: Mapping[str, CentralInput],
        *,
        actions: Mapping[str, ActionInputs],
        **keywords: Any,
    ) -> None:
        super().__init__(network, actors, observers, sources, **keywords)
        self.action_inputs = dict(actions)

    @classmethod
    def member(cls) -> type[SpaceCritic]:
        return StateActionCritic

    @classmethod
    def requirements(cls, actions: SpaceTree | None) -> ValueRequirements:
        return ValueRequirements({"q_value": (1,)}, {"q_value": "a critic"})

    def forward(
        self,
        observations: ByActor[object],
        action: ByActor[object] | None = None,
        state: State | None = None,
        resets: object = None,
        *,
        shared: ByActor[Tensors] | None = None,
        present: ByActor[object] | None = None,
        unroll: bool = False,
    ) -> Any:
        """``{"q_value": (..., 1)}``; with memory (values, state)."""
        inputs = self.read(observations, action, shared, present)
        values, after = self.computed(inputs, state, resets, unroll)
        return self._returned(values, after, unroll)

    def read(
        self,
        observations: Any,
        action: ByActor[object] | None = None,
        shared: ByActor[Tensors] | None = None,
        present: ByActor[object] | None = None,
    ) -> Inputs:
        """The inputs of the network.

        Raises ValueError for a missing actor or action, and for actors with different leading axes.
        """
        if isinstance(observations, Inputs):
            return observations
        if action is None:
            raise MissingArgumentError(
                "this critic reads the actions of all actors",
                self.call(),
                "or the model itself with action=action",
            )
        handed = self._handed(observations, shared)
        return self._together(handed | {"action": self.actors.by_name(action, "actions")}, present)

    def number_of(self, values: Tensors) -> Tensor:
        return values["q_value"].squeeze(-1)

    # --- inside ---

    def _values_of(self, name: str, handed: Handed) -> Tensors:
        values = super()._values_of(name, handed)
        with blamed(name):
            if name not in handed["action"]:
                raise ValueError("this actor is observed, but its action is missing")
            action = handed["action"][name]
            return values | self.action_inputs[name].read(action, self.dtype, self.device)

    def _common(self) -> Sequence[Any]:
        inputs = [*self.observers.values(), *self.action_inputs.values()]
        return [self.actors, *inputs, self.value_normalizer]
