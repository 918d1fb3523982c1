"""Tensor parallelism of the bodies that bring a plan for it: each matrix of a layer is split over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from perception_blocks.words import listing

__all__ = ["bodies_of", "is_body", "split_layer", "why_not_split"]

_STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
_LAYERS = "layers.*."


def bodies_of(module: nn.Module) -> list[Any]:
    """The models of transformers in ``module``, which name the classes of their layers."""
    return [part for part in module.modules() if is_body(part)]


def is_body(module: Any) -> bool:
    """Whether ``module`` says of which class its layers are."""
    return bool(getattr(module, "_no_split_modules", None))


def why_not_split(body: Any, processes: int) -> str | None:
    """What keeps the matrices of ``body`` from being split over so many ``processes``; None if nothing does."""
    config = body.config
    styles = _styles_of(body)
    if not styles:
        return f"{config.model_type!r} brings no plan for tensor parallelism"
    unknown = sorted({*styles.values()} - {*_STYLES})
    if unknown:
        return f"the plan of {config.model_type!r} has {listing(unknown)}, which is not known here"
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        count = getattr(config, name, None)
        if count is not None and count % processes:
            return f"{name!r} is {count}, which {processes} processes cannot share evenly"
    return None


def split_layer(body: Any, layer: nn.Module, mesh: DeviceMesh) -> None:
    """Split the matrices of a ``layer`` of ``body`` over ``mesh``, as the family's own plan says."""
    styles = {name: _STYLES[style]() for name, style in _styles_of(body).items()}
    parallelize_module(layer, mesh, styles)


def _styles_of(body: Any) -> Mapping[str, str]:
    """The plan that transformers keeps beside each family: how each matrix of a layer is split."""
    plan = getattr(body.config, "base_model_tp_plan", None) or {}
    return {n.removeprefix(_LAYERS): style for n, style in plan.items() if n.startswith(_LAYERS)}
