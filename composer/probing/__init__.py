"""What a network does in its environment: dormant units, ranks, gradients and times, node by node."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["NodeProbe", "Probe", "ProbeError", "probe"]

if TYPE_CHECKING:
    from composer.probing.node import NodeProbe
    from composer.probing.play import ProbeError
    from composer.probing.result import Probe
    from composer.probing.run import probe
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__, {"node": "NodeProbe", "play": "ProbeError", "result": "Probe", "run": "probe"}
    )
