"""The last action and reward as observations: what ``previous`` of a spec adds to a space, and its values."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.limits import GivenLimits, how_to_raise, limits_from
from composer.spaces.kinds import Leaf, format_space
from composer.spaces.pettingzoo import is_pettingzoo
from composer.spaces.tree import flatten_space, walk_space
from composer.spec.keys import PREVIOUS, RECALLED
from perception_blocks.words import did_you_mean, listing

__all__ = ["Numbers", "Recalled", "add_previous", "checked_names", "why_not_recalled"]

REWARD = spaces.Box(-np.inf, np.inf, (1,), np.float32)
Numbers = np.ndarray | Tensor


def checked_names(previous: object) -> tuple[str, ...]:
    """The names that ``previous`` lists, each once. Raises ValueError for anything else."""
    names = list(previous) if isinstance(previous, list | tuple) else [previous]
    for name in names:
        if name not in RECALLED:
            near = did_you_mean(name, RECALLED) if isinstance(name, str) else ""
            raise ValueError(f"{PREVIOUS} lists {listing(RECALLED)}, got {name!r}" + near)
    return tuple(name for name in RECALLED if name in names)


def add_previous(
    observation_space: Space,
    action_space: Space,
    previous: tuple[str, ...],
    limits: GivenLimits = None,
) -> Space:
    """The observation space with the last action and reward, as ``previous`` lists them; a Dict.

    A space without parts becomes its entry ``observation``, the parts of a Tuple become ``0``, ``1``, ... A space that
    has these entries already is returned as it is. Raises ValueError for other observations under their names, for an
    action of that name, and for more numbers than ``limits`` allow; SpaceError for actions that are not supported.
    """
    if not previous:
        return observation_space
    added = _added_spaces(action_space, previous, limits)
    if _is_filled(observation_space, added):
        return observation_space
    if other := _listed_by(observation_space, action_space):
        raise ValueError(
            f"the environment shows the last {' and '.join(other)}, but {PREVIOUS!r} lists {listing(previous)}; let "
            f"both list the same"
        )
    _refuse_taken(observation_space, added)
    return spaces.Dict([*_parts(observation_space), (PREVIOUS, spaces.Dict([*added.items()]))])


def why_not_recalled(env: object) -> str:
    """Why nothing but ``env`` itself can show its last action and reward; empty where `with_previous` can."""
    why = ""
    if is_pettingzoo(env):
        if hasattr(env, "agent_iter"):
            why = "the agents of the environment take turns (AEC)"
    elif isinstance(getattr(getattr(env, "unwrapped", env), "observation_spaces", None), Mapping):
        why = "the environment has several steps, each with its own actions"
    return (
        why
        and f"{why}; let it give the entry {PREVIOUS!r} itself, as docs/how-to/previous.md describes it"
    )


class Recalled:
    """The values of the last action and reward for one environment's spaces, and ``space``, which includes them.

    Raises ValueError and SpaceError as `add_previous` does.
    """

    def __init__(
        self, observation_space: Space, action_space: Space, previous: tuple[str, ...]
    ) -> None:
        self.space = add_previous(observation_space, action_space, previous)
        self._is_dict = isinstance(observation_space, spaces.Dict)
        self._is_tuple = isinstance(observation_space, spaces.Tuple)
        self._added = _added_spaces(action_space, previous)
        self._actions = [
            _RecalledAction(leaf, self._added[key])
            for key, leaf in _leaves(action_space).items()
            if "action" in previous
        ]
        self._has_reward = "reward" in previous

    def nothing(self, leading: tuple[int, ...] = (), like: Tensor | None = None) -> dict[str, Any]:
        """Zeros, with the axes ``leading``: what stands before the first step. Tensors as ``like`` is, if given."""
        zeros: dict[str, Any] = {}
        for key, space in self._added.items():
            array = np.zeros((*leading, *(space.shape or ())), space.dtype)
            zeros[key] = array if like is None else torch.from_numpy(array).to(like.device)
        return zeros

    def values(
        self,
        action: Any,
        reward: Any,
        leading: tuple[int, ...] = (),
        like: Tensor | None = None,
    ) -> dict[str, Any]:
        """The entries after a step with ``action``, as the environment took it, and ``reward``; new arrays."""
        values: dict[str, Any] = {}
        for part in self._actions:
            values[part.leaf.key] = part.value(action, leading, like)
        if self._has_reward:
            values["reward"] = _numbers(reward, REWARD.dtype, like).reshape((*leading, 1))
        return values

    def observation(self, observation: Any, values: Mapping[str, Any]) -> dict[Any, Any]:
        """``observation`` with ``values`` under their key."""
        if self._is_dict:
            return {**observation, PREVIOUS: dict(values)}
        if self._is_tuple:
            parts = {str(index): part for index, part in enumerate(observation)}
            return {**parts, PREVIOUS: dict(values)}
        return {"observation": observation, PREVIOUS: dict(values)}


class _RecalledAction:
    """One action as an observation: choices one-hot, all of them side by side; a Box and bits as they are."""

    def __init__(self, leaf: Leaf, space: Space) -> None:
        self.leaf, self._space = leaf, space
        self._choices: Numbers | None = None
        self._which: Numbers | None = None  # of several choices, to which each number belongs
        action: Any = leaf.space
        if leaf.kind == "discrete":
            self._choices = np.arange(action.n) + action.start
        elif leaf.kind == "multi_discrete":
            counts, starts = action.nvec.reshape(-1), action.start.reshape(-1)
            self._which = np.repeat(np.arange(len(counts)), counts)
            self._choices = np.concatenate([np.arange(n) + s for n, s in zip(counts, starts)])

    def value(self, action: Any, leading: tuple[int, ...], like: Tensor | None) -> Numbers:
        value = reduce(getitem, self.leaf.path, action)
        dtype = self._space.dtype
        if self._choices is None:
            return _numbers(value, dtype, like).reshape((*leading, *(self._space.shape or ())))
        chosen = _numbers(value, np.dtype(np.int64), like).reshape((*leading, -1))
        if like is not None:
            self._move(like.device)
        if self._which is not None:
            chosen = chosen[..., self._which]
        is_chosen: Any = chosen == self._choices
        return is_chosen.astype(dtype) if like is None else is_chosen.to(torch.float32)

    def _move(self, device: torch.device) -> None:
        """The tables as tensors on ``device``."""
        self._choices = torch.as_tensor(self._choices, device=device)
        if self._which is not None:
            self._which = torch.as_tensor(self._which, device=device)


def _numbers(value: Any, dtype: Any, like: Tensor | None) -> Any:
    """A copy of ``value`` in ``dtype``: an array, or a tensor where ``like`` is."""
    if like is not None:
        tensor = torch.as_tensor(value).detach()
        return tensor.to(like.device, getattr(torch, str(dtype)), copy=True)
    return np.array(value.detach().cpu() if isinstance(value, Tensor) else value, dtype)


# --- the spaces ---


def _leaves(action_space: Space) -> dict[str, Leaf]:
    return flatten_space(action_space, "action").leaves


def _added_spaces(
    action_space: Space, previous: tuple[str, ...], limits: GivenLimits = None
) -> dict[str, Space]:
    """What is added, by its name below ``previous``: the flat keys of the actions, and ``reward``."""
    added: dict[str, Space] = {}
    if "action" in previous:
        leaves = _leaves(action_space)
        added = {key: _recalled_space(leaf, limits) for key, leaf in leaves.items()}
    if "reward" in previous:
        if "reward" in added:
            raise ValueError(
                f"the action 'reward' and the reward would both be '{PREVIOUS}/reward'; rename the action in the "
                f"environment, or write {PREVIOUS}: [action]"
            )
        added["reward"] = REWARD
    return added


def _recalled_space(leaf: Leaf, given: GivenLimits) -> Space:
    """The space of an action as an observation, in which zeros stand for no action."""
    space: Any = leaf.space
    if leaf.kind == "multi_binary":
        return space
    if leaf.kind == "box":
        dtype = space.dtype if space.dtype.kind == "f" else np.dtype(np.float32)
        low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)
    count = int(space.n) if leaf.kind == "discrete" else sum(map(int, space.nvec.flat))
    most = limits_from(given).numbers
    if count > most:
        raise ValueError(
            f"'{PREVIOUS}/{leaf.key}' would have {count:,} numbers, one for each choice, but the limit of numbers is "
            f"{most:,}; leave 'action' out of '{PREVIOUS}', or {how_to_raise('numbers', count)}"
        )
    return spaces.Box(0.0, 1.0, (count,), np.float32)


def _parts(space: Space) -> list[tuple[Any, Space]]:
    """The entries of the Dict that takes the place of ``space``: no flat key changes."""
    if isinstance(space, spaces.Dict):
        return [*space.spaces.items()]
    if isinstance(space, spaces.Tuple):
        return [(str(index), part) for index, part in enumerate(space.spaces)]
    return [("observation", space)]


def _is_filled(space: Space, added: Mapping[str, Space]) -> bool:
    """Whether ``space`` has the entries that would be ``added``; bounds of numbers may be left out."""
    group = space.spaces.get(PREVIOUS) if isinstance(space, spaces.Dict) else None
    if not isinstance(group, spaces.Dict) or group.spaces.keys() != added.keys():
        return False
    return all(part in (added[key], _unbounded(added[key])) for key, part in group.spaces.items())


def _listed_by(space: Space, action_space: Space) -> tuple[str, ...]:
    """The list with which `with_previous` has wrapped the environment of ``space``; empty where it has not."""
    for names in (RECALLED, *((name,) for name in RECALLED)):
        with suppress(ValueError):  # an action that can have no such entry
            if _is_filled(space, _added_spaces(action_space, names)):
                return names
    return ()


def _unbounded(space: Space) -> Space:
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)


def _refuse_taken(space: Space, added: Mapping[str, Space]) -> None:
    """Raise ValueError where ``space`` has something under the names of what would be ``added``."""
    taken = {
        key: part
        for key, path, part in walk_space(space, "observation", inner=True)
        if path and key.split("/")[0] == PREVIOUS and not isinstance(part, spaces.Dict)
    }
    if not taken:
        return
    shown = ", ".join(f"{key!r}, {format_space(part)}" for key, part in taken.items())
    wanted = ", ".join(f"'{PREVIOUS}/{key}', {format_space(part)}" for key, part in added.items())
    raise ValueError(
        f"the environment has {shown}, but {PREVIOUS!r} adds {wanted}; rename it in the environment, or take "
        f"{PREVIOUS!r} out of the spec and read what the environment has"
    )
