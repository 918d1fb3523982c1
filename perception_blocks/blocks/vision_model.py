"""Vision models of Hugging Face's transformers: an image as a vector, as tokens of its patches, or as a feature map."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from perception_blocks.blocks.body_block import BodyBlock, make_body
from perception_blocks.blocks.body_config import chosen_family, settings_of
from perception_blocks.blocks.conv import image_shape
from perception_blocks.blocks.vision_config import (
    FAMILIES,
    Kind,
    VisionFolder,
    image_size_of,
    vision_family,
)
from perception_blocks.port import InputShapeError, Port, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import SettingProblem, SettingsError

__all__ = ["VisionModelBlock"]

_RESIZE = "put a preprocess_image block with a size before it"


@BLOCKS.register("vision_model")
class VisionModelBlock(BodyBlock):
    """The body of a vision model of transformers: ``(C, H, W)`` -> ``(F,)``, ``(N, F)`` or ``(F, h, w)``.

    ``family`` selects the body; the keys of its configuration (``hidden_sizes`` of resnet, ``patch_size`` of vit)
    stand beside it, with the library's defaults. Or ``checkpoint`` names a local folder that ``save_pretrained`` wrote,
    also of a model with a head and of a whole CLIP or SigLIP; its weights are not re-initialised, and a saved model
    does not need the folder. The number of channels and, unless given, ``image_size`` are those of the input.

    ``read: pooled`` returns one vector: what the library's model returns as pooled, the mean of a feature map, or the
    class token of vit and deit. ``read: tokens`` returns the features of the patches, without class and register
    tokens; ``read: map`` the same as a feature map. A body that was trained on images of another size needs
    ``interpolate_pos_encoding``. Put a preprocess_image block before it for size, mean and standard deviation.

    >>> settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    >>> VisionModelBlock([(3, 32, 32)], family="resnet", **settings).out_shapes
    [(16,)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        family: Literal[
            "resnet",
            "regnet",
            "convnext",
            "convnextv2",
            "vit",
            "deit",
            "dinov2",
            "dinov2_with_registers",
            "clip_vision_model",
            "siglip_vision_model",
        ]
        | None = None,
        checkpoint: str | None = None,
        read: Literal["pooled", "tokens", "map"] = "pooled",
        interpolate_pos_encoding: bool = False,
        lora: Mapping[str, Any] | None = None,
        freeze: Sequence[str] | None = None,
        **config: object,
    ) -> None:
        shape = image_shape(in_shapes, "vision_model", dims=(2,))
        self.folder = None if checkpoint is None else VisionFolder(checkpoint)
        name = chosen_family("vision_model", family, self.folder, FAMILIES)
        kind, classes = FAMILIES[name], vision_family(name, pooled=read == "pooled")
        given: dict[str, object] = {"num_channels": shape[0]}
        has_places = kind.prefix is not None
        height, width = _known_size(shape)
        if has_places and "image_size" not in config and self.folder is None:
            given["image_size"] = _image_size(name, (shape[0], height, width))
        body = make_body("vision_model", classes, self.folder, config, given)
        _require_channels(body.config, shape)
        if has_places:
            _require_size(name, body.config, (height, width), interpolate_pos_encoding)
        patches = _patches(kind, body.config, (height, width))
        super().__init__(in_shapes, out_shapes=patches and [patches.shape(read)])
        self.body = body
        self.family, self.read = name, read
        self.patches = patches
        takes_it = "interpolate_pos_encoding" in inspect.signature(type(body).forward).parameters
        interpolates = interpolate_pos_encoding and takes_it
        self.call = {"interpolate_pos_encoding": True} if interpolates else {}
        if checkpoint is not None:
            always = ["image_size"] if has_places else []
            kept = {"family": name, **settings_of(classes, body.config, always)}
            self.read_once = ({"checkpoint": checkpoint, "lora": lora}, kept)
        self.adapt(lora, freeze)
        if self.folder is not None and not next(body.parameters()).is_meta:
            self.reset_parameters()

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        super().check_ports(in_ports)
        last = {index: port for index, port in enumerate(in_ports) if port.channels == "last"}
        if last:
            rule = "vision_model takes (channels, height, width)"
            raise InputShapeError(rule, last, "put a preprocess_image block before it")

    def forward(self, image: Tensor) -> Tensor:
        leading = image.shape[:-3]
        if 0 in leading:  # attention and batch norm take none
            return image.new_zeros((*leading, *self.out_shapes[0]))  # type: ignore[arg-type]
        rows = image.reshape(math.prod(leading), *image.shape[-3:])
        result = self.body(pixel_values=rows, **self.call)
        y = self._pooled(result) if self.read == "pooled" else self._patches(result)
        return y.reshape(*leading, *y.shape[1:])

    def _pooled(self, result: Any) -> Tensor:
        pooled = getattr(result, "pooler_output", None)
        return result.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    def _patches(self, result: Any) -> Tensor:
        y: Tensor = result.last_hidden_state
        if self.patches is None:
            return y if self.read == "map" else y.flatten(2).transpose(1, 2)
        y = y[:, self.patches.prefix :]
        return y.transpose(1, 2).unflatten(-1, self.patches.grid) if self.read == "map" else y

    def _measured_shapes(self) -> list[Shape]:
        try:
            return super()._measured_shapes()
        except RuntimeError as error:  # a kernel that is larger than what is left of the image
            rule = f"vision_model of the family {self.family!r} cannot read an image this small"
            raise InputShapeError(rule, {0: self.in_shapes[0]}, _RESIZE) from error

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        return [Port(self.out_shapes[0], channels="first" if self.read == "map" else None)]

    def _fill(self, module: nn.Module) -> None:
        """The library writes these numbers only together with new weights."""
        for part in module.modules():
            for name in part._non_persistent_buffers_set:
                assert name == "position_ids", name
                buffer: Any = part._buffers[name]
                with torch.no_grad():
                    buffer.copy_(torch.arange(buffer.shape[-1], device="cpu"))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, family={self.family!r}, read={self.read!r}"


