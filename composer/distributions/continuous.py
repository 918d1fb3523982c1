"""Distributions over a Box: normal, normal squashed into the bounds, beta. Densities are on the Box's own scale."""

from __future__ import annotations

import math
from typing import Any, Literal

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
    limits_text,
    misfit,
    refuse_actions,
    wide,
)
from composer.distributions.cells import (
    FARTHEST,
    FINEST,
    Bounds,
    Placed,
    Resolution,
    log_mean_density,
    place,
)
from composer.spaces.kinds import Leaf
from composer.spaces.values import on_host

__all__ = ["Beta", "BetaDistribution", "Gaussian", "GaussianDistribution", "SquashedGaussian"]
__all__ += ["are_few_within"]
__all__ += ["SquashedGaussianDistribution", "keep_bounds", "kept_bounds", "refuse_mask", "squashed"]

LogStd = Literal["state", "learned"]
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_ENTROPY = 0.5 + _HALF_LOG_2PI  # of a standard normal
_NODES, _REACH = 101, 7.5  # see SquashedGaussianDistribution.entropy
_LARGEST_LOG = 80.0  # of a standard deviation: float32 holds it and its reciprocal
_BROAD = 64.0  # see BetaDistribution
_SERIES = 16.0  # where the asymptotic series of betas begin


def bounds_between(low: Any, high: Any) -> Bounds:
    """`Bounds` of two numbers or two tensors; equal ones get a tiny distance."""
    half = high / 2 - low / 2  # the difference itself may overflow
    tiny = torch.finfo(torch.float32).tiny
    if isinstance(half, Tensor):
        half = half.clamp_min(tiny)
        return Bounds(low, high, low / 2 + high / 2, half, half.log())
    half = max(half, tiny)
    return Bounds(low, high, low / 2 + high / 2, half, math.log(half))


def squashed(u: Tensor, bounds: Bounds) -> Tensor:
    """``u`` squashed into the bounds by tanh."""
    low, high, middle, half, _ = bounds
    return torch.clamp(middle + half * u.tanh(), low, high)  # rounding may leave the bounds


def refuse_outside(action: Tensor, bounds: Bounds, key: str) -> None:
    """Raise ValueError for an action that is NaN, or outside of its bounds by more than rounding explains."""
    if action.dtype == torch.bool:
        raise ValueError(f"action {key!r} must be of numbers, got torch.bool; give action.float()")
    if not on_host(action) or not action.numel():
        return
    distance = (action.detach() - bounds.middle).abs()
    if bool((distance <= bounds.half).all()):  # nearly always
        return
    largest = bounds.half + abs(bounds.middle)
    # Environments and buffers have float32, whatever the dtype of the policy.
    dtypes = (torch.float32, *(d for d in (action.dtype,) if d.is_floating_point))
    rounding = 4 * max(torch.finfo(dtype).eps for dtype in dtypes) * largest
    wrong = ~(distance <= bounds.half + rounding)
    shape = wrong.shape
    refuse_actions(
        action,
        wrong,
        lambda at: limits_text(bounds.low, bounds.high, shape, at),
        key,
        "clip it to the bounds: action.clamp(low, high)",
    )


class GaussianDistribution(Distribution):
    """Independent normals: ``mean`` (..., *action shape), and ``log_std`` of that shape or for the whole batch.

    ``key`` is for messages.
    """

    def __init__(
        self, mean: Tensor, log_std: Tensor, event_dims: int, *, key: str = "action"
    ) -> None:
        self.mean = mean
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
        deviation = self._log_std.detach().exp()
        return self.mean.detach() + deviation * _normal_like(self.mean, generator)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
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
        at_mean = -self._dims * _HALF_LOG_2PI - event_sum(self._log_std, self.event_dims)
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
        return _as_row(self.mean, self.stddev, self.event_dims)

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
        return _as_row(*self._excess, self.event_dims)

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


def are_few_within(log_std: Tensor, low: float, high: float) -> bool:
    """Whether a few numbers, as of a learned ``log_std``, are within a range; Python sees it faster than a clamp runs.

    False where `on_host` allows no look.
    """
    few = log_std.dim() == 1 and 0 < log_std.numel() <= FEW_NUMBERS
    if not few or not on_host(log_std.detach()):  # a parameter is no plain tensor
        return False
    numbers = log_std.tolist()
    return low <= min(numbers) and max(numbers) <= high


class _Normals(ActionDistribution):
    """The base of gaussian and squashed_gaussian: logits (or logits and a parameter) as independent normals."""

    allows_minus_infinity = False

    def __init__(
        self, leaf: Leaf, log_std: LogStd, init_log_std: float, log_std_range: tuple[float, float]
    ) -> None:
        low, high = log_std_range
        if not low <= high:
            raise ValueError(f"'log_std_range' must be (low, high), got ({low}, {high})")
        if not low <= init_log_std <= high:
            raise ValueError(
                f"'init_log_std' must be within 'log_std_range' ({low}, {high}), got {init_log_std}"
            )
        dims = math.prod(leaf.shape)
        super().__init__(leaf, dims if log_std == "learned" else 2 * dims)
        self.init_log_std = init_log_std
        self.log_std_range = (low, high)
        self.kept_range = (max(low, -_LARGEST_LOG), min(high, _LARGEST_LOG))
        start = torch.full(leaf.shape, float(init_log_std))
        self.log_std = nn.Parameter(start) if log_std == "learned" else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        if self.log_std is not None:
            nn.init.constant_(self.log_std, self.init_log_std)

    def normals(self, logits: Tensor, temperature: float) -> GaussianDistribution:
        check_temperature(temperature)
        logits = wide(logits)
        shape = (*logits.shape[:-1], *self.action_shape)
        if self.log_std is None:
            mean, log_std = logits.chunk(2, -1)
            log_std = log_std.reshape(shape) + self.init_log_std
        else:
            mean, log_std = logits, self.log_std.to(logits.dtype)
        if not are_few_within(log_std, *self.kept_range):
            log_std = log_std.clamp(*self.kept_range)
        if isinstance(temperature, Tensor) or temperature != 1.0:
            change = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
            log_std = (log_std + change).clamp(-_LARGEST_LOG, _LARGEST_LOG)
        return GaussianDistribution(
            mean.reshape(shape), log_std, len(self.action_shape), key=self.key
        )

    @property
    def row_width(self) -> int:
        return 2 * math.prod(self.action_shape)

    def normals_of_row(self, row: Tensor) -> GaussianDistribution:
        mean, std = _of_row(row, self.action_shape)
        return GaussianDistribution(mean, std.log(), len(self.action_shape), key=self.key)


