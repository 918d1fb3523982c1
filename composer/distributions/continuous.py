"""Distributions over a Box: normal, and normal squashed into the bounds. Densities are on the Box's own scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.distributions.base import (
    FEW_NUMBERS,
    ActionDistribution,
    Distribution,
    all_finite,
    check_action,
    check_family,
    check_temperature,
    event_sum,
    floor_of,
    is_bounded,
    misfit,
    refuse_actions,
    wide,
)
from composer.distributions.beta import Beta, BetaDistribution
from composer.distributions.bounds import (
    as_row,
    halves_of_row,
    keep_bounds,
    kept_bounds,
    refuse_mask,
    refuse_outside,
    squashed,
)
from composer.distributions.cells import (
    FARTHEST,
    FINEST,
    Bounds,
    Resolution,
    log_mean_density,
    place,
)
from composer.spaces.kinds import Leaf
from composer.spaces.values import on_host

__all__ = ["Beta", "BetaDistribution"]  # which other code imports from here
__all__ += ["Gaussian", "GaussianDistribution", "SquashedGaussian", "SquashedGaussianDistribution"]
__all__ += ["NormalFamily", "are_few_within", "log_std_limits", "warmer"]

LogStd = Literal["state", "learned"]
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_ENTROPY = 0.5 + _HALF_LOG_2PI  # of a standard normal
_NODES, _REACH = 101, 7.5  # see SquashedGaussianDistribution.entropy
_LARGEST_LOG = 80.0  # of a standard deviation: float32 holds it and its reciprocal


class GaussianDistribution(Distribution):
    """Independent normals: ``mean`` (..., *action shape), and ``log_std`` of that shape or for the whole batch.

    ``noise``, where it is given, computes what samples add to the mean in place of fresh normal noise. ``key`` is for
    messages.
    """

    def __init__(
        self,
        mean: Tensor,
        log_std: Tensor,
        event_dims: int,
        *,
        noise: Callable[[], Tensor] | None = None,
        key: str = "action",
    ) -> None:
        self.mean = mean
        self._noise = noise
        fits = log_std.shape == mean.shape[mean.dim() - log_std.dim() :]
        # A learned one stays without the batch: there is less to compute, and to sum up in backward.
        self._log_std = log_std if fits and log_std.dim() >= event_dims else log_std.expand_as(mean)
        self.event_dims = event_dims
        self._key = key

    @property
    def _dims(self) -> int:
        return math.prod(self.mean.shape[self.mean.dim() - self.event_dims :])

    @property
    def log_std(self) -> Tensor:
        """(..., *action shape)."""
        return self._log_std.expand_as(self.mean)

    @property
    def stddev(self) -> Tensor:
        """(..., *action shape)."""
        return self._log_std.exp().expand_as(self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        if self._noise is not None:
            return self.mean.detach() + self._noise().detach()
        deviation = self._log_std.detach().exp()
        return self.mean.detach() + deviation * _normal_like(self.mean, generator)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        if self._noise is not None:
            return self.mean + self._noise()
        return self.mean + self._log_std.exp() * _normal_like(self.mean, generator)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        check_action(action, self.mean.shape, self.event_dims)
        if on_host(action) and not all_finite(action):
            refuse_actions(action, ~action.isfinite(), lambda _: "a finite number", self._key)
        return self.log_prob_of_draw(action.to(self.mean.dtype))

    def log_prob_of_draw(self, action: Tensor) -> Tensor:
        squares = event_sum(_standard(action, self.mean, self._log_std).square(), self.event_dims)
        at_mean = torch.rsub(event_sum(self._log_std, self.event_dims), -self._dims * _HALF_LOG_2PI)
        return torch.sub(at_mean, squares, alpha=0.5)

    def entropy(self) -> Tensor:
        batch = self.mean.shape[: self.mean.dim() - self.event_dims]
        return (event_sum(self._log_std, self.event_dims) + self._dims * _ENTROPY).expand(batch)

    def kl(self, other: GaussianDistribution) -> Tensor:
        check_family(self, other)
        change = other._log_std - self._log_std
        ratio = (-2 * change).exp().clamp_max(FARTHEST**2)
        distance = _standard(self.mean, other.mean, other._log_std).square()
        return event_sum(change + 0.5 * (ratio + distance - 1), self.event_dims)

    def row(self) -> Tensor:
        """Means, then standard deviations."""
        return as_row(self.mean, self.stddev, self.event_dims)

    def log_densities(self, value: Tensor) -> Tensor:
        """Per dimension, (..., *action shape)."""
        standard = _standard(value, self.mean, self._log_std)
        return -0.5 * standard.square() - self._log_std - _HALF_LOG_2PI

    def entropies(self) -> Tensor:
        """Per dimension, (..., *action shape), or without the batch."""
        return _ENTROPY + self._log_std


class SquashedGaussianDistribution(Distribution):
    """``middle + half * tanh(u)`` with u normal: an action within its bounds.

    `log_prob` of the very tensor that `rsample` returned uses its u: value and gradients are exact. Of any other action
    it is the mean density of what rounds to that action. That is everything from ``l`` to ``h`` in u, where ``l`` or
    ``h`` is infinite for an action on a bound, and on the action's scale an interval of the width ``w``::

        log_prob = log((cdf((h - mean) / std) - cdf((l - mean) / std)) / w)

    Away from the bounds that is the density; see `composer.distributions.cells`. An action further out of its bounds
    than rounding explains is refused where `on_host` allows a check. ``resolution`` is the environment's.
    """

    def __init__(
        self,
        base: GaussianDistribution,
        bounds: Bounds,
        *,
        resolution: Resolution = FINEST,
        key: str = "action",
    ) -> None:
        self.base = base
        self.bounds = bounds
        self._resolution = resolution
        self._key = key
        self._drawn: tuple[Tensor, Tensor] | None = None

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return squashed(self.base.sample(generator), self.bounds).detach()

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        u = self.base.rsample(generator)
        action = squashed(u, self.bounds)
        self._drawn = (action, u)
        return action

    def mode(self) -> Tensor:
        """The squashed mean (which is the median): the density's own maximum may lie on a bound."""
        return squashed(self.base.mean, self.bounds)

    def log_prob(self, action: Tensor) -> Tensor:
        drawn, u = self._drawn or (None, None)
        if u is not None and action is drawn:
            terms = self.base.log_densities(u) - _log_slope(u)
        else:
            check_action(action, self.base.mean.shape, self.base.event_dims)
            refuse_outside(action, self.bounds, self._key)
            mean, log_std = self.base.mean, self.base.log_std
            placed = place(action, self.bounds, mean.dtype, self._resolution)
            look = on_host(action) and on_host(mean)
            terms = log_mean_density(placed, self.bounds, mean, log_std, look)
        return event_sum(terms - self.bounds.log_half, self.base.event_dims)

    def entropy(self) -> Tensor:
        """Entropy of the normal plus the expectation of the log-slope, which has no closed form.

        The expectation is a sum over 101 points of the normal (trapezoid rule, +-7.5 standard deviations): the same
        each time, differentiable, and exact to 1e-4 for standard deviations up to e^2.
        """
        mean, std = self.base.mean, self.base.stddev
        nodes = torch.linspace(-_REACH, _REACH, _NODES, dtype=mean.dtype, device=mean.device)
        weights = torch.softmax(-0.5 * nodes.square(), -1)
        slopes = _log_slope(mean.unsqueeze(-1) + std.unsqueeze(-1) * nodes)
        terms = self.base.entropies() + (slopes * weights).sum(-1) + self.bounds.log_half
        return event_sum(terms, self.base.event_dims)

    def kl(self, other: SquashedGaussianDistribution) -> Tensor:
        """The divergence of the normals, which squashing both in the same way does not change."""
        check_family(self, other)
        return self.base.kl(other.base)

    def row(self) -> Tensor:
        """Means, then standard deviations, of the normal."""
        return self.base.row()


