"""Composed models as policies of sb3-contrib's MaskablePPO and RecurrentPPO."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from composer.adapters.sb3.policies import ActorCritic, PyTorchObs, Schedule
from composer.distributions.base import Distribution
from composer.network.module import longest_episode
from composer.network.network import State, Tensors
from composer.spaces.values import flags_for
from perception_blocks.blocks.key_value_cache import Placement
from perception_blocks.registry import missing_extra

try:
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates
except ImportError as error:
    raise missing_extra("composer.adapters.sb3", error, "sb3") from error

__all__ = ["MaskableActorCritic", "RecurrentActorCritic"]

Packed = tuple[Tensor, ...]
"""A state as the host carries it: two tensors (1, B, half of all numbers), as of one LSTM."""


class MaskableActorCritic(ActorCritic, MaskableActorCriticPolicy):  # type: ignore[override]
    """A composed model as the policy of MaskablePPO."""

    algorithm = "MaskablePPO"


class _Handed(NamedTuple):
    """The state that the host got last: while it collects, it hands back the very same, which need not be read."""

    packed: Packed
    versions: list[int]  # which count changes in place
    state: State
    read: Tensor


def _handed(packed: Packed, state: State, read: Tensor) -> _Handed | None:
    """None for tensors that would keep a graph alive, and for those whose changes PyTorch does not count."""
    if any(each.requires_grad or each.is_inference() for each in packed):
        return None
    return _Handed(packed, _versions(packed), state, read)


def _versions(packed: Packed) -> list[int]:
    return [each._version for each in packed]


class RecurrentActorCritic(ActorCritic, RecurrentActorCriticPolicy):
    """A composed model with memory as the policy of RecurrentPPO.

    The host stores two tensors for the actor and two for the critic. The state of the whole model, whatever blocks it
    is made of, travels in each pair as one row of numbers. Where a memory has room for so many steps only, so does the
    number of those that it has read.
    """

    algorithm = "RecurrentPPO"
    _handed: _Handed | None = None

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self._longest = longest_episode(self.model)
        width = math.ceil((self.model.state_width + (self._longest is not None)) / 2)
        self.lstm_actor = SimpleNamespace(num_layers=1, hidden_size=width)  # the host asks it
        self.lstm_hidden_state_shape = (1, 1, width)

    def forward(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        lstm_states: RNNStates,
        episode_starts: Tensor,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """Actions, values (B, 1), log-probabilities (B,) and the state after."""
        (state, read), resets = self._unpack(lstm_states.pi), episode_starts > 0.5
        step = self.step(obs, state=state, resets=resets, deterministic=deterministic)
        assert step.state is not None  # as `refuse` says
        packed = self._pack(step.state, read, resets)
        return *self.acted(step), RNNStates(packed, packed)

    def evaluate_actions(  # type: ignore[override]
        self, obs: PyTorchObs, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (N * T, 1), log-probabilities and entropies (N * T,) of N padded sequences of T steps."""
        leading = (lstm_states.pi[0].shape[1], -1)
        flat = self.observations.read(obs, self.observation_space, leading)
        observations = self.policy.as_observed(self._without_padding(flat))
        starts = episode_starts.reshape(leading) > 0.5
        state, resets = self._begun(*self._unpack(lstm_states.pi), starts)
        actions = self.actions.without_padding(actions)
        taken = self.actions.from_host(actions, self.policy.dtype, leading)
        return self.judged(self.lowered.step(observations, taken, state, resets, unroll=True))

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: Packed, episode_starts: Tensor
    ) -> tuple[Distribution, Packed]:
        """The model's own distribution, and the state after."""
        policy, observations = self.policy, self.read(obs)
        if not policy.has_memory:
            return policy.distribution(observations), lstm_states
        (state, read), resets = self._unpack(lstm_states), episode_starts > 0.5
        distribution, after = policy.distribution(observations, state, resets)
        return distribution, self._pack(after, read, resets)

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: Packed, episode_starts: Tensor
    ) -> Tensor:
        """Values (B, 1)."""
        state, _ = self._unpack(lstm_states)
        value = self.lowered.value(self.read(obs), state, episode_starts > 0.5)
        return value.float().unsqueeze(-1)

    def _predict(  # type: ignore[override]
        self,
        observation: PyTorchObs,
        lstm_states: Packed,
        episode_starts: Tensor,
        deterministic: bool = False,
    ) -> tuple[Tensor, Packed]:
        distribution, after = self.get_distribution(observation, lstm_states, episode_starts)
        return self.draw(distribution, deterministic), after

    def _pack(self, state: State, read: Tensor, resets: Tensor) -> Packed:
        """The state after one more step, and how many steps of its episode each row has read with it.

        ``read`` is that number before the step.
        """
        row, width = self.model.pack_state(state).float(), self.lstm_actor.hidden_size
        if self._longest is not None:
            read = read.masked_fill(resets.unsqueeze(-1), 0.0) + 1
            row = torch.cat([row, read], -1)
        if missing := 2 * width - row.shape[-1]:
            row = torch.nn.functional.pad(row, (0, missing))
        packed = tuple(half.unsqueeze(0) for half in row.split(width, -1))
        self._handed = _handed(packed, state, read)
        return packed

    def _unpack(self, packed: Packed) -> tuple[State, Tensor]:
        """The state and the steps that were read, (B, 1)."""
        handed = self._handed
        if handed is not None and packed is handed.packed and _versions(packed) == handed.versions:
            return handed.state, handed.read
        row, width = torch.cat([half.squeeze(0) for half in packed], -1), self.model.state_width
        return self.model.unpack_state(row[:, :width]), row[:, width : width + 1]

    def _begun(self, state: State, read: Tensor, starts: Tensor) -> tuple[State, Tensor | None]:
        """The state and resets of sequences: where they begin as episodes do no reset is left, and fused kernels run.

        ``starts`` is (N, T). A memory that is full is reset: there the host's padding has begun. No episode has more
        steps than there is room for, or it could not have been collected, and the host ignores what padding gives.
        """
        if self._longest is not None:
            places = Placement(read.squeeze(-1).long(), starts.shape[-1], starts).places
            starts = starts | ((places > 0) & (places % self._longest == 0))
        first = starts[:, 0]
        state = {
            name: each.masked_fill(flags_for(each, first), 0.0) for name, each in state.items()
        }
        return state, (starts if bool(starts[:, 1:].any()) else None)

    def _without_padding(self, flat: Tensors) -> Tensors:
        """``flat`` with valid observations in place of the zeros with which the host pads short sequences.

        The host ignores their results, but zeros may be invalid: as a mask, or as a number that starts later.
        """
        policy, filled = self.policy, dict(flat)
        for action, key in policy.masks.items():
            if policy.action_tree.leaves[action].port.cardinality is not None:
                legal = filled[key] != 0
                filled[key] = legal | flags_for(legal, ~legal.flatten(2).any(-1))
        for key, leaf in self.observations.tree.leaves.items():
            if leaf.integers is not None and filled[key].dtype != torch.bool:
                low, high = (torch.as_tensor(b).to(filled[key]) for b in leaf.integers[:2])
                filled[key] = filled[key].clamp(low, high)
        return filled
