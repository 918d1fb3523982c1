"""The settings of PPO for several actors, and what it needs of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from composer.critic.base import can_stand_for
from composer.distributions.deterministic import Deterministic
from composer.host.optimizing import nothing_to_train
from composer.model import Model
from composer.policy.policy import Policy
from composer.policy.structured import StructuredPolicy
from composer.training.trainer import Task, setting_problems
from perception_blocks.settings import Coefficient, PositiveFloat, PositiveInt, Probability

__all__ = ["KINDS", "Settings", "refuse", "wrong_settings"]

# The kinds of critic that an algorithm may have: MAPPO's is central, IPPO has a critic for each actor.
KINDS = {"ppo": ("shared_state", "state"), "mappo": ("shared_state",), "ippo": ("state",)}

NEEDED = {
    "ppo": "the value of a state",
    "mappo": "a central critic",
    "ippo": "a critic for each actor",
}


@dataclass(frozen=True)
class Settings:
    """Names are those of Stable-Baselines3's PPO. ``n_steps`` counts the steps of each environment in a rollout.

    ``batch_size`` counts steps of environments too, each with all its actors. With memory a minibatch consists of
    sequences of ``sequence_length`` steps (None: of the whole rollout), as many as make ``batch_size`` steps.
    """

    learning_rate: PositiveFloat = 3e-4
    n_steps: PositiveInt = 128
    batch_size: PositiveInt = 256
    n_epochs: PositiveInt = 10
    gamma: Probability = 0.99
    gae_lambda: Probability = 0.95
    clip_range: PositiveFloat = 0.2
    clip_range_vf: PositiveFloat | None = None
    normalize_advantage: bool = True
    ent_coef: Coefficient = 0.0
    vf_coef: Coefficient = 0.5
    max_grad_norm: PositiveFloat = 0.5
    target_kl: PositiveFloat | None = None
    sequence_length: PositiveInt | None = None


def wrong_settings(task: Task) -> list[str]:
    """The errors in the settings of ``task``, in words."""
    problems, given = setting_problems(Settings, task), task.settings
    length, steps = given.get("sequence_length"), given.get("n_steps", Settings.n_steps)
    if not problems and isinstance(length, int) and isinstance(steps, int) and steps % length:
        least = steps - steps % length
        near = f"{least} or {least + length}" if least else f"{length}"
        problems.append(
            f"'sequence_length' {length} does not divide 'n_steps' {steps}: sequences are cut from a rollout; "
            f"set n_steps={near}"
        )
    return problems


def refuse(model: Model, algorithm: str) -> None:
    """Raise ValueError with every reason why ``algorithm``, one of `KINDS`, cannot train ``model``."""
    reasons = "".join(f"\n  {reason}" for reason in _reasons(model, algorithm))
    if reasons:
        raise ValueError(f"{algorithm} of composer cannot train this model:{reasons}")


def _reasons(model: Model, algorithm: str) -> Iterator[str]:
    policy = model.policy
    if not isinstance(policy, StructuredPolicy):
        yield (
            "it is of one actor, and this loop is for several: an environment of PettingZoo, such as "
            "pettingzoo:mpe/simple_spread_v3; use the trainer sb3 or torchrl"
        )
        return
    yield from nothing_to_train(model)
    for name, member in policy.policies.items():
        yield from _of_policy(name, member)
    yield from _of_critic(model, algorithm)


def _of_policy(name: str, member: Policy) -> Iterator[str]:
    for action, family in member.distributions.items():
        if isinstance(family, Deterministic):
            yield (
                f"it learns from chances, but {action!r} of {name!r} is deterministic; "
                "write distribution: squashed_gaussian in its entry of 'distributions'"
            )
    tree = member.observer.tree
    varying = [key for key, port in tree.ports.items() if port.mask or None in port.shape]
    if varying:
        yield (
            f"the observation {varying[0]!r} of {name!r} varies in size, and a rollout has rows of one size; "
            f"leave it out with ignore: [{varying[0]}], or let the environment pad it to one size"
        )


def _of_critic(model: Model, algorithm: str) -> Iterator[str]:
    kinds = KINDS[algorithm]
    advised = f"critic: {{kind: {kinds[0]}, template: {{}}}}"
    critic = model.spec.critic
    if critic is None:
        yield f"{algorithm} needs {NEEDED[algorithm]}; add one such as {advised}"
        return
    if not _serves(critic.kind, algorithm):
        others = [name for name in KINDS if _serves(critic.kind, name)]
        also = f", or use {' or '.join(others)}" if others else ""
        got = f"but the critic is of kind {critic.kind!r}"
        yield f"{algorithm} needs {NEEDED[algorithm]}, {got}; give it one such as {advised}{also}"
    if critic.ensemble > 1:
        yield f"{algorithm} needs one value, but the critic gives {critic.ensemble}; leave out 'ensemble'"


def _serves(kind: str, algorithm: str) -> bool:
    return any(can_stand_for(kind, known) for known in KINDS[algorithm])
