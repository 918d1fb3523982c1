"""The key-value cache of a decoder: what a token sees of those before it, and what a state holds afterwards.

Shapes: n rows (sequences), T tokens of this call, H heads of queries, K heads of keys and values, P places of the
cache, D features of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["AppendedToken", "Attending", "CachedTokens", "PackedSequences", "Placement"]
__all__ += ["WholeSequences", "attention"]


class Attending(Protocol):
    """What the tokens of a call can see."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries (n, H, T, D), keys and values (n, K, T, D) of the tokens of this call -> (n, H, T, D)."""
        ...


class WholeSequences:
    """Sequences that are here from their first token to their last: each token sees itself and those before it."""

    def __init__(self, window: int | None) -> None:
        self.window = window

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        length = queries.shape[-2]
        if self.window is None:
            return attention(queries, keys, values, is_causal=length > 1)
        places = torch.arange(length, device=queries.device)
        distances = places.unsqueeze(-1) - places
        return attention(queries, keys, values, distances_seen(distances, self.window))


class PackedSequences(WholeSequences):
    """Sequences one after the other in one row: padded for the attention, which is all that relates tokens.

    ``numbers`` (N,) says to which of ``count`` sequences a token belongs, ``places`` (N,) where it stands there.
    """

    def __init__(
        self, numbers: Tensor, places: Tensor, count: int, longest: int, window: int | None
    ) -> None:
        super().__init__(window)
        self.at = (numbers, places)
        self.size = (count, longest)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        y = super().attend(layer, *(self._padded(x) for x in (queries, keys, values)))
        return y.transpose(1, 2)[self.at].transpose(0, 1).unsqueeze(0)

    def _padded(self, x: Tensor) -> Tensor:
        """(1, heads, N, D) -> (count, heads, longest, D)."""
        _, heads, _, features = x.shape
        rows = x.new_zeros(*self.size, heads, features)
        return rows.index_put(self.at, x[0].transpose(0, 1)).transpose(1, 2)


class Placement:
    """Where the T tokens of a call stand in their episodes, after ``length`` (n,) tokens that the cache holds.

    ``resets`` (n, T) is true where an episode begins. ``places`` (n, T) counts from the first token of the episode.
    """

    def __init__(self, length: Tensor, steps: int, resets: Tensor | None) -> None:
        self.length = length.unsqueeze(-1)
        self.step = torch.arange(steps, device=length.device)
        self.seen = self.step.unsqueeze(-1) >= self.step  # of the tokens of this call
        self.continues = None  # (n, T): whether a token belongs to the episode that the cache holds
        if resets is None:
            self.places = self.length + self.step
            return
        episode = resets.cumsum(dim=-1)
        self.seen = self.seen & (episode.unsqueeze(-1) == episode.unsqueeze(-2))
        self.continues = episode == 0
        self.places = self.seen.sum(-1) - 1 + torch.where(self.continues, self.length, 0)

    def mask(self, used: int, window: int | None) -> Tensor:
        """(n, 1, T, used + T): what a token sees of the first ``used`` places of the cache, and of this call."""
        slots = torch.arange(used, device=self.step.device)
        before = (slots < self.length).unsqueeze(-2)
        distances = self.places.unsqueeze(-1) - slots
        before = before & distances_seen(distances, window)
        if self.continues is not None:
            before = before & self.continues.unsqueeze(-1)
        seen = self.seen
        if window is not None:
            seen = seen & distances_seen(self.step.unsqueeze(-1) - self.step, window)
        return torch.cat([before, seen.expand(*before.shape[:-1], -1)], dim=-1).unsqueeze(1)

    def written(self, cache: Tensor, new: Sequence[Tensor]) -> Tensor:
        """``cache`` (n, layers, K, P, D) with the last episode's tokens of ``new``, (n, K, T, D) for each layer."""
        steps, places = len(self.step), cache.shape[-2]
        tokens = torch.stack(list(new), dim=1)
        source = torch.arange(places, device=cache.device) + (steps - 1 - self.places[:, -1:])
        taken = (source >= 0) & (source < steps)  # (n, P), by tokens of this call
        if steps > 1:
            index = source.clamp(0, steps - 1)[:, None, None, :, None]
            tokens = tokens.gather(-2, index.expand(*cache.shape[:-1], tokens.shape[-1]))
        if self.continues is not None:
            cache = torch.where(self.continues[:, -1, None, None, None, None], cache, 0.0)
        return torch.where(taken[:, None, None, :, None], tokens, cache)


class CachedTokens(WholeSequences):
    """Tokens that see what a cache holds, and each other, by ``mask`` (n, 1, T, used + T); without one they are whole.

    ``new`` collects the keys and values of the tokens of this call, layer by layer.
    """

    def __init__(
        self, cache: Sequence[Tensor], used: int, mask: Tensor | None, window: int | None
    ) -> None:
        super().__init__(window)
        self.cache = [part[..., :used, :] for part in cache]
        self.mask = mask
        self.new: tuple[list[Tensor], list[Tensor]] = ([], [])

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.new[0].append(keys)
        self.new[1].append(values)
        if self.mask is None:
            return super().attend(layer, queries, keys, values)
        before = (part[:, layer] for part in self.cache)
        keys, values = (torch.cat(pair, dim=-2) for pair in zip(before, (keys, values)))
        return attention(queries, keys, values, self.mask)


class AppendedToken:
    """One token for each row, without gradients: written into ``cache``, which must not be the caller's.

    ``place`` (n,) is where each row writes; a number where it is the same for all, so that no mask is needed. Places
    from ``first`` to ``used`` are looked at.
    """

    def __init__(
        self,
        cache: Sequence[Tensor],
        place: int | Tensor,
        first: int,
        used: int,
        window: int | None,
    ) -> None:
        self.cache, self.place, self.span = cache, place, slice(first, used)
        self.mask = None
        if isinstance(place, Tensor):
            self.rows = torch.arange(len(place), device=place.device)
            slots = torch.arange(first, used, device=place.device)
            distances = place.unsqueeze(-1) - slots
            self.mask = distances_seen(distances, window)[:, None, None]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        for part, new in zip(self.cache, (keys, values)):
            if isinstance(self.place, int):
                part[:, layer, :, self.place] = new[:, :, 0]
            else:
                part[self.rows, layer, :, self.place] = new[:, :, 0].to(part.dtype)
        keys, values = (part[:, layer, :, self.span] for part in self.cache)
        return attention(queries, keys, values, self.mask)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Queries (n, H, T, D) to keys and values (n, K, S, D); ``mask`` is true where a query sees a key."""
    attend = functional.scaled_dot_product_attention
    groups = queries.shape[1] // keys.shape[1]
    if groups == 1:
        return attend(queries, keys, values, mask, is_causal=is_causal)
    if queries.shape[2] == 1:  # the heads that share keys are the queries of one head
        folded = queries.reshape(keys.shape[0], keys.shape[1], groups, queries.shape[3])
        return attend(folded, keys, values, mask).reshape(queries.shape)
    keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
    return attend(queries, keys, values, mask, is_causal=is_causal)


def distances_seen(distances: Tensor, window: int | None) -> Tensor:
    """Whether a token sees another that is so many places before it: never later ones, nor beyond the ``window``."""
    seen = distances >= 0
    return seen if window is None else seen & (distances < window)
