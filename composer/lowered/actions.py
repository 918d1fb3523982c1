"""Actions from logits without a Distribution around them: the same operations, for one environment step at a time.

There is a short form for what most environments have; all other actions go through their Distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from composer.distributions.base import FEW_NUMBERS, ActionDistribution, wide
from composer.distributions.continuous import Gaussian, SquashedGaussian, are_few_within
from composer.distributions.discrete import Categorical
from composer.spaces.kinds import Leaf

__all__ = ["Draw", "drawer"]

Generator: TypeAlias = torch.Generator | None
# Logits of one observation, whether to take the mode -> the action as the environment has it. Of parameters it refuses
# what is no number.
Draw: TypeAlias = Callable[[Tensor, bool, Generator], Any]
_FULL = (torch.float32, torch.float64)  # in others it is the densities that are wider
_TINY = torch.finfo(torch.float32).tiny


def drawer(family: ActionDistribution, leaf: Leaf) -> Draw | None:
    """The short form of ``family``; None where it has none. Parameters are read when it runs."""
    make = _DRAWERS.get(type(family))
    return None if make is None else make(family, leaf)


def _categorical(family: Categorical, leaf: Leaf) -> Draw:
    start: Any = leaf.start
    number: Any = leaf.space.dtype.type  # type: ignore[union-attr]

    def draw(logits: Tensor, deterministic: bool, generator: Generator) -> Any:
        if not deterministic and logits.numel() <= FEW_NUMBERS and logits.dtype in _FULL:
            # The same choice: the largest p / clock is the largest log(p) - log(clock).
            clocks = torch.empty_like(logits).exponential_(generator=generator).tolist()
            scores = [x - log(max(clock, _TINY)) for x, clock in zip(logits.tolist(), clocks)]
            return number(scores.index(max(scores)) + start)
        log_probs = torch.log_softmax(wide(logits), -1)
        if not deterministic:  # as ChoiceDistribution.sample
            clocks = torch.empty_like(log_probs).exponential_(generator=generator)
            log_probs = log_probs.exp_().div_(clocks.clamp_min_(torch.finfo(clocks.dtype).tiny))
        return number(int(log_probs.argmax(-1)) + start)

    return draw


def _gaussian(family: Gaussian, leaf: Leaf) -> Draw | None:
    clip, normal = _clipper(leaf), _normal(family)
    if clip is None:
        return None

    def draw(logits: Tensor, deterministic: bool, generator: Generator) -> Any:
        return clip(normal(wide(logits), deterministic, generator))

    return draw


def _squashed_gaussian(family: SquashedGaussian, leaf: Leaf) -> Draw | None:
    clip, bounds = _clipper(leaf), family.same_bounds
    if clip is None or bounds is None or (bounds.low, bounds.high) != leaf.bounds:
        return None  # else what clips to the one clips to the other
    middle, half = bounds.middle, bounds.half
    normal = _normal(family)
    stretched = middle != 0 or half != 1 or str(leaf.space.dtype) != "float32"

    def draw(logits: Tensor, deterministic: bool, generator: Generator) -> Any:
        inside = normal(wide(logits), deterministic, generator).tanh()
        if stretched or inside.dtype != torch.float32:
            return clip(middle + half * inside)
        return inside.numpy()  # which are the bounds of tanh

    return draw


def _normal(
    family: Gaussian | SquashedGaussian,
) -> Callable[[Tensor, bool, Generator], Tensor]:
    """As `GaussianDistribution.sample` and ``mode``, without what only densities need."""
    learned = _learned_deviation(family)
    is_vector = len(family.action_shape) == 1

    def drawn(logits: Tensor, deterministic: bool, generator: Generator) -> Tensor:
        log_std: Tensor | None = None
        deviation: Any = None
        if family._parameters.get("log_std") is not None:
            mean, deviation = logits, learned(logits.dtype)
        else:
            width = logits.shape[-1] // 2
            mean, log_std = torch.split_with_sizes(logits, (width, width), -1)
        if not is_vector:
            mean = mean.reshape(family.action_shape)
        if deterministic:
            return mean
        if log_std is not None:
            if not is_vector:
                log_std = log_std.reshape(family.action_shape)
            if family.init_log_std != 0:
                log_std = log_std + family.init_log_std
            deviation = _deviation(log_std, *family.kept_range).numpy()
        noise = torch.empty_like(mean).normal_(generator=generator)
        view = noise.numpy()  # in place, by numpy: the same numbers in half of torch's time
        view *= deviation
        view += mean.numpy()
        return noise

    return drawn


def _learned_deviation(
    family: Gaussian | SquashedGaussian,
) -> Callable[[torch.dtype], np.ndarray]:
    """The deviation of a learned ``log_std``; of few numbers it is computed and looked at where they have changed."""
    last: tuple[object, torch.dtype | None, Any] = (None, None, None)

    def deviation(dtype: torch.dtype) -> np.ndarray:
        nonlocal last
        log_std = family._parameters["log_std"]
        assert log_std is not None
        numbers = log_std.tolist() if log_std.numel() <= FEW_NUMBERS else None
        if numbers is None or numbers != last[0] or dtype is not last[1]:
            family.refuse_no_parameters()
            value = _deviation(log_std.to(dtype), *family.kept_range).numpy()
            last = (numbers, dtype, value)
        return last[2]

    return deviation


def _deviation(log_std: Tensor, low: float, high: float) -> Tensor:
    """The standard deviation of a clamped ``log_std``."""
    return log_std.exp() if are_few_within(log_std, low, high) else log_std.clamp(low, high).exp_()


def _clipper(leaf: Leaf) -> Callable[[Tensor], Any] | None:
    """A Box of floats from a tensor; None for one of integers, and where bounds differ between elements."""
    low, high = leaf.bounds or (None, None)
    dtype = getattr(torch, str(leaf.space.dtype), None)
    if not isinstance(low, float) or not leaf.shape or dtype is None or not dtype.is_floating_point:
        return None
    number: Any = leaf.space.dtype.type  # type: ignore[union-attr]
    lowest, highest = number(low), number(high)

    def clip(value: Tensor) -> Any:
        if value.dtype != dtype:
            value = value.to(dtype)
        return np.minimum(np.maximum(value.numpy(), lowest), highest)  # half of torch.clamp's time

    return clip


_DRAWERS: dict[type[ActionDistribution], Callable[..., Draw | None]] = {
    Categorical: _categorical,
    Gaussian: _gaussian,
    SquashedGaussian: _squashed_gaussian,
}
