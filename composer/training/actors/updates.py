"""The update of PPO for several actors (Schulman et al., 2017; MAPPO: Yu et al., 2022), from one rollout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from composer.network.network import State
from composer.training.actors.passes import CENTRAL, ByActor, ModelPass, Observations, at
from composer.training.actors.rollout import Rollout
from composer.training.actors.settings import Settings

__all__ = ["Batch", "Losses", "batches", "losses", "update"]


@dataclass
class Batch:
    """Samples (N, ...) of a rollout, or sequences (N, T, ...) with the ``state`` before each; as in `Rollout`."""

    observations: Observations
    actions: dict[str, Any]
    log_probs: ByActor
    present: ByActor
    resets: ByActor
    state: State
    values: ByActor
    advantages: ByActor  # by actor, normalised
    returns: ByActor  # by stream


@dataclass
class Losses:
    """``total`` is minimised; the others are means over the actors that are present, ``value`` over the values."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor


def update(
    model: ModelPass,
    rollout: Rollout,
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """All epochs of an update; returns what it was like: means over its minibatches.

    With ``target_kl`` the update ends once the mean divergence of a minibatch is above 1.5 times that.
    """
    if any(model.normalizer(stream) is not None for stream in model.streams):
        model.count_returns(_counted(model, rollout))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    records: list[Losses] = []
    whole = flattened(model, rollout, settings)
    for batch in batches(whole, model, settings, generator):
        loss = losses(model, batch, settings)
        records.append(loss)
        if settings.target_kl is not None and float(loss.kl) > 1.5 * settings.target_kl:
            break
        optimizer.zero_grad()
        loss.total.backward()
        nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
    return {**_means(records), "explained_variance": _explained(model, rollout)}


def losses(model: ModelPass, batch: Batch, settings: Settings) -> Losses:
    """The loss of a minibatch: of the rows in which an actor is present, all actors together."""
    outcome = model(
        batch.observations, batch.present, batch.state, batch.resets, unroll=model.has_memory
    )
    ratios, gains, entropies = [], [], []
    for name, distribution in outcome.distributions.items():
        there = batch.present[name]
        log_prob = distribution.log_prob(batch.actions[name])
        ratios.append((log_prob - batch.log_probs[name])[there])
        gains.append(batch.advantages[name][there])
        entropies.append(distribution.entropy()[there])
    difference, gain = torch.cat(ratios), torch.cat(gains)
    ratio = difference.exp()
    clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    of_policy = -torch.minimum(ratio * gain, clipped * gain).mean()
    entropy = torch.cat(entropies).mean()
    of_value = _value_loss(model, outcome.values.learned, batch, settings)
    total = of_policy + settings.vf_coef * of_value - settings.ent_coef * entropy
    with torch.no_grad():
        kl = (ratio - 1 - difference).mean()
        clip_fraction = ((ratio - 1).abs() > settings.clip_range).float().mean()
    return Losses(total, of_policy, of_value, entropy, kl, clip_fraction)


def _value_loss(model: ModelPass, learned: ByActor, batch: Batch, settings: Settings) -> Tensor:
    """The mean squared error, on the scale that the network learns."""
    errors = []
    for stream in model.streams:
        goal, before, value = batch.returns[stream], batch.values[stream], learned[stream]
        scale = model.normalizer(stream)
        if scale is not None:
            goal, before = (scale(each.unsqueeze(-1)).squeeze(-1) for each in (goal, before))
        error = (value - goal).square()
        if settings.clip_range_vf is not None:
            span = settings.clip_range_vf
            near = before + (value - before).clamp(-span, span)
            error = torch.maximum(error, (near - goal).square())
        errors.append(error.flatten() if stream == CENTRAL else error[batch.present[stream]])
    return torch.cat(errors).mean()


# --- minibatches ---


def flattened(model: ModelPass, rollout: Rollout, settings: Settings) -> Batch:
    """The rollout (T, E, ...) as samples (T * E, ...), or with memory as sequences (T / L * E, L, ...)."""
    steps = len(next(iter(rollout.present.values())))
    length = settings.sequence_length or steps

    def cut(tensor: Tensor) -> Tensor:
        tensor = tensor.to(model.device)
        if not model.has_memory:
            return tensor.flatten(0, 1)
        pieces = tensor.unflatten(0, (steps // length, length)).transpose(1, 2)
        return pieces.flatten(0, 1)  # (T / L, E, L, ...)

    def cut_all(values: Any) -> Any:
        if isinstance(values, Mapping):
            return {key: cut_all(value) for key, value in values.items()}
        return cut(values)

    names = rollout.states[0] if rollout.states else ()
    state = {name: torch.cat([each[name] for each in rollout.states]) for name in names}
    gains = _by_actor(model, rollout)
    if settings.normalize_advantage:
        gains = _normalized(model, gains, rollout.present)
    return Batch(
        cut_all(rollout.observations), cut_all(rollout.actions), cut_all(rollout.log_probs),
        cut_all(rollout.present), cut_all(rollout.resets), state,
        cut_all(rollout.values), cut_all(gains), cut_all(rollout.returns),
    )  # fmt: skip


def batches(
    whole: Batch, model: ModelPass, settings: Settings, generator: torch.Generator | None
) -> Iterator[Batch]:
    """Minibatches in a new random order in each epoch."""
    shape = next(iter(whole.present.values())).shape
    size = max(1, settings.batch_size // (shape[1] if model.has_memory else 1))
    for _ in range(settings.n_epochs):
        order = torch.randperm(shape[0], generator=generator)
        for chosen in order.split(size):
            yield _chosen(whole, chosen)


def _chosen(whole: Batch, index: Tensor) -> Batch:
    def of(values: Mapping[str, Tensor]) -> ByActor:
        return {name: value[index] for name, value in values.items()}

    actions = {
        name: of(action) if isinstance(action, Mapping) else action[index]
        for name, action in whole.actions.items()
    }
    return Batch(
        at(whole.observations, index), actions, of(whole.log_probs), of(whole.present),
        of(whole.resets), of(whole.state), of(whole.values), of(whole.advantages), of(whole.returns),
    )  # fmt: skip


def _by_actor(model: ModelPass, rollout: Rollout) -> ByActor:
    """The advantages of each actor: a central critic's are of all of them."""
    if not model.is_central:
        return rollout.advantages
    return dict.fromkeys(model.names, rollout.advantages[CENTRAL])


def _normalized(model: ModelPass, gains: ByActor, present: ByActor) -> ByActor:
    """``gains`` with mean 0 and deviation 1 among the actors that share a policy."""
    sharing: dict[int, list[str]] = {}
    for name, policy in model.policy.policies.items():
        sharing.setdefault(id(policy), []).append(name)
    normalized = {}
    for names in sharing.values():
        values = torch.cat([gains[name][present[name]] for name in names])
        if not len(values):
            normalized |= {name: gains[name] for name in names}
            continue
        mean, deviation = values.mean(), values.std(correction=0)
        normalized |= {name: (gains[name] - mean) / (deviation + 1e-8) for name in names}
    return normalized


def _counted(model: ModelPass, rollout: Rollout) -> ByActor:
    if model.is_central:
        return rollout.returns
    counted = {n: rollout.returns[n][rollout.present[n]] for n in model.names}
    return {name: returns for name, returns in counted.items() if len(returns)}


def _explained(model: ModelPass, rollout: Rollout) -> float:
    """How much of the variance of the returns the values explain; 0 if the returns are all equal."""
    counted = _counted(model, rollout)
    goals = torch.cat([returns.flatten() for returns in counted.values()])
    there = rollout.present
    before = torch.cat(
        [
            (rollout.values[s] if s == CENTRAL else rollout.values[s][there[s]]).flatten()
            for s in counted
        ]
    )
    spread = goals.var(correction=0)
    return float(1 - (goals - before).var(correction=0) / spread) if spread > 0 else 0.0


def _means(records: list[Losses]) -> dict[str, float]:
    def mean(name: str) -> float:
        return float(torch.stack([getattr(record, name).detach() for record in records]).mean())

    return {
        "loss/policy": mean("policy"),
        "loss/value": mean("value"),
        "entropy": mean("entropy"),
        "kl": mean("kl"),
        "clip_fraction": mean("clip_fraction"),
    }
