"""Networks as straight-line Python: the ordinary forward, and `lower()`."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["LoweredNetwork", "Program"]

if TYPE_CHECKING:
    from perception_blocks.lowering.lowered import LoweredNetwork
    from perception_blocks.lowering.program import Program
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"lowered": "LoweredNetwork", "program": "Program"},
    )
