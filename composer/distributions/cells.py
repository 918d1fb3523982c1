"""The cell of all numbers that round to an action in its dtype, and the probability of a normal there.

A density squashed into bounds changes more between two neighbouring numbers near a bound than a float can resolve:
float32 has nothing between tanh(9.1) and 1. So a density there is a mean over the cell: the probability of what rounds
to the action, divided by the cell's width. Where cells are narrow, which is nearly everywhere, that is the density at
the action; near a bound it stays finite, changes smoothly with mean and standard deviation, and the cells of all
numbers within the bounds, the bounds included, have the probability 1 together (but for a hundredth where a whole
policy is narrower than a cell and on its edge).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer.spaces.kinds import Leaf

__all__ = ["FARTHEST", "FINEST", "Bounds", "Placed", "Resolution", "log_mean_density", "place"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
FARTHEST = 1e18  # standard deviations from the mean: the square is still finite in float32
_FAR_TAIL = 20.0  # beyond it the series of `log_upper` is exact
_ROUNDING = 0.1  # of a cell's width
# Of a standard deviation: in cells below it the density changes by less than 1e-5.
_SHORT_WAY = 0.01


class Bounds(NamedTuple):
    """The bounds of a Box and values derived from them: numbers if all elements have the same bounds, else tensors."""

    low: Any
    high: Any
    middle: Any
    half: Any
    log_half: Any


class Resolution(NamedTuple):
    """The numbers to which the environment's actions are rounded: of a float dtype, or whole numbers (None)."""

    dtype: torch.dtype | None

    @classmethod
    def of(cls, leaf: Leaf) -> Resolution:
        dtype = leaf.dtype
        return cls(dtype if dtype.is_floating_point else None)


FINEST = Resolution(torch.float64)  # no limit


class Placed(NamedTuple):
    """Actions between their bounds.

    ``below`` and ``above`` are distances from the bounds, in halves of the bounds' width: from 0 to 2. No cell reaches
    further than ``reach`` from its action. ``coarsest`` is the dtype whose numbers the cells are; None: whole numbers.
    """

    value: Tensor
    below: Tensor
    above: Tensor
    reach: Any
    coarsest: torch.dtype | None


def place(action: Tensor, bounds: Bounds, dtype: torch.dtype, resolution: Resolution) -> Placed:
    """Where an action is, computed in ``dtype``, and the coarsest of that, its own dtype and the ``resolution``.

    An action that rounding took beyond a bound is on the bound.
    """
    value, half = action.detach(), bounds.half
    dtypes = [d for d in (value.dtype, dtype, resolution.dtype) if d and d.is_floating_point]
    coarsest = max(dtypes, key=lambda d: torch.finfo(d).eps)
    reach = (1 + abs(bounds.middle) / half) * (torch.finfo(coarsest).eps / 2)
    if resolution.dtype is None:
        value = value.to(dtype).round()
        reach = reach + 0.5 / half
        coarsest = None
    else:
        value = value.to(coarsest).to(dtype)
    value = value.clamp(bounds.low, bounds.high)
    return Placed(value, *_distances(value, bounds), reach, coarsest)


