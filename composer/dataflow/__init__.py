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
    from composer.dataflow.balance import SampleError, balanced
    from composer.dataflow.interfaces import INTERFACES, Context, Interface
    from composer.dataflow.samples import LENGTHS, Sample, Split
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "balance": "SampleError balanced",
            "interfaces": "INTERFACES Context Interface",
            "samples": "LENGTHS Sample Split",
        },
    )
