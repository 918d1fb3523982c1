"""Networks, and first specs, that follow from what there is to observe."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["expand", "starting_spec"]

if TYPE_CHECKING:
    from composer.template.expansion import expand
    from composer.template.starter import starting_spec
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"expansion": "expand", "starter": "starting_spec"},
    )
