"""The critic of states and actions: Q values, ensembles of them, and target copies that follow slowly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from composer.critic.base import CriticSetup, MissingArgumentError, SpaceCritic
from composer.critic.structured import StructuredCriticBase
from composer.critic.structured_state_action import StructuredStateActionCritic
from composer.critic.targets import Targeted
from composer.critic.values import ValueRequirements
from composer.network.module import InputSource
from composer.network.network import Inputs, Network, State, Tensors
from composer.spaces.action_inputs import ActionInputs
from composer.spaces.tree import SpaceTree
from perception_blocks.port import Port, format_shape

__all__ = ["Q_VALUES", "StateActionCritic"]

Q_VALUES = "_q_values"  # after an action's name: what its choices are worth


class StateActionCritic(Targeted, SpaceCritic):
    """Q(s, a), the value of an action in a state: ``q_value`` (..., 1); of an ensemble (..., n, 1).

    If all actions are choices, the network returns ``<action>_q_values`` (..., choices), one for each choice, and needs
    no action; given one, there is its ``q_value`` too: the mean over the choices that make it up. Else the action is
    an input of the network. It is as distributions have it (``policy.from_environment`` makes it of an environment's),
    and gradients flow to it.
    """

    takes_action = True
    call_arguments = "observations, action, state, resets"

    def __init__(self, network: Network, setup: CriticSetup) -> None:
        super().__init__(network, setup)
        self.actions = ActionInputs(setup.actions)
        self.copies = setup.copies

    @classmethod
    def structured(cls) -> type[StructuredCriticBase] | None:
        return StructuredStateActionCritic

    @classmethod
    def requirements(cls, actions: SpaceTree | None) -> ValueRequirements:
        assert actions is not None
        inputs = ActionInputs(actions)
        if not inputs.are_choices:
            return ValueRequirements({"q_value": (1,)}, {"q_value": "a critic"}, inputs.ports)
        widths = {name + Q_VALUES: (width,) for name, width in inputs.widths.items()}
        reasons = {
            name + Q_VALUES: f"a Q value for each choice of {name!r}" for name in inputs.widths
        }
        reason = "is no input here: the critic returns a Q value for each choice"
        injected = {"action_logits_shapes": {n: (width,) for n, width in inputs.widths.items()}}
        return ValueRequirements(
            widths, reasons, hidden=dict.fromkeys(inputs.ports, reason), injected=injected
        )

    def forward(
        self,
        observations: object,
        action: object = None,
        state: State | None = None,
        resets: object = None,
        *,
        shared: Mapping[str, Tensor] | None = None,
        unroll: bool = False,
    ) -> Any:
        """``{"q_value": (..., 1)}``, or Q values by choice; with memory (values, state)."""
        is_read = isinstance(observations, Inputs)  # then with the action
        vectors = {} if is_read else self.vectors_of(action)
        inputs = self.read(observations, shared)
        if not self.actions.are_choices:
            inputs = inputs | vectors
        values, after = self.computed(inputs, state, resets, unroll)
        return self._returned(values | self.chosen(values, vectors), after, unroll)

    def _source(self, name: str, port: Port) -> InputSource:
        is_action = name in self.actions.ports and name not in self.shared
        return InputSource("action", name, port) if is_action else super()._source(name, port)

    def number_of(self, values: Tensors) -> Tensor:
        """The Q value in ``values``, the result of a call: of its action, or without an action of the best choices."""
        if "q_value" in values:
            return values["q_value"].squeeze(-1)
        q_values = {name: values[name + Q_VALUES] for name in self.actions.counts}
        return self.actions.best(q_values).squeeze(-1)

    def vectors_of(self, action: object, actions: ActionInputs | None = None) -> Tensors:
        """``action`` as vectors, read by its own `ActionInputs` or others; nothing where there is no action.

        Raises ValueError where the network needs one.
        """
        if action is not None:
            return (actions or self.actions).read(action, self.dtype, self.device)
        if self.actions.are_choices:
            return {}
        raise MissingArgumentError(
            "this critic reads the action", self.call(), "or the model itself with action=action"
        )

    def chosen(self, values: Tensors, vectors: Tensors) -> Tensors:
        """The Q value of the action that ``vectors`` tell, where there are values for each choice."""
        if not vectors or not self.actions.are_choices:
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

    # --- inside ---

    def _common(self) -> Sequence[Any]:
        return [self.setup, self.observer, self.actions, self.value_normalizer]
