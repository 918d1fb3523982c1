"""Critic: observations (and values a policy shares) to values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from composer.critic.values import (
    ValueRequirements,
    count_returns,
    read_returns,
    scalar_shape,
    value_block,
)
from composer.network.module import InputSource, NetworkModule, OutputMeaning
from composer.network.network import ACTOR, Inputs, Network, State, Tensors
from composer.network.structured import StructuredModule
from composer.spaces.observer import Observer
from composer.spaces.tree import SpaceTree
from composer.spec.model_spec import CRITICS
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.port import Port
from perception_blocks.words import listing

if TYPE_CHECKING:
    from perception_blocks.blocks.scale import Group

__all__ = ["CRITICS", "SEPARATE", "CriticKind", "CriticModule", "CriticSetup"]
__all__ += ["MissingArgumentError", "SpaceCritic", "can_stand_for", "shared_values"]

SEPARATE = "'separate' gives each agent a critic of its own, for kind: state and kind: state_action"


class CriticKind:
    """What the class that is registered in `CRITICS` for a kind of critic tells the composer.

    ``refused`` says of settings in the spec why this kind does not take them; ``serves_space`` is False for a kind that
    is for several actors only.
    """

    refused: ClassVar[Mapping[str, str]] = {
        "stack": "'stack' puts the observations of all actors together, for kind: shared_state"
    }
    serves_space: ClassVar[bool] = True
    only_for_all: ClassVar[str | None] = None  # why one of several actors has none alone
    reads_presence = False  # whether it reads which actors there are
    value_normalizer: NormalizeBlock | None = None

    @classmethod
    def member(cls) -> type[SpaceCritic]:
        """The class of the critic of one Space, and of each network among several that give a value for each actor."""
        raise TypeError(f"{cls.__name__} must define member")

    @classmethod
    def structured(cls) -> type[StructuredModule | CriticModule] | None:
        """The class of the critic of several actors; None for a kind that is for one Space only."""
        return None

    def export_problems(self) -> Iterable[str]:
        """Why no file can hold it."""
        return ()

    def merge_normalizer(self, other: Any) -> None:
        """Merge the statistics of ``other``, a critic of the same spec."""
        if self.value_normalizer is not None:
            self.value_normalizer.merge(other.value_normalizer)


def can_stand_for(kind: str, other: str) -> bool:
    """Whether critics of ``kind`` serve where those of ``other`` are needed: by their classes.

    >>> can_stand_for("state", "state"), can_stand_for("state_action", "state")
    (True, False)
    """
    return issubclass(CRITICS.get(kind), CRITICS.get(other))


@dataclass(frozen=True)
class CriticSetup:
    """The arguments of a critic beside its network; ``shared`` are all values that the policy shares."""

    observer: Observer
    actions: SpaceTree
    shared: tuple[str, ...]
    dtype: torch.dtype
    copies: int = 1
    value_normalizer: NormalizeBlock | None = None


class CriticModule(CriticKind, NetworkModule):
    """Base of critics of one network: values as numbers, and on the scale of the returns.

    ``value_normalizer`` has the statistics of the returns seen yet if the spec asks for them, else it is None.
    ``shared`` are the values of a policy that it reads; ``actions`` are as for `requirements`.
    """

    def __init__(
        self,
        network: Network,
        actions: SpaceTree | None,
        *,
        shared: tuple[str, ...],
        dtype: torch.dtype,
        value_normalizer: NormalizeBlock | None = None,
    ) -> None:
        super().__init__(network, dtype)
        object.__setattr__(self, "value_normalizer", value_normalizer)
        if value_normalizer is not None:
            self._modules["value_normalizer"] = value_normalizer
        names = self.requirements(actions).heads
        self._value_blocks = {name: value_block(network.form, name) for name in names}
        self.shared = shared

    part = "critic"
    takes_action = False
    copies = 1  # of an ensemble
    added: ClassVar[tuple[str, ...]] = ("value_normalizer",)  # children that its network has not

    @classmethod
    def requirements(cls, actions: SpaceTree | None) -> ValueRequirements:
        """What the network must give. ``actions`` are the actions to value; None for one value of all actors."""
        return ValueRequirements({"value": (1,)}, {"value": "a critic"})

    @property
    def out_ports(self) -> dict[str, Port]:
        """The Ports of what a call returns."""
        ports: dict[str, Port] = {}
        for name, port in self.network.out_ports.items():
            block = self._value_blocks.get(name)
            ports[name] = port if block is None else Port(scalar_shape(block, port.shape))
            if block is not None and block.raw_name is not None:
                ports[f"{name}_{block.raw_name}"] = port
            if self.value_normalizer is not None and name in self._value_blocks:
                ports[f"normalized_{name}"] = ports[name]
        return ports

    def output_meanings(self) -> dict[str, OutputMeaning]:
        means = {"quantiles": "mean of its quantiles", "logits": "mean of its bins"}
        scale = "on the scale of returns" if self.value_normalizer is not None else ""
        raw = {name: block and block.raw_name for name, block in self._value_blocks.items()}
        notes = {n: ", ".join(filter(None, [means.get(k or ""), scale])) for n, k in raw.items()}
        return {n: OutputMeaning(port, note=notes.get(n, "")) for n, port in self.out_ports.items()}

    def critic_of(self, actor: str | None) -> CriticModule:
        """The critic of ``actor``, alone or with others."""
        return self

    def own_children(self) -> dict[str, nn.Module]:
        children = self._modules.items()
        return {name: child for name, child in children if name in self.added and child is not None}

    def values_of(self, outputs: Tensors) -> Tensors:
        """The values that ``outputs`` of the network stand for.

        A head that gives quantiles or bins becomes their mean, with what came beside it: ``value`` (..., 1) and
        ``value_quantiles`` or ``value_logits``. With a normaliser values are on the scale of the returns that it has
        seen, and ``normalized_value`` is what the network gives.
        """
        normalizer = self.value_normalizer
        values: Tensors = {}
        for name, output in outputs.items():
            if name not in self._value_blocks:
                values[name] = output
                continue
            block = self._value_blocks[name]
            value = output if block is None else block.to_scalar(output)
            values[name] = value if normalizer is None else normalizer.denormalize(value)
            if block is not None and block.raw_name is not None:
                values[f"{name}_{block.raw_name}"] = output
            if normalizer is not None:
                values[f"normalized_{name}"] = value
        return values

    def value(self, *arguments: object, **keywords: object) -> Any:
        """The value, of shape (...); of an ensemble (..., n); with memory (value, state).

        It is called as the critic is.
        """
        try:
            result = self(*arguments, **keywords)
        except MissingArgumentError as error:
            raise error.of_value() from None
        values, after = self._split(result)
        return self._returned(self.number_of(values), after)

    def call(self, name: str = "critic") -> str:
        call = super().call(name)
        return f"{call.removesuffix(')')}, shared=logits)" if self.shared else call

    def number_of(self, values: Tensors) -> Tensor:
        """The value among ``values``, the result of a call, of shape (...)."""
        return values["value"].squeeze(-1)

    def update_normalizer(self, returns: object, group: Group = None) -> None:
        """Update the statistics that scale the values with ``returns`` (any shape).

        Raises ValueError if the spec has no ``normalize_value``.
        """
        count_returns(self.value_normalizer, [read_returns(returns, self.device)], group)

    def computed(
        self, inputs: Tensors, state: State | None, resets: object, unroll: bool
    ) -> tuple[Tensors, State]:
        """Values, and the state after. Raises ValueError for inputs of different batches."""
        if len(inputs) > 1 and not self.has_memory:  # with memory, what follows looks at them
            self.leading(inputs)  # else values of another batch would be broadcast
        outputs, after = self.evaluate(inputs, state, resets, unroll)
        return self.values_of(outputs), after


class MissingArgumentError(ValueError):
    """A critic was called without what it reads beside the observations: what that is, the right call, and another."""

    def __init__(self, what: str, call: str, otherwise: str) -> None:
        super().__init__(f"{what}; call {call}, {otherwise}")
        self._what, self._call, self._otherwise = what, call, otherwise

    def __reduce__(self) -> tuple:
        return (MissingArgumentError, (self._what, self._call, self._otherwise))

    def of_value(self) -> ValueError:
        """The same of ``critic.value``, which the model itself does not give."""
        return ValueError(f"{self._what}; call {self._call.replace('critic(', 'critic.value(', 1)}")


class SpaceCritic(CriticModule):
    """A critic that reads the observations of one Space, and what a policy shares."""

    def __init__(self, network: Network, setup: CriticSetup) -> None:
        shared = tuple(name for name in setup.shared if name in network.in_ports)
        super().__init__(
            network, setup.actions,
            shared=shared, dtype=setup.dtype, value_normalizer=setup.value_normalizer,
        )  # fmt: skip
        self.setup = setup
        self.observer = setup.observer
        ports = setup.observer.tree.ports
        self.reads_actor = ACTOR in network.in_ports and ACTOR not in (*ports, *shared)
        self.read_keys = tuple(name for name in network.in_ports if name in ports)

    observer: Observer

    def input_sources(self) -> dict[str, InputSource]:
        return {name: self._source(name, port) for name, port in self.network.in_ports.items()}

    def _source(self, name: str, port: Port) -> InputSource:
        if name in self.shared:
            return InputSource("shared", name, port)
        if name in self.read_keys:
            return InputSource("observation", name, port, normalized=name in self.observer.keys)
        if name == ACTOR and self.reads_actor:
            return InputSource("actor", name, port)
        return InputSource("previous", "value", port)

    @classmethod
    def member(cls) -> type[SpaceCritic]:
        return cls

    @classmethod
    def build(cls, network: Network, setup: CriticSetup) -> Self:
        """The critic over ``network``, which gives what `requirements` asks for."""
        return cls(network, setup)

    def with_network(self, network: Network, setup: CriticSetup | None = None) -> Self:
        """The same critic over another network of the same form, without a target; ``setup`` is of another actor."""
        setup = replace(setup or self.setup, dtype=self.dtype, value_normalizer=None)
        critic = type(self)(network, setup)
        critic._device, critic.training = self.device, self.training
        object.__setattr__(critic, "value_normalizer", self.value_normalizer)  # no second child
        return critic

    def read(
        self,
        observations: object,
        shared: Mapping[str, Tensor] | None = None,
        observer: Observer | None = None,
    ) -> Inputs:
        """What the network reads of the environment, by its own ``observer`` or another, and of the policy."""
        if isinstance(observations, Inputs):
            return observations
        observer = observer or self.observer
        inputs = observer.read(observations, self.read_keys, self.dtype, self.device)
        return self.with_shared(inputs, shared)

    def with_shared(self, inputs: Tensors, shared: Mapping[str, Tensor] | None) -> Inputs:
        """What the network reads: ``inputs``, the observations as tensors, and what the policy shares."""
        if not self.shared:
            return Inputs(inputs)
        return Inputs(inputs | shared_values(self.shared, shared, self.call()))


def shared_values(names: Sequence[str], shared: Mapping[str, Tensor] | None, call: str) -> Tensors:
    """The values ``names`` of a policy's outputs. Raises ValueError where they are missing, with the right ``call``."""
    missing = [name for name in names if name not in (shared or {})]
    if missing:
        raise MissingArgumentError(
            f"this critic reads {listing(missing)} of the policy",
            f"{call} with the logits that the policy returns",
            "or the model itself",
        )
    return {name: shared[name] for name in names}  # type: ignore[index]
