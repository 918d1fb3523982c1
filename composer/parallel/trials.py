"""How a model is used in a proof: on random observations of its spaces, alike whether it is whole or sharded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer.critic.targets import Targeted
from composer.language.action_proof import made_observation
from composer.model import Model
from composer.policy.structured import StructuredPolicy
from composer.spaces.lookup import is_by_actor
from composer.spaces.nested import map_nested
from composer.spaces.samples import batch_of, random_values

__all__ = ["SEED", "ActionTrial", "Trial"]

ROWS, TIMES = 4, 3  # of each process, and the steps of a sequence
LARGEST = 10.0  # of the numbers in observations
SEED = 0


class Trial:
    """A model used on random observations of its spaces: all of a batch, or the share of one of ``data`` processes."""

    def __init__(self, model: Model, data: int, place: int | None) -> None:
        self.model = model
        self._rows = _rows_of(place)
        self._size = data * ROWS if place is None else ROWS
        draw = partial(_drawn, count=data * ROWS, rows=self._rows)
        self.observations = draw(model.observation_space, seed=SEED)
        for key, policy in self._policies():
            _allow_some(self.observations if key is None else self.observations[key], policy)
        self.actions = model.policy.from_environment(draw(model.action_space, seed=SEED + 1))

    def share(self, tensor: Tensor) -> Tensor:
        """Of what all rows gave, that of these."""
        return tensor[self._rows]

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """What every use of the model gives that is a number."""
        policy, critic = self.model.policy, self.model.critic
        results = [self._values(critic.target)] if isinstance(critic, Targeted) else []
        state = self._state(policy)
        results.append(policy.act(self.observations, *state, deterministic=True))
        results.append(self._all())
        if policy.has_memory:
            resets = torch.zeros(self._size, TIMES, dtype=torch.bool, device=policy.device)
            resets[:, 1] = True
            results.append(policy.unroll(_repeated(self.observations), *state, resets))
        return list(_tensors(results))

    def loss(self) -> Tensor:
        """The mean over the rows, in which all outputs and what the distributions learn occur."""
        policy, critic = self.model.policy, self.model.critic
        distribution = policy.distribution(self.observations, *self._state(policy))
        if policy.has_memory:
            distribution, _ = distribution
        pairs = [(distribution, self.actions)]
        if self.model.policy.actors:
            pairs = [(distribution[key], self.actions[key]) for key in distribution]
        terms = [-choice.log_prob(action).mean() for choice, action in pairs]
        values = list(_tensors(self._all()[1]))
        goals: list[Any] = [0.0] * len(values)
        if isinstance(critic, Targeted):
            with torch.no_grad():
                goals = list(_tensors(self._values(critic.target)))
        terms += [(v - goal - 1.0).square().mean() for v, goal in zip(values, goals, strict=True)]
        return torch.stack(terms).sum()

    def follow(self) -> None:
        """What comes after a step of the optimizer."""
        if isinstance(self.model.critic, Targeted):
            self.model.critic.update_targets(0.5)

    def _policies(self) -> Iterator[tuple[Any, Any]]:
        policy = self.model.policy
        if isinstance(policy, StructuredPolicy):
            yield from ((actor.key, policy.policies[actor.name]) for actor in policy.actors)
        else:
            yield None, policy

    def _state(self, part: Any) -> tuple[Any, ...]:
        return (part.initial_state(self._size),) if part.has_memory else ()

    def _all(self) -> Any:
        """(logits, values), and with memory the state after."""
        critic = self.model.critic
        action = self.actions if critic is not None and critic.takes_action else None
        return self.model(self.observations, *self._state(self.model), action=action)

    def _values(self, critic: Any) -> Any:
        keywords: dict[str, Any] = {}
        if critic.has_memory:
            keywords["state"] = critic.initial_state(self._size)
        if critic.shared:
            shared = self.model.policy(self.observations, *self._state(self.model.policy))
            keywords["shared"] = shared[0] if self.model.policy.has_memory else shared
        return critic(self.observations, self.actions, **keywords)


class ActionTrial:
    """An action model used on made images and tasks, alike for every process: padding must be of the same length."""

    def __init__(self, model: Any, data: int, place: int | None) -> None:
        self.model = model

        self._rows = _rows_of(place)
        made = made_observation(model, data * ROWS)
        self.observations = {name: values[self._rows] for name, values in made.items()}
        self._acted: Any = None

    def share(self, tensor: Tensor) -> Tensor:
        return tensor[self._rows]

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        actions, self._acted = self.model.predict_action_batch(self.observations, "eval")
        again = self.model(self._acted["forward_inputs"])
        acted = [self._acted[name] for name in ("prev_logprobs", "prev_values")]
        return list(_tensors([actions, acted, again]))

    def loss(self) -> Tensor:
        again = self.model(self._acted["forward_inputs"])
        chosen = again["logprobs"].mean() + again["entropy"].mean()
        return again["values"].square().mean() - chosen

    def follow(self) -> None:
        """Nothing comes after a step of the optimizer."""


def _rows_of(place: int | None) -> slice:
    return slice(None) if place is None else slice(place * ROWS, (place + 1) * ROWS)


def _drawn(space: Any, count: int, rows: slice, seed: int) -> Any:
    """Random values of ``space``, or of each actor's, as a batch; of ``count`` of them these ``rows``."""
    if is_by_actor(space):
        return {
            key: _drawn(inner, count, rows, seed + index)
            for index, (key, inner) in enumerate(space.items())
        }
    return _tamed(batch_of(space, random_values(space, count, seed)[rows]))


def _tamed(value: Any) -> Any:
    """Without the huge numbers that a Box of wide bounds holds: no network makes anything of those."""
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        return np.clip(value, -LARGEST, LARGEST)
    return {k: _tamed(v) for k, v in value.items()} if isinstance(value, dict) else value


def _allow_some(observations: Any, policy: Any) -> None:
    """Masks of actions that allow at least every other choice."""
    for key in policy.masks.values():
        mask = observations
        for part in policy.observer.tree.leaves[key].path:
            mask = mask[part]
        mask[..., 0::2] = 1


def _repeated(value: Any) -> Any:
    """Batches (B, ...) as sequences (B, T, ...) of the same."""
    return map_nested(lambda leaf: np.repeat(np.asarray(leaf)[:, None], TIMES, axis=1), value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors and arrays of numbers in nested dicts, lists and tuples."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield torch.from_numpy(value)
