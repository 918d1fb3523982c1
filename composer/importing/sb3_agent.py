"""The tensors of a Stable-Baselines3 agent, as networks read them that act in the units of the environment."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

import torch
from torch import Tensor

from composer.importing.sb3 import NOISE, Q_VALUES
from composer.importing.sb3_archive import Sb3Archive
from composer.importing.sb3_spaces import bounds_of

__all__ = ["tensors_of_agent"]

MOST_FEATURES = 10_000  # that noise depends on: the identity of as many takes 400 MB
_FIRST_OF_Q = re.compile(r"(critic(?:_target)?\.qf\d+\.0)\.(weight|scale)")
_QUANTILES = re.compile(r"quantile_net(?:_target)?\.quantile_net\.(\d{1,9})\.(weight|bias)")
_EPSILON = 0.001  # of a BatchRenorm


def tensors_of_agent(archive: Sb3Archive) -> dict[str, Tensor]:
    """The tensors of an agent by name.

    Its Q functions read actions scaled to -1 and 1; here, in the units of their space. Quantiles of choices are ordered
    by choice, and ``q_values`` are their means. With ``use_sde`` there is also ``noise_features``, the identity.
    """
    tensors = archive.tensors()
    _scale_actions(archive, tensors)
    _order_quantiles(archive, tensors)
    for name in ("log_std", "actor.log_std"):
        log_std = tensors.get(name)
        if log_std is not None and log_std.dim() == 2:  # of an exploration matrix
            if len(log_std) > MOST_FEATURES:
                raise archive.refusal(f"its {name!r} is of more than {MOST_FEATURES:,} features")
            tensors[f"{NOISE}.weight"] = torch.eye(len(log_std), dtype=log_std.dtype)
            tensors[f"{NOISE}.bias"] = torch.zeros(len(log_std), dtype=log_std.dtype)
    return tensors


def _scale_actions(archive: Sb3Archive, tensors: dict[str, Tensor]) -> None:
    """Let the first layer of each Q function, linear or a norm, read actions in the units of their space."""
    first = [match for match in map(_FIRST_OF_Q.fullmatch, tensors) if match]
    if not first:
        return
    bounds = bounds_of(archive.data.get("action_space"))
    if bounds is None:
        raise archive.refusal(
            "the bounds of the actions, which its Q functions scale, cannot be read"
        )
    low, high = (torch.tensor(bound, dtype=torch.float64) for bound in bounds)
    half, middle = (high - low) / 2, (high + low) / 2
    if not ((half > 0) & half.isfinite()).all():
        raise archive.refusal(
            "the bounds of the actions, which its Q functions scale, are equal or infinite"
        )
    for match in first:
        if match[2] == "weight":
            _scale_linear(tensors, match[1], half, middle)
        else:
            _scale_norm(tensors, match[1], half, middle, _epsilon_of(archive))


def _scale_linear(tensors: dict[str, Tensor], name: str, half: Tensor, middle: Tensor) -> None:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    of_actions = len(half)
    if weight.dim() != 2 or weight.shape[1] < of_actions or not _is_vector(bias, len(weight)):
        return  # no layer of such a network; adopting it says what is wrong
    rest, read = weight.double().split([weight.shape[1] - of_actions, of_actions], 1)
    read = read / half
    tensors[f"{name}.weight"] = torch.cat([rest, read], 1).to(weight.dtype)
    tensors[f"{name}.bias"] = (bias.double() - read @ middle).to(weight.dtype)


def _scale_norm(
    tensors: dict[str, Tensor], name: str, half: Tensor, middle: Tensor, epsilon: float
) -> None:
    """Change mean and variance of the actions, and by how much they are scaled, for what is added to a variance."""
    parts = [tensors.get(f"{name}.{key}") for key in ("ra_mean", "ra_var", "scale")]
    size = 0 if parts[0] is None else parts[0].numel()
    if size < len(half) or not all(_is_vector(part, size) for part in parts):
        return  # no norm; adopting it says what is wrong
    mean, variance, scale = (part.double().clone() for part in parts if part is not None)
    last = slice(len(mean) - len(half), None)
    mean[last] = mean[last] * half + middle
    wide = variance[last] * half.square()
    scale[last] *= ((wide + epsilon) / (variance[last] + epsilon)).sqrt() / half
    variance[last] = wide
    for key, part in (("ra_mean", mean), ("ra_var", variance), ("scale", scale)):
        tensors[f"{name}.{key}"] = part.to(tensors[f"{name}.{key}"].dtype)


def _is_vector(tensor: Tensor | None, size: int) -> TypeGuard[Tensor]:
    """Whether it has ``size`` real numbers along one axis."""
    return tensor is not None and tensor.shape == (size,) and tensor.is_floating_point()


def _epsilon_of(archive: Sb3Archive) -> float:
    kwargs: Any = archive.data.get("policy_kwargs")
    value = kwargs.get("batch_norm_eps", _EPSILON) if isinstance(kwargs, dict) else _EPSILON
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else _EPSILON


def _order_quantiles(archive: Sb3Archive, tensors: dict[str, Tensor]) -> None:
    """Put the rows of quantiles of each choice together, and add the layer that gives their means."""
    layers = [match for match in map(_QUANTILES.fullmatch, tensors) if match]
    last = max((int(match[1]) for match in layers), default=0)
    count = archive.data.get("n_quantiles")
    for match in layers:
        rows = tensors[match[0]]
        if int(match[1]) != last or not isinstance(count, int) or not rows.numel():
            continue
        if not rows.is_floating_point() or not rows.dim() or count < 1 or len(rows) % count:
            continue  # of other quantiles; adopting it says what is wrong
        by_choice = rows.unflatten(0, (count, -1)).transpose(0, 1)
        tensors[match[0]] = by_choice.flatten(0, 1)
        if match[0].startswith("quantile_net."):
            tensors[f"{Q_VALUES}.{match[2]}"] = by_choice.double().mean(1).to(rows.dtype)
