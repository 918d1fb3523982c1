"""What runs one network, of blocks or of the user's class, or the networks of a group of actors."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["CustomNetwork", "GraphNetwork", "Network", "NetworkModule"]

if TYPE_CHECKING:
    from composer.network.module import NetworkModule
    from composer.network.network import CustomNetwork, GraphNetwork, Network
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"module": "NetworkModule", "network": "CustomNetwork GraphNetwork Network"},
    )
