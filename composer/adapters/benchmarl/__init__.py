"""Networks as models of BenchMARL (extra `benchmarl`, in an environment of its own)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ComposedModel", "ComposedModelConfig"]

if TYPE_CHECKING:
    from composer.adapters.benchmarl.model import ComposedModel, ComposedModelConfig
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__, {"model": "ComposedModel ComposedModelConfig"}, extra="benchmarl"
    )
