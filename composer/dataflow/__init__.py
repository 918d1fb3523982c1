"""Experiments: calls between models, on one process or many."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "INTERFACES",
    "LENGTHS",
    "Context",
    "Interface",
    "Sample",
    "SampleError",
    "Split",
    "balanced",
]

if TYPE_CHECKING:
    from composer.dataflow.interfaces import INTERFACES, Context, Interface
    from composer.dataflow.samples import LENGTHS, Sample, SampleError, Split, balanced
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "interfaces": "INTERFACES Context Interface",
            "samples": "LENGTHS Sample SampleError Split balanced",
        },
    )
