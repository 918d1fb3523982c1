"""Images prepared as an encoder was trained on them: resized, cropped and standardised, inside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from perception_blocks.blocks.scale import Bound, ScaleImageBlock
from perception_blocks.port import InputShapeError, Port, Shape, Shapes
from perception_blocks.reading import file_at, json_in
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveInt, SettingProblem, SettingsError

__all__ = ["PreprocessImageBlock"]

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "area"]
SMOOTH = ("bilinear", "bicubic")  # which can be antialiased
FILE = "preprocessor_config.json"
# Pillow's numbers of its filters; the others (lanczos, box, hamming) torch does not have.
_FILTERS: dict[object, Interpolation] = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_OF_LABELS = ("do_reduce_labels",)
MOST_CROPPED = 384  # edges from which on ConvNeXt's images are not cropped


@BLOCKS.register("preprocess_image")
class PreprocessImageBlock(ScaleImageBlock):
    """An image scaled to ``[0, 1]`` as by `scale_image`, then resized, cropped and standardised: -> ``(C, h, w)``.

    ``size`` is the new height and width (one number for both); ``shortest_edge`` keeps the ratio of the sides. ``crop``
    cuts the centre out. ``mean`` and ``std`` (one number, or one for each channel) are for values in ``[0, 1]``.
    ``rgb`` repeats the channel of a grey image three times. Or ``checkpoint`` names a local folder with a
    ``preprocessor_config.json`` that says all of that; a saved model does not need the folder.

    ``interpolation`` and ``antialias`` are those of ``torch.nn.functional.interpolate``; what bicubic puts outside
    of ``[0, 1]`` is clipped, as Pillow does. Takes (H, W, C), (C, H, W) or (H, W), uint8 and floats.

    >>> PreprocessImageBlock([(210, 160, 3)], low=0, high=255, size=84).out_shapes
    [(3, 84, 84)]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        shortest_edge: PositiveInt | None = None,
        crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        interpolation: Interpolation = "bilinear",
        antialias: bool = True,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        rgb: bool = False,
        checkpoint: str | None = None,
        low: Bound | None = None,
        high: Bound | None = None,
        channels: Literal["first", "last"] | None = None,
    ) -> None:
        super().__init__(in_shapes, low=low, high=high, channels=channels)
        (image,) = self.out_shapes
        if len(image) != 3:
            raise InputShapeError("preprocess_image takes an image", {0: image})
        given = {
            "size": size,
            "shortest_edge": shortest_edge,
            "crop": crop,
            "interpolation": interpolation,
            "antialias": antialias,
            "mean": mean,
            "std": std,
        }
        if checkpoint is not None:
            stored = _stored(checkpoint, given)
            self.read_once = ({"checkpoint": checkpoint}, stored)
            given |= stored
        steps = Steps(**given)
        self.steps = steps
        self.resized = _resized(image, steps)
        self.cropped = _cropped(self.resized or image[1:], steps)
        self.rgb = rgb
        if rgb and image[0] != 1:
            raise InputShapeError("preprocess_image with rgb takes a grey image", {0: image})
        count = 3 if rgb else image[0]
        sides = self.cropped or self.resized or image[1:]
        self._out_shapes = [(count, *sides)]
        self.standardises = steps.mean is not None or steps.std is not None
        self._numbers = {
            "mean": _per_channel("mean", steps.mean, count, 0.0),
            "std": _per_channel("std", steps.std, count, 1.0),
        }
        for name, numbers in self._numbers.items():
            self.register_buffer(name, torch.empty(numbers.shape), persistent=False)
        self.fill_constants()

    def fill_constants(self) -> None:
        super().fill_constants()
        for name, numbers in vars(self).get("_numbers", {}).items():
            getattr(self, name).copy_(numbers)

    def forward(self, x: Tensor) -> Tensor:
        image = super().forward(x)
        if self.resized is not None:
            image = self._resize(image, self.resized)
        if self.cropped is not None:
            height, width = self.cropped
            top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
            image = image[..., top : top + height, left : left + width]
        if self.rgb:
            image = image.expand(*image.shape[:-3], 3, *image.shape[-2:])
        return (image - self.mean) / self.std if self.standardises else image

    def _resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        mode = self.steps.interpolation
        options: dict[str, Any] = {"size": size, "mode": mode}
        if mode in SMOOTH:
            options |= {"align_corners": False, "antialias": self.steps.antialias}
        rows = image.flatten(0, -4) if image.dim() > 3 else image.unsqueeze(0)
        if rows.dtype in (torch.bfloat16, torch.float16):  # in which torch does not antialias
            rows = rows.float()
        if mode == "bicubic":  # it overshoots, which Pillow clips after each axis
            across = {**options, "size": (rows.shape[-2], size[1])}
            rows = functional.interpolate(rows, **across).clamp(0.0, 1.0)
        y = functional.interpolate(rows, **options)
        y = y.clamp(0.0, 1.0) if mode == "bicubic" else y
        return y.to(image.dtype).reshape(*image.shape[:-2], *size)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        low, high = (None, None) if self.standardises else (0.0, 1.0)
        return [Port(self.out_shapes[0], low=low, high=high, channels="first")]


