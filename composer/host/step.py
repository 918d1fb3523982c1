"""One call for all that a trainer asks of a model: the distribution, an action, its density, and the value."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer.critic.base import SpaceCritic
from composer.distributions.base import Distribution
from composer.network.module import under
from composer.network.network import State, share_of
from composer.policy.policy import Policy

__all__ = ["Step", "step_of", "value_of"]


class Step(NamedTuple):
    """What `Model.step` returns.

    ``action`` is as the distribution has it; ``log_prob``, ``entropy`` and ``value`` have the shape (...) of the
    observations' leading axes. ``value`` is None without a critic, ``state`` None without memory.
    """

    distribution: Distribution
    action: Any
    log_prob: Tensor
    entropy: Tensor | None
    value: Tensor | None
    state: State | None


def step_of(
    policy: Policy,
    critic: SpaceCritic | None,
    observations: object,
    action: Any,
    state: State | None,
    resets: object,
    *,
    unroll: bool,
    mask: object,
    deterministic: bool,
    entropy: bool,
) -> Step:
    """`Model.step` of a model of one actor; what policy and critic share runs once."""
    inputs = policy.read(observations)
    outputs, after = policy.run(
        inputs, _share(policy, state), resets if policy.has_memory else None, unroll
    )
    after = under("policy", after)
    value = None
    if critic is not None:
        seen = critic.read(observations, outputs)
        values, more = critic.run(
            seen, _share(critic, state), resets if critic.has_memory else None, unroll
        )
        value, after = critic.number_of(values), after | under("critic", more)
    distribution = policy.distribution_of(outputs, inputs, mask, 1.0)
    if action is None:
        with torch.no_grad():
            action = distribution.mode() if deterministic else distribution.sample()
    return Step(
        distribution, action, distribution.log_prob(action),
        distribution.entropy() if entropy else None, value, after or None,
    )  # fmt: skip


def value_of(
    policy: Policy,
    critic: SpaceCritic,
    observations: object,
    state: State | None,
    resets: object,
    *,
    unroll: bool,
) -> Tensor:
    """`Model.value` of a model of one actor; the policy runs only where the critic reads values of it."""
    outputs = None
    if critic.shared:
        resets_of_policy = resets if policy.has_memory else None
        outputs, _ = policy.run(
            policy.read(observations), _share(policy, state), resets_of_policy, unroll
        )
    seen = critic.read(observations, outputs)
    values, _ = critic.run(
        seen, _share(critic, state), resets if critic.has_memory else None, unroll
    )
    return critic.number_of(values)


def _share(part: Policy | SpaceCritic, state: State | None) -> State | None:
    return share_of(part.part, state) if state and part.has_memory else None
