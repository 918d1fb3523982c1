"""Betas over the bounds of a Box. Densities are on the Box's own scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from composer.distributions.base import (
    ActionDistribution,
    Distribution,
    check_action,
    check_family,
    check_temperature,
    event_sum,
    is_bounded,
    misfit,
    wide,
)
from composer.distributions.bounds import (
    as_row,
    halves_of_row,
    keep_bounds,
    kept_bounds,
    refuse_mask,
    refuse_outside,
)
from composer.distributions.cells import FINEST, Bounds, Placed, Resolution, place
from composer.spaces.kinds import Leaf
from composer.spaces.values import on_host

__all__ = ["Beta", "BetaDistribution"]

_BROAD = 64.0  # see BetaDistribution
_SERIES = 16.0  # where the asymptotic series of betas begin


class BetaDistribution(Distribution):
    """Independent betas stretched over the bounds: concentrations ``1 + a`` and ``1 + b`` (..., *action shape).

    Of all numbers that round to the action, `log_prob` takes the one nearest to the mode; it is at most the log-density
    of a cell of probability 1. With ``n = a + b`` and the mode ``p = a / n``, the log-density at x is the log-density
    at p minus ``n`` times the divergence of p to x: in this form nothing large cancels if a beta is very narrow.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        bounds: Bounds,
        event_dims: int,
        *,
        resolution: Resolution = FINEST,
        key: str = "action",
    ) -> None:
        self._excess = (a, b)
        self.concentrations = (1 + a, 1 + b)
        self.bounds = bounds
        self.event_dims = event_dims
        self._log_width = bounds.log_half + math.log(2)
        self._resolution = resolution
        self._key = key

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.rsample(generator).detach()

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        alpha, beta = self.concentrations
        x, y = (
            torch._standard_gamma(shape, generator=generator)  # pyright: ignore[reportPrivateImportUsage]
            for shape in (alpha, beta)  # torch's own distributions take no generator
        )
        return self._stretch(x / (x + y))

    def mode(self) -> Tensor:
        a, b = self._excess
        return self._stretch(a / (a + b))

    def log_prob(self, action: Tensor) -> Tensor:
        a, _ = self._excess
        check_action(action, a.shape, self.event_dims)
        refuse_outside(action, self.bounds, self._key)
        placed = place(action, self.bounds, a.dtype, self._resolution)
        terms = self._log_densities(placed)
        reach = placed.reach
        span = placed.below.clamp_max(reach) + placed.above.clamp_max(reach)
        terms = torch.minimum(terms, math.log(2) - span.log())
        return event_sum(terms - self._log_width, self.event_dims)

    def entropy(self) -> Tensor:
        a, b = self._excess
        n = a + b
        if self._is_broad:
            alpha, beta = self.concentrations
            terms = self._log_norm - a * alpha.digamma() - b * beta.digamma()
            terms = terms + n * (alpha + beta).digamma()
            return event_sum(terms + self._log_width, self.event_dims)
        terms = n / (1 + n) - self._peak - _log_means(a) - _log_means(b) + _log_means(n)
        return event_sum(terms + self._log_width, self.event_dims)

    def kl(self, other: BetaDistribution) -> Tensor:
        check_family(self, other)
        (a, b), (c, d) = self._excess, other._excess
        n, m = a + b, c + d
        if self._is_broad and other._is_broad:
            alpha, beta = self.concentrations
            terms = other._log_norm - self._log_norm + (a - c) * alpha.digamma()
            terms = terms + (b - d) * beta.digamma() - (n - m) * (alpha + beta).digamma()
            return event_sum(terms, self.event_dims)
        tiny = torch.finfo(a.dtype).tiny
        p, q, r, s = (part.clamp_min(tiny) for part in (a / n, b / n, c / m, d / m))
        change = torch.where(r < 0.5, p - r, s - q)
        terms = self._peak - other._peak - c * _log_ratio(p, r, change)
        terms = terms - d * _log_ratio(q, s, -change)
        terms = terms + (a - c) * (_log_means(a) / a) + (b - d) * (_log_means(b) / b)
        terms = terms - (n - m) * (_log_means(n) / n + 1 / (1 + n))
        return event_sum(terms, self.event_dims)

    def row(self) -> Tensor:
        """What the concentrations exceed 1 by."""
        return as_row(*self._excess, self.event_dims)

    @property
    def _is_broad(self) -> bool:
        """Whether every beta is so wide that torch's usual formulas, which are faster, are exact to 1e-5."""
        a, b = self._excess
        return on_host(a) and bool((a + b < _BROAD).all())

    @property
    def _log_norm(self) -> Tensor:
        alpha, beta = self.concentrations
        return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()

    @property
    def _peak(self) -> Tensor:
        """The log-density between 0 and 1 at the mode."""
        a, b = self._excess
        n = a + b
        return torch.log1p(n) + _stirling_rest(n) - _stirling_rest(a) - _stirling_rest(b)

    def _log_densities(self, placed: Placed) -> Tensor:
        """Per dimension, between 0 and 1, of the number in the cell that is nearest to the mode."""
        a, b = self._excess
        n = a + b
        x, y, reach = placed.below / 2, placed.above / 2, placed.reach / 2
        tiny = torch.finfo(a.dtype).tiny
        p, q = ((part / n).clamp_min(tiny) for part in (a, b))
        from_mode = torch.where(x < 0.5, x - p, q - y)
        shift = from_mode.detach().clamp(-reach, reach)
        from_mode = from_mode - shift
        x, y = ((x - shift).clamp_min(tiny), (y + shift).clamp_min(tiny))
        if self._is_broad:
            return a * x.log() + b * y.log() - self._log_norm
        relative = a * _log_ratio(x, p, from_mode) + b * _log_ratio(y, q, -from_mode)
        return self._peak + relative

    def _stretch(self, x: Tensor) -> Tensor:
        low, high, _, half, _ = self.bounds
        return torch.clamp(low + 2 * x * half, low, high)  # rounding may leave the bounds


