"""A model node by node, as data and as a table."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Summary", "summarize"]

if TYPE_CHECKING:
    from composer.summary.table import Summary, summarize
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"table": "Summary summarize"},
    )
