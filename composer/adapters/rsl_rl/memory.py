"""What the actor and the critic of rsl_rl have in common: the network that runs, its memory, and padded sequences."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from rsl_rl.utils import unpad_trajectories
from tensordict import TensorDictBase
from torch import Tensor, nn

from composer.lowered.network import WithTwin
from composer.model import Model
from composer.network.network import State, Tensors
from perception_blocks.port import Shape

__all__ = ["Hidden", "MemoryModule", "picked", "unpadded"]

Hidden: TypeAlias = tuple[Tensor, ...]
"""A state as rsl_rl stores it: each of its entries as (1, n, width)."""


class MemoryModule(nn.Module):
    """Base of actor and critic: a network that runs, lowered where it can be, and its memory.

    The memory is a tensor (1, n, width) for each entry of the state, as rsl_rl stores the two of its LSTM.
    """

    model: Model
    _state_shapes: Mapping[str, Shape]
    _runs: WithTwin[Any]

    def __init__(self) -> None:
        super().__init__()
        self._hidden: Hidden | None = None

    def run(self, inputs: Tensors, state: State | None, sequences: bool) -> tuple[Tensors, State]:
        """The network's outputs and the state after."""
        return self._runs.now().run(inputs, state, None, sequences)

    @property
    def is_recurrent(self) -> bool:
        """Whether it carries a state from step to step."""
        return bool(self._state_shapes)

    def get_hidden_state(self) -> Hidden | None:
        """The state before the next step, each (1, n, width); None without memory and before the first step."""
        return self._hidden

    def reset(
        self, dones: Tensor | None = None, hidden_state: Hidden | Tensor | None = None
    ) -> None:
        """Set the state to ``hidden_state``, or to zero where an episode is over (``dones`` is 1, of shape (n,))."""
        if dones is None:
            self._hidden = _parts(hidden_state)
        elif self._hidden is not None:
            over = _over(dones, self._hidden)
            self._hidden = tuple(part.masked_fill(over, 0.0) for part in self._hidden)

    def detach_hidden_state(self, dones: Tensor | None = None) -> None:
        """Cut the state, or the states where ``dones`` is 1, from the graph of the steps before."""
        if self._hidden is None:
            return
        cut = tuple(part.detach() for part in self._hidden)
        if dones is not None:
            over = _over(dones, cut)
            cut = tuple(map(functools.partial(torch.where, over), cut, self._hidden))
        self._hidden = cut

    def update_normalization(self, obs: TensorDictBase) -> None:
        """Count observations (n, ...) into the statistics of the spec's ``normalize``; the actor has them all."""

    def _state(self, batch: int, hidden: Hidden | Tensor | None) -> State:
        """The state of ``batch`` environments or sequences: what rsl_rl stored, or zero."""
        network, shapes = self._runs.module, self._state_shapes.items()
        parts = _parts(hidden)
        if parts is None:
            where: Any = {"device": network.device, "dtype": network.dtype}
            return {name: torch.zeros(batch, *shape, **where) for name, shape in shapes}  # type: ignore[arg-type]
        return {
            name: part.reshape(batch, *shape).to(network.dtype)  # type: ignore[arg-type]
            for (name, shape), part in zip(shapes, parts, strict=True)
        }

    def _keep(self, state: State) -> None:
        values = (state[name] for name in self._state_shapes)
        self._hidden = tuple(value.reshape(1, value.shape[0], -1) for value in values)


def picked(
    obs: TensorDictBase,
    keys: Mapping[str, str],
    names: Iterable[str],
    masks: Tensor | None,
    sequences: bool,
) -> Tensors:
    """The observations ``names``: (n, ...), or sequences (m, T, ...) of the padded (T, m, ...)."""
    if sequences:
        return {name: obs[keys[name]].transpose(0, 1) for name in names}
    if masks is None:
        return {name: obs[keys[name]] for name in names}
    return {name: unpad_trajectories(obs[keys[name]], masks) for name in names}  # type: ignore[misc]


def unpadded(value: Tensor, masks: Tensor) -> Tensor:
    """Padded sequences (m, T, ...) as what was collected, (T, n, ...); ``masks`` (T, m) are true at each step."""
    if masks.all():  # no episode ended: nothing was padded
        return value.transpose(0, 1)
    steps = masks.shape[0]
    return value[masks.transpose(0, 1)].reshape(-1, steps, *value.shape[2:]).transpose(0, 1)


def _parts(hidden: Hidden | Tensor | None) -> Hidden | None:
    """A state of rsl_rl by its entries: a single one comes back from its storage as a tensor."""
    return (hidden,) if isinstance(hidden, Tensor) else hidden


def _over(dones: Tensor, hidden: Hidden) -> Tensor:
    """Which environments (n, 1) are done, where the state is."""
    return (dones.reshape(-1, 1) == 1).to(hidden[0].device)
