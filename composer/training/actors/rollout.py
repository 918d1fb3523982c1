"""Steps of several environments side by side, stored by actor for an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from composer.network.network import State
from composer.policy.policy import Policy
from composer.spaces.actors import flat_name
from composer.spaces.tree import to_environments
from composer.training.actors.advantages import advantages
from composer.training.actors.passes import CENTRAL, ByActor, ModelPass, Observations
from composer.training.environment import JointEnvironment
from composer.training.trainer import Episode, TrainingError

__all__ = ["Collector", "Rollout"]


@dataclass
class Rollout:
    """T steps of E environments: tensors (T, E, ...) by actor; values, advantages and returns by stream of values.

    ``resets`` are also under `CENTRAL`. ``states`` are those before each sequence, (E, ...) tensors.
    """

    observations: Observations
    actions: dict[str, Any]
    log_probs: ByActor
    present: ByActor
    resets: ByActor
    states: list[State]
    values: ByActor
    advantages: ByActor
    returns: ByActor


class Collector:
    """E copies of an environment, seeded with ``seed``, ``seed + 1``, ..., and where each of them is.

    An episode that ends begins anew at once. An actor that is new, or there again, begins with a new memory.
    """

    def __init__(
        self, model: ModelPass, environments: Sequence[JointEnvironment], seed: int
    ) -> None:
        self._model = model
        self._environments = list(environments)
        self._count = len(self._environments)
        self._members: dict[str, Policy] = model.policy.policies
        self._keys = {name: _keys_of(model, name, member) for name, member in self._members.items()}
        self._absent = {
            name: {key: _placeholder(member, key) for key in self._keys[name]}
            for name, member in self._members.items()
        }
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """Begin new episodes everywhere."""
        seeded = enumerate(self._environments)
        self._seen = [self._by_name(env.reset(seed=seed + index)[0]) for index, env in seeded]
        self._totals = np.zeros(self._count)
        self._lengths = np.zeros(self._count, dtype=int)
        self._was_there: list[frozenset[str]] = [frozenset()] * self._count
        self._state = self._model.initial_state(self._count)

    def collect(
        self,
        steps: int,
        sequence: int,
        report: Callable[[int, list[Episode]], bool],
        *,
        gamma: float,
        gae_lambda: float,
    ) -> Rollout | None:
        """``steps`` steps of each environment; None where ``report`` (steps made, episodes ended) says stop."""
        stored: list[_Stored] = []
        states: list[State] = []
        for number in range(steps):
            if self._model.has_memory and number % sequence == 0:
                states.append(dict(self._state))
            step, episodes = self._step()
            stored.append(step)
            if not report(self._count, episodes):
                return None
        return self._rollout(stored, states, gamma, gae_lambda)

    # --- one step ---

    def _step(self) -> tuple[_Stored, list[Episode]]:
        now = self._now()
        with torch.no_grad():
            outcome = self._model(now.observations, now.present, self._state, now.resets)
            actions = {name: each.sample() for name, each in outcome.distributions.items()}
            log_probs = {n: d.log_prob(actions[n]) for n, d in outcome.distributions.items()}
        streams = self._model.streams
        taken = _Taken(streams, self._count)
        episodes = self._advance(self._for_environments(actions), taken)
        if taken.final:
            last = self._moment([taken.final.get(index, {}) for index in range(self._count)])
            after = self._model.value(last.observations, last.present, outcome.state, last.resets)
        else:
            after = outcome.values.value  # of which nothing is used
        self._state = outcome.state
        bootstrap = {
            s: torch.where(torch.from_numpy(taken.cut[s]), after[s].cpu(), 0.0) for s in streams
        }
        return _Stored(now, actions, log_probs, outcome.values.value, taken, bootstrap), episodes

    def _advance(self, actions: Mapping[str, Sequence[Any]], taken: _Taken) -> list[Episode]:
        """Step every environment, and begin the episodes that ended anew. Fills in ``taken``."""
        episodes = []
        for index, env in enumerate(self._environments):
            acting = {agent: flat_name(agent) for agent in env.agents}
            chosen = {agent: actions[name][index] for agent, name in acting.items()}
            seen, total, terminated, truncated, info = env.step(chosen)
            self._totals[index] += total
            self._lengths[index] += 1
            observations, last = self._by_name(seen), self._by_name(info["last"])
            over = frozenset(n for a, n in acting.items() if info["terminations"].get(a, False))
            cut = frozenset(last) - over
            if self._model.is_central:
                taken.add(index, CENTRAL, total, terminated or truncated, truncated)
            else:
                for agent, name in acting.items():
                    ended = name in over or name in cut or name not in observations
                    taken.add(index, name, info["rewards"][agent], ended, name in cut)
            if cut:  # values are asked for as if they would act again
                taken.final[index] = observations | {name: last[name] for name in cut}
            self._was_there[index] = frozenset(acting.values()) - over - cut
            self._seen[index] = observations
            if terminated or truncated:
                episodes.append(Episode(float(self._totals[index]), int(self._lengths[index])))
                self._totals[index], self._lengths[index] = 0.0, 0
                self._seen[index] = self._by_name(env.reset()[0])
                self._was_there[index] = frozenset()
        return episodes

    def _for_environments(self, actions: Mapping[str, Any]) -> dict[str, list[Any]]:
        """By actor, an action for each environment."""
        by_actor = {}
        for name, action in actions.items():
            tree = self._members[name].action_tree
            flat = action if isinstance(action, dict) else {next(iter(tree.leaves)): action}
            by_actor[name] = to_environments(tree, flat, as_numpy=True)
        return by_actor

    # --- what is seen now ---

    def _now(self) -> _Moment:
        moment = self._moment(self._seen)
        for name in self._model.names:
            old = np.array([name in there for there in self._was_there])
            moment.resets[name] = torch.from_numpy(~old)
        moment.resets[CENTRAL] = torch.from_numpy(self._lengths == 0)
        return moment

    def _moment(self, seen: Sequence[Mapping[str, Any]]) -> _Moment:
        """The observations of all environments, each with who is there; nobody's memory is reset."""
        observations: Observations = {}
        present = {}
        for name, member in self._members.items():
            there = [name in values for values in seen]
            rows = [values.get(name, self._absent[name]) for values in seen]
            tree = member.observer.tree
            stacked = tree.side_by_side(rows, self._keys[name])
            observations[name] = {key: _as_stored(stacked[key], member) for key in stacked}
            present[name] = torch.tensor(there)
        if self._model.is_central and not self._model.reads_presence:
            _refuse_absent(present, [bool(values) for values in seen])
        never = torch.zeros(self._count, dtype=torch.bool)
        return _Moment(observations, present, dict.fromkeys([*present, CENTRAL], never))

    def _by_name(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        return {flat_name(agent): value for agent, value in values.items()}

    # --- all steps ---

    def _rollout(
        self, stored: list[_Stored], states: list[State], gamma: float, gae_lambda: float
    ) -> Rollout:
        now = self._now()
        last = self._model.value(now.observations, now.present, self._state, now.resets)
        names, streams = self._model.names, self._model.streams
        every = torch.ones(len(stored), self._count, dtype=torch.bool)
        present = {n: torch.stack([s.now.present[n] for s in stored]) for n in names}
        values = {s: torch.stack([each.values[s].cpu() for each in stored]) for s in streams}
        gained, returns = {}, {}
        for stream in streams:
            ended = torch.stack([torch.from_numpy(s.taken.ended[stream]) for s in stored])
            bootstrap = torch.stack([s.bootstrap[stream] for s in stored])
            next_values = torch.cat([values[stream][1:], last[stream].cpu()[None]])
            rewards = torch.stack([torch.from_numpy(s.taken.rewards[stream]) for s in stored])
            gained[stream] = advantages(
                rewards.to(values[stream].dtype),
                values[stream],
                torch.where(ended, bootstrap, next_values),
                ended,
                present.get(stream, every),
                gamma=gamma,
                gae_lambda=gae_lambda,
            )
            returns[stream] = gained[stream] + values[stream]
        return Rollout(
            observations={n: _stack([s.now.observations[n] for s in stored]) for n in names},
            actions={n: _stack([s.actions[n] for s in stored]) for n in names},
            log_probs={n: torch.stack([s.log_probs[n] for s in stored]) for n in names},
            present=present,
            resets={n: torch.stack([s.now.resets[n] for s in stored]) for n in (*names, CENTRAL)},
            states=states,
            values=values,
            advantages=gained,
            returns=returns,
        )


@dataclass
class _Moment:
    """What is seen before a step: observations (E, ...), who is there, whose memory begins anew."""

    observations: Observations
    present: ByActor
    resets: ByActor


class _Taken:
    """What a step gave, by stream of values: rewards, whose life ended, whose was cut short; (E,) arrays.

    ``final`` has what was seen last in the environments where somebody was truncated.
    """

    def __init__(self, streams: Sequence[str], count: int) -> None:
        self.rewards = {stream: np.zeros(count) for stream in streams}
        self.ended = {stream: np.zeros(count, dtype=bool) for stream in streams}
        self.cut = {stream: np.zeros(count, dtype=bool) for stream in streams}
        self.final: dict[int, Mapping[str, Any]] = {}

    def add(self, index: int, stream: str, reward: float, ended: bool, cut: bool) -> None:
        self.rewards[stream][index] = reward
        self.ended[stream][index] = ended
        self.cut[stream][index] = cut


@dataclass
class _Stored:
    now: _Moment
    actions: dict[str, Any]
    log_probs: ByActor
    values: ByActor
    taken: _Taken
    bootstrap: ByActor


def _keys_of(model: ModelPass, name: str, member: Policy) -> list[str]:
    """The observations of an actor that policy, critic or statistics read."""
    tree = member.observer.tree
    critic = model.critic.critic_of(name)
    sources = [*member.input_sources().values(), *critic.input_sources().values()]
    read = {source.key for source in sources if source.kind == "observation"}
    wanted = read | set(member.read_keys) | set(member.observer.keys)
    return [key for key in tree.leaves if key in wanted]


def _placeholder(member: Policy, key: str) -> np.ndarray | int:
    """What stands in a rollout for the observation ``key`` of an absent actor: of its space, and no empty mask."""
    space: Any = member.observer.tree.leaves[key].space
    fill = np.ones if key in member.masks.values() else np.zeros
    if isinstance(space, spaces.Discrete):
        return space.start + space.start.dtype.type(fill(()))
    value = fill(space.shape, dtype=space.dtype)
    return value + space.start if isinstance(space, spaces.MultiDiscrete) else value


def _as_stored(value: np.ndarray, member: Policy) -> Tensor:
    """An array as a tensor, floats in the model's dtype: they would be read so anyway."""
    tensor = torch.as_tensor(value, device=member.device)
    return tensor.to(member.dtype) if tensor.is_floating_point() else tensor


def _stack(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: torch.stack([value[key] for value in values]) for key in values[0]}
    return torch.stack(list(values))


def _refuse_absent(present: ByActor, in_use: Sequence[bool]) -> None:
    used = torch.tensor(in_use)
    for name, there in present.items():
        if bool((used & ~there).any()):
            raise TrainingError(
                f"{name!r} is absent, but the central critic reads the observations of all actors; let its network "
                "read 'present', which is 0 for those who are absent: their observations are then zeros"
            )
