"""A critic as its spec and the environment's spaces ask for it, or all that is wrong with the spec for these spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from composer.build.construction import BuiltNetwork, SeededConstruction
from composer.build.context import BuildContext, Requirements, VisiblePorts
from composer.build.network_builder import build_network
from composer.build.plans import PolicyPlan, only_network, separate_paths
from composer.critic.base import CriticKind, CriticModule, CriticSetup, SpaceCritic
from composer.critic.structured import StructuredCriticBase
from composer.critic.targets import Targeted
from composer.critic.values import RAW_NAMES, ValueRequirements
from composer.errors import Problems
from composer.spaces.actors import Actor
from composer.spaces.tree import SpaceTree
from composer.spec.model_spec import CRITICS, CriticSpec, ModelSpec, NetworkSpec
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.graph.construct import add_place
from perception_blocks.measure import measure
from perception_blocks.port import Port
from perception_blocks.registry import MissingExtraError
from perception_blocks.words import describe, listing

__all__ = ["BuiltCritic", "CriticBuilder", "build_critic", "policy_failed", "policy_values"]
__all__ += ["with_target"]

BuiltCritic: TypeAlias = tuple[CriticModule | StructuredCriticBase, list[SeededConstruction]]
C = TypeVar("C", bound=nn.Module)
P = ParamSpec("P")


def build_critic(spec: ModelSpec, plan: PolicyPlan, dtype: torch.dtype) -> BuiltCritic | None:
    """The critic of ``spec`` for an environment with one Space, once its policy (``plan``) is built.

    None where there is none, or problems were noted.
    """
    if spec.critic is None:
        return None
    builder = CriticBuilder(spec.critic, plan.context, dtype)
    network = only_network(spec.critic, "a critic", builder.problems)
    kind = builder.kind_class()
    if kind is None or builder.refuse_one_actor(kind, "has one space only"):
        return None
    member = kind.member()
    stack = "'stack' stacks the observations of several actors, but this environment has one space"
    refused = {**member.refused, "stack": stack}
    refused.pop("separate", None)  # which has been noted
    builder.refuse_settings(refused)
    if policy_failed(plan) and not plan.context.goes_on:
        return None
    built = builder.network("critic", member, network, plan)
    if built is None:
        return None
    critic = builder.built(member, member.build, built[0], builder.setup(plan))
    return None if critic is None else (with_target(critic, built[1]), [built[1]])


@dataclass(frozen=True)
class CriticBuilder:
    """What a critic is built from, and the steps that all kinds of critics have in common; problems are noted."""

    critic: CriticSpec
    context: BuildContext
    dtype: torch.dtype

    @property
    def problems(self) -> Problems:
        return self.context.problems

    def note_kind(self, message: str) -> None:
        """Note a problem at the ``kind`` of the spec."""
        self.problems.add((*self.critic.path, "kind"), message)

    def kind_class(self) -> type[CriticKind] | None:
        """The class that is registered for the kind of critic; None where it cannot be had."""
        try:
            kind = CRITICS.get(self.critic.kind)
        except MissingExtraError as error:
            self.problems.add((*self.critic.path, "kind"), str(error), needs_extra=True)
            return None
        problem = "which is no critic; derive it from composer.critic.Critic"
        if isinstance(kind, type) and issubclass(kind, CriticModule | StructuredCriticBase):
            if kind.member.__func__ is not CriticKind.member.__func__:  # type: ignore[attr-defined]
                return kind
            problem = (
                "which does not define member(), the class of the critic of each network; register a class that is "
                "derived from composer.critic.Critic and returns this one from structured()"
            )
        self.note_kind(f"the critic kind {self.critic.kind!r} is {describe(kind)}, {problem}")
        return None

    def refuse_one_actor(self, kind: type[CriticKind], environment: str) -> bool:
        """Whether ``kind`` is for several actors only, while the ``environment`` has one.

        A user's kind is for several actors only where one of the built-in classes would stand for it, without what it
        overrides.
        """
        lost = _is_users(kind) and not _is_users(kind.member())
        if kind.serves_space and not lost:
            return False
        message = f"a critic of kind {self.critic.kind!r} is for several actors; this environment {environment}"
        if kind.serves_space:
            near, base = "state", "Critic"
            if issubclass(kind, CriticModule) and kind.takes_action:
                near, base = "state_action", "StateActionCritic"
            message += (
                f"; write kind: {near}, or let its member() return a class of yours that is derived from "
                f"composer.critic.{base}"
            )
        self.note_kind(message)
        return True

    def refuse_settings(self, refused: Mapping[str, str]) -> None:
        """Note each setting of the spec that is ``refused``, which says why."""
        critic = self.critic
        alone = {
            "stack": critic.stack,
            "ensemble": critic.ensemble > 1,
            "normalize_value": critic.normalize_value,
        }
        paths = [(*critic.path, key) for key, is_set in alone.items() if is_set]
        for path in [*paths, *separate_paths(critic)]:
            if path[-1] in refused:
                self.problems.add(path, refused[str(path[-1])], key=True)

    def requirements(
        self, kind: type[CriticModule], actions: SpaceTree | None
    ) -> tuple[ValueRequirements, Requirements] | None:
        """What a ``kind`` asks of its network, in its own form and as a network is built; None where it is wrong."""
        with self._noted(kind):
            asked = kind.requirements(actions)
        if not isinstance(asked, ValueRequirements):
            rule = "it must return ValueRequirements, as super().requirements() does"
            self.note_kind(f"{_path(kind)}.requirements returned {describe(asked)}; {rule}")
            return None
        extras = tuple(f"{head}_{raw}" for head in asked.heads for raw in RAW_NAMES)
        return asked, Requirements(
            asked.heads, asked.reasons, (), "value", asked.injected,
            extras=extras, added=kind.added, copies=self.critic.ensemble,
        )  # fmt: skip

    def network(
        self,
        name: str,
        member: type[SpaceCritic],
        spec: NetworkSpec,
        plan: PolicyPlan,
        served: Sequence[Actor] = (),
        previous: str | None = None,
    ) -> BuiltNetwork | None:
        """The network ``spec``, called ``name``, over what ``plan`` sees and shares; None where it cannot be.

        It values the actors ``served``, and may read the value before its own by the name ``previous``.
        """
        required = self.requirements(member, plan.actions)
        if required is None:
            return None
        asked, requirements = required
        plan.refuse_unknown(spec, served)
        seen, hidden = plan.visible_ports(spec, served)
        ports = {**seen, **plan.notes.shared}
        if previous is not None:
            if previous in ports:
                message = (
                    f"{previous!r} is the name of the previous value here; rename the other one"
                )
                self.problems.add(spec.path, message)
            ports[previous] = Port((1,))
        for action in [action for action in asked.actions if action in ports]:
            message = (
                f"the observation {action!r} is called as the action is that the critic reads; "
                "rename it, or name it under 'ignore'"
            )
            self.problems.add(spec.path, message, key=True)
        hidden = {**hidden, **policy_values(plan.network), **asked.hidden}
        visible = VisiblePorts({**ports, **asked.actions}, hidden)
        built = build_network(name, spec, visible, requirements, self.context, plan.notes)
        if built is None:
            return None
        plan.refuse_untellable(spec, built[0])
        unread = [action for action in asked.actions if action not in built[0].in_ports]
        for action in unread:
            message = (
                f"the critic does not read {action!r}; a Q value must depend on the whole action"
            )
            self.problems.add(spec.path, message, key=True)
        return None if unread else built

    def setup(self, plan: PolicyPlan) -> CriticSetup:
        """The arguments of the critic of the actors of ``plan``."""
        shared, copies = plan.network.shares, self.critic.ensemble
        return CriticSetup(
            plan.observer, plan.actions, shared, self.dtype, copies, self.value_normalizer()
        )

    def value_normalizer(self) -> NormalizeBlock | None:
        return NormalizeBlock([(1,)], clip=None) if self.critic.normalize_value else None

    def built(
        self, kind: type[CriticKind], make: Callable[P, C], *args: P.args, **kwargs: P.kwargs
    ) -> C | None:
        """The critic of a ``kind`` that ``make`` returns; None where it is no critic or has no value."""
        with self._noted(kind):
            critic = make(*args, **kwargs)
            problem = _wrong_critic(critic) if _is_users(kind) else ""
        if problem:
            self.note_kind(f"{_path(kind)}{problem}")
        return None if problem else critic

    @contextmanager
    def _noted(self, kind: type[CriticKind]) -> Iterator[None]:
        """An exception from a user's ``kind`` passes through, with a note that says where the spec names it."""
        try:
            yield
        except Exception as error:
            if _is_users(kind):
                position = self.context.source.position((*self.critic.path, "kind"))
                label = f"critic ({_path(kind)})"
                add_place(error, f"{position}: {label}" if position else label, kind)
            raise


