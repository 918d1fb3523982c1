"""The networks that a model is made of, by name, and for whom each acts: what its table and its picture show."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from composer.actors import shortened
from composer.critic import CriticModule
from composer.group_policy import GroupPolicy
from composer.network import NetworkModule
from composer.policy import Policy
from composer.structured import StructuredPolicy

__all__ = ["Cast", "casts_of", "parts_of", "short_name"]


@dataclass(frozen=True)
class Cast:
    """The ``actors`` of one part of a model. With ``copies`` each has a network of its own, of which one is shown."""

    actors: tuple[str, ...]
    copies: int = 1
    why_looped: str | None = None

    def words(self, most: int = 6) -> str:
        """``for 'piston_0', 'piston_1' and 8 more, one network each``: at ``most`` so many names."""
        each = ", one network each" if self.copies > 1 else ""
        return f"for {shortened(self.actors, most)}{each}"


def parts_of(net: nn.Module) -> dict[str, NetworkModule]:
    """The networks of a Model (or the policy or critic itself) by name; empty for any other module.

    Those of a policy for several actors are called "policy/<group>".
    """
    if isinstance(net, NetworkModule):
        return {"critic" if isinstance(net, CriticModule) else "policy": net}
    policy, critic = getattr(net, "policy", None), getattr(net, "critic", None)
    if isinstance(policy, Policy):
        parts: dict[str, NetworkModule] = {"policy": policy}
    else:
        parts = {name: part for name, part, _ in _group_parts(net)}
    return {**parts, "critic": critic} if parts and isinstance(critic, CriticModule) else parts


def casts_of(net: nn.Module) -> dict[str, Cast]:
    """For whom each of the parts acts; empty for a model of one Space."""
    return {name: cast for name, _, cast in _group_parts(net)}


def short_name(part: str, name: str) -> str:
    """What a value of a part is called among those of all others.

    >>> short_name("policy", "move"), short_name("policy/pick", "move")
    ('move', 'pick/move')
    """
    group = part.partition("/")[2]
    return f"{group}/{name}" if group else name


def _group_parts(net: nn.Module) -> list[tuple[str, Policy, Cast]]:
    policy = net if isinstance(net, StructuredPolicy) else getattr(net, "policy", None)
    if not isinstance(policy, StructuredPolicy):
        return []
    return [part for group in policy.groups for part in _parts_of_group(group)]


def _parts_of_group(group: GroupPolicy) -> list[tuple[str, Policy, Cast]]:
    base = "policy" if group.name is None else f"policy/{group.name}"
    names = tuple(actor.name for actor in group.actors)
    if isinstance(group.module, Policy):
        return [(base, group.module, Cast(names))]
    policies, why = group.module.policies, group.module.why_looped
    ports = [(policy.network.in_ports, policy.network.out_ports) for policy in policies]
    if all(own == ports[0] for own in ports):
        return [(base, group.module.policy_of(0), Cast(names, len(names), why))]
    return [
        (f"{base}/{index}", policy, Cast((names[index],), 1, why))
        for index, policy in enumerate(policies)
    ]
