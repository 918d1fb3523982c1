"""The k most likely actions of a distribution, best first, and their exact merge over independent parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Candidates", "best", "merged", "of_parts", "padded", "refuse_no_count"]


class Candidates(NamedTuple):
    """The most likely actions and their log-probabilities, both with the candidates on a new first axis, best first.

    ``actions`` are as the distribution samples them, (k, ..., *action shape), by flat key where there are several;
    ``log_probs`` (k, ...) is minus infinity where a row has fewer than k actions of any probability: there ``actions``
    repeat its best.
    """

    actions: Any
    log_probs: Tensor


def refuse_no_count(k: object) -> None:
    """Raise ValueError unless ``k`` is a number of candidates."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be a positive integer, the number of candidates, got {k!r}")


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` highest of ``scores`` (..., n), or all n, and their indices; equal ones in their order."""
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


def merged(scores: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` highest sums of one score from each of the parts, and which these are: (..., k) and (..., k, parts).

    ``scores`` are (..., n) for each part, in falling order. The k best sums of the parts up to one are among the k best
    of those before it, each with the k best of this one, so that a merge part by part is exact. Where there are fewer
    sums above minus infinity, the rest are minus infinity and name the parts of the best.
    """
    total = torch.zeros_like(scores[0][..., :1])
    ranks = torch.zeros((*total.shape, 0), dtype=torch.int64, device=total.device)
    for score in scores:
        kept = score[..., :k]
        sums = total.unsqueeze(-1) + kept.unsqueeze(-2)
        total, index = best(sums.flatten(-2), k)
        before = (index // kept.shape[-1]).unsqueeze(-1).expand(*index.shape, ranks.shape[-1])
        now = (index % kept.shape[-1]).unsqueeze(-1)
        ranks = torch.cat([ranks.gather(-2, before), now], -1)
    missing = k - total.shape[-1]
    if missing:
        total = torch.cat([total, total.new_full((*total.shape[:-1], missing), -torch.inf)], -1)
        first = ranks[..., :1, :].expand(*ranks.shape[:-2], missing, ranks.shape[-1])
        ranks = torch.cat([ranks, first], -2)
    return total, torch.where((total == -torch.inf).unsqueeze(-1), ranks[..., :1, :], ranks)


def padded(action: Tensor, log_prob: Tensor, k: int) -> Candidates:
    """The only candidate ``action``, and ``k`` - 1 that are none."""
    none = log_prob.new_full((k - 1, *log_prob.shape), -torch.inf)
    log_probs = torch.cat([log_prob.unsqueeze(0), none])
    return Candidates(action.unsqueeze(0).expand(k, *action.shape), log_probs)


def _picked(actions: Tensor, ranks: Tensor) -> Tensor:
    """Of ``actions`` (n, ..., *action shape) those of ``ranks`` (..., k), as (k, ..., *action shape)."""
    index = ranks.movedim(-1, 0)
    event = actions.shape[index.dim() :]
    index = index.reshape(*index.shape, *[1] * len(event)).expand(*index.shape, *event)
    return actions.gather(0, index)


def of_parts(parts: Mapping[str, Candidates], k: int) -> Candidates:
    """The ``k`` best joint actions of independent parts, from the candidates of each."""
    scores = [part.log_probs.movedim(0, -1) for part in parts.values()]
    total, ranks = merged(scores, k)
    actions = {
        key: _picked(part.actions, ranks[..., index])
        for index, (key, part) in enumerate(parts.items())
    }
    return Candidates(actions, total.movedim(-1, 0))
