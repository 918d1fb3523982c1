"""Generalised advantage estimation (Schulman et al., 2016) for actors that come and go."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["advantages"]


def advantages(
    rewards: Tensor,
    values: Tensor,
    following: Tensor,
    ended: Tensor,
    present: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Advantages (T, ...) of T steps; 0 where the actor was not ``present``.

    ``following`` (T, ...) is the value after each step: of the next observation, of the last one of an episode that was
    truncated, 0 after a terminated one. Nothing is carried over a step that ``ended`` a life, nor over an absence.
    """
    result = torch.zeros_like(values)
    carried = torch.zeros_like(values[0])
    for step in range(len(values) - 1, -1, -1):
        error = rewards[step] + gamma * following[step] - values[step]
        carried = error + gamma * gae_lambda * torch.where(ended[step], 0.0, carried)
        carried = torch.where(present[step], carried, 0.0)
        result[step] = carried
    return result
