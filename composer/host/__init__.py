"""What a trainer asks of a model, in one call: a step, a value, and distributions and states as rows of numbers."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Step"]

if TYPE_CHECKING:
    from composer.host.step import Step
else:
    __getattr__, __dir__ = lazy_attributes(__name__, {"step": "Step"})
