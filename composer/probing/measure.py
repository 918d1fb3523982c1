"""What the values of one layer say about it: which units are dead or dormant, how saturated they are, and their rank.

All numbers are of the values after the activation, a matrix of samples by units: channels of an image are units, and
its places are samples. They are added up batch by batch, so that nothing but a sample for the rank is kept.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from composer.probing.node import Measured
from perception_blocks.blocks.scale import accumulator

__all__ = ["DELTA", "MOST_SAMPLES", "NEAR", "TAU", "Activity", "stable_rank"]

TAU = 0.025  # of the dormant score
NEAR = 0.01  # how near a bound a saturated value is
DELTA = 0.01  # of the sum of singular values, what the rank leaves out
MOST_SAMPLES = 2048  # for the rank


class Activity:
    """The values of one layer, added up batch by batch.

    ``batches`` is how many are to come, which share the samples that are kept for the rank. With ``bounds`` of the
    activation, values near them are counted.
    """

    def __init__(self, batches: int, bounds: tuple[float, float] | None = None) -> None:
        self._kept = max(1, -(-MOST_SAMPLES // max(1, batches)))
        self._bounds = bounds
        self._count = self._near = 0
        self._low, self._high = float("inf"), float("-inf")
        self._sums: list[Tensor] | None = None  # by unit: x, x ** 2, |x|
        self._samples: list[Tensor] = []

    def add(self, x: Tensor, axis: int = -1) -> None:
        """Count a batch whose ``axis`` is that of the units; all other axes are samples. A number is one unit."""
        x = x.detach().reshape(1, 1) if x.dim() == 0 else x.detach()
        if not x.numel():
            return
        samples = x.movedim(axis, -1)
        axes = list(range(samples.dim() - 1))
        sums = [samples] if not axes else [samples.sum(axes, dtype=accumulator(x.device))]
        squares, sizes = (_norm(samples, order, axes) for order in (2, 1))
        sums = [part.cpu().double() for part in (*sums, squares.square(), sizes)]
        self._sums = sums if self._sums is None else [a + b for a, b in zip(self._sums, sums)]
        count = math.prod(samples.shape[:-1])
        self._count += count
        low, high = x.aminmax()
        self._low = float(np.minimum(self._low, low.item()))  # NaN stays, which min() may lose
        self._high = float(np.maximum(self._high, high.item()))
        if self._bounds is not None:
            below, above = self._bounds[0] + NEAR, self._bounds[1] - NEAR
            self._near += int(((x <= below) | (x >= above)).sum())
        places = _spread(count, self._kept).to(x.device)
        chosen = torch.unravel_index(places, samples.shape[:-1]) if axes else (None,)
        self._samples.append(samples[chosen].cpu().double())

    def measured(self, tau: float = TAU) -> Measured | None:
        """The numbers of all that was added; None without any values."""
        if self._sums is None:
            return None
        by_unit, squares, sizes = (total / self._count for total in self._sums)
        mean = by_unit.mean()
        values = self._count * len(by_unit)
        return Measured(
            units=len(by_unit),
            mean=mean.item(),
            std=(squares.mean() - mean.square()).clamp_min(0.0).sqrt().item(),
            low=self._low,
            high=self._high,
            dead=(sizes == 0).double().mean().item(),  # the mean size
            dormant=dormant_share(sizes, tau),
            saturated=None if self._bounds is None else self._near / values,
            srank=stable_rank(self._sample()),
        )

    def _sample(self) -> Tensor:
        samples = torch.cat(self._samples)
        if len(samples) > MOST_SAMPLES:
            samples = samples[_spread(len(samples), MOST_SAMPLES)]
        return samples


def _norm(x: Tensor, order: int, axes: list[int]) -> Tensor:
    wide = accumulator(x.device)
    return torch.linalg.vector_norm(x, order, axes, dtype=wide) if axes else x.abs()


def _spread(count: int, most: int) -> Tensor:
    """At most ``most`` of the numbers below ``count``, evenly spread."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).long()


def dormant_share(sizes_U: Tensor, tau: float) -> float:
    """The share of units whose mean |activation| is at most ``tau`` times the mean over all units of the layer.

    As the dormant neurons of Sokar et al. (2023), The Dormant Neuron Phenomenon in Deep Reinforcement Learning,
    arXiv:2302.12902, definition 3.1. If all units are 0, all are dormant. NaN where sizes are not finite.

    >>> dormant_share(torch.tensor([0.0, 1.0, 1.0, 0.001]), tau=0.025)
    0.5
    """
    if not bool(sizes_U.isfinite().all()):
        return math.nan
    return (sizes_U <= tau * sizes_U.mean()).double().mean().item()


def stable_rank(x_SU: Tensor, delta: float = DELTA) -> int:
    """The number of singular values of (samples, units) that make ``1 - delta`` of their sum; 0 for zeros alone.

    The effective rank srank of Kumar et al. (2021), Implicit Under-Parameterization Inhibits Data-Efficient Deep
    Reinforcement Learning, arXiv:2010.14498, section 3, with their delta of 0.01. Values that are not finite give 0.

    >>> stable_rank(torch.outer(torch.arange(1.0, 5.0), torch.ones(3)))
    1
    """
    if not bool(x_SU.isfinite().all()):
        return 0
    x_SU = x_SU.double()
    square = x_SU.mT @ x_SU if x_SU.shape[1] <= x_SU.shape[0] else x_SU @ x_SU.mT
    squares = torch.linalg.eigvalsh(square).flip(
        0
    )  # of singular values; faster than these themselves
    rounding = torch.finfo(torch.float64).eps * len(square)
    values = torch.where(squares > rounding * squares[0], squares, 0.0).sqrt()
    total = values.sum()
    if total == 0:
        return 0
    return int((values.cumsum(0) < (1 - delta) * total).sum()) + 1
