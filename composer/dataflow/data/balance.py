"""Neighbours dealt into stretches, so that the largest sum is as small as can be."""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["SampleError", "balanced"]

MOST = 2**62  # of all sizes together
Bounds: TypeAlias = list[tuple[int, int]]


class SampleError(ValueError):
    """The keys, lengths and values of a sample do not fit each other."""


def balanced(sizes: Sequence[int], k: int, min_size: int = 1) -> Bounds:
    """Bounds of ``k`` stretches of at least ``min_size`` neighbours, the largest sum of which is as small as can be.

    By bisection over that sum. A step is O(k log n) for n sizes, or O(n) where ``min_size`` stands in the way. Raises
    SampleError for sizes that are no whole numbers of at least 0, and where there are too few.

    >>> balanced([5, 1, 1, 1, 4], 2)
    [(0, 2), (2, 5)]
    >>> balanced([5, 1, 1, 1, 4], 2, min_size=3)
    Traceback (most recent call last):
    ...
    composer.dataflow.data.balance.SampleError: 5 items cannot be split into 2 parts of at least 3
    """
    n = len(sizes)
    if not _is_count(k) or not _is_count(min_size) or k * min_size > n:
        raise SampleError(f"{n} items cannot be split into {k!r} parts of at least {min_size!r}")
    total = np.concatenate([[0], np.cumsum(_whole_numbers(sizes))])
    sums: list[int] = total.tolist()
    largest, mean = int(np.diff(total).max()), -(-sums[-1] // k)
    windows = total[min_size:] - total[:-min_size]
    widest = int(windows.max())
    bounds = _greedy(sums, widest, k, min_size)
    if bounds is None:  # but a greedy stretch that leaves no room for one more size has the mean
        high = max(widest, mean + largest)
        bounds = _bisected(sums, widest + 1, high, lambda m: _greedy(sums, m, k, min_size))
    else:  # the first and the last min_size items are in one stretch each
        low = max(largest, mean, int(windows[0]), int(windows[-1]))
        better = _bisected(sums, low, widest - 1, lambda m: _exact(total, m, k, min_size))
        bounds = better or bounds
    assert bounds is not None
    return bounds


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _whole_numbers(sizes: Sequence[int]) -> NDArray[np.int64]:
    """The sizes as an array. Raises SampleError for one that is no whole number of at least 0."""
    array = np.asarray(sizes)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
        for at, size in enumerate(sizes):
            try:
                fits = operator.index(size) >= 0 and not isinstance(size, bool)
            except TypeError:
                fits = False
            if not fits:
                raise SampleError(
                    f"a size is a whole number of at least 0; number {at} is {size!r}"
                )
    if int(array.max()) > MOST // len(array):
        raise SampleError(f"the largest size is {array.max()}, too much to add up")
    return array.astype(np.int64)


def _bisected(
    sums: Sequence[int], low: int, high: int, within: Callable[[int], Bounds | None]
) -> Bounds | None:
    """What ``within`` gives for the least sum from ``low`` to ``high`` for which it gives something."""
    best = None
    while low <= high:
        most = (low + high) // 2
        if (bounds := within(most)) is None:
            low = most + 1
        else:
            best, high = bounds, max(sums[stop] - sums[start] for start, stop in bounds) - 1
    return best


def _greedy(sums: Sequence[int], most: int, k: int, min_size: int) -> Bounds | None:
    """Bounds of ``k`` stretches, each as long as its sum of at most ``most`` allows; None if that is too few items.

    It is exact where no ``min_size`` neighbours have more than ``most``. ``sums`` has the sum before each item.
    """
    bounds, start, n = [], 0, len(sums) - 1
    for left in range(k - 1, -1, -1):
        stop = min(bisect_right(sums, sums[start] + most, start) - 1, n - left * min_size)
        if stop - start < min_size:
            return None
        bounds.append((start, stop))
        start = stop
    return bounds if start == n else None


def _exact(total: NDArray[np.int64], most: int, k: int, min_size: int) -> Bounds | None:
    """Bounds of ``k`` stretches of at least ``min_size`` items and a sum of at most ``most``; None if there are none.

    An item ends a stretch if another ends between ``lowest[item]``, where ``most`` is reached, and ``min_size`` before
    it. The stretches up to it can be any number between the fewest and the most: which stretches are allowed fulfils
    the quadrangle inequality, so that the cost of k of them is convex in k. Both numbers grow from end to end.
    """
    lowest: list[int] = np.searchsorted(total, total - most).tolist()
    last, ends, at = [0] * min_size, [0], 0  # last[i]: the last end up to item i
    for item in range(min_size, len(lowest)):
        if last[item - min_size] >= lowest[item]:
            at = item
            ends.append(item)
        elif at < lowest[item]:
            return None
        last.append(at)
    if at != len(lowest) - 1 or _steps(at, lambda end: last[end - min_size]) < k:
        return None
    many = {0: 0}  # the most stretches up to each end
    for end in ends[1:]:
        many[end] = many[last[end - min_size]] + 1
    counts, stops = list(many.values()), [at]
    for left in range(k - 1, -1, -1):
        # The longest stretch before which there can be as many as are left.
        at = ends[max(bisect_left(ends, lowest[at]), bisect_left(counts, left))]
        stops.append(at)
    stops.reverse()
    return list(pairwise(stops)) if stops[0] == 0 else None


def _steps(start: int, step: Callable[[int], int]) -> int:
    """How many steps lead down to 0."""
    count = 0
    while start:
        start = step(start)
        count += 1
    return count