class Beta(ActionDistribution):
    """Betas over the Box's bounds; logits (..., for alpha then for beta), each concentration is 1 + softplus(logit).

    Both are above 1, so the density has one peak and is zero at the bounds. ``temperature`` divides what exceeds 1: the
    density to the power of 1 / temperature, which keeps its mode. It is at most the square of 1 / eps, where the
    standard deviation is about eps: the dtype cannot distinguish it from a narrower one.
    """

    allows_minus_infinity = False
    stays_within = True

    def __init__(self, leaf: Leaf) -> None:
        if not is_bounded(leaf):
            raise misfit("beta", leaf, "a Box action with finite bounds")
        super().__init__(leaf, 2 * math.prod(leaf.shape))
        self.same_bounds = keep_bounds(self, leaf)
        self._resolution = Resolution.of(leaf)

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> BetaDistribution:
        refuse_mask(mask, "beta", self.key)
        check_temperature(temperature)
        excess = functional.softplus(wide(logits)) / temperature
        limits = torch.finfo(excess.dtype)
        excess = excess.clamp(limits.tiny**0.5, limits.eps**-2)
        return self.of_row(excess)

    def of_row(self, row: Tensor) -> BetaDistribution:
        a, b = halves_of_row(row, self.action_shape)
        bounds = self.same_bounds or kept_bounds(self, a.dtype)
        return BetaDistribution(
            a, b, bounds, len(self.action_shape), resolution=self._resolution, key=self.key
        )


# --- functions of a concentration minus 1, without cancellation ---


def _stirling_rest(v: Tensor) -> Tensor:
    """lgamma(1 + v) - (v * log(v) - v)."""
    small, r = _small_or_reciprocal(v)
    series = r * (1 / 12 - r * r * (1 / 360 - r * r * (1 / 1260 - r * r / 1680)))
    series = series + 0.5 * (math.log(2 * math.pi) - r.log())
    return torch.where(
        v < _SERIES, (1 + small).lgamma() - torch.xlogy(small, small) + small, series
    )


def _log_means(v: Tensor) -> Tensor:
    """v * (digamma(1 + v) - log(v))."""
    small, r = _small_or_reciprocal(v)
    series = 0.5 - r * (1 / 12 - r * r * (1 / 120 - r * r * (1 / 252 - r * r / 240)))
    direct = small * (1 + small).digamma() - torch.xlogy(small, small)
    return torch.where(v < _SERIES, direct, series)


def _small_or_reciprocal(v: Tensor) -> tuple[Tensor, Tensor]:
    return v.clamp_max(_SERIES), v.clamp_min(_SERIES).reciprocal()


def _log_ratio(x: Tensor, y: Tensor, difference: Tensor) -> Tensor:
    """log(x / y), given ``x - y``, which is better known than x and y."""
    near = difference.detach().abs() < 0.5 * y.detach()
    ratio = torch.where(near, difference, 0.0) / torch.where(near, y, 1.0)
    return torch.where(near, ratio.log1p(), x.log() - y.log())