class Patches(NamedTuple):
    """The tokens of an image: ``prefix`` others, then one with ``features`` for each patch of the ``grid``."""

    prefix: int
    grid: tuple[int, int]
    features: int

    def shape(self, read: str) -> Shape:
        shapes = {"pooled": (self.features,), "tokens": (math.prod(self.grid), self.features)}
        return shapes.get(read, (self.features, *self.grid))


def _patches(kind: Kind, config: Any, sides: tuple[int, int]) -> Patches | None:
    """None where the body returns a feature map."""
    if kind.prefix is None:
        return None
    height, width = (side // config.patch_size for side in sides)
    prefix = kind.prefix + getattr(config, "num_register_tokens", 0)
    return Patches(prefix, (height, width), config.hidden_size)


def _known_size(shape: Shape) -> tuple[int, int]:
    _, height, width = shape
    if height is None or width is None:
        rule = "vision_model needs to know how large an image is"
        raise InputShapeError(rule, {0: shape}, _RESIZE)
    return height, width


def _image_size(family: str, image: tuple[int, int, int]) -> object:
    """The configuration's image size for images of this size."""
    _, height, width = image
    if height != width and FAMILIES[family].square:
        rule = f"vision_model of the family {family!r} takes square images"
        advice = f"{_RESIZE}, or give image_size and interpolate_pos_encoding: true"
        raise InputShapeError(rule, {0: image}, advice)
    return height if height == width else [height, width]


def _require_channels(config: Any, shape: Shape) -> None:
    if config.num_channels != shape[0]:
        advice = "put a preprocess_image block with rgb: true before it" if shape[0] == 1 else ""
        rule = f"the checkpoint of this vision_model reads {config.num_channels} channels"
        raise InputShapeError(rule, {0: shape}, advice)


def _require_size(family: str, config: Any, sides: tuple[int, int], interpolates: bool) -> None:
    """Raise where an image has another size than the body's positions are for, and they are not interpolated."""
    size, image = image_size_of(config), (config.num_channels, *sides)
    patch: int = config.patch_size
    if min(*size, *sides) < patch:
        rule = f"vision_model of the family {family!r} needs images of one patch, {patch} x {patch}, or more"
        raise InputShapeError(rule, {0: image}, f"{_RESIZE}, or lower patch_size")
    if size == sides:
        return
    if not interpolates:
        rule = f"this vision_model is for images of {size[0]} x {size[1]}"
        advice = f"put a preprocess_image block with size: [{size[0]}, {size[1]}] before it, "
        raise InputShapeError(rule, {0: image}, f"{advice}or set interpolate_pos_encoding: true")
    if size[0] != size[1]:
        message = f"'image_size' must be one number where positions are interpolated, got {size}"
        raise SettingsError([SettingProblem("image_size", message)])
