"""Action models of Hugging Face's transformers as policies. They need the extra ``llm``."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ActionBins", "ActionModel", "OpenVlaBins", "Predicted", "ProofError", "ValueHead"]
__all__ += ["register_hf"]

if TYPE_CHECKING:
    from composer.language.action_bins import ActionBins, OpenVlaBins
    from composer.language.action_model import ActionModel, Predicted, ProofError
    from composer.language.hf import register_hf
    from composer.language.value_head import ValueHead
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "action_bins": "ActionBins OpenVlaBins",
            "action_model": "ActionModel Predicted ProofError",
            "hf": "register_hf",
            "value_head": "ValueHead",
        },
    )