def with_target(critic: C, construction: SeededConstruction) -> C:
    """``critic``, with a target copy if its class has one, made anew once ``construction`` gives weights."""
    if isinstance(critic, Targeted):
        critic.make_target()
        construction.when_weights_exist(critic.make_target)
    return critic


def policy_failed(plan: PolicyPlan) -> bool:
    """Whether it is not known what the policy of ``plan`` would share."""
    return any(name not in plan.notes.shared for name in plan.network.shares)


def policy_values(policy: NetworkSpec) -> dict[str, str]:
    """The values in a policy, with how to share them: for a critic that reads what the policy does not share."""
    names = (name for node in (policy.graph or {}).values() for name in node.writes)
    advice = "belongs to the policy; share it: write shares: [{}] in the policy"
    return {name: advice.format(name) for name in names}


def _is_users(kind: type) -> bool:
    """Whether a class is no part of this package."""
    return not kind.__module__.startswith("composer.")


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _wrong_critic(critic: object) -> str:
    """What is wrong with what a user's kind has built, after its name; nothing if all is well."""
    if not isinstance(critic, CriticModule | StructuredCriticBase):
        return f".build returned {describe(critic)}; it must return the critic"
    if not isinstance(critic, CriticModule):
        return ""
    ports = critic.network.out_ports

    def read(critic: CriticModule, *outputs: Tensor) -> str:
        values = critic.values_of(dict(zip(ports, outputs, strict=True)))
        if not isinstance(values, Mapping):
            return f".values_of returned {describe(values)}; it must return a dict of values"
        try:
            critic.number_of(values)
        except KeyError as error:
            got = listing(values) or "nothing"
            return f".values_of returned {got}, but no {error.args[0]!r}, which critic.value reads"
        return ""

    return measure(critic, list(ports.values()), read)
