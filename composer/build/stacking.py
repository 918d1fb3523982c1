"""Networks of one form as one stacked network."""

from __future__ import annotations

from collections.abc import Sequence

from composer.build.construction import BuiltNetwork
from composer.network.groups import joined, weights_of
from composer.network.network import Network
from perception_blocks.ensemble.ensemble import EnsembleBlock

__all__ = ["stacked_networks"]


def stacked_networks(
    built: Sequence[BuiltNetwork], unlike: str | None
) -> tuple[list[Network], EnsembleBlock | None, str | None]:
    """Networks of agents over stacked weights, or as they are and why; ``unlike`` says how their forms differ."""
    networks = [network for network, _ in built]
    if unlike is not None:
        return networks, None, unlike
    members, ensemble, why_looped = joined(networks)
    if ensemble is not None:
        construction = built[-1][1]
        construction.when_weights_exist(lambda: ensemble.adopt(weights_of(networks)))
        for member in members:
            construction.when_weights_exist(member.weights_exist)
    return members, ensemble, why_looped
