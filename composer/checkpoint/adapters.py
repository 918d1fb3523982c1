"""The LoRA adapters of a model's blocks: saved without the weights beside them, or merged into these."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import Record
from composer.checkpoint.plain_spec import every_part
from composer.source.dump import dump_flow
from composer.source.load import stored_source
from perception_blocks.blocks.adapted import AdaptedBlock, refuse_other_scales
from perception_blocks.blocks.lora import adapter_scales

__all__ = ["merge_adapters", "require_adapters", "require_scales", "with_own_weights"]
__all__ += ["without_adapted_weights"]


def merge_adapters(model: nn.Module) -> int:
    """Add the adapters of every block to its weights, and remove them; how many blocks had some."""
    blocks = [part for part in every_part(model) if isinstance(part, AdaptedBlock) and part.lora]
    for block in blocks:
        block.merge_adapters()
    return len(blocks)


def without_adapted_weights(model: nn.Module) -> set[str]:
    """The names of a model's tensors but those that its adapters stand beside.

    Raises CheckpointError for a model without adapters.
    """
    beside = _adapted_weights(model)
    if not beside:
        raise CheckpointError("cannot be saved: the model has no adapters; leave out adapters_only")
    return set(model.state_dict()) - beside


def with_own_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` of a file with adapters only, and the model's own weights beside them."""
    beside, state = _adapted_weights(model), model.state_dict()
    return {name: tensor for name, tensor in state.items() if name in beside} | dict(tensors)


def require_adapters(model: nn.Module, path: str | os.PathLike[str], record: Record) -> None:
    """Raise CheckpointError where a file has adapters and the model has none: its weights have other names."""
    if not record.adapter_scales or adapter_scales(model):
        return
    name, data = repr(os.fspath(path)), stored_source(record.spec, path).data
    settings = [f"{place}={dump_flow(lora)}" for place, lora in _lora_settings(data)]
    advice = f"compose the model with the 'lora' of the file's own spec: overrides={settings}"
    if record.action_model.get("adapters_only"):
        raise CheckpointError(f"{name} has adapters only, and this model has none; {advice}")
    raise CheckpointError(
        f"{name} has weights with adapters, and this model has none; {advice}, or call merge_adapters() "
        "on the model that is saved"
    )


def require_scales(model: nn.Module, path: str | os.PathLike[str], record: Record) -> None:
    """Raise CheckpointError for adapters that were made with another scale: their weights do not show it."""
    try:
        refuse_other_scales(os.fspath(path), adapter_scales(model), record.adapter_scales)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _adapted_weights(model: nn.Module) -> set[str]:
    return {
        f"{path}.{name}" if path else name
        for path, part in model.named_modules(remove_duplicate=False)
        if isinstance(part, AdaptedBlock) and part.lora
        for name in part.state_dict()
        if ".lora_" not in name
    }


def _lora_settings(data: object, place: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """The settings ``lora`` in a spec's data, and their places as overrides name them."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        here = f"{place}.{key}" if place else str(key)
        if key == "lora" and isinstance(value, dict) and "block" not in value:
            yield here, value
        else:
            yield from _lora_settings(value, here)
