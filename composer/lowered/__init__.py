"""`lower()` of policies and models: straight-line code over the live parameters."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["LoweredModel", "LoweredPolicy"]

if TYPE_CHECKING:
    from composer.lowered.model import LoweredModel
    from composer.lowered.policy import LoweredPolicy
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"model": "LoweredModel", "policy": "LoweredPolicy"},
    )
