"""Language models and action models of Hugging Face's transformers as policies and critics (extra ``llm``)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ActionBins", "ActionModel", "OpenVlaBins", "Predicted", "ProofError", "ValueHead"]
__all__ += ["register_hf"]
__all__ += ["FAMILIES", "FamilyError", "complete_settings", "from_hf", "register_family", "to_hf"]
__all__ += ["token_spec"]

if TYPE_CHECKING:
    from composer.language.action_bins import ActionBins, OpenVlaBins
    from composer.language.action_model import ActionModel, Predicted
    from composer.language.action_proof import ProofError
    from composer.language.hf import register_hf
    from composer.language.pretrained import (
        FAMILIES,
        FamilyError,
        complete_settings,
        from_hf,
        register_family,
        to_hf,
        token_spec,
    )
    from composer.language.value_head import ValueHead
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "action_bins": "ActionBins OpenVlaBins",
            "action_model": "ActionModel Predicted",
            "action_proof": "ProofError",
            "hf": "register_hf",
            "pretrained": "FAMILIES FamilyError complete_settings from_hf register_family to_hf token_spec",
            "value_head": "ValueHead",
        },
    )
