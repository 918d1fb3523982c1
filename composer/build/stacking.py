"""Networks of one form as one stacked network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from composer.build.construction import BuiltNetwork
from composer.network.autoregressive import AutoregressiveNetwork
from composer.network.groups import StackedNetwork
from composer.network.module import EnsembleMember
from composer.network.network import CustomNetwork, GraphNetwork, Network
from perception_blocks.ensemble.ensemble import EnsembleBlock

__all__ = ["stacked_networks"]


def stacked_networks(
    built: Sequence[BuiltNetwork], unlike: str | None
) -> tuple[Sequence[Network], EnsembleBlock | None, str | None]:
    """Networks of agents over stacked weights, or as they are and why; ``unlike`` says how their forms differ."""
    networks = [network for network, _ in built]
    if unlike is not None:
        return networks, None, unlike
    if isinstance(networks[0], AutoregressiveNetwork):
        return networks, None, "heads read what other heads have drawn"
    if isinstance(networks[0], CustomNetwork):
        for method in ("act", "preprocess"):
            if hasattr(type(networks[0].module), method):
                return networks, None, f"the class defines {method!r} itself"
    ensemble = EnsembleBlock(_modules(networks), own_inputs=True)
    if ensemble.why_looped is not None:
        return networks, None, ensemble.why_looped
    has_weights = all(network.has_weights for network in networks)
    members = [StackedNetwork(ensemble, row, has_weights) for row in range(len(networks))]
    construction = built[-1][1]
    construction.when_weights_exist(lambda: ensemble.adopt(_modules(networks)))
    for member in members:
        construction.when_weights_exist(member.weights_exist)
    return members, ensemble, None


def _modules(networks: Sequence[Network]) -> list[nn.Module]:
    """The networks as an EnsembleBlock takes them."""
    return [n.module if isinstance(n, GraphNetwork) else EnsembleMember(n) for n in networks]
