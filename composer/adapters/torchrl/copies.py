"""The copies of an ensemble of critics as critics of their own, over weights of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from composer.critic.base import SpaceCritic
from composer.network.network import Network, State, Tensors
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.inference import InferenceBlock

__all__ = ["critic_of_copy", "ensemble_of"]

X = TypeVar("X")


def ensemble_of(critic: SpaceCritic) -> EnsembleBlock | None:
    """The module with the weights of a critic of several copies; None for a critic of one."""
    if critic.copies == 1:
        return None
    return next(
        m for n, m in critic._modules.items() if n != "target" and isinstance(m, EnsembleBlock)
    )


def critic_of_copy(critic: SpaceCritic, ensemble: EnsembleBlock, index: int) -> SpaceCritic:
    """The critic of one copy of ``ensemble``."""
    network = OneCopy(critic.network, ensemble.copy_of(index))
    single = critic.with_network(network, replace(critic.setup, copies=1))
    single.state_names = critic.state_names
    return single


class OneCopy(Network):
    """One of the copies of an ensemble; its outputs and states have the names of the ensemble's."""

    def __init__(self, whole: Network, copy: InferenceBlock) -> None:
        self.module = copy
        self._whole = whole
        self.in_ports = whole.in_ports
        self._outputs = dict(zip(whole.out_ports, copy.out_ports, strict=True))
        self._states = dict(zip(whole.state_shapes, copy.state_shapes, strict=True))
        self.out_ports = _renamed(copy.out_ports, self._outputs)
        self.state_shapes = _renamed(copy.state_shapes, self._states)

    @property
    def form(self) -> nn.Module:
        return self._whole.form

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return _renamed(self.module(inputs), self._outputs)

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        inside = {inner: state[name] for name, inner in self._states.items()}
        outputs, after = self.module(inputs, inside, resets, unroll)
        return _renamed(outputs, self._outputs), _renamed(after, self._states)


def _renamed(values: Mapping[str, X], names: Mapping[str, str]) -> dict[str, X]:
    """The ``values`` by other ``names``: {other: name}."""
    return {other: values[name] for other, name in names.items()}
