"""Observations and actions as a trainer's library, the host, stores them, and back.

Hosts store arrays of one size. A nested observation becomes a Dict by flat keys, several actions (or an action
without bounds) one vector; with ``as_vector`` everything is one vector of float32, as in hosts that know nothing
else. A wrapper of the environment flattens what the host does not flatten itself. Images that a host has turned to
channels first are turned back, so that the model reads the space that it was composed for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.model import Model
from composer.policy.policy import Policy
from composer.spaces.json_form import spaces_differ
from composer.spaces.kinds import KINDS, Leaf, look_at, to_space_value, unrounded
from composer.spaces.lookup import Spaces
from composer.spaces.tree import SpaceTree, how_to_recall, to_environment
from composer.spec.keys import PREVIOUS
from perception_blocks.port import format_shape

__all__ = ["FlatEnv", "HostActions", "HostObservations", "are_read_as_stored"]
__all__ += ["refuse_other_spaces", "refuse_unrecalled"]

NEEDED = "that the model needs"
_LARGEST = float(np.finfo(np.float32).max)


class HostObservations:
    """Observations as ``host`` stores them: the ``space`` that it must have, and the way back to the model's inputs.

    With ``as_vector`` they are one vector of float32, with the keys of each Dict in sorted order; choices are the
    numbers that the environment gives. Raises ValueError for observations that vary in size, all at once.
    """

    def __init__(self, tree: SpaceTree, host: str, *, as_vector: bool = False) -> None:
        self.tree = tree
        self.as_vector = as_vector
        _refuse_varying(tree, host)
        parts = tree.space.spaces.values() if isinstance(tree.space, spaces.Dict) else [tree.space]
        self.is_flat = as_vector or not all(map(_is_array, parts))
        self._leaves = _in_order(tree, as_vector)
        self._sizes = [math.prod(leaf.shape) for leaf in self._leaves.values()]
        if as_vector:
            self.space: Space = spaces.Box(-np.inf, np.inf, (sum(self._sizes),), np.float32)
        else:
            self.space = _flat_space(tree) if self.is_flat else tree.space
        self._is_first = True

    def flat(self, observation: object) -> Any:
        """An environment's observation as an element of ``space``, which `is_flat`: arrays by flat key, or a vector."""
        varying = [
            key for key, leaf in self.tree.leaves.items() if leaf.kind in ("variable", "mask")
        ]
        padded = self.tree.to_tensors(observation, dtype=torch.float32, keys=varying)
        values: dict[str, np.ndarray] = {key: tensor.numpy() for key, tensor in padded.items()}
        for key, leaf in self.tree.leaves.items():
            if key not in values:
                values[key] = np.asarray(reduce(getitem, leaf.path, observation))  # type: ignore[arg-type]
                look_at(leaf, values[key])  # before it is cast to the dtype of its space
        if self.as_vector:
            rows = [values[key].reshape(-1).astype(np.float32) for key in self._leaves]
            return np.concatenate(rows)
        parts = self.space.spaces  # type: ignore[attr-defined]
        return {key: np.asarray(values[key], dtype=part.dtype) for key, part in parts.items()}

    def read(
        self,
        observations: Tensor | Mapping[str, Tensor],
        host: Space | None = None,
        leading: tuple[int, ...] = (-1,),
    ) -> dict[str, Tensor]:
        """The host's tensors by flat key, with the axes ``leading`` before the space's axes.

        ``host`` is the space that the host has, if its images may be turned. Raises ValueError for numbers in the first
        batch that are no choice of their space, wherever the tensors are.
        """
        tensors = {}
        for key, value in self._by_key(observations).items():
            needed = self.tree.leaves[key].shape
            has = needed if host is None or self.as_vector else _part(host, key).shape or ()
            value = value.reshape((*leading, *has))
            tensors[key] = value if tuple(has) == needed else value.movedim(-3, -1)
        if self._is_first and not torch.compiler.is_compiling():
            for key, value in tensors.items():
                if not value.is_cpu:  # a model looks at values on the CPU itself, each time
                    look_at(self.tree.leaves[key], value.detach().cpu())
            self._is_first = False
        return tensors

    def _by_key(self, observations: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.as_vector:
            assert isinstance(observations, Tensor)
            return dict(zip(self._leaves, observations.split(self._sizes, -1), strict=True))
        if isinstance(observations, Mapping):
            return {key: observations[key] for key in self._leaves}
        return {self.tree.root: observations}


class HostActions:
    """Actions as a host stores them: their ``space``, and the way to and from the model's distributions.

    ``is_flat`` where that is a vector: with ``as_vector`` always, with the keys of each Dict in sorted order.
    """

    def __init__(self, tree: SpaceTree, *, as_vector: bool = False) -> None:
        leaves = {key: unrounded(leaf) for key, leaf in _in_order(tree, as_vector).items()}
        self.tree = SpaceTree(tree.space, tree.root, leaves)
        self.is_flat = as_vector or not _is_plain_action(tree.space)
        vector = _vector(leaves.values())
        self._bounds = vector.low, vector.high
        self.space = vector if self.is_flat else tree.space
        self._sizes = [math.prod(leaf.shape) for leaf in leaves.values()]
        # Whether what is stored is what was drawn: numbers of a Box of integers are rounded.
        self.keeps_draws = all(leaf.kind != "box" or _is_drawn(leaf) for leaf in leaves.values())

    def to_host(self, action: Tensor | Mapping[str, Tensor]) -> Tensor:
        """An action of the model's distribution, (..., *its shape), as an element of ``space``.

        Numbers of a Box stay as they were drawn: the host clips them when it acts, and densities are of the draw.
        """
        values = action if isinstance(action, Mapping) else {self._only: action}
        parts = {
            key: values[key].float() if _is_drawn(leaf) else to_space_value(leaf, values[key])
            for key, leaf in self.tree.leaves.items()
        }
        if not self.is_flat:
            return parts[self._only]
        rows = [
            part.flatten(part.dim() - len(leaf.shape)) if leaf.shape else part.unsqueeze(-1)
            for part, leaf in zip(parts.values(), self.tree.leaves.values(), strict=True)
        ]
        return torch.cat([row.float() for row in rows], -1)

    def from_host(self, action: Tensor, dtype: torch.dtype, leading: tuple[int, ...]) -> Any:
        """The host's action with these ``leading`` axes as the model's distribution has it; gradients flow through.

        Distributions and critics refuse what is no choice.
        """
        parts = self._split(action, leading)
        leaves = self.tree.leaves.items()
        flat = {key: KINDS[leaf.kind].inward(leaf, parts[key], dtype) for key, leaf in leaves}
        return flat[self._only] if self.tree.is_single else flat

    def without_padding(self, action: Tensor) -> Tensor:
        """``action`` with what is nearest in its bounds in place of rows of zeros, with which hosts pad sequences."""
        low, high = (torch.from_numpy(bound).to(action) for bound in self._bounds)
        rows = action.reshape(-1, sum(self._sizes))
        is_empty = (rows == 0).all(-1, keepdim=True)
        return torch.where(is_empty, rows.clamp(low, high), rows).reshape(action.shape)

    def to_environment(self, action: object) -> object:
        """An action of ``space``, which `is_flat`, with any leading axes, as the environment takes it."""
        rows = torch.as_tensor(np.asarray(action))
        values = self._split(rows, tuple(rows.shape[:-1]))
        flat = self.tree.to_tensors(values, dtype=torch.float32)
        return to_environment(self.tree, flat, as_numpy=True)

    @property
    def _only(self) -> str:
        return next(iter(self.tree.leaves))

    def _split(self, action: Tensor, leading: tuple[int, ...]) -> dict[str, Tensor]:
        leaves = self.tree.leaves
        parts = [action]
        if len(leaves) > 1:
            parts = action.reshape((*leading, sum(self._sizes))).split(self._sizes, -1)
        return {
            key: _whole(leaf, part).reshape((*leading, *leaf.shape))
            for part, (key, leaf) in zip(parts, leaves.items(), strict=True)
        }


class FlatEnv(gymnasium.Wrapper):
    """An environment whose observations and actions a host can store.

    ``model_spaces`` are the spaces of the environment itself, for which its model is composed.
    """

    def __init__(
        self, env: gymnasium.Env, observations: HostObservations, actions: HostActions
    ) -> None:
        super().__init__(env)
        self.model_spaces = (env.observation_space, env.action_space)
        self._observations = observations
        self._actions = actions
        self.observation_space = observations.space
        self.action_space = actions.space

    def reset(self, **settings: Any) -> tuple[object, dict[str, object]]:
        observation, info = self.env.reset(**settings)
        return self._observed(observation), info

    def step(self, action: object) -> tuple[object, SupportsFloat, bool, bool, dict[str, object]]:
        taken = self._actions.to_environment(action) if self._actions.is_flat else action
        observation, *rest = self.env.step(taken)
        return (self._observed(observation), *rest)  # type: ignore[return-value]

    def _observed(self, observation: object) -> object:
        return self._observations.flat(observation) if self._observations.is_flat else observation


def refuse_other_spaces(
    needed: Spaces, host: Spaces, what: str = NEEDED, advice: str = "", *, bounds: bool = True
) -> None:
    """Raise ValueError, which ends with ``advice``, unless the host's spaces are the ones ``needed``.

    Images may be turned. Without ``bounds`` the bounds of numbers may differ: statistics of the host move them.
    """
    differences = spaces_differ(_turned(needed[0], host[0], bounds), host[0], "observation")
    differences += spaces_differ(needed[1], host[1], "action")
    if differences:
        lines = "".join(f"\n  {difference}" for difference in differences)
        advice = advice or _how_to_recall(needed[0], host[0])
        raise ValueError(f"the environment's spaces are not those {what}:{lines}{advice}")


def refuse_unrecalled(model: Model, host: Space) -> None:
    """Raise ValueError where the host's observations lack the last action and reward that the spec asks for."""
    if model.spec.previous:
        action = model.action_space
        refuse_other_spaces((model.observation_space, action), (host, action), "of the model")


def _how_to_recall(needed: Space, host: Space) -> str:
    """What gives the last action and reward, if the host's observations lack them."""
    group = needed.spaces.get(PREVIOUS) if isinstance(needed, spaces.Dict) else None
    if not isinstance(group, spaces.Dict) or PREVIOUS in getattr(host, "spaces", ()):
        return ""
    return how_to_recall(group.spaces)


# --- observations ---


def are_read_as_stored(policy: Policy, keys: Iterable[str]) -> bool:
    """Whether ``policy`` reads the observations ``keys`` as a host stores them: float32, and not normalised."""
    leaves = policy.observer.tree.leaves
    return (
        policy.dtype == torch.float32
        and policy.users_own("preprocess") is None
        and all(
            leaves[key].kind == "box"
            and leaves[key].space.dtype == np.float32
            and key not in policy.observer.keys
            for key in keys
        )
    )


def _in_order(tree: SpaceTree, is_sorted: bool) -> dict[str, Leaf]:
    """The leaves in the order of the space, or with the keys of each Dict in sorted order."""
    leaves = tree.leaves.items()
    return dict(sorted(leaves, key=lambda item: item[1].path)) if is_sorted else dict(leaves)


def _refuse_varying(tree: SpaceTree, host: str) -> None:
    varying = [
        f"{key!r} {format_shape(port.shape)}"
        for key, port in tree.ports.items()
        if None in port.shape
    ]
    if varying:
        raise ValueError(
            f"{host} stores observations of one size, but these vary: {', '.join(varying)}; "
            "pad them in a wrapper of the environment, or name them under 'ignore'"
        )


def _is_array(space: Space) -> bool:
    """Whether hosts can store it as it is, alone or in a Dict: numbers of one shape."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ndim == 1
    return isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary))


def _flat_space(tree: SpaceTree) -> spaces.Dict:
    """The Dict by flat keys."""
    return spaces.Dict({key: _flat_part(leaf) for key, leaf in tree.leaves.items()})


def _flat_part(leaf: Leaf) -> Space:
    if leaf.kind == "mask":
        return spaces.MultiBinary(leaf.shape)
    if leaf.kind != "variable" and _is_array(leaf.space):
        return leaf.space
    if leaf.port.dtype.is_floating_point:
        return spaces.Box(-np.inf, np.inf, leaf.shape, np.float32)
    limits = np.iinfo(np.int64)
    return spaces.Box(limits.min, limits.max, leaf.shape, np.int64)


def _part(space: Space, key: str) -> Space:
    return space.spaces[key] if isinstance(space, spaces.Dict) else space


def _turned(space: Space, host: Space, bounds: bool) -> Space:
    """``space`` with its images turned to channels first where ``host`` has them so; without ``bounds``, the host's."""
    if isinstance(space, spaces.Dict) and isinstance(host, spaces.Dict):
        parts = {k: _turned(s, host.spaces.get(k, s), bounds) for k, s in space.spaces.items()}
        return spaces.Dict(parts)
    if not (isinstance(space, spaces.Box) and isinstance(host, spaces.Box)):
        return space
    if host.shape == space.shape:
        return host if not bounds and np.issubdtype(host.dtype, np.floating) else space
    if len(space.shape) != 3 or space.dtype != np.uint8:
        return space
    low, high = (np.moveaxis(bound, -1, 0) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=np.uint8) if low.shape == host.shape else space


# --- actions ---


def _is_plain_action(space: Space) -> bool:
    """Whether every host takes it as it is: one of finite bounds and floats, or of one axis of choices."""
    if isinstance(space, spaces.Box):
        bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
        return bounded and np.issubdtype(space.dtype, np.floating)
    if isinstance(space, spaces.MultiBinary):
        return isinstance(space.n, (int, np.integer))
    return _is_array(space)


def _is_drawn(leaf: Leaf) -> bool:
    """Whether an action is stored as it was drawn: the numbers of a Box of floats."""
    return leaf.kind == "box" and leaf.dtype.is_floating_point


def _whole(leaf: Leaf, part: Tensor) -> Tensor:
    """Choices and numbers of integers, which a vector of floats may have moved a little, as whole numbers."""
    return part.round() if part.is_floating_point() and not _is_drawn(leaf) else part


def _vector(leaves: Iterable[Leaf]) -> spaces.Box:
    """All actions as one vector of numbers, each within its bounds or the bounds of float32."""
    bounds = [_bounds(leaf) for leaf in leaves]
    low, high = (np.concatenate(side) for side in zip(*bounds, strict=True))
    return spaces.Box(low, high, dtype=np.float32)


def _bounds(leaf: Leaf) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest values of an action, one for each of its elements."""
    space: Any = leaf.space
    if leaf.kind == "box":
        low, high = space.low, space.high
    elif leaf.kind == "multi_binary":
        low, high = np.zeros(leaf.shape), np.ones(leaf.shape)
    else:
        low = np.broadcast_to(np.asarray(space.start), leaf.shape)
        high = low + (space.n if leaf.kind == "discrete" else space.nvec) - 1
    return tuple(
        np.clip(np.asarray(bound, np.float64).reshape(-1), -_LARGEST, _LARGEST).astype(np.float32)
        for bound in (low, high)
    )  # type: ignore[return-value]
