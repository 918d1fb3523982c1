"""Models as modules of TorchRL (extra `torchrl`)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ComposedDistribution", "TorchRLModules", "primers", "to_torchrl"]

if TYPE_CHECKING:
    from composer.adapters.torchrl.distribution import ComposedDistribution
    from composer.adapters.torchrl.models import TorchRLModules, primers, to_torchrl
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"distribution": "ComposedDistribution", "models": "TorchRLModules primers to_torchrl"},
    )
