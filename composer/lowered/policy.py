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
        self._is_single = policy.action_tree.is_single
        families = dict(policy.distributions.items())
        self._families = families
        drawers = {key: drawer(family, leaves[key]) for key, family in families.items()}
        known = {key: draw for key, draw in drawers.items() if draw is not None}
        at_once = len(known) == len(drawers) and not policy.network.after
        self._drawers = known if at_once else {}
        guard = Guard()
        guard.watch_children(policy.distributions)
        for module in (policy.distributions, *families.values()):
            guard.watch(module)
        self._changed = guard.changed()
        self._find_boxes()

    def _find_boxes(self) -> None:
        """Where the observation is a Box or a Dict of Boxes, all of which are read: these, by name."""
        tree, keys = self.policy.observer.tree, self.policy.read_keys
        leaves = [tree.leaves[key] for key in keys]
        self._is_dict = not tree.is_single
        self._normalizes = any(key in self.policy.observer.keys for key in keys)
        are_boxes = all(x.kind == "box" and len(x.path) == self._is_dict for x in leaves)
        self._boxes: dict[Any, Leaf] = {}
        if are_boxes and len(leaves) == len(tree.leaves):
            self._boxes = {leaf.path[0] if self._is_dict else leaf.key: leaf for leaf in leaves}

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
                self._families[key].refuse_no_logits(logits[key])
                actions[key] = draw(logits[key], deterministic, generator)
            except NoNumberError as error:
                raise with_observation(error, inputs) from None
        if self._is_single:
            return actions[self._only]
        return self.policy.action_tree.unflatten(actions)

    def _read(self, observation: Any) -> tuple[Inputs, bool]:
        """What the network reads, and whether it is one observation in numpy, on the host."""
        tensors = self._tensors(observation)
        if tensors is None:
            return self.policy.read(observation), False
        if self._normalizes:
            tensors = self.policy.observer.normalized(tensors, self.policy.read_keys)
        return Inputs(tensors), True

    def _tensors(self, observation: Any) -> Tensors | None:
        """By flat key; None for anything but arrays without leading axes for a model of floats on the host."""
        kind = _KINDS.get(self.policy.dtype)
        if kind is None or self.policy.device.type != "cpu":
            return None
        if self._is_dict and (
            type(observation) is not dict or observation.keys() != self._boxes.keys()
        ):
            return None
        tensors: Tensors = {}
        for name, leaf in self._boxes.items():
            tensor = _tensor(leaf, observation[name] if self._is_dict else observation, kind)
            if tensor is None:
                return None
            tensors[leaf.key] = tensor
        return tensors or None


def _tensor(leaf: Leaf, value: Any, kind: type) -> Tensor | None:
    """A tensor of its own: an environment may write its next observation into the same array."""
    if type(value) is not np.ndarray or value.shape != leaf.shape or value.dtype not in _NUMBERS:
        return None
    look_at(leaf, value)
    return torch.from_numpy(np.array(value, kind, order="C"))
