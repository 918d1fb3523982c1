"""Critic: observations (and values a policy shares) to values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from composer.network import Network, NetworkModule, State, Tensors
from composer.observer import Observer
from perception_blocks.registry import Registry

__all__ = ["CRITICS", "Critic"]

CRITICS = Registry("critic kind")


@CRITICS.register("state")
class Critic(NetworkModule):
    """The value of a state: ``critic(observations)["value"]`` has the shape (..., 1), ``critic.value`` gives (...).

    A critic that reads values of the policy takes them as ``critic(observations, shared=policy_outputs)``. With memory
    it takes and returns a state, as a policy does.
    """

    def __init__(
        self, network: Network, observer: Observer, *, shared: tuple[str, ...], dtype: torch.dtype
    ) -> None:
        super().__init__(network, dtype)
        object.__setattr__(self, "observer", observer)
        self.shared = tuple(name for name in shared if name in network.in_ports)
        self._keys = tuple(name for name in network.in_ports if name not in self.shared)

    observer: Observer

    def forward(
        self,
        observations: Any,
        state: State | None = None,
        resets: Any = None,
        *,
        shared: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """``{"value": (..., 1)}``; with memory (values, state)."""
        outputs, after = self._evaluate(observations, state, resets, shared)
        return (outputs, after) if self.has_memory else outputs

    def unroll(
        self,
        observations: Any,
        state: State,
        resets: Any = None,
        *,
        shared: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensors, State]:
        """All steps of (..., T): values of every step, and the state after the last; resets (..., T)."""
        return self._evaluate(observations, state, resets, shared, unroll=True)

    def value(self, observations: Any, *arguments: Any, **keywords: Any) -> Any:
        """The value alone, of shape (...); with memory (value, state)."""
        result = self(observations, *arguments, **keywords)
        if self.has_memory:
            return result[0]["value"].squeeze(-1), result[1]
        return result["value"].squeeze(-1)

    def _evaluate(
        self,
        observations: Any,
        state: State | None,
        resets: Any,
        shared: Mapping[str, Tensor] | None,
        unroll: bool = False,
    ) -> tuple[Tensors, State]:
        inputs = self.observer.read(observations, self._keys, self.dtype, self.device)
        inputs |= self._shared_values(shared)
        if self.shared:
            self.leading(inputs)  # else values of another batch would be broadcast
        return self.evaluate(inputs, state, resets, "critic", unroll)

    def _shared_values(self, shared: Mapping[str, Tensor] | None) -> Tensors:
        missing = [name for name in self.shared if name not in (shared or {})]
        if missing:
            names = ", ".join(map(repr, missing))
            raise ValueError(
                f"this critic reads {names} of the policy; call critic(observations, shared=policy(observations)), "
                "or the model itself"
            )
        return {name: shared[name] for name in self.shared}  # type: ignore[index]
