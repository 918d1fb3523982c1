"""Action models as files: our checkpoints, adapters alone, and folders that transformers reads.

``model`` is a `composer.language.ActionModel` everywhere here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from composer.atomic import new_folder
from composer.checkpoint.adapters import require_adapters, require_scales
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import (
    LoadReport,
    fill,
    read_record,
    read_tensors,
    write_checkpoint,
)
from composer.checkpoint.plain_spec import plain_spec
from composer.language.action_plan import ActionPlan
from composer.language.hf import VALUE_HEAD_FILE, quiet
from composer.language.processors import processor_files
from composer.source.dump import dump_yaml
from composer.spaces.json_form import spaces_to_json
from perception_blocks.blocks.adapted import fitting_adapters, stored_adapters
from perception_blocks.blocks.lora import (
    adapter_names,
    base_name,
    draw_adapter,
    merged_weights,
    without_adapters,
)

__all__ = ["fill_from", "give_weights", "read_adapters", "require_free", "save", "save_folder"]
__all__ += ["HEAD", "saved_beside", "take_adapters"]

HEAD = "value_head."  # with which the names of its weights begin
LORA_KEYS = ("lora", "is_lora", "lora_rank", "lora_path")
WORDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


# --- one safe file ----------------------------------------------------------------------------------------------------


def save(model: Any, path: str | os.PathLike[str], *, adapters_only: bool) -> None:
    """Write the checkpoint; with ``adapters_only`` what is trained beside the weights, which are not in it."""
    if adapters_only and not adapter_names(model.hf):
        raise CheckpointError("cannot be saved: the model has no adapters; leave out adapters_only")
    names = _beside_weights(model) if adapters_only else None
    write_checkpoint(path, model, names, **saved_beside(model, adapters_only=adapters_only))


def _beside_weights(model: Any) -> set[str]:
    """The names of the adapters and of the value head in the model's state_dict."""
    head = {name for name in model.state_dict() if name.startswith(HEAD)}
    return head | {f"hf.{name}" for name in adapter_names(model.hf)}


def saved_beside(model: Any, *, adapters_only: bool = False) -> dict[str, Any]:
    """What the checkpoint says beside the tensors: keywords of `record_of`."""
    observation, action = model.observation_space, model.action_space
    return {
        "spec": dump_yaml(plain_spec(_saved_spec(model))),
        "observation_space": {} if observation is None else spaces_to_json(observation),
        "action_space": {} if action is None else spaces_to_json(action),
        "seed": model.seed,
        "dtype": next(model.hf.parameters()).dtype,
        "action_model": {
            "adapters_only": adapters_only,
            "processor": {} if adapters_only else _kept_processor(model),
        },
    }


def _kept_processor(model: Any) -> dict[str, str]:
    try:
        return processor_files(model.processor)
    except ValueError as error:
        raise CheckpointError(f"cannot be saved: {error}") from error


def _saved_spec(model: Any) -> dict[str, Any]:
    """The spec without the files that it named: its configuration and statistics stand in it."""
    plan, data = model.plan, dict(model.source.data)
    given = dict(data["model"])
    if plan.folder is not None:
        given.pop("model_path")
        config = json.loads(json.dumps(plan.config.to_diff_dict(), default=str))
        unsaid = ("transformers_version", "architectures", "model_type", "dtype")
        config = {k: v for k, v in config.items() if k not in unsaid and not k.startswith("_")}
        given["config"] = {**config, "norm_stats": plan.statistics}
    given["precision"] = WORDS.get(next(model.hf.parameters()).dtype, "fp32")
    if str(given.get("attn_implementation")).startswith("flash"):
        given["attn_implementation"] = "auto"  # where it is loaded there may be no GPU
    if plan.spec.lora is not None:
        for key in LORA_KEYS:
            given.pop(key, None)
        if not model.has_merged:
            lora = plan.spec.lora
            given["lora"] = {"rank": lora.rank, "alpha": lora.alpha}
            given["lora"] |= {} if lora.targets is None else {"targets": list(lora.targets)}
    return {**data, "model": given}


def fill_from(model: Any, path: str | os.PathLike[str], *, strict: bool) -> LoadReport:
    """Load a checkpoint of the same model, or of its adapters only."""
    record = read_record(path)
    if strict:
        require_adapters(model, path, record)
    require_scales(model, path, record)
    tensors = read_tensors(path, record)
    if record.action_model.get("adapters_only"):
        kept, changed = model.state_dict(), _beside_weights(model)
        tensors = {name: tensor for name, tensor in kept.items() if name not in changed} | tensors
    return fill(model, tensors, strict=strict)


