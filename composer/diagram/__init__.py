"""A model as a picture: PNG, SVG, PDF, HTML, DOT or Mermaid."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["DrawError", "draw"]

if TYPE_CHECKING:
    from composer.diagram.drawing import draw
    from composer.diagram.render import DrawError
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"drawing": "draw", "render": "DrawError"},
    )