class Steps(NamedTuple):
    """What is done to an image, in this order."""

    size: int | tuple[int, int] | None
    shortest_edge: int | None
    crop: int | tuple[int, int] | None
    interpolation: Interpolation
    antialias: bool
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _resized(image: Shape, steps: Steps) -> tuple[int, int] | None:
    """Height and width after resizing; None where they stay."""
    if steps.size is not None and steps.shortest_edge is not None:
        message = "give one of 'size' and 'shortest_edge'"
        raise SettingsError([SettingProblem("shortest_edge", message)])
    if steps.size is not None:
        sides = _sides(steps.size)
        return None if sides == image[1:] else sides
    if steps.shortest_edge is None:
        return None
    height, width = _known_sides(image[1:], image)
    short = min(height, width)
    long = int(steps.shortest_edge * max(height, width) / short)
    sides = (steps.shortest_edge, long) if height <= width else (long, steps.shortest_edge)
    return None if sides == (height, width) else sides


def _cropped(sides: Shape, steps: Steps) -> tuple[int, int] | None:
    """Height and width of the centre; None where nothing is cut off."""
    if steps.crop is None:
        return None
    height, width = _known_sides(sides, (None, *sides))
    crop = _sides(steps.crop)
    if crop[0] > height or crop[1] > width:
        message = f"'crop' is {crop[0]} x {crop[1]}, the image is {height} x {width}; set 'size' or 'shortest_edge'"
        raise SettingsError([SettingProblem("crop", message)])
    return None if crop == (height, width) else crop


def _known_sides(sides: Shape, image: Shape) -> tuple[int, int]:
    height, width = sides
    if height is None or width is None:
        rule = (
            "preprocess_image needs to know how large an image is to crop it or to keep its ratio"
        )
        raise InputShapeError(rule, {0: image}, "give it a size")
    return height, width


def _per_channel(
    name: str, given: float | Sequence[float] | None, count: int | None, default: float
) -> Tensor:
    """(C, 1, 1) or, where one number is for all of them, (1, 1, 1)."""
    numbers = given if isinstance(given, Sequence) else [default if given is None else given]
    if len(numbers) not in (1, count):
        message = (
            f"{name!r} must be one number or {count}, one for each channel, got {len(numbers)}"
        )
        raise SettingsError([SettingProblem(name, message)])
    tensor = torch.tensor(numbers, dtype=torch.float64, device="cpu")
    if name == "std" and not bool((tensor > 0).all()):
        raise SettingsError([SettingProblem(name, f"{name!r} must be positive, got {given}")])
    return tensor.reshape(-1, 1, 1)


# --- what a folder says -----------------------------------------------------------------------------------------------