def are_few_within(log_std: Tensor, low: float, high: float) -> bool:
    """Whether a few numbers, as of a learned ``log_std``, are within a range; Python sees it faster than a clamp runs.

    False where `on_host` allows no look.
    """
    # The look comes before the count: a file is exported for batches of any size. A parameter is no plain tensor.
    if log_std.dim() != 1 or not on_host(log_std.detach()):
        return False
    if not 0 < log_std.numel() <= FEW_NUMBERS:
        return False
    numbers = log_std.tolist()
    return low <= min(numbers) and max(numbers) <= high


def log_std_limits(init: float, limits: tuple[float, float]) -> tuple[float, float]:
    """The range of log standard deviations that float32 holds within ``limits``, the setting 'log_std_range'.

    Raises ValueError unless they are (low, high), with the initial value ``init`` between them.
    """
    low, high = limits
    if not low <= high:
        raise ValueError(f"'log_std_range' must be (low, high), got ({low}, {high})")
    if not low <= init <= high:
        raise ValueError(
            f"'init_log_std' must be within 'log_std_range' ({low}, {high}), got {init}"
        )
    return max(low, -_LARGEST_LOG), min(high, _LARGEST_LOG)


def warmer(log_std: Tensor, temperature: float | Tensor) -> Tensor:
    """The ``log_std`` of normals whose standard deviation is multiplied by ``temperature``."""
    if not isinstance(temperature, Tensor) and temperature == 1.0:
        return log_std
    change = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
    return (log_std + change).clamp(-_LARGEST_LOG, _LARGEST_LOG)


