"""What skrl cannot do with a model, in words: spaces that it has no form for, preprocessors, sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from composer.model import Model
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.spaces.kinds import Leaf, format_space
from composer.spec.keys import is_within
from perception_blocks.words import listing

__all__ = ["preprocessor_problems", "reading_problems", "sequence_length_of", "space_problems"]

KINDS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)
AS_CHOICES = {
    "action": "MultiDiscrete([2, ...]), as gymnasium.wrappers.TransformAction does",
    "observation": "a Box from 0 to 1, as gymnasium.wrappers.TransformObservation does",
}


def space_problems(space: Space, what: str, path: str = "") -> Iterator[str]:
    """The parts of a ``space`` that skrl has no form for, each with a way out; ``what`` is observation or action."""
    name = path or what
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            inner = f"{path}/{key}" if path else str(key)
            if what == "action" and isinstance(part, spaces.Discrete):
                yield (
                    f"the action {inner!r} is a Discrete among others, which skrl gives the environment as an array; "
                    f"give the environment MultiDiscrete([{part.n}]), as gymnasium.wrappers.TransformAction does"
                )
            else:
                yield from space_problems(part, what, inner)
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        yield f"the {what} {name!r} is {format_space(space)}, and skrl has MultiDiscrete of one axis; flatten it"
    elif isinstance(space, spaces.MultiBinary):
        yield f"the {what} {name!r} is {format_space(space)}, which skrl does not store; give {AS_CHOICES[what]}"
    elif not isinstance(space, KINDS):
        yield f"the {what} {name!r} is {format_space(space)}, which skrl does not store; make a Box of it in a wrapper"


def reading_problems(model: Model, state: str | None) -> Iterator[str]:
    """Whether the policy reads the environment's ``state``, which it does not have where it acts."""
    policy = one_policy(model.policy)
    if state is None:
        return
    private = [key for key in policy.read_keys if is_within(key, [state])]
    if private:
        kept = ", ".join(key for key in policy.read_keys if key not in private)
        yield (
            f"the policy reads {listing(private)}, which is for the critic alone; write observations: [{kept}] under "
            "'policy', or give states=False"
        )


def preprocessor_problems(model: Model, cfg: Any) -> Iterator[str]:
    """Preprocessors of an agent's config that do again, or undo, what the model does itself."""
    policy = one_policy(model.policy)
    for name in ("observation_preprocessor", "state_preprocessor"):
        if getattr(cfg, name, None) is None:
            continue
        if policy.observer.keys:
            yield f"{name} would normalise again what the spec's 'normalize' does; leave out one of the two"
        choices = [key for key, leaf in _leaves(policy) if not _is_float(leaf)]
        if choices:
            yield (
                f"{name} would scale {listing(choices)}, whose numbers are choices or bytes; leave it out, and write "
                "normalize: [...] in the spec for the observations that need it"
            )
    if getattr(cfg, "value_preprocessor", None) is None or model.critic is None:
        return
    if model.critic.value_normalizer is not None:
        yield "value_preprocessor would scale again what 'normalize_value' does; leave it out"
    else:
        yield (
            "value_preprocessor keeps the scale of values outside of the model; leave it out, and write "
            "normalize_value: true under 'critic'"
        )


def _leaves(policy: Policy) -> list[tuple[str, Leaf]]:
    return list(policy.observer.tree.leaves.items())


def _is_float(leaf: Leaf) -> bool:
    return leaf.kind == "box" and np.issubdtype(leaf.space.dtype, np.floating)  # type: ignore[arg-type]


def sequence_length_of(
    given: int | None, rollouts: int, envs: int, mini_batches: int
) -> tuple[int, list[str]]:
    """The length of sequences that an agent with memory learns from, and what is wrong with the one ``given``.

    Sequences fit into the rollout, and as many of them into each of the mini-batches. Without ``given``, the longest.
    """
    lengths = [
        n
        for n in range(rollouts, 0, -1)
        if rollouts % n == 0 and (rollouts // n * envs) % mini_batches == 0
    ]
    if given in lengths:
        return given, []
    if given is None and lengths:
        return lengths[0], []
    rollout = f"{rollouts} steps of {envs} environments in {mini_batches} mini-batches"
    if not lengths:
        return 1, [
            f"{rollout} cannot be cut into sequences of one length; let mini_batches divide rollouts times environments"
        ]
    return 1, [
        f"sequence_length {given} does not divide {rollout}; give one of {', '.join(map(str, lengths[:8]))}"
    ]
