"""What may be written in a spec, from the live registries: help, the pages of `docs/blocks/`, the JSON Schema."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["describe_block", "json_schema", "list_blocks"]

if TYPE_CHECKING:
    from composer.reference.help import describe_block, list_blocks
    from composer.reference.schema import json_schema
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"help": "describe_block list_blocks", "schema": "json_schema"},
    )
