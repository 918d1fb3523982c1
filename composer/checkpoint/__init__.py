"""A model as one safe file, and weights from elsewhere."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["CheckpointError", "LoadReport", "Record", "blend", "load_weights", "read_record"]

if TYPE_CHECKING:
    from composer.checkpoint.blending import blend
    from composer.checkpoint.container import CheckpointError
    from composer.checkpoint.file import LoadReport, Record, read_record
    from composer.checkpoint.weights import load_weights
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "blending": "blend",
            "container": "CheckpointError",
            "file": "LoadReport Record read_record",
            "weights": "load_weights",
        },
    )