class Gaussian(_Normals):
    """Independent normals, for a Box with or without bounds (towards the environment an action is clipped).

    ``log_std: state`` reads the log standard deviations from the logits, (..., means then log standard deviations);
    ``learned`` has one parameter per dimension. ``init_log_std`` is added to the former and is where the latter
    starts; both are clamped to ``log_std_range``, outside of which their gradient is zero. ``temperature`` multiplies
    the standard deviation.
    """

    def __init__(
        self,
        leaf: Leaf,
        *,
        log_std: LogStd = "state",
        init_log_std: float = 0.0,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
    ) -> None:
        if leaf.kind != "box":
            raise misfit("gaussian", leaf, "a Box action")
        super().__init__(leaf, log_std, init_log_std, log_std_range)

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> GaussianDistribution:
        refuse_mask(mask, "gaussian", self.key)
        return self.normals(logits, temperature)

    def of_row(self, row: Tensor) -> GaussianDistribution:
        return self.normals_of_row(row)


class SquashedGaussian(_Normals):
    """A normal squashed into the Box's bounds by tanh; settings as gaussian, ``temperature`` acts before squashing."""

    def __init__(
        self,
        leaf: Leaf,
        *,
        log_std: LogStd = "state",
        init_log_std: float = 0.0,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
    ) -> None:
        if not is_bounded(leaf):
            raise misfit("squashed_gaussian", leaf, "a Box action with finite bounds")
        super().__init__(leaf, log_std, init_log_std, log_std_range)
        self.same_bounds = keep_bounds(self, leaf)
        self._resolution = Resolution.of(leaf)

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> SquashedGaussianDistribution:
        refuse_mask(mask, "squashed_gaussian", self.key)
        return self._squashed(self.normals(logits, temperature))

    def of_row(self, row: Tensor) -> SquashedGaussianDistribution:
        return self._squashed(self.normals_of_row(row))

    def _squashed(self, normals: GaussianDistribution) -> SquashedGaussianDistribution:
        bounds = self._bounds(normals.mean.dtype)
        return SquashedGaussianDistribution(
            normals, bounds, resolution=self._resolution, key=self.key
        )

    def squash(self, u: Tensor) -> Tensor:
        """A value of the normal, (..., *action shape), as an action within the bounds."""
        return squashed(u, self._bounds(u.dtype))

    def _bounds(self, dtype: torch.dtype) -> Bounds:
        return self.same_bounds or kept_bounds(self, dtype)


class Beta(ActionDistribution):
    """Betas over the Box's bounds; logits (..., for alpha then for beta), each concentration is 1 + softplus(logit).

    Both are above 1, so the density has one peak and is zero at the bounds. ``temperature`` divides what exceeds 1: the
    density to the power of 1 / temperature, which keeps its mode. It is at most the square of 1 / eps, where the
    standard deviation is about eps: the dtype cannot distinguish it from a narrower one.
    """

    allows_minus_infinity = False

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
        a, b = _of_row(row, self.action_shape)
        bounds = self.same_bounds or kept_bounds(self, a.dtype)
        return BetaDistribution(
            a, b, bounds, len(self.action_shape), resolution=self._resolution, key=self.key
        )


def keep_bounds(family: ActionDistribution, leaf: Leaf) -> Bounds | None:
    """The bounds if they are the same for all elements; else None, and they are constants of ``family``."""
    low, high = leaf.port.low, leaf.port.high
    if isinstance(low, float) and isinstance(high, float):
        return bounds_between(low, high)
    for name, bound in (("low", low), ("high", high)):
        value = torch.tensor(bound, dtype=torch.float64, device="cpu").expand(leaf.shape)
        # Nearly always; and not every device has float64.
        exact = bool((value.float() == value).all())
        family.constant(name, value.tolist(), torch.float32 if exact else torch.float64)
    return None


def kept_bounds(family: ActionDistribution, dtype: torch.dtype) -> Bounds:
    return bounds_between(family.low.to(dtype), family.high.to(dtype))


def refuse_mask(mask: Tensor | None, name: str, key: str) -> None:
    if mask is not None:
        raise ValueError(f"action {key!r} is {name}, which takes no mask; only choices have one")


def _as_row(first: Tensor, second: Tensor, event_dims: int) -> Tensor:
    """Two tensors (..., *action shape) as (..., 2 * dims)."""
    parts = (first, second)
    if not event_dims:
        return torch.stack(parts, -1)
    return torch.cat([part.flatten(-event_dims) for part in parts], -1)


def _of_row(row: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The two tensors (..., *shape) of a row."""
    first, second = row.chunk(2, -1)
    shape = (*row.shape[:-1], *shape)
    return first.reshape(shape), second.reshape(shape)


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


# --- betas: functions of a concentration minus 1, without cancellation ---


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
