"""The critic of states and actions: Q values, ensembles of them, and target copies that follow slowly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from composer.action_inputs import ActionInputs
from composer.blending import Buffers, blend
from composer.critic import CRITICS, SpaceCritic
from composer.network import Network, State, Tensors
from composer.observer import Observer
from composer.value_heads import ValueReader
from perception_blocks.port import format_shape
from perception_blocks.scale import NormalizeBlock

__all__ = ["Q_VALUES", "StateActionCritic"]

Q_VALUES = "_q_values"  # after an action's name: what its choices are worth


@CRITICS.register("state_action")
class StateActionCritic(SpaceCritic):
    """What an action is worth in a state, ``q_value`` (..., 1); of an ensemble (..., n, 1).

    Where all actions are choices the network gives ``<action>_q_values`` (..., choices), one for each choice, and needs
    no action; given one, there is its ``q_value`` too: the mean over the choices that make it up. Else the action is
    an input of the network. It is as distributions have it (``policy.from_environment`` makes it of an environment's),
    and gradients flow to it.

    ``critic.target`` is the same critic with weights of its own, which move towards those of this one by
    ``update_targets`` alone.
    """

    takes_action = True
    added = ("target", "value_normalizer")
    call_arguments = "observations, action, state, resets"

    def __init__(
        self,
        network: Network,
        observer: Observer,
        reader: ValueReader,
        actions: ActionInputs,
        *,
        shared: tuple[str, ...],
        dtype: torch.dtype,
        copies: int = 1,
        value_normalizer: NormalizeBlock | None = None,
    ) -> None:
        super().__init__(
            network, observer, reader,
            shared=shared, dtype=dtype, value_normalizer=value_normalizer,
        )  # fmt: skip
        self.actions = actions
        self.copies = copies

    @property
    def target(self) -> StateActionCritic:
        """The copy that is called as this critic is: never trained, always in eval mode."""
        found = self._modules.get("target")
        if found is None:
            raise AttributeError("a target has no target of its own")
        return found  # type: ignore[return-value]

    @property
    def online(self) -> nn.Module:
        """The weights of the network alone, without those of its target: what an optimiser takes, a target follows."""
        own = nn.Module()
        own._parameters, own._buffers = self._parameters, self._buffers
        children = self._modules.items()
        own._modules = {name: child for name, child in children if name not in self.added}
        return own

    def forward(
        self,
        observations: Any,
        action: Any = None,
        state: State | None = None,
        resets: Any = None,
        *,
        shared: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """``{"q_value": (..., 1)}``, or Q values by choice; with memory (values, state)."""
        values, after = self._evaluate(observations, action, state, resets, shared)
        return (values, after) if self.has_memory else values

    def unroll(
        self,
        observations: Any,
        action: Any,
        state: State,
        resets: Any = None,
        *,
        shared: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensors, State]:
        """All steps of (..., T): values of every step, and the state after the last; resets (..., T)."""
        return self._evaluate(observations, action, state, resets, shared, unroll=True)

    def value(self, observations: Any, action: Any = None, *arguments: Any, **keywords: Any) -> Any:
        """The Q value alone, of shape (...), of an ensemble (..., n); with memory (value, state).

        Without an action that of the best one, for critics with a Q value for each choice.
        """
        result = self(observations, action, *arguments, **keywords)
        values, after = result if self.has_memory else (result, None)
        if "q_value" in values:
            value = values["q_value"]
        else:
            value = self.actions.best(
                {name: values[name + Q_VALUES] for name in self.actions.counts}
            )
        return (value.squeeze(-1), after) if self.has_memory else value.squeeze(-1)

    def update_targets(self, tau: float, buffers: Buffers = "copy") -> None:
        """Move the weights of ``target`` by ``tau`` (0 to 1) of the way to those of this critic.

        ``buffers`` says what becomes of statistics such as those of batch normalisation.
        """
        blend(self.target, self.online, tau, buffers)

    def make_target(self) -> None:
        """Make ``target`` a copy of this critic as it is now, in place of the one before."""
        own = self.own_children()
        network = copy.deepcopy(self.network, {id(child): nn.Module() for child in own.values()})
        for name in own:
            del network.module._modules[name]
        target = StateActionCritic(
            network, self.observer, self.reader, self.actions,
            shared=self.shared, dtype=self.dtype, copies=self.copies,
        )  # fmt: skip
        target._device = self.device
        object.__setattr__(target, "value_normalizer", self.value_normalizer)  # no second child
        self._modules["target"] = target.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if "target" in self._modules:
            self.target.eval()
        return self

    # --- inside ---

    def _evaluate(
        self,
        observations: Any,
        action: Any,
        state: State | None,
        resets: Any,
        shared: Mapping[str, Tensor] | None,
        unroll: bool = False,
    ) -> tuple[Tensors, State]:
        inputs = self.read(observations, shared)
        vectors: Tensors = {}
        if action is not None:
            vectors = self.actions.read(action, self.dtype, self.device)
        if self.actions.are_choices:
            values, after = self._judge(inputs, state, resets, unroll)
            return values | self._chosen(values, vectors), after
        if action is None:
            raise ValueError(
                "this critic reads the action; call critic(observations, action), "
                "or the model itself as model(observations, action=action)"
            )
        return self._judge(inputs | vectors, state, resets, unroll)

    def _chosen(self, values: Tensors, vectors: Tensors) -> Tensors:
        """The Q value of the action that ``vectors`` tell; nothing without one."""
        if not vectors:
            return {}
        q_values = {name: values[name + Q_VALUES] for name in self.actions.counts}
        for name, value in q_values.items():
            vector = vectors[f"action/{name}"]
            axes = value.shape[:-1] if self.copies == 1 else value.shape[:-2]
            if vector.shape[:-1] != axes:
                got, expected = format_shape(vector.shape[:-1]), format_shape(axes)
                raise ValueError(
                    f"the action {name!r} has the leading (batch) axes {got}, the observations {expected}"
                )
        if self.copies > 1:
            vectors = {name: vector.unsqueeze(-2) for name, vector in vectors.items()}
        return {"q_value": self.actions.chosen(q_values, vectors)}
