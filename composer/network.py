"""One network of a policy or critic, whether it is a graph of blocks or a user's own class.

A `Network` runs the module; it owns no parameters of its own. `NetworkModule` is the ``nn.Module`` around it: it holds
the very registries of the network's module, so that parameters are called ``policy.<node>...`` and nothing is double.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from composer.space_kinds import as_tensor
from composer.space_values import as_flags
from perception_blocks.ensemble import EnsembleBlock
from perception_blocks.inference import InferenceBlock, submodule_at
from perception_blocks.port import Port, Shape, format_shape

__all__ = ["EnsembleNetwork", "CustomNetwork", "GraphNetwork", "Network", "EnsembleMember"]
__all__ += [
    "NetworkModule",
    "OwnAttributes",
    "State",
    "Tensors",
    "is_empty",
    "own_share",
    "share_of",
    "state_axes",
    "under",
]

# Where nn.Module keeps what belongs to it.
REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")

Tensors = dict[str, Tensor]
State = dict[str, Tensor]


class Network:
    """A module, and the names and Ports of what goes in and comes out."""

    module: nn.Module
    in_ports: dict[str, Port]
    out_ports: dict[str, Port]
    state_shapes: dict[str, Shape]
    owns_weights = True  # whether ``module`` holds them
    has_weights = True  # else it is on the meta device so far
    # Of one over another module's weights: whether they are elsewhere by now.
    is_outdated: Callable[[], bool] | None = None

    @property
    def form(self) -> nn.Module:
        """Of which blocks it is made: the module, or one like it that has no weights."""
        return self.module

    def weights_exist(self) -> None:
        """Called once they do."""
        self.has_weights = True

    def require_weights(self) -> None:
        """Raise ValueError where there are no weights so far, or not those of the model any more."""
        if not self.has_weights:
            raise ValueError(
                "this model has no weights so far; call model.materialize(device) first"
            )
        if self.is_outdated is not None and self.is_outdated():
            raise ValueError(
                "the model has been moved, or has new parameters, since this policy was taken from it; "
                "ask for it again: model.policy[...]"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "is_outdated": None}  # a copy has weights of its own

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Outputs; memory starts from zero."""
        raise TypeError(f"{type(self).__name__} must define run")

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        """Outputs and the state after one step (...), or with ``unroll`` after all steps (..., T)."""
        raise TypeError(f"{type(self).__name__} must define advance")

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

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return self.module(inputs)

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        return self.module(inputs, state, resets, unroll)


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
        leading = self._leading(inputs)
        flat = _flattened(inputs, self._ranks, leading)
        if not self.state_shapes:
            return _restored(self.module(flat), leading)
        like = next((t for t in flat.values() if t.is_floating_point()), None)
        where = next(iter(flat.values())).device
        dtype = torch.get_default_dtype() if like is None else like.dtype
        zeros = self.initial_state((math.prod(leading),), where, dtype)
        return _restored(self.module(flat, zeros, None)[0], leading)

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
        return {
            name: torch.stack([o[name] for o in outputs], dim=axis) for name in outputs[0]
        }, state

    def _leading(self, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        name = next(iter(self._ranks))
        shape = inputs[name].shape
        return tuple(shape[: len(shape) - self._ranks[name]])


class EnsembleNetwork(Network):
    """An ensemble of a user's network as one; its outputs have the axis of the copies before those of their shape."""

    def __init__(self, name: str, ensemble: EnsembleBlock, in_ports: dict[str, Port]) -> None:
        self.module = nn.Module()
        self.module._modules[name] = ensemble
        self.in_ports = in_ports
        self.out_ports = ensemble.out_ports
        self.state_shapes = ensemble.state_shapes

    @property
    def ensemble(self) -> EnsembleBlock:
        return next(m for m in self.module.children() if isinstance(m, EnsembleBlock))

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return self.ensemble(inputs)

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        return self.ensemble(inputs, state, resets, unroll)


class OwnAttributes(nn.Module):
    """A module whose children have names that others chose: an attribute called as a child does not touch that."""

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None or isinstance(value, nn.Module | Tensor):
            super().__setattr__(name, value)  # type: ignore[arg-type]
        else:
            object.__setattr__(self, name, value)


class NetworkModule(OwnAttributes):
    """The ``nn.Module`` of a network: same parameters, buffers and children, under the same names.

    Children that are added to it are children of the network's module too.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        object.__setattr__(self, "network", network)  # not a child: its registries are ours
        for registry in REGISTRIES:
            object.__setattr__(self, registry, getattr(network.module, registry))
        self._dtype = dtype
        self._device = torch.device("cpu")

    network: Network
    call_arguments = "observations, state, resets"  # of one with memory, in messages

    @property
    def has_memory(self) -> bool:
        return bool(self.network.state_shapes)

    @property
    def state_shapes(self) -> dict[str, Shape]:
        """Shapes of the carried state, without leading axes; empty for a network without memory."""
        return self.network.state_shapes

    @property
    def device(self) -> torch.device:
        """Where the model is: what ``.to()`` was told last."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's numbers: what ``.to()`` was told last."""
        return self._dtype

    def initial_state(
        self,
        batch_size: int | Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """A zero state for ``batch_size`` environments (a number, or leading axes; () is the unbatched case)."""
        leading = _axes(batch_size)
        where = self.device if device is None else torch.device(device)
        return self.network.initial_state(leading, where, dtype or self.dtype)

    def train(self, mode: bool = True) -> Any:
        self.network.module.train(mode)
        return super().train(mode)

    def get_submodule(self, target: str) -> nn.Module:
        return submodule_at(self, target)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        probe = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        self._dtype, self._device = probe.dtype, probe.device
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        if self.network.owns_weights:  # else whoever holds them loads them
            super()._load_from_state_dict(*arguments, **keywords)

    def evaluate(
        self, inputs: Tensors, state: State | None, resets: Any, name: str, unroll: bool = False
    ) -> tuple[Tensors, State]:
        """Outputs and the state after; ``name`` is what the caller of this network calls it.

        The state may be that of a whole model: then the state after is that too, with this part moved on.

        Raises ValueError for a state or resets that do not fit the inputs, and where there are no weights so far.
        """
        self.require_weights()
        if not self.has_memory:
            if not is_empty(state):
                raise ValueError(f"this {name} has no memory; call it without a state")
            return self.network.run(inputs), {}
        leading = self.leading(inputs)
        whole = None
        if isinstance(state, Mapping) and state.keys() != self.state_shapes.keys():
            state, whole = own_share(name, state, self.state_shapes.__contains__)
        call = self.call("unroll" if unroll else name)
        self.check_state(state, state_axes(leading, unroll), call)
        resets = self.read_resets(resets, leading)
        outputs, after = self.network.advance(inputs, state, resets, unroll)  # type: ignore[arg-type]
        return outputs, after if whole is None else {**whole, **under(name, after)}

    def call(self, name: str) -> str:
        """How it is called as ``name``, for messages."""
        arguments = self.call_arguments
        if not self.has_memory:
            arguments = arguments.removesuffix(", state, resets")
        return f"{name}({arguments})"

    def require_weights(self) -> None:
        self.network.require_weights()

    def leading(self, inputs: Tensors) -> tuple[int, ...]:
        """The axes before those of the inputs' own shapes. Raises ValueError unless all share them."""
        found: dict[str, tuple[int, ...]] = {}
        for name, port in self.network.in_ports.items():
            shape = inputs[name].shape
            found[name] = tuple(shape[: len(shape) - len(port.shape)])
        leading = next(iter(found.values()))
        if any(axes != leading for axes in found.values()):  # no set: hashing would fix the size
            shown = ", ".join(f"{name!r} {format_shape(axes)}" for name, axes in found.items())
            raise ValueError(f"the inputs differ in their leading (batch) axes: {shown}")
        return leading

    def check_state(self, state: State | None, leading: tuple[int, ...], call: str) -> None:
        """Raise ValueError unless ``state`` is one for these leading axes; ``call`` is how to call this right."""
        if state is None:
            raise ValueError(
                f"this network has memory; call {call}, beginning with initial_state(batch_size)"
            )
        if not isinstance(state, Mapping):
            kind = type(state).__name__
            raise ValueError(f"the state is a dict of tensors, as {call} returns it, got a {kind}")
        if state.keys() != self.state_shapes.keys():
            expected, got = (
                ", ".join(map(repr, keys)) or "nothing" for keys in (self.state_shapes, state)
            )
            raise ValueError(f"the state needs {expected}, got {got}")
        for name, shape in self.state_shapes.items():
            if not isinstance(state[name], Tensor):
                kind = type(state[name]).__name__
                raise ValueError(f"the state {name!r} must be a tensor, got a {kind}")
            if tuple(state[name].shape) != (*leading, *shape):
                expected, got = format_shape((*leading, *shape)), format_shape(state[name].shape)
                raise ValueError(f"the state {name!r} must have the shape {expected}, got {got}")
            if state[name].dtype != self.dtype:
                self._refuse_other_dtype(name, state[name])

    def _refuse_other_dtype(self, name: str, value: Tensor) -> None:
        """A class of the user's own may have states of any dtype, and under autocast they come out narrower."""
        if isinstance(self.network, CustomNetwork):
            return
        if not (value.is_floating_point() and torch.is_autocast_enabled(value.device.type)):
            expected, got = (
                str(dtype).removeprefix("torch.") for dtype in (self.dtype, value.dtype)
            )
            raise ValueError(
                f"the state {name!r} must be {expected}, got {got}; begin with initial_state(batch_size)"
            )

    def read_resets(self, resets: Any, leading: tuple[int, ...]) -> Tensor | None:
        """``resets`` as a tensor of booleans. Raises ValueError unless there is one for each observation."""
        if resets is None:
            return None
        resets = as_tensor("resets", resets)
        if tuple(resets.shape) != leading:
            expected, got = format_shape(leading), format_shape(resets.shape)
            raise ValueError(f"resets must have the shape {expected}, got {got}")
        return as_flags("resets", resets).to(self.device)


class EnsembleMember(NetworkModule):
    """A network that is called as an InferenceBlock is: what an EnsembleBlock is made of."""

    def __init__(self, network: Network) -> None:
        super().__init__(network, torch.get_default_dtype())
        self.in_keys = list(network.in_ports)
        self.in_ports = network.in_ports
        self.out_ports = network.out_ports

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        state: State | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Any:
        if state is None:
            return self.network.run(inputs)
        return self.network.advance(inputs, state, resets, unroll)


def state_axes(leading: tuple[int, ...], unroll: bool) -> tuple[int, ...]:
    """The leading axes of a state for inputs of these; with ``unroll`` those before time.

    Raises ValueError where there are no steps to unroll.
    """
    if not unroll:
        return leading
    if not leading or leading[-1] == 0:
        got = format_shape(leading)
        raise ValueError(f"unroll takes sequences (..., T) of at least one step, got {got}")
    return leading[:-1]


def is_empty(state: Any) -> bool:
    """Whether what is given as a state is none, as of a network without memory."""
    return state is None or (isinstance(state, Mapping) and not state)


def share_of(part: str, state: State) -> State:
    """What of a whole model's state is of its ``part`` ("policy", "critic"), under that part's own names."""
    prefix = f"{part}/"
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def own_share(part: str, state: State, is_own: Callable[[str], bool]) -> tuple[State, State | None]:
    """What of ``state`` is of the ``part``, and the whole model's state where that was given, else None.

    ``is_own`` says which names are the part's own: a node may be called as a part is.
    """
    names = list(map(str, state))
    if any(map(is_own, names)) or not any(name.startswith(f"{part}/") for name in names):
        return state, None
    return share_of(part, state), state


def under(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The way back: values of a part under the names that a whole model has for them."""
    return {f"{part}/{key}": value for key, value in values.items()}


def _axes(batch_size: Any) -> tuple[int, ...]:
    try:
        leading = (batch_size,) if isinstance(batch_size, int) else tuple(map(index, batch_size))
    except TypeError:
        leading = (-1,)
    if any(size < 0 for size in leading):
        raise ValueError(
            f"batch_size is a number, or the sizes of several leading axes, got {batch_size!r}"
        )
    return leading


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
