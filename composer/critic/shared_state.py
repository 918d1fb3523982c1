"""The central critic: one value of what all actors observe together."""

from __future__ import annotations

from typing import Any

from composer.critic.base import SpaceCritic
from composer.critic.central import CentralCritic
from composer.critic.state import Critic
from composer.network.network import Inputs, State, Tensors
from composer.network.structured import ByActor

__all__ = ["SharedStateCritic"]


class SharedStateCritic(CentralCritic):
    """A central critic, one value for all actors: ``critic({actor: observation})["value"]`` has the shape (..., 1).

    All actors that the network reads must be present, unless it reads ``present`` (..., n), which is 1 where an actor
    is present: then its inputs of absent actors are zeros. In a batch ``critic(observations, present={actor: (...)})``
    says for each sample whether the actor was present. Of one Space it is a `Critic`.
    """

    @classmethod
    def member(cls) -> type[SpaceCritic]:
        return Critic

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
        return self._together(self._handed(observations, shared), present)