def _stored(path: str, given: Mapping[str, object]) -> dict[str, Any]:
    """The settings that the file of a folder stands for. Raises SettingsError for what this block cannot do."""
    defaults = {"interpolation": "bilinear", "antialias": True}
    twice = [name for name, value in given.items() if value != defaults.get(name)]
    if twice:
        message = "a checkpoint brings its own preprocessing; leave out"
        raise SettingsError([SettingProblem(name, f"{message} {name!r}") for name in twice])
    try:
        place = Path(file_at(path))
        file = place / FILE
        if not file.is_file():
            raise ValueError(f"there is no {FILE} in {path!r}; nothing is downloaded")
        file_at(str(file))  # which may be a link
        values = json_in(file)
        if not isinstance(values, dict):
            raise ValueError(f"{FILE} in {path!r} must hold a mapping")
        return _settings_of(values, f"{FILE} in {path!r}")
    except ValueError as error:
        message = f"'checkpoint': {error}"
        raise SettingsError([SettingProblem("checkpoint", message)]) from error


def _settings_of(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "auto_map" in values:
        raise ValueError(f"{where} has 'auto_map', which names code of its own; remove it")
    other = [
        key
        for key, value in values.items()
        if key.startswith("do_") and value and key not in (*_STEPS, *_OF_LABELS)
    ]
    other += [key for key in ("rescale_offset", "offset") if values.get(key)]
    if other:
        raise ValueError(f"{where} has {other[0]!r}, which preprocess_image does not do")
    settings: dict[str, Any] = {}
    if values.get("do_resize", True) and values.get("size") is not None:
        settings |= _size_settings(values, where)
        filter_number = values.get("resample", 2)
        if filter_number not in _FILTERS:
            numbers = "0 (nearest), 2 (bilinear) or 3 (bicubic)"
            raise ValueError(f"{where} has 'resample': {filter_number!r}; it must be {numbers}")
        settings["interpolation"] = _FILTERS[filter_number]
    if values.get("do_center_crop") and values.get("crop_size") is not None:
        settings["crop"] = _pair(values["crop_size"], "crop_size", where)
    return settings | _standardised(values, where)


def _size_settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Of older files one number is the shorter side where a crop follows, and both sides where none does."""
    size = values["size"]
    crop_share = values.get("crop_pct")
    if isinstance(size, int) and (values.get("do_center_crop") or crop_share):
        size = {"shortest_edge": size}
    if not isinstance(size, Mapping) or "shortest_edge" not in size:
        return {"size": _pair(size, "size", where)}
    edge = size["shortest_edge"]
    if not isinstance(edge, int) or edge < 1 or len({*size} - {"shortest_edge"}) > 0:
        raise ValueError(f"{where} has 'size': {size!r}; preprocess_image has no such size")
    if crop_share is None:
        return {"shortest_edge": edge}
    if edge >= MOST_CROPPED:  # as ConvNeXt does it
        return {"size": (edge, edge)}
    return {"shortest_edge": int(edge / crop_share), "crop": (edge, edge)}


def _pair(size: Any, key: str, where: str) -> tuple[int, int]:
    if isinstance(size, Mapping) and {*size} == {"height", "width"}:
        size = (size["height"], size["width"])
    sides = _sides(size) if isinstance(size, int | list | tuple) and size else (0, 0)
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{where} has {key!r}: {size!r}; preprocess_image has no such size")
    return sides


def _standardised(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Mean and standard deviation for values in [0, 1], whatever the file scales them to."""
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    mean, std = values.get("image_mean"), values.get("image_std")
    if not values.get("do_normalize", True) or mean is None or std is None:
        mean, std = 0.0, 1.0
    means, stds = ([m] if isinstance(m, int | float) else m for m in (mean, std))
    numbers = (
        [factor, *means, *stds] if isinstance(means, list) and isinstance(stds, list) else [""]
    )
    if not all(isinstance(number, int | float) for number in numbers) or factor <= 0:
        raise ValueError(f"{where} must give numbers as rescale_factor, image_mean and image_std")
    scale = 1.0 if abs(255 * factor - 1) < 1e-6 else 255 * factor
    if scale == 1.0 and (mean, std) == (0.0, 1.0):
        return {}
    return {"mean": [m / scale for m in means], "std": [s / scale for s in stds]}
