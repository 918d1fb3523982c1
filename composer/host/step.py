"""One call for all that a trainer asks of a model: the distribution, an action, its density, and the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from composer.critic.base import CriticModule, SpaceCritic
from composer.critic.structured import StructuredCriticBase
from composer.distributions.base import Distribution
from composer.network.network import Inputs, State, Tensors
from composer.network.structured import ByActor, blamed
from composer.policy.policy import Policy
from composer.policy.structured import StructuredPolicy
from composer.spaces.actors import flat_name
from perception_blocks.words import few_of

__all__ = [
    "Step",
    "StateCritic",
    "read_together",
    "step_of",
    "structured_step_of",
    "structured_value_of",
    "value_of",
]

StateCritic: TypeAlias = CriticModule | StructuredCriticBase
"""A critic of several actors that values states: all together, or each."""


class Step(NamedTuple):
    """What `Model.step` returns.

    ``action`` is as the distribution has it; ``log_prob``, ``entropy`` and ``value`` have the shape (...) of the
    observations' leading axes. Of several actors each is a dict by actor, except ``state``, and the value of a critic
    of kind shared_state, which is one for all. ``log_prob`` and ``entropy`` are None where the distribution has no
    density (a deterministic action), ``value`` without a critic, ``state`` without memory.
    """

    distribution: Any
    action: Any
    log_prob: Any
    entropy: Any
    value: Any
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
    drawn: bool = False,
) -> Step:
    """`Model.step` of a model of one actor; what policy and critic share runs once.

    An ``action`` that was ``drawn`` from this policy, as in a trainer's own rollout, is not looked at.
    """
    inputs, seen = read_together(policy, critic, observations)
    outputs, after = _advance(policy, inputs, state, resets, unroll)
    value = None
    if critic is not None:
        judged = critic.with_shared(seen, outputs) if seen else critic.read(observations, outputs)
        values, after = _advance(critic, judged, after, resets, unroll)
        value = critic.number_of(values)
    distribution = policy.distribution_of(outputs, inputs, mask, 1.0)
    is_given = action is not None and not drawn
    if action is None:
        action = _chosen(distribution, deterministic)
    densities = _densities(distribution, action, entropy, is_given)
    return Step(distribution, action, *densities, value, after)


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
    if critic.shared:
        inputs, seen = read_together(policy, critic, observations)
        outputs, _ = _advance(policy, inputs, state, resets, unroll)
        judged = critic.with_shared(seen, outputs) if seen else critic.read(observations, outputs)
    else:
        judged = critic.read(observations)
    values, _ = _advance(critic, judged, state, resets, unroll)
    return critic.number_of(values)


def structured_step_of(
    policy: StructuredPolicy,
    critic: StateCritic | None,
    observations: ByActor[object],
    action: ByActor[Any] | None,
    state: State | None,
    resets: object,
    *,
    unroll: bool,
    mask: ByActor[object] | None,
    deterministic: bool,
    entropy: bool,
    present: ByActor[object] | None,
) -> Step:
    """`Model.step` of a model of several actors: dicts by actor, under the keys of ``observations``."""
    before = state if policy.has_memory else None
    outputs, distributions, after = policy.outputs_and_distributions(
        observations, before, resets, unroll=unroll, mask=mask
    )
    state = after if policy.has_memory else state
    value = None
    if critic is not None:
        value, state = _judged(critic, outputs, observations, state, resets, unroll, present)
    if action is None:
        actions = {k: _chosen(d, deterministic) for k, d in distributions.items()}
    else:
        actions = _given_actions(policy, distributions, action)
    log_probs, entropies = {}, {}
    for key, distribution in distributions.items():
        with blamed(flat_name(key)):
            densities = _densities(distribution, actions[key], entropy, action is not None)
        log_probs[key], entropies[key] = densities
    return Step(distributions, actions, log_probs, entropies if entropy else None, value, state)


def structured_value_of(
    policy: StructuredPolicy,
    critic: StateCritic,
    observations: ByActor[object],
    state: State | None,
    resets: object,
    *,
    unroll: bool,
    present: ByActor[object] | None,
) -> Any:
    """`Model.value` of a model of several actors: {actor: (...)}, or (...) of a critic of all together."""
    outputs = {}
    if critic.shared:
        before = state if policy.has_memory else None
        result = policy(observations, before, resets, unroll=unroll)
        outputs, _ = policy._split(result, unroll)
    return _judged(critic, outputs, observations, state, resets, unroll, present)[0]


def read_together(
    policy: Policy, critic: SpaceCritic | None, observations: object
) -> tuple[Inputs, Tensors | None]:
    """What the policy reads, and what the critic does, of one reading of ``observations``; None where it must read."""
    together = critic is not None and critic.observer is policy.observer
    if not together or isinstance(observations, Inputs) or policy.users_own("preprocess"):
        return policy.read(observations), None
    assert critic is not None
    keys = dict.fromkeys([*policy.read_keys, *critic.read_keys])
    tensors = policy.read(observations, keys)
    ours, theirs = ({k: tensors[k] for k in part.read_keys} for part in (policy, critic))
    return Inputs(ours), theirs


def _advance(
    part: Policy | SpaceCritic, inputs: Inputs, state: State | None, resets: object, unroll: bool
) -> tuple[Tensors, State | None]:
    """The outputs of ``part``, and ``state`` with its share advanced."""
    if not part.has_memory:
        return part.run(inputs, None, None, unroll)[0], state
    return part.run(inputs, state, resets, unroll)


def _judged(
    critic: StateCritic,
    outputs: ByActor[Tensors],
    observations: ByActor[object],
    state: State | None,
    resets: object,
    unroll: bool,
    present: ByActor[object] | None,
) -> tuple[Any, State | None]:
    """The values of ``critic``, and ``state`` with its share advanced."""
    keywords: dict[str, Any] = {"shared": outputs} if critic.shared else {}
    if present is not None:
        keywords["present"] = present
    if critic.has_memory:
        keywords |= {"state": state, "resets": resets}
    values, after = critic._split(critic(observations, **keywords, unroll=unroll), unroll)
    return critic.number_of(values), after if critic.has_memory else state


def _chosen(distribution: Distribution, deterministic: bool) -> Any:
    """The mode or a sample, without gradient."""
    if not deterministic:
        return distribution.sample()
    with torch.no_grad():
        return distribution.mode()


def _densities(
    distribution: Distribution, action: Any, entropy: bool, is_given: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The log_prob of ``action`` and, if asked for, the entropy; None where there is no density."""
    if not distribution.has_density:
        return None, None
    log_prob = distribution.log_prob if is_given else distribution.log_prob_of_draw
    return log_prob(action), distribution.entropy() if entropy else None


def _given_actions(
    policy: StructuredPolicy, distributions: Mapping[Any, Distribution], action: ByActor[Any]
) -> dict[Any, Any]:
    """The ``action`` of each actor that has a distribution. Raises ValueError for a missing one, and one more."""
    entries = policy.actors.entries(dict.fromkeys(distributions), "observations")
    given = policy.actors.by_name(action, "actions")
    names = {entry.name: entry.key for entry in entries}
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"there are observations but no actions of {few_of(missing)}")
    if more := [name for name in given if name not in names]:
        raise ValueError(f"there are actions but no observations of {few_of(more)}")
    return {key: given[name] for name, key in names.items()}
