"""Families of vision models of Hugging Face's transformers, and folders that hold one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import transformers
from transformers import PretrainedConfig

from perception_blocks.blocks.body_config import BodyFolder, Family

__all__ = ["FAMILIES", "Kind", "VisionFolder", "image_size_of", "vision_family"]


class Kind(NamedTuple):
    """How the library's classes of a family begin, and what they make of an image.

    ``prefix`` is the number of tokens before those of the patches; None where the result is a feature map.
    ``square``: its positions are those of a square image.
    """

    classes: str
    prefix: int | None = None
    square: bool = False


FAMILIES = {
    "resnet": Kind("ResNet"),
    "regnet": Kind("RegNet"),
    "convnext": Kind("ConvNext"),
    "convnextv2": Kind("ConvNextV2"),
    "vit": Kind("ViT", prefix=1),
    "deit": Kind("DeiT", prefix=2),
    "dinov2": Kind("Dinov2", prefix=1, square=True),
    "dinov2_with_registers": Kind("Dinov2WithRegisters", prefix=1, square=True),
    "clip_vision_model": Kind("CLIPVision", prefix=1, square=True),
    "siglip_vision_model": Kind("SiglipVision", prefix=0, square=True),
}
_WHOLE = ("clip", "siglip")  # models of images and texts, of which the first part is the body
_OF_BACKBONES = "it is about other outputs than those of the body"
WITHHELD = {
    "num_channels": "it follows from the input",
    **dict.fromkeys(("_out_features", "_out_indices", "layer_types"), _OF_BACKBONES),
    **dict.fromkeys(("apply_layernorm", "reshape_hidden_states"), _OF_BACKBONES),
    **dict.fromkeys(("pooler_output_size", "pooler_act", "projection_dim"), _OF_BACKBONES),
    "vision_use_head": "'read' decides it",
    "encoder_stride": "it belongs to a decoder of images",
    "use_mask_token": "nothing of an image is masked",
}


def vision_family(name: str, *, pooled: bool) -> Family:
    """The library's classes; ``pooled`` where the one vector of an image is read."""
    kind = FAMILIES[name]
    config: Any = getattr(transformers, f"{kind.classes}Config")
    model: Any = getattr(transformers, f"{kind.classes}Model")
    keys = inspect.get_annotations(config)
    fixed: dict[str, Any] = {"vision_use_head": pooled, "use_mask_token": False}
    fixed = {key: value for key, value in fixed.items() if key in keys}
    withheld = WITHHELD
    if kind.prefix is None and "image_size" in keys:
        withheld = {**WITHHELD, "image_size": "it does not change the result"}
    # The pooler of ViT is trained for text-like tasks only; checkpoints of classifiers have none.
    poolers = "add_pooling_layer" in inspect.signature(model.__init__).parameters
    return Family(config, model, fixed, withheld, {"add_pooling_layer": False} if poolers else {})


def image_size_of(config: PretrainedConfig) -> tuple[int, int]:
    """Height and width of the images that the positions of a body are for."""
    size: Any = config.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class VisionFolder(BodyFolder):
    """The folder of a vision model of transformers, or of a model of images and texts such as CLIP."""

    families = FAMILIES

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.refuse_code()
        kind, part = self._values.get("model_type"), self._values.get("vision_config")
        if kind in _WHOLE and isinstance(part, Mapping):
            self._values = {**part, "model_type": f"{kind}_vision_model"}
