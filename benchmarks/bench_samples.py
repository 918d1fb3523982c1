"""Packed samples: how lengths are dealt over parts, and how much of what is computed is no padding.

The dynamic programme is ReaL's recurrence, O(k n^2), with its inner minimum in numpy. It gives the same largest sum.
Lengths are drawn from a log-normal distribution, as those of answers of language models are.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from composer.dataflow import Sample, balanced
from harness import Row, main, medians

LIMIT = 0.1  # seconds for 100,000 lengths


def lengths(n: int) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(5.5, 0.8, n)
    return np.clip(drawn, 16, 4096).astype(int).tolist()


def by_dynamic_programme(sizes: Sequence[int], k: int, min_size: int) -> list[tuple[int, int]]:
    """Bounds by the smallest largest sum of the first ``i`` sizes in ``j`` parts, for each j and i."""
    n, total = len(sizes), np.concatenate([[0], np.cumsum(sizes)])
    least = np.where(total > 0, np.inf, 0.0)  # in no part
    cuts = np.zeros((k, n + 1), dtype=np.int64)
    for part in range(k):
        longer = np.full(n + 1, np.inf)
        for stop in range((part + 1) * min_size, n + 1):
            first = part * min_size
            largest = np.maximum(
                least[first : stop - min_size + 1], total[stop] - total[first : stop - min_size + 1]
            )
            at = int(largest.argmin())
            longer[stop], cuts[part, stop] = largest[at], first + at
        least = longer
    bounds, stop = [], n
    for part in range(k - 1, -1, -1):
        start = int(cuts[part, stop])
        bounds.append((start, stop))
        stop = start
    return bounds[::-1]


def largest(sizes: Sequence[int], bounds: Sequence[tuple[int, int]]) -> int:
    return max(sum(sizes[start:stop]) for start, stop in bounds)


def dealt_row(n: int, k: int, min_size: int) -> Row:
    sizes = lengths(n)
    ours = largest(sizes, balanced(sizes, k, min_size))
    assert ours == largest(sizes, by_dynamic_programme(sizes, k, min_size))
    times = medians(
        lambda: balanced(sizes, k, min_size),
        lambda: by_dynamic_programme(sizes, k, min_size),
        rounds=9,
    )
    name = f"{n:,} lengths over {k} parts of at least {min_size}"
    return Row(name, times[0], "dynamic programme", times[1], at_most=0.1)


def limit_row(k: int, min_size: int, at_most: float | None = 1) -> Row:
    sizes = lengths(100_000)
    (time,) = medians(lambda: balanced(sizes, k, min_size), rounds=9)
    return Row(
        f"100,000 lengths over {k} parts of at least {min_size}", time, "limit", LIMIT, at_most
    )


def packing_rows(n: int = 1024, k: int = 32) -> Iterator[Row]:
    """What ``k`` micro-batches of ``n`` sequences compute for one real token, if each is as large as the largest."""
    sizes = lengths(n)
    ids = torch.zeros(sum(sizes), dtype=torch.int64)
    parts = Sample.from_default(range(n), sizes, {"ids": ids}).split(k, "ids")
    packed = k * max(len(part.values("ids")) for part in parts) / sum(sizes)
    alike = np.array_split(sizes, k)  # as many sequences in each, padded to the longest of it
    padded = sum(len(part) * max(part) for part in alike) / sum(sizes)
    name = f"{n} sequences in {k} packed micro-batches, computed"
    yield Row(name, packed, "limit: 95 % are real", 1 / 0.95, 1, unit="per token")
    yield Row(name, packed, "padded", padded, 0.5, unit="per token")


def rows() -> Iterator[Row]:
    yield dealt_row(1000, 8, 1)
    yield dealt_row(1000, 8, 100)
    yield limit_row(64, 1)
    yield limit_row(1000, 8)
    yield limit_row(1000, 64)
    yield limit_row(1000, 90, None)  # nearly all parts have as few as they may
    yield from packing_rows()


if __name__ == "__main__":
    main("Packed samples", rows, peers=["numpy"])
