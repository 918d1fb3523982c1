"""A model as an ONNX or torch.export file that runs without this library."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ExportError", "ExportReport", "export_model"]

if TYPE_CHECKING:
    from composer.export.exporting import ExportError, ExportReport, export_model
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"exporting": "ExportError ExportReport export_model"},
    )
