"""Critics of several actors that have a value each: of its own observations, or built on the value before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from composer.critic.base import CriticKind, CriticSetup, SpaceCritic
from composer.critic.values import count_returns, read_returns
from composer.network.groups import ActorCall, GroupNetworks
from composer.network.network import State, Tensors
from composer.network.registries import TENSORS
from composer.network.structured import ByActor, StructuredModule, blamed
from composer.spaces.actors import Actor, ActorKey, Actors

if TYPE_CHECKING:
    from perception_blocks.blocks.scale import Group

__all__ = ["StructuredCriticBase", "StructuredCritic"]


class StructuredCriticBase(CriticKind, StructuredModule[SpaceCritic]):
    """What critics with a value for each actor have in common.

    ``setups`` are by the flat name of each actor; their ``observers`` read what it observes, as its policy does. Values
    that the policy shares are taken as ``critic(observations, shared=policy_outputs)``.
    """

    part = "critic"
    takes_action = False
    # What networks beside the first call the value before theirs, where values build on one another.
    previous: ClassVar[str | None] = None

    def __init__(
        self, actors: Actors, groups: Sequence[GroupNetworks], setups: Mapping[str, CriticSetup]
    ) -> None:
        super().__init__(actors, groups)
        self.setups = dict(setups)
        self.observers = {name: setup.observer for name, setup in setups.items()}

    @classmethod
    def structured(cls) -> type[StructuredCriticBase]:
        return cls

    @classmethod
    def build(
        cls, actors: Actors, groups: Sequence[GroupNetworks], setups: Mapping[str, CriticSetup]
    ) -> Self:
        """The critic of ``groups``, with the setup of each actor by flat name."""
        return cls(actors, groups, setups)

    def critic_of(self, actor: str | None) -> SpaceCritic:
        """The critic of ``actor``."""
        return self.critics[str(actor)]

    @property
    def shared(self) -> tuple[str, ...]:
        """The values of the policy that any of the networks reads."""
        names = [name for critic in self.critics.values() for name in critic.shared]
        return tuple(dict.fromkeys(names))

    @property
    def critics(self) -> dict[str, SpaceCritic]:
        """The critic of each actor by flat name; actors of one group share one unless they are separate."""
        return {actor.name: self._member_of(actor) for actor in self.actors}

    def __getitem__(self, key: ActorKey) -> SpaceCritic:
        """The critic of one actor alone, over its part of the weights.

        Raises KeyError for an unknown name, and for a group or step whose actors have networks of their own.
        """
        actor = self.actor_of(key)
        whole = self._whole(actor)
        critic = whole.with_network(whole.network, self.setups[actor.name])
        critic.view(whole, TENSORS)
        # Children in a registry of its own: the target is that of all actors.
        critic._modules = {n: child for n, child in whole._modules.items() if n != "target"}
        if critic.value_normalizer is not None:
            # Its child, to move and be saved with it; among all actors it is the group's.
            critic._modules["value_normalizer"] = critic.value_normalizer
        return critic

    @property
    def members(self) -> list[SpaceCritic]:
        """The critics that it is made of, each once."""
        return list({id(critic): critic for critic in self.critics.values()}.values())

    def value(self, *arguments: object, **keywords: object) -> Any:
        """The values alone, {actor: (...)}; with memory (these, state). It is called as the critic is."""
        values, after = self._split(self(*arguments, **keywords))
        return self._returned(self.number_of(values), after)

    def number_of(self, values: ByActor[Tensors]) -> dict[Any, Tensor]:
        """The values {actor: (...)} among ``values``, the result of a call."""
        return {
            entry.key: self._member_of(entry.actor).number_of(entry.value)
            for entry in self.actors.entries(values, "values")
        }

    def update_normalizer(self, returns: object, group: Group = None) -> None:
        """Count returns {actor: (...)} into the statistics of each actor's network; none of them if one is wrong."""
        rows = self._rows_of(returns)
        # All critics in one order: other processes, in which other actors may be present, count along with this one.
        for critic in self.members:
            of_critic = [row for actor, row in rows if self._member_of(actor) is critic]
            count_returns(critic.value_normalizer, of_critic, group)

    def merge_normalizer(self, other: Any) -> None:
        """Merge the statistics of ``other``, a critic of the same spec."""
        super().merge_normalizer(other)
        for ours, theirs in zip(self.members, other.members, strict=True):
            ours.merge_normalizer(theirs)

    def _rows_of(self, returns: object) -> list[tuple[Actor, Tensor]]:
        """The returns as rows (n, 1), each with its actor; an actor may have several."""
        rows = []
        for entry in self.actors.entries(returns, "returns"):
            with blamed(entry.name):
                rows.append((entry.actor, read_returns(entry.value, self.device)))
        return rows

    def _prepared(
        self,
        observations: object,
        state: State | None,
        resets: object,
        shared: ByActor[Tensors] | None,
    ) -> list[ActorCall[SpaceCritic]]:
        """The calls of all present actors, with the values that their policies share."""
        calls = self._calls(observations, state, resets)
        values = self.actors.by_name(shared, "shared values")
        for call in calls:
            call.beside["shared"] = values.get(call.entry.name)
        return calls

    def _answer(
        self, state: State | None, calls: list[ActorCall[SpaceCritic]], unroll: bool
    ) -> Any:
        values = {call.entry.key: call.outputs for call in calls}
        return self._returned(values, self._after(state, calls), unroll)

    def _read_inputs(self, call: ActorCall[SpaceCritic]) -> Tensors:
        observer = self.observers[call.entry.actor.name]
        return call.member.read(call.entry.value, call.beside["shared"], observer)


class StructuredCritic(StructuredCriticBase):
    """A value for each actor: ``critic({actor: observation})`` is {actor: {"value": (..., 1)}}."""

    def forward(
        self,
        observations: ByActor[object],
        state: State | None = None,
        resets: object = None,
        *,
        shared: ByActor[Tensors] | None = None,
        unroll: bool = False,
    ) -> Any:
        """{actor: {"value": (..., 1)}} of all present actors; with memory (these, state)."""
        calls = self._prepared(observations, state, resets, shared)
        self._compute(calls, unroll)
        return self._answer(state, calls, unroll)
