"""Steps that were played, computed again with gradient: all at once where actors and shapes stay the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer.critic.delta_state import PREV_VALUE, DeltaStateCritic
from composer.model import Model
from composer.network.structured import StructuredModule
from composer.policy.policy import Policy
from composer.policy.structured import StructuredPolicy
from composer.probing.play import Played
from composer.probing.watched import Watched
from composer.spaces.actors import flat_name
from composer.spaces.samples import batch_of

__all__ = ["GAMMA", "Batch", "Gradients", "passed", "replayed", "single_steps", "spans_of"]
__all__ += ["starting_state"]

GAMMA = 0.99  # the discount of the returns
LONGEST = 128  # steps in one batch, which bounds the memory; gradients go back no further

Parts = dict[str, Any]  # state by part of the model


@dataclass(frozen=True)
class Batch:
    """Steps ``start`` to ``end`` as tensors (T, ...), of several actors by actor."""

    start: int
    end: int
    observations: Any
    actions: Any
    masks: Any
    resets: Any
    first: Tensor  # (T,): an episode begins


@dataclass(frozen=True)
class Gradients:
    """By the id of a weight the gradient of the loss; ``notes`` say what has none, and why."""

    by_weight: dict[int, Tensor]
    notes: tuple[str, ...] = ()


def replayed(watched: Watched, steps: Played, spans: Sequence[tuple[int, int]]) -> Gradients:
    """Run policy and critic over all ``spans``, and return the gradients of what a policy gradient would minimise.

    That is ``-log_prob * standardised return + 0.5 * (value - return) ** 2``, the mean over steps and actors, where a
    return is the discounted sum of rewards to the end of the episode or of the steps. Nothing is updated.
    """
    returns = _returns(steps)
    numbers = torch.tensor([number for step in returns for number in step.values()])
    scale = numbers.std(correction=0).clamp_min(1e-6)
    weights = watched.weights
    total: dict[int, Tensor] = {}
    state = starting_state(watched.model)
    notes: list[str] = []
    if numbers.std(correction=0) == 0 and watched.model.policy.class_that_acts is None:
        notes.append(
            "every step has the same return: the policy has no gradient, whatever its weights"
        )
    told = len(notes)
    for start, end in spans:
        batch = _batch(watched.model, steps, start, end)
        watched.begin()
        with (
            torch.enable_grad(),
            torch.backends.cudnn.flags(enabled=False),
        ):  # its eval mode has no gradient
            log_probs, values, state, note = passed(watched.model, batch, state)
            if note and len(notes) == told:  # the others say the same of other actors
                notes.append(note)
            loss = _loss(batch, log_probs, values, returns, (numbers.mean(), scale)) / len(numbers)
        if loss.requires_grad and weights:
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    known = total.get(id(weight))
                    total[id(weight)] = gradient if known is None else known + gradient
        state = {part: _detached(values) for part, values in state.items()}
    return Gradients(total, tuple(notes))


def starting_state(model: Model) -> Parts:
    """A zero state of each part of ``model`` that has memory, and the value before the first of values that add up."""
    parts = {"policy": model.policy, "critic": model.critic}
    state: Parts = {
        name: part.initial_state()
        for name, part in parts.items()
        if part is not None and part.has_memory
    }
    if isinstance(model.critic, DeltaStateCritic):
        state[PREV_VALUE] = torch.zeros(1, 1, dtype=model.policy.dtype, device=model.policy.device)
    return state


def passed(
    model: Model, batch: Batch, state: Parts
) -> tuple[dict[Any, Tensor], dict[Any, Tensor], Parts, str]:
    """Log-probabilities and values (T,) by actor (None: of one, or of all), the states after, and what did not run.

    Values of an ensemble of critics are (T, n).
    """
    policy, critic = model.policy, model.critic
    after = dict(state)
    memory = (state["policy"], batch.resets) if "policy" in state else (None, None)
    if isinstance(policy, Policy):
        result = policy(batch.observations, *memory, unroll=policy.has_memory)
        outputs, after["policy"] = policy._split(result, policy.has_memory)
        distributions = {}
        if policy.class_that_acts is None:
            each = policy.distribution_of(outputs, batch.observations, batch.masks, 1.0)
            distributions = {None: each}
        actions = {None: batch.actions}
    else:
        outputs, distributions, after["policy"] = policy.outputs_and_distributions(
            batch.observations, *memory, unroll=policy.has_memory, mask=None
        )
        actions = batch.actions
    log_probs = {
        key: distribution.log_prob(actions[key])
        for key, distribution in distributions.items()
        if distribution.has_density and actions is not None
    }
    values, note = {}, ""
    if critic is not None:
        try:
            values, after["critic"] = _judged(critic, batch, outputs, after)
        except ValueError as error:  # it reads actors that are absent, or actions that nobody drew
            note = f"the critic did not run: {error}"
    return log_probs, values, {part: after[part] for part in state}, note


def _judged(critic: Any, batch: Batch, outputs: Any, state: Parts) -> tuple[dict[Any, Tensor], Any]:
    """The values by actor, and the state of the critic after. Notes in ``state`` the value to build on next."""
    number_of = critic.number_of
    keywords: dict[str, Any] = {"shared": outputs} if critic.shared else {}
    if critic.takes_action:
        keywords["action"] = batch.actions
    if critic.has_memory:
        has_actors = isinstance(batch.resets, Mapping) and isinstance(critic, StructuredModule)
        resets = batch.resets if has_actors else batch.first
        keywords |= {"state": state["critic"], "resets": resets}
    adds_up = isinstance(critic, DeltaStateCritic)
    if adds_up and not any(
        entry.actor in critic.groups[0].actors for entry in _entries(critic, batch)
    ):
        keywords[PREV_VALUE] = state[PREV_VALUE]
    result = critic(batch.observations, **keywords, unroll=critic.has_memory)
    values, after = critic._split(result, critic.has_memory)
    numbers = number_of(values)
    by_actor: dict[Any, Tensor] = dict(numbers) if isinstance(numbers, Mapping) else {None: numbers}
    if adds_up:
        state[PREV_VALUE] = torch.stack([*by_actor.values()]).mean(dim=0)[-1:, None]
    return by_actor, after


def _entries(critic: Any, batch: Batch) -> Any:
    return critic.actors.entries(batch.observations, "observations")


def _loss(
    batch: Batch,
    log_probs: Mapping[Any, Tensor],
    values: Mapping[Any, Tensor],
    returns: Sequence[Mapping[str | None, float]],
    scaling: tuple[Tensor, Tensor],
) -> Tensor:
    """The sum over the batch."""
    mean, scale = scaling
    loss = torch.zeros(())
    for key, log_prob in log_probs.items():
        gained = _of_actor(returns, key, batch)
        loss = loss - (log_prob.cpu() * ((gained - mean) / scale)).sum()
    for key, value in values.items():
        gained = _of_actor(returns, key, batch)
        value = value.cpu()
        missed = value - (gained if value.dim() == 1 else gained.unsqueeze(-1))
        loss = loss + 0.5 * missed.square().reshape(len(gained), -1).mean(dim=-1).sum()
    return loss


def _of_actor(returns: Sequence[Mapping[str | None, float]], key: Any, batch: Batch) -> Tensor:
    """The returns of one actor in the steps of a batch; of None those of all together."""
    name = None if key is None else flat_name(key)
    steps = returns[batch.start : batch.end]
    return torch.tensor([r[name] if name in r else sum(r.values()) for r in steps])


def _returns(steps: Played) -> list[dict[str | None, float]]:
    """The discounted return of each step: of the only actor (None), or of the actors that act in it."""
    results: list[dict[str | None, float]] = []
    running: dict[str, float] = {}
    alone = 0.0
    for index in reversed(range(len(steps))):
        if steps.lasts[index]:
            running, alone = {}, 0.0
        reward = steps.rewards[index]
        if isinstance(reward, dict):
            running = {
                name: reward.get(name, 0.0) + GAMMA * running.get(name, 0.0)
                for name in {**running, **reward}
            }
        else:
            alone = reward + GAMMA * alone
        resets = steps.resets[index]
        if not isinstance(resets, Mapping):
            results.append({None: alone})
        else:
            names = map(flat_name, resets)
            results.append({name: running.get(name, 0.0) + alone for name in names})
    return results[::-1]


# --- steps as batches ---


def spans_of(model: Model, steps: Played, longest: int = LONGEST) -> list[tuple[int, int]]:
    """The (start, end) of batches of at most ``longest`` steps, each of the same actors and shapes."""
    if isinstance(model.critic, DeltaStateCritic):
        longest = 1  # a value may build on that of the step before
    spans, start = [], 0
    for end in range(1, len(steps) + 1):
        is_full = end - start == longest or end == len(steps)
        if is_full or _form(steps, end) != _form(steps, start):
            spans.append((start, end))
            start = end
    return spans


def _form(steps: Played, index: int) -> Any:
    """What must be alike for two steps to be in one batch: the actors, and the shapes of what they observe."""
    seen = steps.observations[index]
    is_by_actor = isinstance(steps.resets[index], Mapping)
    return tuple(seen) if is_by_actor else None


def _batch(model: Model, steps: Played, start: int, end: int) -> Batch:
    part = slice(start, end)
    rows, resets = steps.observations[part], steps.resets[part]
    actions = steps.actions[part]
    space = model.observation_space
    policy = model.policy
    if isinstance(policy, StructuredPolicy):
        observations = {
            entry.key: batch_of(entry.actor.observation_space, [row[entry.key] for row in rows])
            for entry in policy.actors.entries(rows[0], "observations")
        }
    else:
        observations = batch_of(space, rows)
    masks = steps.masks[part]
    return Batch(
        start,
        end,
        observations,
        None if actions[0] is None else _stacked(actions),
        None if masks[0] is None else np.stack(masks),
        _stacked(resets),
        torch.tensor(steps.firsts[part]),
    )


def _stacked(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    return torch.stack(list(values))


def _detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    return {name: value.detach() for name, value in state.items()}


def single_steps(model: Model, steps: Played, count: int) -> Iterator[Batch]:
    """``count`` steps, evenly spread over all of them, each as a batch of one."""
    chosen = np.linspace(0, len(steps) - 1, min(count, len(steps))).astype(int)
    for index in dict.fromkeys(chosen.tolist()):
        yield _batch(model, steps, index, index + 1)
