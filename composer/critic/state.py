"""The critic of one actor's observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from composer.critic.base import SpaceCritic
from composer.critic.structured import StructuredCritic, StructuredCriticBase
from composer.network.network import State

__all__ = ["Critic"]


class Critic(SpaceCritic):
    """The value of a state: ``critic(observations)["value"]`` has the shape (..., 1), ``critic.value`` gives (...).

    A critic that reads values of the policy takes them as ``critic(observations, shared=policy_outputs)``. With memory
    it takes and returns a state, like a policy. An ensemble returns values (..., n, 1).
    """

    @classmethod
    def structured(cls) -> type[StructuredCriticBase] | None:
        return StructuredCritic

    def forward(
        self,
        observations: object,
        state: State | None = None,
        resets: object = None,
        *,
        shared: Mapping[str, Tensor] | None = None,
        unroll: bool = False,
    ) -> Any:
        """``{"value": (..., 1)}``, and the outputs that the value is computed from; with memory (values, state)."""
        values, after = self.computed(self.read(observations, shared), state, resets, unroll)
        return self._returned(values, after, unroll)


Critic.direct = Critic
