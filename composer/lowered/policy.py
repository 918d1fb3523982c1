"""A policy for acting, fast: its network as straight-line code, observations and actions without detours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from composer.distributions.base import NoNumberError, with_observation
from composer.lowered.actions import drawer
from composer.lowered.network import follow, twin_of
from composer.network.network import Inputs, State, Tensors
from composer.spaces.kinds import Leaf, look_at
from perception_blocks.direct import is_plain
from perception_blocks.lowering.code import Guard

__all__ = ["LoweredPolicy"]

_KINDS = {torch.float32: np.float32, torch.float64: np.float64}
_NUMBERS = {np.dtype(kind) for kind in "?bBhHiIlLefd"}


class LoweredPolicy:
    """``policy`` (a Policy) in an environment's loop: ``act``, or called for its logits, with the policy's arguments.

    It computes the same over the policy's live parameters, and the same random numbers give the same actions. What has
    no fast form goes through the policy: a network class of the user's own altogether, unusual observations and actions
    where they are read and made. Hooks, adapters and parametrizations are noticed, as `LoweredNetwork` says.
    """

    def __init__(self, policy: Any, cls: type[nn.Module]) -> None:
        self.policy = policy
        self._class = cls
        self._prepare()

    def __call__(
        self, observations: object, state: State | None = None, resets: object = None
    ) -> Any:
        """As the policy: logits by action, and shared values; with memory (outputs, state)."""
        if self._twin is None or not is_plain(self.policy, self._class):
            return self.policy(observations, state, resets)
        follow(self._twin, self.policy)
        outputs, after = self._twin.evaluate(self._read(observations)[0], state, resets)
        return (outputs, after) if self._has_memory else outputs

    def act(
        self,
        observation: object,
        state: State | None = None,
        resets: object = None,
        *,
        deterministic: bool = False,
        mask: object = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Any:
        """As `Policy.act`: an action that the environment accepts; with memory (action, state)."""
        policy = self._twin
        if policy is None or not is_plain(self.policy, self._class):
            return self.policy.act(
                observation, state, resets, deterministic=deterministic, mask=mask,
                temperature=temperature, generator=generator,
            )  # fmt: skip
        follow(policy, self.policy)
        with_gradients = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # torch.no_grad takes five times as long
        try:
            inputs, single = self._read(observation)
            if self._has_memory or state:
                outputs, after = policy.evaluate(inputs, state, resets)
            else:
                policy.network.require_weights()
                outputs, after = policy.network.run(inputs), None
            plain = single and mask is None and not self._masked and temperature == 1.0
            if plain and self._drawers and not self._changed():
                action = self._drawn(outputs, inputs, deterministic, generator)
            else:
                distribution = policy.distribution_of(outputs, inputs, mask, temperature)
                action = policy.action_of(distribution, observation, deterministic, generator)
        finally:
            torch._C._set_grad_enabled(with_gradients)
        return (action, after) if self._has_memory else action

    def initial_state(self, *arguments: object, **keywords: object) -> State:
        return self.policy.initial_state(*arguments, **keywords)

    def __repr__(self) -> str:
        return f"LoweredPolicy({self.policy.observation_space} -> {self.policy.action_space})"

    def __getstate__(self) -> dict[str, Any]:
        return {"policy": self.policy, "_class": self._class}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def _prepare(self) -> None:
        policy = self.policy
        has_methods = policy.users_own("act") or policy.users_own("preprocess")
        self._twin = None if has_methods else twin_of(policy)
        self._has_memory = policy.has_memory
        self._masked = bool(policy.masks)
        leaves = policy.action_tree.leaves
        self._only = next(iter(leaves))
        families = dict(policy.distributions.items())
        self._families = families
        drawers = {key: drawer(family, leaves[key]) for key, family in families.items()}
        known = {key: draw for key, draw in drawers.items() if draw is not None}
        self._drawers = known if len(known) == len(drawers) else {}
        guard = Guard()
        guard.watch_children(policy.distributions)
        for module in (policy.distributions, *families.values()):
            guard.watch(module)
        self._changed = guard.changed()
        self._reader = _InputReader(policy)

    def _drawn(
        self,
        logits: Tensors,
        inputs: Tensors,
        deterministic: bool,
        generator: torch.Generator | None,
    ) -> Any:
        actions = {}
        for key, draw in self._drawers.items():
            try:
                self._families[key].refuse_no_numbers(logits[key])
            except NoNumberError as error:
                raise with_observation(error, inputs) from None
            actions[key] = draw(logits[key], deterministic, generator)
        tree = self.policy.action_tree
        return actions[self._only] if tree.is_single else tree.unflatten(actions)

    def _read(self, observation: object) -> tuple[Inputs, bool]:
        """What the network reads, and whether it is one observation in numpy, on the host."""
        inputs = self._reader.read(observation)
        return (self.policy.read(observation), False) if inputs is None else (Inputs(inputs), True)


class _InputReader:
    """One observation of arrays as tensors, where the space is a Box or a Dict of Boxes."""

    def __init__(self, policy: Any) -> None:
        tree = policy.observer.tree
        self._policy = policy
        self._keys = policy.read_keys
        self._normalizes = any(key in policy.observer.keys for key in self._keys)
        leaves = [tree.leaves[key] for key in self._keys]
        alone = tree.is_single
        boxes = all(leaf.kind == "box" and len(leaf.path) == (not alone) for leaf in leaves)
        self._alone: Leaf | None = leaves[0] if alone and boxes and leaves else None
        self._names = {leaf.path[0]: leaf for leaf in leaves} if boxes and not alone else {}
        self._all = len(tree.leaves) == len(leaves)

    def read(self, observation: object) -> Tensors | None:
        """By flat key; None for anything but arrays without leading axes for a model of floats on the host."""
        policy = self._policy
        kind = _KINDS.get(policy._dtype)
        if kind is None or policy._device.type != "cpu":
            return None
        if self._alone is not None:
            tensor = _tensor(self._alone, observation, kind)
            tensors = None if tensor is None else {self._alone.key: tensor}
        else:
            tensors = self._read_dict(observation, kind)
        if tensors is None or not self._normalizes:
            return tensors
        return policy.observer.normalized(tensors, self._keys)

    def _read_dict(self, observation: object, kind: type) -> Tensors | None:
        if not self._names or not self._all or type(observation) is not dict:
            return None
        if observation.keys() != self._names.keys():
            return None
        tensors: Tensors = {}
        for name, leaf in self._names.items():
            tensor = _tensor(leaf, observation[name], kind)
            if tensor is None:
                return None
            tensors[leaf.key] = tensor
        return tensors


def _tensor(leaf: Leaf, value: Any, kind: type) -> Tensor | None:
    """A tensor of its own: an environment may write its next observation into the same array."""
    if type(value) is not np.ndarray or value.shape != leaf.shape or value.dtype not in _NUMBERS:
        return None
    look_at(leaf, value)
    return torch.from_numpy(np.array(value, kind, order="C"))
