"""The command line."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["main"]

if TYPE_CHECKING:
    from composer.cli.commands import main
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"commands": "main"},
    )
