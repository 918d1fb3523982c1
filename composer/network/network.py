"""One network of a policy or critic, whether it is a graph of blocks or a user's own class.

A `Network` runs the module; it owns no parameters of its own. `NetworkModule` is the ``nn.Module`` around it: it holds
the very registries of the network's module, so that parameters are called ``policy.<node>...`` and nothing is double.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port, Shape

__all__ = [
    "ACTOR",
    "CustomNetwork",
    "EnsembleNetwork",
    "GraphNetwork",
    "Inputs",
    "Network",
    "State",
]
__all__ += ["Tensors", "ToldNetwork", "own_share", "share_of", "with_actor"]

# The input that says which of its actors a network acts for: their index, in the order of the environment.
ACTOR = "actor"

Tensors = dict[str, Tensor]
State = dict[str, Tensor]


class Inputs(Tensors):
    """What a network reads, by name: observations that a policy or critic does not read a second time."""


class Network:
    """A module, and the names and Ports of what goes in and comes out."""

    module: nn.Module
    in_ports: dict[str, Port]
    out_ports: dict[str, Port]
    state_shapes: dict[str, Shape]
    owns_weights = True  # whether ``module`` holds them
    has_weights = True  # False while it is on the meta device
    after: Mapping[str, tuple[str, ...]] = {}  # head -> the heads whose actions it depends on
    # Of one over another module's weights: whether they are elsewhere by now.
    is_outdated: Callable[[], bool] | None = None

    @property
    def form(self) -> nn.Module:
        """The module, or one of the same blocks that has no weights."""
        return self.module

    def weights_exist(self) -> None:
        """Called once they do."""
        self.has_weights = True

    def require_weights(self) -> None:
        """Raise ValueError if there are no weights yet, or if they are no longer the weights of the model."""
        if not self.has_weights:
            raise ValueError("this model has no weights yet; call model.materialize(device) first")
        if self.is_outdated is not None and self.is_outdated():
            raise ValueError(
                "the model has been moved, or has new parameters, since this policy was taken from it; "
                "get it again: model.policy[...]"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "is_outdated": None}  # a copy has weights of its own

    @property
    def call(self) -> Callable[..., Any]:
        """What `run` and `advance` call; it takes and returns what they do."""
        return self.module

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Outputs; memory starts from zero."""
        return self.call(inputs)

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        """Outputs and the state after one step (...), or with ``unroll`` after all steps (..., T)."""
        return self.call(inputs, state, resets, unroll)

    def initial_state(
        self, leading: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> State:
        return {
            name: torch.zeros((*leading, *shape), device=device, dtype=dtype)  # type: ignore[arg-type]
            for name, shape in self.state_shapes.items()
        }


class GraphNetwork(Network):
    """A network of blocks."""

    def __init__(self, block: InferenceBlock) -> None:
        self.module = block
        self.in_ports = block.in_ports
        self.out_ports = block.out_ports
        self.state_shapes = block.state_shapes


class CustomNetwork(Network):
    """A user's ``nn.Module`` from dict to dict. It always sees exactly one batch axis.

    One with memory has ``state_shapes`` and ``forward(inputs, state, resets) -> (outputs, state)`` for one step.
    """

    def __init__(
        self, module: nn.Module, in_ports: dict[str, Port], out_ports: dict[str, Port]
    ) -> None:
        self.module = module
        self.in_ports = in_ports
        self.out_ports = out_ports
        shapes = getattr(module, "state_shapes", None) or {}
        self.state_shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._ranks = {name: len(port.shape) for name, port in in_ports.items()}
        self._state_ranks = {name: len(shape) for name, shape in self.state_shapes.items()}

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        if not self.state_shapes:
            return self.advance(inputs, {}, None, False)[0]
        values = [inputs[name] for name in self._ranks]
        dtypes = [value.dtype for value in values if value.is_floating_point()]
        dtype = dtypes[0] if dtypes else torch.get_default_dtype()
        zeros = self.initial_state(self._leading(inputs), values[0].device, dtype)
        return self.advance(inputs, zeros, None, False)[0]

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        if unroll:
            return self._unroll(inputs, state, resets)
        leading = self._leading(inputs)
        flat = _flattened(inputs, self._ranks, leading)
        if not self.state_shapes:
            return _restored(self.module(flat), leading), {}
        outputs, after = self.module(
            flat,
            _flattened(state, self._state_ranks, leading),
            None if resets is None else resets.reshape(-1),
        )
        return _restored(outputs, leading), _restored(after, leading)

    def _unroll(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None
    ) -> tuple[Tensors, State]:
        axis = len(self._leading(inputs)) - 1
        steps = next(iter(inputs.values())).shape[axis]
        outputs: list[Tensors] = []
        for t in range(steps):
            inputs_t = {name: value.select(axis, t) for name, value in inputs.items()}
            resets_t = None if resets is None else resets[..., t]
            out, state = self.advance(inputs_t, state, resets_t, False)
            outputs.append(out)
        stacked = {name: torch.stack([o[name] for o in outputs], axis) for name in outputs[0]}
        return stacked, state

    def _leading(self, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        name = next(iter(self._ranks))
        shape = inputs[name].shape
        return tuple(shape[: len(shape) - self._ranks[name]])


class EnsembleNetwork(Network):
    """An ensemble of a user's network as one; its outputs have the axis of the copies before those of their shape."""

    def __init__(self, name: str, ensemble: EnsembleBlock, in_ports: dict[str, Port]) -> None:
        self.module = nn.Module()
        self.module._modules[name] = ensemble
        self._name = name
        self.in_ports = in_ports
        self.out_ports = ensemble.out_ports
        self.state_shapes = ensemble.state_shapes

    @property
    def ensemble(self) -> EnsembleBlock:
        return self.module._modules[self._name]  # type: ignore[return-value]

    @property
    def call(self) -> Callable[..., Any]:
        return self.ensemble


class ToldNetwork(Network):
    """A ``network`` of several actors for one of them: it reads the ``index`` as its input `ACTOR`."""

    def __init__(self, network: Network, index: int) -> None:
        self.network = network
        self.index = index
        self.module = network.module
        self.in_ports = {name: port for name, port in network.in_ports.items() if name != ACTOR}
        self.out_ports = network.out_ports
        self.state_shapes = network.state_shapes
        self.owns_weights = network.owns_weights
        self.after = network.after

    @property
    def form(self) -> nn.Module:
        return self.network.form

    def weights_exist(self) -> None:
        self.network.weights_exist()

    def require_weights(self) -> None:
        self.network.require_weights()

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return self.network.run(with_actor(inputs, self.in_ports, self.index))

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        told = with_actor(inputs, self.in_ports, self.index)
        return self.network.advance(told, state, resets, unroll)


def with_actor(
    inputs: Mapping[str, Tensor], ports: Mapping[str, Port], index: int | Tensor
) -> Inputs:
    """``inputs`` beside the index of the actor that they are of, or one index for each of their leading axes."""
    name = next(name for name in ports if name in inputs)
    value = inputs[name]
    leading = value.shape[: value.dim() - len(ports[name].shape)]
    if isinstance(index, Tensor):
        index = index.to(value.device)
        told = index.reshape(-1, *[1] * (len(leading) - 1)).expand(leading)
    else:
        told = torch.full(leading, index, dtype=torch.int64, device=value.device)
    return Inputs({**inputs, ACTOR: told})


def share_of(part: str, state: State) -> State:
    """The entries of a whole model's state of its ``part`` ("policy", "critic"), under the part's own names."""
    prefix = f"{part}/"
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def own_share(part: str, state: State, is_own: Callable[[str], bool]) -> tuple[State, State | None]:
    """The entries of ``state`` of the ``part``, and the whole model's state where that was given, else None.

    ``is_own`` says which names are the part's own: a node may be called as a part is.
    """
    names = list(map(str, state))
    if any(map(is_own, names)) or not any(name.startswith(f"{part}/") for name in names):
        return state, None
    return share_of(part, state), state


def _flattened(
    values: Mapping[str, Tensor], ranks: Mapping[str, int], leading: tuple[int, ...]
) -> Tensors:
    if len(leading) == 1:
        return {name: values[name] for name in ranks}
    size = math.prod(leading)
    return {
        name: values[name].reshape(size, *values[name].shape[values[name].dim() - rank :])
        for name, rank in ranks.items()
    }


def _restored(values: Mapping[str, Tensor], leading: tuple[int, ...]) -> Tensors:
    if len(leading) == 1:
        return dict(values)
    return {name: value.reshape((*leading, *value.shape[1:])) for name, value in values.items()}
