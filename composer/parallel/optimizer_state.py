"""What an optimizer keeps, in checkpoints of shards: tensors beside those of the model, all else as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.checkpoint.container import CheckpointError
from composer.parallel.pieces import OPTIMIZER, Pieces
from perception_blocks.words import describe

__all__ = ["groups_of", "kept_by", "states_to_fill", "values_of"]

Homes = dict[str | None, tuple[Tensor, dict[str, Any]]]

# --- writing ----------------------------------------------------------------------------------------------------------


def kept_by(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, str, Any]]:
    """(name, key, value) of all that ``optimizer`` keeps of parameters it has stepped."""
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield name, key, value


def values_of(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """What an optimizer keeps of parameters that is no tensor, by the same names."""
    for name, key, value in kept_by(model, optimizer):
        if not isinstance(value, Tensor):
            plain = _as_json(value, f"the optimizer's {key!r}")
            if _needed(None, plain):
                raise CheckpointError(
                    f"cannot be saved: the optimizer's {key!r} is {describe(value)}"
                )
            yield f"{OPTIMIZER}{name}.{key}", plain


def groups_of(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of each group of parameters, and their names."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        strangers = [p for p in group["params"] if id(p) not in names]
        if strangers:
            raise ValueError(
                "the optimizer has parameters that are not the model's; make it by composer.parallel.optimizer, "
                "after the model was sharded"
            )
        settings = {
            key: _as_json(value, f"the optimizer's {key!r}")
            for key, value in group.items()
            if key != "params"
        }
        groups.append({"names": [names[id(p)] for p in group["params"]], "settings": settings})
    return groups


def _as_json(value: Any, what: str) -> Any:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot be saved: {what} is {describe(value)}") from error


# --- reading ----------------------------------------------------------------------------------------------------------


def states_to_fill(pieces: Pieces, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Give ``optimizer`` the settings and states of the checkpoint; returns the tensors to be read, by name.

    Raises CheckpointError, with nothing changed, where they do not fit.
    """
    settings = _settings_of(pieces, model, optimizer)
    homes = _homes_of(model, optimizer)
    _refuse_other_kinds(pieces, optimizer, settings, homes)
    for group, saved in zip(optimizer.param_groups, settings, strict=True):
        for key, value in saved.items():
            now = group.get(key)
            if isinstance(now, Tensor):
                now.fill_(value)
            else:
                group[key] = tuple(value) if isinstance(now, tuple) else value
    optimizer.state.clear()
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape) in pieces.index["tensors"].items():
        owner, key = _split(name)
        if owner in homes:
            parameter, group = homes[owner]
            on_device = group.get("capturable") or group.get("fused")
            stays = key == "step" and not on_device  # as torch has it: its steps are on the CPU
            state = _state_like(parameter, getattr(torch, dtype), shape, stays)
            optimizer.state[parameter][key] = tensors[name] = state
    for name, value in pieces.index["values"].items():
        owner, key = _split(name)
        if owner in homes:
            optimizer.state[homes[owner][0]][key] = value
    return tensors


def _homes_of(model: nn.Module, optimizer: Optimizer) -> Homes:
    """The parameters that ``optimizer`` has, by name, each with its group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (p, group) for group in optimizer.param_groups for p in group["params"]}


def _split(name: str) -> tuple[str | None, str]:
    """The parameter that a name is about, and the key; no parameter where it is not of an optimizer."""
    if not name.startswith(OPTIMIZER):
        return None, name
    owner, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
    return owner, key


def _state_like(parameter: Tensor, dtype: torch.dtype, shape: list[int], on_cpu: bool) -> Tensor:
    """What an optimizer keeps of ``parameter``: sharded as that is where it has its shape."""
    if tuple(shape) == tuple(parameter.shape) and shape:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device="cpu" if on_cpu else parameter.device)


def _settings_of(pieces: Pieces, model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of the checkpoint for each group of ``optimizer``. Raises CheckpointError where they do not fit.

    Groups may be others than when it was saved, as long as the parameters in each of them had the same settings.
    """
    if not pieces.index["groups"]:
        raise CheckpointError("the checkpoint has no optimizer; load the model alone, without one")
    saved = {n: group["settings"] for group in pieces.index["groups"] for n in group["names"]}
    settings = []
    for group in groups_of(model, optimizer):
        missing = [name for name in group["names"] if name not in saved]
        if missing:
            raise CheckpointError(
                f"the optimizer of the checkpoint did not train {missing[0]!r}, and {len(missing)} in all"
            )
        known = [saved[name] for name in group["names"]]
        if any(each != known[0] for each in known):
            raise CheckpointError(
                "the optimizer of the checkpoint had other groups of parameters, with other settings"
            )
        settings.append(known[0] if known else {})
    return settings


def _refuse_other_kinds(
    pieces: Pieces, optimizer: Optimizer, settings: list[dict[str, Any]], homes: Homes
) -> None:
    """Raise CheckpointError with every setting and value of the checkpoint that ``optimizer`` cannot calculate with."""
    wrong: dict[str, None] = {}
    for group, saved in zip(optimizer.param_groups, settings, strict=True):
        for key, value in saved.items():
            if needed := _needed(group.get(key), value):
                message = f"it needs {needed}" if key in group else "it has no such setting"
                wrong[f"{key!r} is {describe(value)} in the checkpoint; {message}"] = None
    for name, value in pieces.index["values"].items():
        owner, key = _split(name)
        now = optimizer.state.get(homes[owner][0], {}).get(key) if owner in homes else None
        if needed := _needed(now, value):
            wrong[f"{name!r} is {describe(value)} in the checkpoint; it keeps {needed}"] = None
    if wrong:
        shown = "\n  ".join(wrong)
        raise CheckpointError(f"the checkpoint does not fit this optimizer\n  {shown}")


def _needed(now: Any, value: Any) -> str | None:
    """What is needed in the place of ``value``, where ``now`` is what there is; None if that is of the same kind."""
    if isinstance(now, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(now, int | float | Tensor):
        return None if _is_number(value) else "a number"
    if isinstance(now, str):
        return None if isinstance(value, str) else "a text"
    if isinstance(now, list | tuple):
        same = isinstance(value, list) and len(value) == len(now)
        fits = same and not any(map(_needed, now, value))
        return None if fits else f"a list such as {json.dumps(now)}"
    if isinstance(now, dict):
        return None if isinstance(value, dict) else "a mapping"
    is_plain = value is None or isinstance(value, bool) or _is_number(value)
    return None if is_plain else "a number, true, false or nothing"


def _is_number(value: Any) -> bool:
    """Whether it is a number that tensors can be multiplied with."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float) and math.isfinite(value)
