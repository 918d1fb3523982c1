"""Reasons why algorithms cannot train a model, which the table of `needs` gives to each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from gymnasium import Space, spaces

from composer.critic.base import SpaceCritic
from composer.distributions.base import DISTRIBUTIONS, ActionDistribution
from composer.model import Model
from composer.policy.structured import one_policy
from composer.spaces.tree import format_space
from perception_blocks.words import listing

__all__ = [
    "Reasons",
    "all_of",
    "anything",
    "choices_alone",
    "critic_as_a_whole",
    "heads_at_once",
    "maskable",
]
__all__ += ["memory_of_actions"]
__all__ += ["needs_memory", "no_memory", "no_returns", "no_sequences", "no_statistics"]
__all__ += ["numbers_alone", "of_copies", "one_action", "one_box", "one_choice"]
__all__ += ["one_plain_choice", "one_vector", "private_keys", "without_rows"]

Reasons = Callable[[Model], Iterator[str]]
"""Yields each reason why a model cannot be trained; nothing for a model that can be."""


def anything(model: Model) -> Iterator[str]:
    """No reason against any model."""
    return iter(())


def all_of(*reasons: Reasons) -> Reasons:
    """The reasons of all of these, in order."""

    def each(model: Model) -> Iterator[str]:
        for reason in reasons:
            yield from reason(model)

    return each


def no_memory(why: str) -> Reasons:
    """``it has memory``, and ``why`` that cannot be."""

    def refused(model: Model) -> Iterator[str]:
        if model.has_memory:
            yield f"it has memory, {why}"

    return refused


def needs_memory(model: Model) -> Iterator[str]:
    """For an algorithm of models with memory alone."""
    if not model.has_memory:
        yield "neither its policy nor its critic has memory"


def one_action(model: Model) -> Iterator[str]:
    """For an algorithm of one action."""
    actions = one_policy(model.policy).distributions
    if len(actions) > 1:
        yield f"it learns one action, but there are {', '.join(map(repr, actions))}"


def one_choice(model: Model) -> Iterator[str]:
    """For an algorithm of values for each choice, which it counts from 0."""
    policy = one_policy(model.policy)
    leaves = [*policy.action_tree.leaves.values()]
    shown = format_space(policy.action_space)
    if len(leaves) > 1 or leaves[0].kind != "discrete":
        yield f"it learns a value for each choice of one Discrete action, got {shown}"
    elif leaves[0].start != 0:
        yield f"it counts choices from 0, got {shown}"


def one_box(model: Model) -> Iterator[str]:
    """For an algorithm whose loss is differentiated through the action."""
    policy = one_policy(model.policy)
    if [leaf.kind for leaf in policy.action_tree.leaves.values()] != ["box"]:
        shown = format_space(policy.action_space)
        yield f"it needs gradients through one action, which a Box has, got {shown}"


def heads_at_once(model: Model) -> Iterator[str]:
    """For a host that makes distributions of stored logits, without the network."""
    for head, actions in one_policy(model.policy).network.after.items():
        yield (
            f"it makes distributions of stored numbers, but the head {head!r} reads the action of "
            f"{listing(actions)}; use the trainer sb3"
        )


# --- Stable-Baselines3 and sb3-contrib ---


def no_sequences(torchrl: str) -> Reasons:
    """For an algorithm with a replay buffer; ``torchrl`` is what the trainer of that name has instead."""
    return no_memory(
        f"but its replay buffer holds single steps (with the trainer torchrl, {torchrl} learns from sequences)"
    )


def one_plain_choice(model: Model) -> Iterator[str]:
    """For DQN: Stable-Baselines3 stores choices within a Dict as a vector."""
    policy = one_policy(model.policy)
    space = policy.action_space
    shown = format_space(space)
    if not isinstance(space, spaces.Discrete):
        yield f"it learns a value for each choice of one Discrete action, got {shown}"
    elif space.start:
        yield f"it finds the value of an action by its number, so that these must begin with 0, got {shown}"
    elif policy.masks:
        yield "it explores with any action, legal or not, so no 'action_mask' can be kept"


def maskable(model: Model) -> Iterator[str]:
    """For MaskablePPO."""
    space = one_policy(model.policy).action_space
    if not _are_choices(space):
        shown = format_space(space)
        yield f"it masks the choices of one Discrete, MultiDiscrete or MultiBinary action, got {shown}"


def _are_choices(space: Space) -> bool:
    """Whether sb3-contrib has masks for it: choices on at most one axis."""
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return len(space.shape) == 1
    return isinstance(space, spaces.Discrete)


# --- TorchRL ---


def private_keys(model: Model) -> Iterator[str]:
    keys = [
        key for key in one_policy(model.policy).observer.tree.leaves if re.search("(^|/)_", key)
    ]
    if keys:
        yield (
            f"its collector drops what begins with '_', such as the observation {keys[0]!r}; rename it, or use the "
            "trainer sb3"
        )


def of_copies(model: Model) -> Iterator[str]:
    """Why TorchRL's loss cannot train copies of the critic."""
    critic = model.critic
    if critic is not None and critic.shared:
        shared = ", ".join(map(repr, critic.shared))
        yield (
            f"its loss trains copies of the critic alone, which cannot read {shared} of the policy; "
            "let the critic read observations instead, or use the trainer sb3"
        )
    if critic is not None and critic.value_normalizer is not None:
        yield "a replay buffer has no returns, so that 'normalize_value' has nothing to count; leave it out"


