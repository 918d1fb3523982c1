"""Distributions over a Box: normal, normal squashed into the bounds, beta. Densities are on the Box's own scale."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from composer.distributions import (
    ActionDistribution,
    Distribution,
    check_action,
    check_family,
    check_temperature,
    event_sum,
    is_bounded,
    misfit,
    on_host,
    refuse_actions,
    wide,
)
from composer.space_kinds import Leaf

__all__ = ["Beta", "BetaDistribution", "Gaussian", "GaussianDistribution", "SquashedGaussian"]
__all__ += ["SquashedGaussianDistribution", "keep_bounds", "kept_bounds", "refuse_mask", "squashed"]

LogStd = Literal["state", "learned"]
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_NODES, _REACH = 101, 7.5  # see SquashedGaussianDistribution.entropy


class Bounds(NamedTuple):
    """The bounds of a Box and what follows from them: numbers where all elements have the same, else tensors."""

    low: Any
    high: Any
    middle: Any
    half: Any
    log_half: Any


def bounds_between(low: Any, high: Any) -> Bounds:
    """`Bounds` of two numbers or two tensors; where they meet, as good as meet."""
    half = high / 2 - low / 2  # the difference itself may overflow
    tiny = torch.finfo(torch.float32).tiny
    if isinstance(half, Tensor):
        half = half.clamp_min(tiny)
        return Bounds(low, high, low / 2 + high / 2, half, half.log())
    half = max(half, tiny)
    return Bounds(low, high, low / 2 + high / 2, half, math.log(half))


def squashed(u: Tensor, bounds: Bounds) -> Tensor:
    """``u`` between the bounds, by tanh."""
    low, high, middle, half, _ = bounds
    return torch.clamp(middle + half * u.tanh(), low, high)  # rounding may leave the bounds


def refuse_outside(action: Tensor, bounds: Bounds, key: str) -> None:
    """Raise ValueError for an action that is NaN, or outside of its bounds by more than rounding explains."""
    if not on_host(action) or not action.numel():
        return
    distance = (action.detach() - bounds.middle).abs()
    if bool((distance <= bounds.half).all()):  # nearly always
        return
    largest = bounds.half + abs(bounds.middle)
    dtypes = (torch.float32, *(d for d in (action.dtype,) if d.is_floating_point))
    rounding = 4 * max(torch.finfo(dtype).eps for dtype in dtypes) * largest
    wrong = ~(distance <= bounds.half * 1.001 + rounding)
    refuse_actions(action, wrong, bounds.low, bounds.high, key)


class GaussianDistribution(Distribution):
    """Independent normals: ``mean`` and ``log_std`` (..., *action shape)."""

    def __init__(self, mean: Tensor, log_std: Tensor, event_dims: int) -> None:
        self.mean = mean
        self.log_std = log_std
        self.event_dims = event_dims

    @property
    def stddev(self) -> Tensor:
        return self.log_std.exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.rsample(generator).detach()

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + self.stddev * _normal_like(self.mean, generator)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        check_action(action, self.mean.shape, self.event_dims)
        return event_sum(self.log_densities(action.to(self.mean.dtype)), self.event_dims)

    def entropy(self) -> Tensor:
        return event_sum(self.entropies(), self.event_dims)

    def kl(self, other: GaussianDistribution) -> Tensor:
        check_family(self, other)
        ratio = (2 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        terms = other.log_std - self.log_std + 0.5 * (ratio + distance - 1)
        return event_sum(terms, self.event_dims)

    def log_densities(self, value: Tensor) -> Tensor:
        """Per dimension, (..., *action shape)."""
        standard = (value - self.mean) * (-self.log_std).exp()
        return -0.5 * standard.square() - self.log_std - _HALF_LOG_2PI

    def entropies(self) -> Tensor:
        """Per dimension, (..., *action shape)."""
        return (0.5 + _HALF_LOG_2PI + self.log_std).expand_as(self.mean)


class SquashedGaussianDistribution(Distribution):
    """``middle + half * tanh(u)`` with u normal: an action within its bounds.

    `log_prob` of the very tensor that `rsample` returned uses its u, so that gradients are exact. Of any other action
    it goes back through atanh; what is on a bound is taken as the nearest number inside that the dtype can tell (|u| is
    about 8.3 for float32): the value is finite, and the same whenever it is computed. What is further out than rounding
    explains is refused where `on_host` allows a look at it.
    """

    def __init__(self, base: GaussianDistribution, bounds: Bounds, *, key: str = "action") -> None:
        self.base = base
        self.bounds = bounds
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
        if u is None or action is not drawn:
            check_action(action, self.base.mean.shape, self.base.event_dims)
            u = self._unsquash(action)
            refuse_outside(action, self.bounds, self._key)
        terms = self.base.log_densities(u) - _log_slope(u) - self.bounds.log_half
        return event_sum(terms, self.base.event_dims)

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
        """That of the normals: squashing both alike changes nothing."""
        check_family(self, other)
        return self.base.kl(other.base)

    def _unsquash(self, action: Tensor) -> Tensor:
        inside = (action.to(self.base.mean.dtype) - self.bounds.middle) / self.bounds.half
        limit = 1 - torch.finfo(inside.dtype).eps
        return inside.clamp(-limit, limit).atanh()


class BetaDistribution(Distribution):
    """Independent betas stretched over the bounds: concentrations ``1 + a`` and ``1 + b`` (..., *action shape)."""

    def __init__(
        self, a: Tensor, b: Tensor, bounds: Bounds, event_dims: int, *, key: str = "action"
    ) -> None:
        self._excess = (a, b)
        self.concentrations = (1 + a, 1 + b)
        self.bounds = bounds
        self.event_dims = event_dims
        self._log_width = bounds.log_half + math.log(2)
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
        tiny = torch.finfo(a.dtype).tiny  # both may have underflowed to 0: the middle
        return self._stretch((a + tiny) / (a + b + 2 * tiny))

    def log_prob(self, action: Tensor) -> Tensor:
        """An action on a bound is taken as the nearest number inside that the dtype can tell."""
        a, b = self._excess
        check_action(action, a.shape, self.event_dims)
        refuse_outside(action, self.bounds, self._key)
        eps = torch.finfo(a.dtype).eps
        x = (action.to(a.dtype) - self.bounds.low) / self.bounds.half / 2
        x = x.clamp(eps, 1 - eps)
        terms = a * x.log() + b * torch.log1p(-x) - self._log_norm() - self._log_width
        return event_sum(terms, self.event_dims)

    def entropy(self) -> Tensor:
        a, b = self._excess
        alpha, beta = self.concentrations
        terms = self._log_norm() - a * alpha.digamma() - b * beta.digamma()
        terms = terms + (a + b) * (alpha + beta).digamma() + self._log_width
        return event_sum(terms, self.event_dims)

    def kl(self, other: BetaDistribution) -> Tensor:
        check_family(self, other)
        alpha, beta = self.concentrations
        da, db = alpha - other.concentrations[0], beta - other.concentrations[1]
        terms = other._log_norm() - self._log_norm() + da * alpha.digamma() + db * beta.digamma()
        return event_sum(terms - (da + db) * (alpha + beta).digamma(), self.event_dims)

    def _log_norm(self) -> Tensor:
        alpha, beta = self.concentrations
        return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()

    def _stretch(self, x: Tensor) -> Tensor:
        low, high, _, half, _ = self.bounds
        return torch.clamp(low + 2 * x * half, low, high)  # rounding may leave the bounds


class _Normals(ActionDistribution):
    """What gaussian and squashed_gaussian share: logits (or logits and a parameter) to independent normals."""

    def __init__(
        self, leaf: Leaf, log_std: LogStd, init_log_std: float, log_std_range: tuple[float, float]
    ) -> None:
        low, high = log_std_range
        if low > high:
            raise ValueError(f"'log_std_range' must be (low, high), got ({low}, {high})")
        if not low <= init_log_std <= high:
            raise ValueError(
                f"'init_log_std' must be within 'log_std_range' ({low}, {high}), got {init_log_std}"
            )
        dims = math.prod(leaf.shape)
        super().__init__(leaf, dims if log_std == "learned" else 2 * dims)
        self.init_log_std = init_log_std
        self.log_std_range = (low, high)
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
        log_std = log_std.clamp(*self.log_std_range)
        if isinstance(temperature, Tensor):
            log_std = log_std + temperature.log()
        elif temperature != 1.0:
            log_std = log_std + math.log(temperature)
        return GaussianDistribution(mean.reshape(shape), log_std, len(self.action_shape))


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

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> SquashedGaussianDistribution:
        refuse_mask(mask, "squashed_gaussian", self.key)
        normals = self.normals(logits, temperature)
        return SquashedGaussianDistribution(normals, self._bounds(normals.mean.dtype), key=self.key)

    def squash(self, u: Tensor) -> Tensor:
        """A value of the normal, (..., *action shape), as an action within the bounds."""
        return squashed(u, self._bounds(u.dtype))

    def _bounds(self, dtype: torch.dtype) -> Bounds:
        return self.same_bounds or kept_bounds(self, dtype)


class Beta(ActionDistribution):
    """Betas over the Box's bounds; logits (..., for alpha then for beta), each concentration is 1 + softplus(logit).

    Both are above 1, so the density has one peak and is zero at the bounds. ``temperature`` divides what exceeds 1: the
    density to the power of 1 / temperature, which keeps its mode.
    """

    def __init__(self, leaf: Leaf) -> None:
        if not is_bounded(leaf):
            raise misfit("beta", leaf, "a Box action with finite bounds")
        super().__init__(leaf, 2 * math.prod(leaf.shape))
        self.same_bounds = keep_bounds(self, leaf)

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> BetaDistribution:
        refuse_mask(mask, "beta", self.key)
        check_temperature(temperature)
        excess = functional.softplus(wide(logits)) / temperature
        shape = (*excess.shape[:-1], *self.action_shape)
        a, b = (part.reshape(shape) for part in excess.chunk(2, -1))
        bounds = self.same_bounds or kept_bounds(self, a.dtype)
        return BetaDistribution(a, b, bounds, len(self.action_shape), key=self.key)


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


def _normal_like(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)**2), without cancellation for large u."""
    return 2 * (math.log(2) - u + functional.logsigmoid(2 * u))
