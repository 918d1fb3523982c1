"""Many networks of one form in one call."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["EnsembleBlock"]

if TYPE_CHECKING:
    from perception_blocks.ensemble.ensemble import EnsembleBlock
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"ensemble": "EnsembleBlock"},
    )
