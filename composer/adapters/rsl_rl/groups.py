"""The observation groups of rsl_rl as the space that a model is composed for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.critic.base import SpaceCritic
from composer.policy.policy import Policy
from composer.spaces.json_form import space_from_json
from composer.spaces.tree import SpaceTree
from composer.spec.keys import PARTS, PREVIOUS
from perception_blocks.port import format_shape
from perception_blocks.words import hint, listing

__all__ = ["group_problems", "keys_of", "observation_space_of", "read_space", "seen_by"]


def read_space(value: object, name: str) -> Space:
    """A space of gymnasium, or of its plain form: what `space_to_json` gives. Raises ValueError for anything else."""
    if isinstance(value, Space):
        return value
    try:
        return space_from_json(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def observation_space_of(
    groups: Iterable[str], observed: Mapping[str, Tensor], given: object
) -> Space:
    """The Dict of ``groups``, or the whole space that was ``given``.

    A group is a Box without bounds, of bytes from 0 to 255 or of flags by its dtype; ``given`` may have spaces by
    group. Raises ValueError for groups whose numbers say too little.
    """
    is_whole = isinstance(given, Space) or (isinstance(given, Mapping) and "type" in given)
    if is_whole:
        return read_space(given, "observation_space")
    by_group: Mapping[str, object] = given if isinstance(given, Mapping) else {}
    unknown = [name for name in by_group if name not in observed]
    if unknown:
        near = hint(unknown[0], observed, "the environment has")
        raise ValueError(f"observation_space names {unknown[0]!r}, which is no group{near}")
    parts = {
        name: read_space(by_group[name], f"observation_space of {name!r}")
        if name in by_group
        else _space_of(name, observed[name])
        for name in groups
    }
    # The model has the last action and reward in a Dict of their own; flat keys are the same.
    recalled = {name: parts.pop(name) for name in [*parts] if name.startswith(f"{PREVIOUS}/")}
    group = {name.removeprefix(f"{PREVIOUS}/"): space for name, space in recalled.items()}
    return spaces.Dict({**parts, PREVIOUS: spaces.Dict(group)} if group else parts)


def _space_of(name: str, value: Tensor) -> Space:
    shape = tuple(value.shape[1:])
    if value.dtype.is_floating_point:
        return spaces.Box(-np.inf, np.inf, shape)
    if value.dtype == torch.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    if value.dtype == torch.bool:
        return spaces.MultiBinary(shape)
    dtype = str(value.dtype).removeprefix("torch.")
    raise ValueError(
        f"group {name!r} has numbers of {dtype}, which do not say what they count; give its space, such as "
        f"observation_space: {{{name}: {{type: Discrete, n: 5, start: 0, dtype: int64}}}}"
    )


def keys_of(tree: SpaceTree, groups: Iterable[str]) -> dict[str, str]:
    """The group of each value of the model: of a space without parts the only group, else the one of its name."""
    groups = list(groups)
    if tree.is_single and len(groups) == 1:
        return dict.fromkeys(tree.leaves, groups[0])
    return {key: key for key in tree.leaves}


def group_problems(
    policy: Policy,
    critic: SpaceCritic | None,
    keys: Mapping[str, str],
    observed: Mapping[str, Tensor],
    sets: Mapping[str, Iterable[str]],
) -> Iterator[str]:
    """What the model reads that its observation set does not have, and groups of another form than it was made for."""
    tree = policy.observer.tree
    for key, group in keys.items():
        port = tree.ports[key]
        if None in port.shape:
            yield (
                f"observation {key!r} varies in size, {format_shape(port.shape)}, and rsl_rl stores tensors of one "
                "size; pad it in the environment, and give the policy its mask as another group"
            )
        elif group not in observed:
            near = hint(group, observed, "the environment has")
            if key.startswith(f"{PREVIOUS}/"):
                near = "; give vector_env(..., previous=model.spec.previous), or let the environment give this group"
            yield f"the model reads {key!r}, which is no group of the environment{near}"
        elif tuple(observed[group].shape[1:]) != tuple(tree.leaves[key].space.shape or ()):
            got = format_shape(tuple(observed[group].shape[1:]))
            needed = format_shape(tuple(tree.leaves[key].space.shape or ()))
            yield f"group {group!r} has the shape {got}, but observation_space says {needed}"
    for part, names in (("policy", policy.read_keys), ("critic", seen_by(critic))):
        allowed = list(sets["actor" if part == "policy" else "critic"]) if part in PARTS else []
        extra = [key for key in names if keys.get(key, key) not in allowed]
        if extra:
            kept = [key for key in names if key not in extra]
            which = "actor" if part == "policy" else "critic"
            yield (
                f"the {part} reads {listing(extra)}, which obs_groups does not give to {which!r}; write "
                f"observations: [{', '.join(kept)}] under '{part}' of the spec, or add to "
                f"obs_groups: {{{which}: [{', '.join(map(str, [*allowed, *extra]))}]}}"
            )


def seen_by(critic: SpaceCritic | None) -> list[str]:
    """The observations that the critic itself reads; what a policy shares with it is the policy's."""
    if critic is None:
        return []
    sources: Mapping[str, Any] = critic.input_sources()
    return [source.key for source in sources.values() if source.kind == "observation"]