# --- adapters ---------------------------------------------------------------------------------------------------------


def read_adapters(path: str, body: nn.Module, alpha: float) -> dict[str, Tensor]:
    """Adapters for ``body`` by its own names, and the weights of a value head under ``value_head.``.

    ``path`` is what `save` wrote with ``adapters_only``, or a folder of peft's. Raises ValueError where they are none,
    or those of another model.
    """
    stored, scales = stored_adapters(path, alpha)
    head = {name: tensor for name, tensor in stored.items() if name.startswith(HEAD)}
    return fitting_adapters(path, stored, scales, body) | head


def take_adapters(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `read_adapters` gave into the model; without a value head, those of one are left out."""
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if not name.startswith(HEAD):
                state[f"hf.{name}"].copy_(tensor)
            elif model.value_head is not None:
                state[name].copy_(tensor)


# --- weights part by part ---------------------------------------------------------------------------------------------


def give_weights(model: Any, part: nn.Module, device: torch.device) -> None:
    """Give the parameters of ``part`` that are on "meta" the weights of the model's folder, and adapters theirs.

    ``part`` is a module of ``model.hf``, which `ActionPlan.without_weights` made. No other weights are read.
    """
    plan, adapters = model.plan, {*adapter_names(model.hf)}
    fresh = {
        id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad)
        for p in part.parameters()
        if p.is_meta
    }
    inside = {id(module) for module in part.modules()}
    stored: dict[str, Tensor] = {}  # by the names in the folder
    for home, module in model.hf.named_modules():  # a weight that is tied stands in several
        prefix = f"{home}." if home else ""
        for key, parameter in module._parameters.items():
            if id(parameter) not in fresh:
                continue
            tensor = module._parameters[key] = fresh[id(parameter)]
            if f"{prefix}{key}" in adapters:
                _fill_adapter(f"{prefix}{key}", tensor, plan)
            else:
                stored[base_name(f"{prefix}{key}")] = tensor
        if id(module) in inside:
            saved = _move_buffers(module, device)
            stored |= {base_name(f"{prefix}{key}"): buffer for key, buffer in saved.items()}
    with torch.no_grad():
        for name, tensor in plan.folder.tensors_called(stored):
            stored[name].copy_(tensor)


def _fill_adapter(name: str, tensor: Tensor, plan: ActionPlan) -> None:
    draw_adapter(name, tensor, plan.seed)
    if name in plan.adapters:
        with torch.no_grad():
            tensor.copy_(plan.adapters[name])


def _move_buffers(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Move what ``module`` itself has; returns the buffers that are saved."""
    moved = {
        key: torch.empty_like(b, device=device) if b.is_meta else b.to(device)
        for key, b in module._buffers.items()
        if b is not None
    }
    module._buffers.update(moved)
    return {key: b for key, b in moved.items() if key not in module._non_persistent_buffers_set}


# --- folders ----------------------------------------------------------------------------------------------------------


def save_folder(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write the folder; it appears whole or not at all. Raises CheckpointError where it cannot be written."""
    target = Path(folder)
    require_free(target)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise CheckpointError(
            "cannot be saved: the model has no weights yet; call materialize first"
        )
    try:
        with new_folder(target) as temporary, quiet():
            _write_into(model, str(temporary))
    except OSError as error:
        raise CheckpointError(f"{str(target)!r} cannot be written: {error.strerror}") from error


def require_free(target: Path) -> None:
    """Raise CheckpointError where no folder can be made, or something is there."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{str(target)!r} is there already; remove it or choose another name")
    if not target.resolve().parent.is_dir():
        raise CheckpointError(f"there is no folder {str(target.parent)!r}")


def _write_into(model: Any, folder: str) -> None:
    weights = merged_weights(model.hf)
    config = model.hf.config
    before = getattr(config, "norm_stats", None)
    config.norm_stats = model.plan.statistics  # also those of a file beside the configuration
    try:
        with without_adapters(model.hf):
            # by the names that the module has, which HfFolder and from_pretrained both read
            model.hf.save_pretrained(folder, state_dict=weights, save_original_format=False)
    finally:
        config.norm_stats = before
    if hasattr(model.processor, "save_pretrained"):
        model.processor.save_pretrained(folder)
    if model.value_head is not None:
        state = model.value_head.state_dict()
        head = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        save_file(head, os.path.join(folder, VALUE_HEAD_FILE), metadata={"format": "pt"})
