"""The soft update that moves the tensors of one module, such as a target network, towards another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from perception_blocks.port import format_shape
from perception_blocks.words import did_you_mean, listing

__all__ = ["Buffers", "ModuleTensors", "blend", "blend_tensors", "tensors_of"]

Buffers = Literal["copy", "blend", "keep"]
Pairs = list[tuple[Tensor, Tensor]]
ModuleTensors: TypeAlias = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Parameters, and buffers, of a module by name."""


@torch.no_grad()
def blend(target: nn.Module, source: nn.Module, tau: float, buffers: Buffers = "copy") -> nn.Module:
    """Soft update (Polyak averaging): move ``target`` by ``tau`` (0 to 1) towards ``source``, in place; returns it.

    Every parameter becomes ``target + tau * (source - target)``. Buffers, such as the statistics of a batch
    normalisation, are copied; with ``blend`` numbers move as parameters do (integers are copied), with ``keep`` they
    stay. Raises ValueError that names every tensor that differs in name or shape; nothing has changed then.

    >>> target, source = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.constant_(target.weight, 0.0), nn.init.constant_(source.weight, 1.0)
    >>> blend(target, source, tau=0.25).weight.item()
    0.25
    """
    blend_tensors(target, tensors_of(source), tau, buffers)
    return target


def tensors_of(module: nn.Module) -> ModuleTensors:
    """Parameters, and buffers, by name; each tensor once."""
    return dict(module.named_parameters()), dict(module.named_buffers())


@torch.no_grad()
def blend_tensors(
    target: nn.Module, source: ModuleTensors, tau: float, buffers: Buffers = "copy"
) -> None:
    """`blend` with the `tensors_of` a module, which may be in another process."""
    _check(tau, buffers)
    parameters, statistics = _pairs(tensors_of(target), source)
    moved = [pair for pair in parameters if _is_blendable(pair[0])]
    copied = [pair for pair in parameters if not _is_blendable(pair[0])]
    if buffers != "keep":
        for pair in statistics:
            blended = buffers == "blend" and _is_blendable(pair[0])
            (moved if blended else copied).append(pair)
    _move(moved, tau)
    _move(copied, 1.0)


def _check(tau: float, buffers: str) -> None:
    if not isinstance(tau, Real) or not 0 <= float(tau) <= 1:
        raise ValueError(f"tau must be between 0 and 1, got {tau!r}")
    if buffers not in get_args(Buffers):
        known, near = listing(get_args(Buffers)), did_you_mean(str(buffers), get_args(Buffers))
        raise ValueError(f"buffers must be one of {known}, got {buffers!r}{near}")


def _pairs(target: ModuleTensors, source: ModuleTensors) -> tuple[Pairs, Pairs]:
    """The (target, source) pairs of parameters, and of buffers. Raises ValueError for other names or shapes."""
    pairs: list[Pairs] = []
    problems: list[str] = []
    for kind, ours, other in zip(("parameter", "buffer"), target, source, strict=True):
        problems += _differences(kind, ours, other)
        pairs.append([(tensor, other[name]) for name, tensor in ours.items() if name in other])
    if problems:
        raise ValueError("target and source differ:\n" + "\n".join(f"  {p}" for p in problems))
    return pairs[0], pairs[1]


def _differences(
    kind: str, ours: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> Iterable[str]:
    for name in [*ours, *(name for name in other if name not in ours)]:
        if name not in other:
            yield f"{kind} {name!r} is only in the target"
        elif name not in ours:
            yield f"{kind} {name!r} is only in the source"
        elif ours[name].shape != other[name].shape:
            shape, wanted = format_shape(ours[name].shape), format_shape(other[name].shape)
            yield f"{kind} {name!r} has the shape {shape} in the target and {wanted} in the source"


def _is_blendable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _move(pairs: Pairs, tau: float) -> None:
    """Move all targets by ``tau`` towards their sources, in one call."""
    if not pairs or tau == 0:
        return
    targets = [target for target, _ in pairs]
    sources = [source.to(device=target.device, dtype=target.dtype) for target, source in pairs]
    if tau == 1:  # exact, even where a target is infinite
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
    else:
        torch._foreach_lerp_(targets, sources, tau)  # pyright: ignore[reportPrivateImportUsage]