def critic_as_a_whole(model: Model) -> Iterator[str]:
    """Why TorchRL's loss, which trains copies of the critic, cannot treat its parts differently."""
    spec = model.spec
    for key, paths in (("freeze", spec.freeze), ("learning_rate_scale", spec.learning_rate_scale)):
        for path in paths:
            if path.partition("/")[0] == "critic":
                yield (
                    f"it trains copies of the critic, which {key!r} of {path!r} would not reach; leave that out, or "
                    "use sac of sb3"
                )


def memory_of_actions(model: Model) -> Iterator[str]:
    """Why a loss that values other actions than the one taken cannot train the memory of a critic."""
    if isinstance(model.critic, SpaceCritic) and _remembers_action(model.critic):
        yield (
            "the memory of its critic reads the action, but each step is valued with other actions than the one taken; "
            "let the memory read observations, and join the action to what it gives"
        )


def _remembers_action(critic: SpaceCritic) -> bool:
    """Whether the state after a step depends on the action of the step: whether a gradient flows there."""
    sources = critic.input_sources()
    inputs = {
        name: torch.zeros(
            (2, *(n or 1 for n in port.shape)), dtype=port.dtype, device=critic.device
        )
        for name, port in critic.network.in_ports.items()
    }
    actions = [
        inputs[n].requires_grad_() for n, source in sources.items() if source.kind == "action"
    ]
    if not critic.has_memory or not actions:
        return False
    modes = {module: module.training for module in critic.modules()}
    critic.eval()  # nothing is counted, nothing drawn
    with torch.enable_grad():
        state = critic.network.initial_state((2,), critic.device, critic.dtype)
        _, after = critic.network.advance(inputs, state, None, False)
    for module, training in modes.items():
        module.training = training
    sums = [value.sum() for value in after.values() if value.requires_grad]
    gradients = torch.autograd.grad(sums, actions, allow_unused=True) if sums else ()
    return any(gradient is not None for gradient in gradients)


# --- rsl_rl ---


def one_vector(model: Model) -> Iterator[str]:
    """For a host whose actions are one vector of numbers."""
    policy = one_policy(model.policy)
    leaves = policy.action_tree.leaves.values()
    is_box = [leaf.kind for leaf in leaves] == ["box"]
    if not is_box or not policy.action_tree.is_single:
        shown = format_space(policy.action_space)
        yield f"its actions are one vector of numbers, a Box, got {shown}; use the trainer sb3 or torchrl"


def no_returns(model: Model) -> Iterator[str]:
    if model.critic is not None and model.critic.value_normalizer is not None:
        yield (
            "it tells a critic no returns, so that 'normalize_value' has nothing to count; leave it out"
        )


# --- rl_games ---

_OTHER_TRAINER = "; use the trainer sb3"


def choices_alone(model: Model) -> Iterator[str]:
    """For a2c_discrete."""
    for key, leaf in one_policy(model.policy).action_tree.leaves.items():
        if leaf.kind == "box":
            out = _OTHER_TRAINER if _is_mixed(model) else ""
            yield f"it learns choices, but {key!r} is {format_space(leaf.space)}{out}"


def numbers_alone(model: Model) -> Iterator[str]:
    """For a2c_continuous."""
    for key, leaf in one_policy(model.policy).action_tree.leaves.items():
        if leaf.kind != "box":
            out = _OTHER_TRAINER if _is_mixed(model) else ""
            yield f"it learns numbers, but {key!r} is {format_space(leaf.space)}{out}"


def _is_mixed(model: Model) -> bool:
    kinds = [leaf.kind == "box" for leaf in one_policy(model.policy).action_tree.leaves.values()]
    return any(kinds) and not all(kinds)


# --- RLlib ---


def without_rows(model: Model) -> Iterator[str]:
    """For a host that rebuilds distributions from rows of numbers."""
    for key, family in one_policy(model.policy).distributions.items():
        if type(family).of_row is ActionDistribution.of_row:
            name = DISTRIBUTIONS.name_of(type(family)) or type(family).__name__
            yield f"it rebuilds distributions from rows of numbers, which the {name} of {key!r} has not"


def no_statistics(model: Model) -> Iterator[str]:
    """For a host that has no place for running statistics between its updates and its rollouts."""
    if one_policy(model.policy).observer.keys:
        yield (
            "it counts no statistics, so that 'normalize' has nothing to do; leave it out, and wrap the environment in "
            "gymnasium.wrappers.NormalizeObservation"
        )
    yield from no_returns(model)
