"""The `nn.Module` around a network, and what it takes from its network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from composer.network.network import (
    ACTOR,
    CustomNetwork,
    Inputs,
    Network,
    State,
    Tensors,
    ToldNetwork,
    own_share,
)
from composer.network.registries import RegistryView
from composer.spaces.kinds import as_tensor
from composer.spaces.values import as_flags
from perception_blocks.base_block import MemoryBlock, is_traced
from perception_blocks.direct import is_plain
from perception_blocks.port import Port, Shape, format_shape
from perception_blocks.words import listing

X = TypeVar("X")

__all__ = ["EnsembleMember", "InputSource", "NetworkModule", "OutputMeaning", "longest_episode"]
__all__ += ["under"]


@dataclass(frozen=True)
class InputSource:
    """Where an input of a network comes from, for diagrams, tables and exports: the value ``key`` of the ``kind``.

    An "input" is one of a network without actions, "shared" values are outputs of a policy, "previous" is the value of
    the critic's network before this one, "presence" says which actors are present, "actor" which of its actors the
    network acts for. Without ``actors`` the input is of
    the actors that the network serves; values of several actors may be ``stacked``.
    """

    kind: Literal["observation", "input", "action", "shared", "previous", "presence", "actor"]
    key: str
    port: Port
    actors: tuple[str, ...] = ()
    stacked: bool = False
    normalized: bool = False

    @property
    def is_handed_over(self) -> bool:
        """Whether another network of the model makes it."""
        return self.kind in ("shared", "previous")


@dataclass(frozen=True)
class OutputMeaning:
    """What an output stands for: parameters of a ``distribution``, a value for the critic, or what a ``note`` says."""

    port: Port
    distribution: nn.Module | None = None
    mask: str | None = None  # the observation that masks the action
    is_shared: bool = False
    note: str = ""


class StatefulModule(RegistryView):
    """What policies and critics have in common: ``module(observations, state, resets)``, for one step or many.

    Every way to use one goes through ``module(...)``, so that hooks run.
    """

    # Of a model, "policy" or "critic": in messages, and before the names of its state.
    part: ClassVar[str]
    call_arguments: ClassVar[str] = "observations, state, resets"  # with memory, in messages
    # Names of states that a spec chooses, for hosts and files.
    state_names: Mapping[str, str] = MappingProxyType({})

    @property
    def has_memory(self) -> bool:
        raise TypeError(f"{type(self).__name__} must define has_memory")

    def unroll(self, *arguments: object, **keywords: object) -> tuple[Any, State]:
        """All steps of (..., T): outputs of every step, and the state after the last; resets (..., T).

        It is called as the module is: ``unroll(observations, state, resets)``.
        """
        return self(*arguments, **keywords, unroll=True)

    def _returned(self, outputs: Any, after: State, unroll: bool = False) -> Any:
        """What a call returns: without memory the outputs alone, except from `unroll`."""
        return (outputs, after) if unroll or self.has_memory else outputs

    def _split(self, result: Any, unroll: bool = False) -> tuple[Any, State]:
        """The outputs and the state after of the ``result`` of a call; without memory the state is empty."""
        return result if unroll or self.has_memory else (result, {})

    def _refuse_state(self, state: object) -> None:
        """Raise ValueError for a state that is given to a module without memory."""
        if state is not None and not (isinstance(state, Mapping) and not state):
            raise ValueError(f"this {self.part} has no memory; call it without a state")


class NetworkModule(StatefulModule):
    """The ``nn.Module`` of a network: same parameters, buffers and children, under the same names.

    Children that are added to it are children of the network's module too.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.view(network.module)
        self._dtype = dtype
        self._device = torch.device("cpu")

    network: Network
    # The class whose `forward` is `computed` for inputs of the network; a subclass may have another.
    direct: ClassVar[type[NetworkModule] | None] = None
    # Of a module that is `told` its actor: the module whose weights it uses, and which moves them.
    _teller: NetworkModule | None = None
    reads_actor = False  # whether its network is told which of its actors it acts for
    shared: tuple[str, ...] = ()  # the values of a policy that it reads

    def input_sources(self) -> dict[str, InputSource]:
        """The inputs of its network by name, and the masks of actions."""
        raise TypeError(f"{type(self).__name__} must define input_sources")

    def output_meanings(self) -> dict[str, OutputMeaning]:
        """The outputs of a call by name."""
        raise TypeError(f"{type(self).__name__} must define output_meanings")

    def own_children(self) -> dict[str, nn.Module]:
        """The children that are its own and not its network's."""
        return {}

    @property
    def has_memory(self) -> bool:
        """Whether it carries a state from step to step."""
        return bool(self.network.state_shapes)

    @property
    def state_shapes(self) -> dict[str, Shape]:
        """Shapes of the carried state, without leading axes; empty for a network without memory."""
        return self.network.state_shapes

    @property
    def device(self) -> torch.device:
        """Where the model is: what ``.to()`` was told last."""
        return self._device if self._teller is None else self._teller.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's numbers: what ``.to()`` was told last."""
        return self._dtype if self._teller is None else self._teller.dtype

    def initial_state(
        self,
        batch_size: int | Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """A zero state for ``batch_size`` environments (a number, or leading axes; () is the unbatched case)."""
        where = self.device if device is None else torch.device(device)
        return self.network.initial_state(_axes(batch_size), where, dtype or self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._teller is not None:
            self._teller._apply(fn, recurse)
            return self
        probe = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        self._dtype, self._device = probe.dtype, probe.device
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: object, **keywords: object) -> None:
        if self.network.owns_weights:  # else whoever holds them loads them
            super()._load_from_state_dict(*arguments, **keywords)

    def run(
        self, inputs: Tensors, state: State | None, resets: object, unroll: bool = False
    ) -> tuple[Tensors, State]:
        """Call this module with the network's ``inputs``; unlike the call it always returns (outputs, state)."""
        inputs = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        if self.direct is not None and is_plain(self, self.direct) and not is_traced():
            return self.computed(inputs, state, resets, unroll)
        if unroll:
            return self(inputs, state=state, resets=resets, unroll=True)
        return self._split(self(inputs, state=state, resets=resets))

    def computed(
        self, inputs: Tensors, state: State | None, resets: object, unroll: bool
    ) -> tuple[Tensors, State]:
        """What a call without hooks returns for ``inputs`` of the network, always with the state after."""
        return self.evaluate(inputs, state, resets, unroll)

    def evaluate(
        self, inputs: Tensors, state: State | None, resets: object, unroll: bool = False
    ) -> tuple[Tensors, State]:
        """Outputs of the network and the state after.

        ``state`` may be the state of a whole model; then the state after is too, with this part's entries advanced.

        Raises ValueError for a state or resets that do not fit the inputs, and where there are no weights yet.
        """
        self.network.require_weights()
        self._refuse_untold(inputs)
        if not self.has_memory:
            self._refuse_state(state)
            return self.network.run(inputs), {}
        whole = None
        if isinstance(state, Mapping) and state.keys() != self.state_shapes.keys():
            state, whole = own_share(self.part, state, self.is_own_state)
        resets = self.checked(state, resets, self.leading(inputs), unroll)
        outputs, after = self.network.advance(inputs, state, resets, unroll)  # type: ignore[arg-type]
        return outputs, after if whole is None else {**whole, **under(self.part, after)}

    def is_own_state(self, name: str) -> bool:
        """Whether ``name`` is an entry of its state."""
        return name in self.network.state_shapes

    def read(self, observations: object) -> Inputs:
        """The network's inputs from ``observations``; `Inputs` are returned as they are."""
        raise TypeError(f"{type(self).__name__} must define read")

    def with_network(self, network: Network) -> Self:
        """The same over another network of the same form."""
        raise TypeError(f"{type(self).__name__} must define with_network")

    def told(self, index: int) -> Self:
        """The same for one of its actors, over the same weights, children and hooks."""
        told = copy.copy(self)
        told.network, told.reads_actor = ToldNetwork(self.network, index), False
        object.__setattr__(told, "_teller", self)  # no child
        return told

    def values_of(self, outputs: Tensors) -> Tensors:
        """What a call returns for these ``outputs`` of the network."""
        return outputs

    def call(self, name: str) -> str:
        """The call of a module called ``name``, for messages."""
        arguments = self.call_arguments
        if not self.has_memory:
            arguments = arguments.removesuffix(", state, resets")
        return f"{name}({arguments})"

    def require_weights(self) -> None:
        self.network.require_weights()

    def leading(self, inputs: Tensors) -> tuple[int, ...]:
        """The leading axes of the inputs, before their Ports' shapes. Raises ValueError unless all share them."""
        self._refuse_untold(inputs)
        axes_by_name: dict[str, tuple[int, ...]] = {}
        for name, port in self.network.in_ports.items():
            shape = inputs[name].shape
            axes_by_name[name] = tuple(shape[: len(shape) - len(port.shape)])
        leading = next(iter(axes_by_name.values()))
        several = len(axes_by_name) > 1
        if several and any(
            axes != leading for axes in axes_by_name.values()
        ):  # hashing would fix the size
            shown = ", ".join(f"{n!r} {format_shape(axes)}" for n, axes in axes_by_name.items())
            raise ValueError(f"the inputs differ in their leading (batch) axes: {shown}")
        return leading

    def _refuse_untold(self, inputs: Tensors) -> None:
        """Raise ValueError where the network is to read its actor and nobody has said which that is."""
        if self.reads_actor and ACTOR not in inputs:
            raise ValueError(
                f"this {self.part} is shared by several actors, and its network reads which of them it acts for; take "
                f"that of one of them: model.{self.part}[actor]"
            )

    def checked(
        self, state: State | None, resets: object, leading: tuple[int, ...], unroll: bool
    ) -> Tensor | None:
        """``resets`` as a tensor. Raises ValueError unless they and ``state`` are for these ``leading`` axes."""
        self._check_state(state, _state_axes(leading, unroll), unroll)
        return self.read_resets(resets, leading)

    def _check_state(self, state: State | None, leading: tuple[int, ...], unroll: bool) -> None:
        """Raise ValueError unless ``state`` has these ``leading`` axes."""
        if not isinstance(state, Mapping):
            call, kind = self.call("unroll" if unroll else self.part), type(state).__name__
            if state is None:
                start = "beginning with initial_state(batch_size)"
                raise ValueError(f"this network has memory; call {call}, {start}")
            raise ValueError(f"the state is a dict of tensors, as {call} returns it, got a {kind}")
        if state.keys() != self.state_shapes.keys():
            expected, got = (listing(keys) or "nothing" for keys in (self.state_shapes, state))
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
            expected, got = (str(t).removeprefix("torch.") for t in (self.dtype, value.dtype))
            raise ValueError(
                f"the state {name!r} must be {expected}, got {got}; begin with initial_state(batch_size)"
            )

    def read_resets(self, resets: object, leading: tuple[int, ...]) -> Tensor | None:
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


def _state_axes(leading: tuple[int, ...], unroll: bool) -> tuple[int, ...]:
    """The leading axes of a state for inputs of these; with ``unroll`` those before time.

    Raises ValueError where there are no steps to unroll.
    """
    if not unroll:
        return leading
    if not leading or leading[-1] == 0:
        got = format_shape(leading)
        raise ValueError(f"unroll takes sequences (..., T) of at least one step, got {got}")
    return leading[:-1]


def under(owner: str, values: Mapping[str, X]) -> dict[str, X]:
    """``values`` of an actor or of a part of the model by name, under the names that all together have for them."""
    return {f"{owner}/{key}": value for key, value in values.items()}


def _axes(batch_size: int | Sequence[int]) -> tuple[int, ...]:
    try:
        leading = (batch_size,) if isinstance(batch_size, int) else tuple(map(index, batch_size))
    except TypeError:
        leading = (-1,)
    if any(size < 0 for size in leading):
        raise ValueError(
            f"batch_size is a number, or the sizes of several leading axes, got {batch_size!r}"
        )
    return leading


def longest_episode(*modules: nn.Module | None) -> int | None:
    """How many steps the memories in ``modules`` have room for; None for any number."""
    blocks = (block for module in modules if module is not None for block in module.modules())
    limits = (block.longest_episode for block in blocks if isinstance(block, MemoryBlock))
    return min((limit for limit in limits if limit is not None), default=None)
