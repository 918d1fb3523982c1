"""From a spec and an environment's spaces to policy and critic, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import torch

from composer.build import build_network
from composer.construction import SeededConstruction
from composer.critic import CriticModule
from composer.critic_parts import build_critic
from composer.demand import Context, Demand
from composer.distributions import (
    DISTRIBUTIONS,
    ActionDistributions,
    DistributionRuleError,
    build_distributions,
)
from composer.errors import Path, SpecError
from composer.model_spec import ModelSpec, NetworkSpec, PolicySpec
from composer.observer import Observer
from composer.policy import Policy
from composer.spaces import SpaceError, SpaceTree, flatten_space
from composer.tree import listing
from perception_blocks.port import Port, format_shape
from perception_blocks.registry import did_you_mean

__all__ = ["Parts", "build_parts"]


@dataclass(frozen=True)
class Parts:
    """A policy and, where the spec has one, its critic; ``constructions`` give them their weights."""

    policy: Policy
    critic: CriticModule | None
    constructions: list[SeededConstruction]


def build_parts(
    spec: ModelSpec,
    context: Context,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    dtype: torch.dtype,
) -> Parts:
    """Policy and critic, without weights so far.

    Raises SpecError with everything that is wrong with the spec. An exception from a user's own class passes through.
    """
    return _Builder(spec, context, observation_space, action_space, dtype).parts()


class _Builder:
    """One run: trees, distributions, policy, critic; problems are gathered in the context."""

    def __init__(
        self,
        spec: ModelSpec,
        context: Context,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.context = context
        self.problems = context.problems
        self.dtype = dtype
        observations = self._tree(observation_space, "observation", spec.ignore, spec.texts)
        actions = self._tree(action_space, "action", (), {})
        if observations is None or actions is None:
            raise SpecError(self.problems)  # nothing more can be said
        self.observations, self.actions = observations, actions
        self.ports = dict(self.observations.ports)  # as networks see them

    def parts(self) -> Parts:
        self._refuse_unsupported()
        before = len(self.problems)
        families = self._families()
        rules_are_wrong = len(self.problems) > before
        observer = self._observer()
        masks = self._masks(families)
        built = self._policy_network(families, rules_are_wrong)
        critic = build_critic(
            self.spec, observer, self.actions, self._visible, self.context, self.dtype
        )
        if built and not self.problems:
            self._refuse_unread(set(masks.values()))
        self.problems.raise_if_any()
        assert built is not None
        network, construction = built
        spec = self.spec.policy.networks[None]
        policy = Policy(
            network, observer, self.actions, families,
            masks=masks, shares=spec.shares, dtype=self.dtype,
        )  # fmt: skip
        if critic is None:
            return Parts(policy, None, [construction])
        return Parts(policy, critic[0], [construction, *critic[1]])

    def _tree(
        self,
        space: gymnasium.Space,
        root: str,
        ignore: tuple[str, ...],
        texts: dict[str, dict[str, Any]],
    ) -> SpaceTree | None:
        try:
            return flatten_space(space, root, ignore, texts)
        except SpaceError as error:
            for place, message in error.problems:
                if isinstance(place, str):
                    self.problems.add(("texts", place), message, key=True)
                else:
                    self.problems.add(() if place is None else ("ignore", place), message)
            wrong = {place for place, _ in error.problems}
            if None in wrong:
                return None
            # Only `ignore` and `texts` are wrong: without these entries the rest can be checked.
            ignored = [key for index, key in enumerate(ignore) if index not in wrong]
            known = {key: text for key, text in texts.items() if key not in wrong}
            return flatten_space(space, root, ignored, known)

    def _families(self) -> ActionDistributions:
        """The distribution of each action; where rules are wrong, as if they were not there."""
        rules = list(self.spec.distributions)
        while True:
            try:
                return build_distributions(self.actions, [rule.entry for rule in rules])
            except DistributionRuleError as error:
                for index, setting, message in error.problems:
                    path = rules[index].path
                    self.problems.add((*path, setting) if setting else path, message)
                wrong = {index for index, _, _ in error.problems}
                rules = [rule for index, rule in enumerate(rules) if index not in wrong]

    def _observer(self) -> Observer:
        known = []
        for index, key in enumerate(self.spec.normalize):
            port = self.ports.get(key)
            if port is None:
                self._refuse_observation(("normalize", index), key)
            elif port.is_integer:
                message = f"{key!r} holds integers that name or count; only numbers are normalised"
                self.problems.add(("normalize", index), message)
            elif key in self.observations.masks:
                message = f"{key!r} is a mask; only numbers are normalised"
                self.problems.add(("normalize", index), message)
            else:
                known.append(key)
                self.ports[key] = replace(port, dtype=torch.float32, low=None, high=None)
        return Observer(self.observations, known)

    def _refuse_observation(self, path: Path, key: str) -> None:
        """Note at ``path`` that ``key`` is no observation that can be used."""
        if key in self.spec.ignore:
            reason = "is left out by 'ignore'"
        else:
            listed = f"; there is {listing(self.ports)}"
            reason = f"is not an observation{did_you_mean(key, self.ports) or listed}"
        self.problems.add(path, f"{key!r} {reason}")

    def _refuse_unsupported(self) -> None:
        """What the spec's format has a key for, but nothing yet does, must not be passed over in silence."""
        policy = self.spec.policy
        given = {(*policy.path, "wrap"): policy.wrap, (*policy.path, "separate"): policy.separate}
        for path, value in given.items():
            if value:
                self.problems.add(
                    path, f"{path[-1]!r} is not supported yet; leave it out", key=True
                )

    def _masks(self, families: ActionDistributions) -> dict[str, str]:
        path = (*self.spec.policy.path, "action_mask")
        masks = {}
        for action, key in self.spec.policy.action_mask.items():
            if action not in families:
                near = did_you_mean(action, families) or f"; there is {listing(families)}"
                self.problems.add((*path, action), f"{action!r} is no action{near}", key=True)
            elif key not in self.ports:
                self._refuse_observation((*path, action), key)
            elif self.ports[key].shape != families[action].logits_shape:
                got = format_shape(self.ports[key].shape)
                needed = format_shape(families[action].logits_shape)
                message = f"the mask {key!r} has the shape {got}, but the logits of {action!r} have {needed}"
                self.problems.add((*path, action), message)
            else:
                masks[action] = key
        return masks

    def _policy_network(self, families: ActionDistributions, rules_are_wrong: bool) -> Any:
        spec = self._single_network(self.spec.policy)
        widths = families.logits_shapes
        reasons = {}
        if not rules_are_wrong:
            for name, family in families.items():
                reasons[name] = f"its distribution {DISTRIBUTIONS.name_of(type(family))!r}"
        for index, name in enumerate(spec.shares):
            if name in widths or name in self.ports:
                what = "an action" if name in widths else "an observation"
                self.problems.add(
                    (*spec.path, "shares", index), f"{name!r} is also {what}; rename the node"
                )
        shares = tuple(name for name in spec.shares if name not in {**widths, **self.ports})
        demand = Demand(widths, reasons, shares, "action", {"action_logits_shapes": widths})
        return build_network("policy", spec, self._visible(spec), demand, self.context)

    def _single_network(self, spec: PolicySpec) -> NetworkSpec:
        if None not in spec.networks:
            self.problems.add(
                (*spec.path, "networks"),
                "networks by step or agent need an environment with steps or agents",
            )
            self.problems.raise_if_any()
        return spec.networks[None]

    def _visible(self, spec: NetworkSpec) -> dict[str, Port]:
        """The observations that a network may see; all of them while the list itself is wrong."""
        wanted = self.ports if spec.observations is None else self._with_masks(spec.observations)
        unknown = [key for key in wanted if key not in self.ports]
        for key in unknown:
            index = list(wanted).index(key)
            self._refuse_observation((*spec.path, "observations", index), key)
        self.context.hidden = dict.fromkeys(self.spec.ignore, "is left out by 'ignore'")
        if unknown:
            return dict(self.ports)
        out_of_sight = [key for key in self.ports if key not in wanted]
        reason = "is not among the 'observations' that this network may see"
        self.context.hidden |= dict.fromkeys(out_of_sight, reason)
        return {key: port for key, port in self.ports.items() if key in wanted}

    def _with_masks(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """``keys``, and the masks of what they name."""
        masks = [self.ports[key].mask for key in keys if key in self.ports]
        return (*keys, *dict.fromkeys(mask for mask in masks if mask and mask not in keys))

    def _refuse_unread(self, masks: set[str]) -> None:
        masking = {port.mask for port in self.ports.values()}  # a mask goes where its value goes
        for key in self.ports:
            if key not in masking and key not in self.context.read | masks:
                message = f"the observation {key!r} is read by no network; name it under 'ignore' if that is meant"
                self.problems.add(("policy",), message, key=True)