class NormalFamily(ActionDistribution):
    """Base of the families whose logits give independent normals, which tanh squashes into the Box's bounds or not."""

    title: ClassVar[str]  # in messages
    allows_minus_infinity = False

    def __init__(self, leaf: Leaf, width: int, *, is_squashed: bool) -> None:
        super().__init__(leaf, width)
        self.stays_within = is_squashed
        self.same_bounds = keep_bounds(self, leaf) if is_squashed else None
        self._resolution = Resolution.of(leaf)

    def normals(self, logits: Tensor, temperature: float | Tensor) -> GaussianDistribution:
        """The normals of ``logits`` (..., k), before squashing."""
        raise TypeError(f"{type(self).__name__} must define normals(logits, temperature)")

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> GaussianDistribution | SquashedGaussianDistribution:
        refuse_mask(mask, self.title, self.key)
        return self._squashed(self.normals(logits, temperature))

    @property
    def row_width(self) -> int:
        return 2 * math.prod(self.action_shape)

    def of_row(self, row: Tensor) -> GaussianDistribution | SquashedGaussianDistribution:
        """The same distribution, of means and standard deviations (..., 2 * dims); every sample has fresh noise."""
        mean, std = halves_of_row(row, self.action_shape)
        event_dims = len(self.action_shape)
        return self._squashed(GaussianDistribution(mean, std.log(), event_dims, key=self.key))

    def squash(self, u: Tensor) -> Tensor:
        """A value of the normal, (..., *action shape), as an action; within the bounds where it is squashed."""
        return squashed(u, self._bounds(u.dtype)) if self.stays_within else u

    def _squashed(
        self, normals: GaussianDistribution
    ) -> GaussianDistribution | SquashedGaussianDistribution:
        if not self.stays_within:
            return normals
        bounds = self._bounds(normals.mean.dtype)
        return SquashedGaussianDistribution(
            normals, bounds, resolution=self._resolution, key=self.key
        )

    def _bounds(self, dtype: torch.dtype) -> Bounds:
        return self.same_bounds or kept_bounds(self, dtype)


class _Normals(NormalFamily):
    """The base of gaussian and squashed_gaussian, whose standard deviations are logits or a parameter."""

    def __init__(
        self,
        leaf: Leaf,
        log_std: LogStd,
        init_log_std: float,
        log_std_range: tuple[float, float],
        *,
        is_squashed: bool,
    ) -> None:
        kept_range = log_std_limits(init_log_std, log_std_range)
        dims = math.prod(leaf.shape)
        width = dims if log_std == "learned" else 2 * dims
        super().__init__(leaf, width, is_squashed=is_squashed)
        self.init_log_std = init_log_std
        self.kept_range = kept_range
        start = torch.full(leaf.shape, float(init_log_std))
        self.log_std = nn.Parameter(start) if log_std == "learned" else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        if self.log_std is not None:
            nn.init.constant_(self.log_std, self.init_log_std)

    def normals(self, logits: Tensor, temperature: float | Tensor) -> GaussianDistribution:
        check_temperature(temperature)
        logits, learned = wide(logits), self.log_std
        if learned is None:
            mean, log_std = logits.chunk(2, -1)
            log_std = self._shaped(log_std) + self.init_log_std
        else:
            mean, log_std = logits, learned.to(logits.dtype)
        if not are_few_within(log_std, *self.kept_range):
            log_std = log_std.clamp(*self.kept_range)
        return GaussianDistribution(
            self._shaped(mean), warmer(log_std, temperature), len(self.action_shape), key=self.key
        )

    def _shaped(self, values: Tensor) -> Tensor:
        """Values (..., dims) as (..., *action shape)."""
        if len(self.action_shape) == 1:
            return values  # a view of it would be one operation more, here and in backward
        return values.reshape((*values.shape[:-1], *self.action_shape))


class Gaussian(_Normals):
    """Independent normals, for a Box with or without bounds (towards the environment an action is clipped).

    ``log_std: state`` reads the log standard deviations from the logits, (..., means then log standard deviations);
    ``learned`` has one parameter per dimension. ``init_log_std`` is added to the former and is where the latter
    starts; both are clamped to ``log_std_range``, outside of which their gradient is zero. ``temperature`` multiplies
    the standard deviation.
    """

    title = "gaussian"

    def __init__(
        self,
        leaf: Leaf,
        *,
        log_std: LogStd = "state",
        init_log_std: float = 0.0,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
    ) -> None:
        if leaf.kind != "box":
            raise misfit(self.title, leaf, "a Box action")
        super().__init__(leaf, log_std, init_log_std, log_std_range, is_squashed=False)


class SquashedGaussian(_Normals):
    """A normal squashed into the Box's bounds by tanh; settings as gaussian, ``temperature`` acts before squashing."""

    title = "squashed_gaussian"

    def __init__(
        self,
        leaf: Leaf,
        *,
        log_std: LogStd = "state",
        init_log_std: float = 0.0,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
    ) -> None:
        if not is_bounded(leaf):
            raise misfit(self.title, leaf, "a Box action with finite bounds")
        super().__init__(leaf, log_std, init_log_std, log_std_range, is_squashed=True)


def _normal_like(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    # Not torch.randn, which the compiler does not take with a batch of any size; the numbers are the same.
    empty = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return empty.normal_(generator=generator)


def _standard(value: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The distance of ``value`` from ``mean`` in standard deviations, clamped so that its square is finite."""
    distance = (value - mean) * (-log_std).exp()
    return functional.hardtanh(distance, -FARTHEST, FARTHEST)  # clamp, with one operation backward


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)**2), without cancellation for large u."""
    slope = 2 * (math.log(2) - u + functional.logsigmoid(2 * u))
    return slope.clamp_min(floor_of(u.dtype))
