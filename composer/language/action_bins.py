"""Actions as tokens: the last tokens of a vocabulary stand for values between an action's statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["ActionBins", "OpenVlaBins", "StatisticsError"]

FLOAT = torch.finfo(torch.float32)


class StatisticsError(ValueError):
    """Statistics of actions that cannot be used; the message says why."""


class ActionBins:
    """The last ``n_bins`` tokens of a vocabulary, from the lowest value to the highest.

    ``statistics`` has the 1st and 99th percentile of each number of an action, ``q01`` and ``q99``, and optionally a
    ``mask``: where it is false, a number stays between -1 and 1. A token is the centre of its bin. Tokens become values
    and the same tokens again; another action becomes that of the nearest bin.

    >>> bins = ActionBins({"q01": [-2.0, 0.0], "q99": [2.0, 1.0], "mask": [True, False]}, n_bins=4, vocab_size=32)
    >>> bins.values(torch.tensor([28, 31]))
    tensor([-1.5000,  0.7500])
    >>> bins.tokens(torch.tensor([-1.5, 0.75]))
    tensor([28, 31])
    """

    def __init__(self, statistics: Mapping[str, Any], n_bins: int, vocab_size: int) -> None:
        if not 1 < n_bins <= vocab_size:
            raise StatisticsError(
                f"the number of bins must be between 2 and the vocabulary's {vocab_size}, got {n_bins}"
            )
        if n_bins * FLOAT.eps >= 1:
            raise StatisticsError(
                f"the number of bins is {n_bins}, more than float32 can tell apart between -1 and 1"
            )
        low, high, mask = _checked(statistics, n_bins)
        self.n_bins = n_bins
        self.vocab_size = vocab_size
        self.first = vocab_size - n_bins  # the first of these tokens
        self.size = len(low)  # how many numbers an action has
        # No buffers: they stay in float32 in a model of another precision, and exist in one without weights.
        with torch.device("cpu"):
            self.low, self.high, self.mask = map(torch.tensor, (low, high, mask))
            self.centres = self._centres()

    def values(self, tokens: Tensor) -> Tensor:
        """``(..., size)`` tokens as an action in the environment's units."""
        low, high, mask, centres = self._on(tokens.device)
        x = centres[self._bins(tokens).clamp(0, len(centres) - 1)]
        return torch.where(mask, 0.5 * (x + 1) * (high - low) + low, x)

    def tokens(self, actions: Tensor) -> Tensor:
        """``(..., size)`` actions as the tokens of the nearest bins. Raises ValueError for NaN."""
        if actions.isnan().any():
            raise ValueError("an action has NaN in it, which is nearest to no token")
        low, high, mask, centres = self._on(actions.device)
        actions = actions.to(centres.dtype)
        x = torch.where(mask, 2 * (actions - low) / (high - low) - 1, actions)
        return self._of_bins(torch.bucketize(x.contiguous(), (centres[1:] + centres[:-1]) / 2))

    def _on(self, device: torch.device) -> list[Tensor]:
        return [tensor.to(device) for tensor in (self.low, self.high, self.mask, self.centres)]

    def _centres(self) -> Tensor:
        edges = torch.linspace(-1, 1, self.n_bins + 1)
        return (edges[:-1] + edges[1:]) / 2

    def _bins(self, tokens: Tensor) -> Tensor:
        return tokens - self.first

    def _of_bins(self, bins: Tensor) -> Tensor:
        return bins + self.first

    def __repr__(self) -> str:
        tokens = f"tokens {self.first} to {self.vocab_size - 1}"
        return f"{type(self).__name__}({self.n_bins} bins, {tokens}, size={self.size})"


class OpenVlaBins(ActionBins):
    """The bins of OpenVLA: its highest token is the lowest value, and ``n_bins`` edges have one centre less between.

    The lowest of these tokens stands for the same value as the one above it, which is the one that `tokens` gives.
    """

    def _centres(self) -> Tensor:
        edges = torch.linspace(-1, 1, self.n_bins)
        return (edges[:-1] + edges[1:]) / 2

    def _bins(self, tokens: Tensor) -> Tensor:
        return self.vocab_size - tokens - 1

    def _of_bins(self, bins: Tensor) -> Tensor:
        return self.vocab_size - 1 - bins


def _checked(
    statistics: Mapping[str, Any], n_bins: int
) -> tuple[list[float], list[float], list[bool]]:
    """The statistics; raises StatisticsError."""
    missing = [name for name in ("q01", "q99") if name not in statistics]
    if missing:
        has = ", ".join(map(repr, statistics)) or "nothing"
        raise StatisticsError(
            f"the statistics lack {' and '.join(map(repr, missing))}; they have {has}"
        )
    low, high = (_numbers(statistics, name) for name in ("q01", "q99"))
    mask = statistics.get("mask")
    mask = [True] * len(low) if mask is None else mask
    if not isinstance(mask, Sequence) or not all(isinstance(value, bool) for value in mask):
        raise StatisticsError("the statistics' 'mask' must be a list of true and false")
    if not len(low) == len(high) == len(mask) or not low:
        sizes = f"{len(low)}, {len(high)} and {len(mask)}"
        raise StatisticsError(f"'q01', 'q99' and 'mask' must have one length, got {sizes} numbers")
    for index, (lower, upper) in enumerate(zip(low, high)):
        least = 2 * n_bins * FLOAT.eps * max(abs(lower), abs(upper))
        if mask[index] and not least < upper - lower < FLOAT.max / 4:
            got = f"got {lower} and {upper} at {index}"
            why = "" if lower >= upper else f" so that float32 can tell {n_bins} bins apart"
            raise StatisticsError(f"'q01' must be below 'q99'{why}, {got}")
    return low, high, list(mask)


def _numbers(statistics: Mapping[str, Any], name: str) -> list[float]:
    values = statistics[name]
    if not isinstance(values, list | tuple) or not all(map(_is_finite, values)):
        raise StatisticsError(f"the statistics' {name!r} must be a list of numbers")
    return [float(value) for value in values]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= FLOAT.max