def _distances(value: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Distances of ``value`` from both bounds, exact next to them."""
    low, high, _, half, _ = bounds
    tiny = torch.finfo(value.dtype).tiny
    if isinstance(half, Tensor) or half > 1e37:  # the differences might overflow
        value, low, high, half = value / 2, low / 2, high / 2, half / 2
    return ((value - low) / half).clamp_min(tiny), ((high - value) / half).clamp_min(tiny)


def log_mean_density(
    placed: Placed, bounds: Bounds, mean: Tensor, log_std: Tensor, look: bool
) -> Tensor:
    """The logarithm of the mean density, over the cell of each action, of ``tanh(u)`` with u normal; from -1 to 1.

    ``look`` says whether values may be looked at: then the cells that are not narrow are computed alone.
    """
    _, below, above, reach, _ = placed
    slope = below * above  # 1 - tanh(u)**2
    scale = (-log_std).exp()
    standard = ((0.5 * (below / above).log() - mean) * scale).clamp(-FARTHEST, FARTHEST)
    terms = -0.5 * standard.square() - _HALF_LOG_2PI - log_std - slope.log()
    with torch.no_grad():  # the width of a cell in u is at most 2 * reach / slope
        short = slope * _SHORT_WAY > 2 * reach * (1 + scale) * (1 + standard.abs())
    if not look:
        return torch.where(short, terms, _over_cells(placed, bounds, mean, log_std))
    if bool(short.all()):
        return terms
    rest = ~short
    parts: list[Any] = [
        part.expand_as(rest)[rest] if isinstance(part, Tensor) else part
        for part in (*placed, *bounds)
    ]
    value, below, above, reach, coarsest, *edges = parts
    few = Placed(value, below, above, reach, coarsest)
    mean, log_std = mean.expand_as(rest)[rest], log_std.expand_as(rest)[rest]
    return terms.masked_scatter(rest, _over_cells(few, Bounds(*edges), mean, log_std))


def _over_cells(placed: Placed, bounds: Bounds, mean: Tensor, log_std: Tensor) -> Tensor:
    """`log_mean_density` computed from the cells' edges, for cells of any width."""
    below, above, reach = _cells(placed, bounds)
    tiny = torch.finfo(mean.dtype).tiny
    lowest, highest = below <= reach, above <= reach  # the cell is open: it holds all u beyond
    lower = 0.5 * ((below - reach).clamp_min(tiny).log() - (above + reach).log())
    upper = 0.5 * ((below + reach).log() - (above - reach).clamp_min(tiny).log())
    ratio, other = (reach / below).clamp_max(0.999), (reach / above).clamp_max(0.999)
    middle = 0.5 * (below / above).log()
    # The same by the distances from the middle, which are exact where cells are narrow.
    left = 0.5 * (other.log1p() - (-ratio).log1p())
    right = 0.5 * (ratio.log1p() - (-other).log1p())
    width = ratio.clamp_max(0.5).atanh() + other.clamp_max(0.5).atanh()
    lower = torch.where(highest, lower, middle - left)
    upper = torch.where(lowest, upper, middle + right)
    # Rounding on the way may have moved an action a little over the edge: a part of the width, as another variance.
    std = torch.hypot(log_std.exp(), _ROUNDING * width)
    scale = std.reciprocal()
    center = (((lower + upper) / 2 - mean) * scale).clamp(-FARTHEST, FARTHEST)
    # Below it the series of `_narrow` is exact; above it differences of probabilities are.
    limit = 4 * torch.finfo(mean.dtype).eps ** (1 / 6)
    with torch.no_grad():
        narrow = (width * (1 + scale) * (1 + center.abs()) < limit) & ~(lowest | highest)
    zero = torch.zeros_like(center)
    inside = _narrow(
        torch.where(narrow, center, zero),
        width.log() - std.log(),
        torch.where(narrow, width * scale, zero),
    )
    across = _wide(lower, upper, mean, scale, lowest, highest, narrow)
    span = (torch.minimum(below, reach) + torch.minimum(above, reach)).log()
    span = torch.where(lowest & highest, math.log(2), span)  # bounds that meet
    return torch.where(narrow, inside, across) - span


def _cells(placed: Placed, bounds: Bounds) -> tuple[Tensor, Tensor, Tensor]:
    """Distances from the bounds to the middles of cells, and half the width of these.

    No cell is finer than what is stretched to the bounds can be, which matters next to a bound at 0.
    """
    value, below, above, _, coarsest = placed
    if coarsest is None:
        return below, above, torch.full_like(below, 0.5) / bounds.half
    step = _spacing(value, coarsest) / bounds.half
    grain = _spacing(bounds.half, value.dtype) / bounds.half
    fine = step < grain
    below = torch.where(fine, (below / grain).round() * grain, below)
    above = torch.where(fine, (above / grain).round() * grain, above)
    tiny = torch.finfo(below.dtype).tiny
    return below.clamp_min(tiny), above.clamp_min(tiny), torch.where(fine, grain, step) / 2


def _spacing(number: Any, dtype: torch.dtype) -> Any:
    """The distance from a number, or each of a tensor, to the next of ``dtype`` towards zero."""
    eps = torch.finfo(dtype).eps
    if isinstance(number, Tensor):
        _, exponent = torch.frexp(number.abs() * (1 - eps / 2))
        return torch.ldexp(number.sign().abs() * eps, exponent - 1)
    mantissa, exponent = math.frexp(number)
    return eps * 2.0 ** (exponent - 1 - (mantissa == 0.5))


def _narrow(center: Tensor, log_width: Tensor, width: Tensor) -> Tensor:
    """The log-probability of a standard normal within ``width`` around ``center``, to the fourth power of width."""
    square = center.square()
    return -0.5 * square - _HALF_LOG_2PI + log_width + width.square() * (square - 1) / 24


def _wide(
    lower: Tensor, upper: Tensor, mean: Tensor, scale: Tensor,
    lowest: Tensor, highest: Tensor, unused: Tensor,
) -> Tensor:  # fmt: skip
    """The log-probability of a normal between ``lower`` and ``upper``, or beyond one of them; 0 where ``unused``."""
    low, high = (((edge - mean) * scale).clamp(-FARTHEST, FARTHEST) for edge in (lower, upper))
    # Mirrored where most of it is on the left, so that both edges are on the right: no difference of two near 1.
    mirrored = lowest | (~highest & (low + high < 0))
    near, far = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    whole = (lowest & highest) | unused
    zero = torch.zeros_like(near)
    log_near = torch.where(whole, zero, log_upper(torch.where(whole, zero, near)))
    closed = ~(lowest | highest | unused)
    ratio = log_upper(torch.where(closed, far, zero)) - torch.where(closed, log_near, zero)
    share = -torch.where(closed, ratio, -torch.ones_like(ratio)).expm1()
    share = share.clamp_min(torch.finfo(share.dtype).tiny)
    return log_near + torch.where(closed, share.log(), zero)


def log_upper(x: Tensor) -> Tensor:
    """The log-probability that a standard normal is above ``x``, with its gradient in the far tail too."""
    body = x.clamp_max(1).mul(-math.sqrt(0.5)).erfc()
    tail = x.clamp(1, _FAR_TAIL)
    far = x.clamp_min(_FAR_TAIL)
    r = far.square().reciprocal()
    series = torch.log1p(-r * (1 - 3 * r * (1 - 5 * r)))
    series = series - 0.5 * far.square() - far.log() - _HALF_LOG_2PI
    scaled = torch.special.erfcx(tail * math.sqrt(0.5))
    log_tail = (scaled / 2).log() - 0.5 * tail.square()
    return torch.where(x < 1, torch.log1p(-body / 2), torch.where(x < _FAR_TAIL, log_tail, series))
