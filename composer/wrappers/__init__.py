"""How a model is used: which action is taken, where memory is kept, what noise is added."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["BaseModelWrapper", "IModelWrapper", "model_wrap", "register_wrapper"]

if TYPE_CHECKING:
    from composer.wrappers.interface import BaseModelWrapper, IModelWrapper
    from composer.wrappers.wrapping import model_wrap, register_wrapper
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"interface": "BaseModelWrapper IModelWrapper", "wrapping": "model_wrap register_wrapper"},
    )
