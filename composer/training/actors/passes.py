"""One pass of a model of several actors over observations: distributions, values, and the state after.

A rollout and an update make the same passes, over (environments) or over (samples) and (sequences, steps).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from composer.critic.shared_state import SharedStateCritic
from composer.critic.structured import StructuredCriticBase
from composer.distributions.base import Distribution
from composer.model import Model
from composer.network.module import under
from composer.network.network import State, share_of
from composer.policy.structured import StructuredPolicy
from perception_blocks.blocks.scale import NormalizeBlock

__all__ = ["CENTRAL", "ByActor", "ModelPass", "Observations", "Outcome", "Values", "at"]

CENTRAL = ""  # in place of an actor's name: what is of all of them together

ByActor: TypeAlias = dict[str, Tensor]
Observations: TypeAlias = dict[str, dict[str, Tensor]]
"""By actor and flat key, as the environment gives them; of an absent actor anything that its space has."""


class Values(NamedTuple):
    """``value`` is on the scale of the returns, ``learned`` what the network gives; by actor, or under `CENTRAL`."""

    value: ByActor
    learned: ByActor


class Outcome(NamedTuple):
    distributions: dict[str, Distribution]
    values: Values
    state: State


class ModelPass:
    """Calls policy and critic of ``model`` as ``passing(observations, present, state, resets)``.

    ``present`` and ``resets`` (...) are by actor, ``resets`` also under `CENTRAL`: the first step of an episode, where
    an actor's are those of its own life. With ``unroll`` all are sequences (..., T), ``state`` is the one before them.
    """

    def __init__(self, model: Model) -> None:
        policy, critic = model.policy, model.critic
        assert isinstance(policy, StructuredPolicy)
        assert critic is not None
        self.policy: StructuredPolicy = policy
        self.critic = critic
        self.is_central = isinstance(critic, SharedStateCritic)
        self.reads_presence = bool(critic.reads_presence)
        self.names = policy.actors.names
        self.streams = (CENTRAL,) if self.is_central else self.names
        self.has_memory = policy.has_memory or critic.has_memory
        self.device = policy.device

    def initial_state(self, batch_size: int) -> State:
        state: State = {}
        for part in (self.policy, self.critic):
            if part.has_memory:
                state |= under(part.part, part.initial_state(batch_size))
        return state

    def __call__(
        self,
        observations: Observations,
        present: ByActor,
        state: State,
        resets: ByActor,
        *,
        unroll: bool = False,
    ) -> Outcome:
        logits, after = self._advance(self.policy, observations, state, resets, unroll)
        values, more = self._judge(observations, present, state, resets, unroll, logits)
        members = self.policy.policies
        distributions = {
            name: members[name].distribution_of(logits[name], observations[name], None, 1.0)
            for name in self.names
        }
        return Outcome(distributions, values, after | more)

    def value(
        self, observations: Observations, present: ByActor, state: State, resets: ByActor
    ) -> ByActor:
        """The values of one step, without gradient; the policy runs only where the critic reads of it."""
        with torch.no_grad():
            logits = None
            if self.critic.shared:
                logits, _ = self._advance(self.policy, observations, state, resets, False)
            values, _ = self._judge(observations, present, state, resets, False, logits)
        return values.value

    def normalizer(self, stream: str) -> NormalizeBlock | None:
        """The statistics of the returns of a stream of values; None where the spec asks for none."""
        if isinstance(self.critic, StructuredCriticBase):
            return self.critic.critics[stream].value_normalizer
        return self.critic.value_normalizer

    def count_returns(self, returns: ByActor) -> None:
        """Count returns by stream into the statistics of ``normalize_value``."""
        self.critic.update_normalizer(returns[CENTRAL] if self.is_central else returns)

    # --- inside ---

    def _judge(
        self,
        observations: Observations,
        present: ByActor,
        state: State,
        resets: ByActor,
        unroll: bool,
        logits: Mapping[str, Any] | None,
    ) -> tuple[Values, State]:
        keywords: dict[str, Any] = {"shared": logits} if self.critic.shared else {}
        if self.reads_presence:
            keywords["present"] = present
        of_critic: Any = resets[CENTRAL] if self.is_central else resets
        outputs, after = self._advance(
            self.critic, observations, state, of_critic, unroll, **keywords
        )
        by_stream = {CENTRAL: outputs} if self.is_central else outputs
        value = {name: each["value"].squeeze(-1) for name, each in by_stream.items()}
        learned = {
            name: each["normalized_value"].squeeze(-1)
            if "normalized_value" in each
            else value[name]
            for name, each in by_stream.items()
        }
        return Values(value, learned), after

    def _advance(
        self,
        part: Any,
        observations: Observations,
        state: State,
        resets: Any,
        unroll: bool,
        **keywords: Any,
    ) -> tuple[Any, State]:
        """Outputs of a part of the model, and its entries of the state after."""
        if not part.has_memory:
            return part(observations, **keywords), {}
        if isinstance(resets, dict):
            resets = {name: resets[name] for name in self.names}
        share = share_of(part.part, state)
        outputs, after = part(observations, state=share, resets=resets, unroll=unroll, **keywords)
        return outputs, under(part.part, after)


def at(observations: Observations, index: Any) -> Observations:
    """The observations at an ``index`` of their leading axes."""
    return {
        name: {key: tensor[index] for key, tensor in values.items()}
        for name, values in observations.items()
    }
