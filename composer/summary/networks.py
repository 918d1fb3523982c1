"""The networks of a model by name, and the actors of each, as the model's table and picture show them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from composer.critic.central import CentralCritic
from composer.critic.targets import Targeted
from composer.network.groups import GroupNetworks
from composer.network.module import NetworkModule, StatefulModule
from composer.network.structured import StructuredModule
from perception_blocks.words import few_of

__all__ = ["ServedActors", "served_actors", "networks_by_name", "short_name", "target_of"]


@dataclass(frozen=True)
class ServedActors:
    """The ``actors`` of a network. With ``copies`` each has a network of its own, of which one is shown.

    Without them it may see its actors ``together``, and give one value for all.
    """

    actors: tuple[str, ...]
    copies: int = 1
    why_looped: str | None = None
    together: bool = False
    sees: str = ""  # what of them, where it is more than what they observe

    def words(self, most: int = 6) -> str:
        """``for 'piston_0', 'piston_1' and 8 more, one network each``: at ``most`` so many names."""
        if self.together:
            return f"for all actors at once; it sees {self.sees}{few_of(self.actors, most)}"
        each = ", one network each" if self.copies > 1 else ""
        return f"for {few_of(self.actors, most)}{each}"


def networks_by_name(net: nn.Module) -> dict[str, NetworkModule]:
    """The networks of a Model (or the policy or critic itself) by name; empty for any other module.

    The networks of a policy or critic for several actors are called "policy/<group>" and "critic/<group>".
    """
    return {name: module for name, module, _ in _all_networks(net)}


def served_actors(net: nn.Module) -> dict[str, ServedActors]:
    """The actors of each network, by its name; empty for a model of one Space."""
    return {name: served for name, _, served in _all_networks(net) if served is not None}


def target_of(net: nn.Module) -> nn.Module | None:
    """The target copy of a critic, or of a Model's critic, that has one."""
    critic = getattr(net, "critic", net)
    return critic.target if isinstance(critic, Targeted) and critic.has_target else None


def short_name(network: str, name: str) -> str:
    """The name of a network's value among the values of all networks.

    >>> short_name("policy", "move"), short_name("policy/pick", "move")
    ('move', 'pick/move')
    """
    group = network.partition("/")[2]
    return f"{group}/{name}" if group else name


def _all_networks(net: nn.Module) -> list[tuple[str, NetworkModule, ServedActors | None]]:
    if isinstance(net, NetworkModule):
        if not isinstance(net, CentralCritic):
            return [(net.part, net, None)]
        what = f"the {net.sees} of " if net.takes_action else ""
        return [(net.part, net, ServedActors(net.sees_together, together=True, sees=what))]
    if isinstance(net, StructuredModule):
        return [network for group in net.groups for network in _networks_of(net.part, group)]
    policy, critic = getattr(net, "policy", None), getattr(net, "critic", None)
    if not isinstance(policy, StatefulModule):
        return []
    modules = [policy, critic] if isinstance(critic, nn.Module) else [policy]
    return [network for module in modules for network in _all_networks(module)]


def _networks_of(part: str, group: GroupNetworks) -> list[tuple[str, NetworkModule, ServedActors]]:
    base = part if group.name is None else f"{part}/{group.name}"
    names = tuple(actor.name for actor in group.actors)
    if isinstance(group.module, NetworkModule):
        return [(base, group.module, ServedActors(names))]
    modules, why = group.module.members, group.module.why_looped
    ports = [(module.network.in_ports, module.network.out_ports) for module in modules]
    if all(other == ports[0] for other in ports):
        return [(base, group.module.member_of(0), ServedActors(names, len(names), why))]
    return [
        (f"{base}/{index}", module, ServedActors((names[index],), 1, why))
        for index, module in enumerate(modules)
    ]
